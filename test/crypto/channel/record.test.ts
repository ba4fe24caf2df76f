import { createCutter } from '../../../crypto/channel/cutter.ts'
import { deriveStreamKey } from '../../../crypto/channel/keys.ts'
import { createOpener, createSealer, PADDING_CLASSES, RECORD_DATA_BYTES_MAX, type RecordContext } from '../../../crypto/channel/record.ts'
import { loadSodium, native, portable, randomBytes } from '../../../crypto/sodium.ts'
import { FrameDecoder } from '../../../wire/frame.ts'
import { allow, FRAME, FRAME_LIMITS } from '../../../wire/types.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const test = suite('crypto/record')
await loadSodium()

const key = randomBytes(32)
const context: RecordContext = { migrationId: '0123456789abcdef0123456789abcdef', epoch: 7, index: 2, direction: 'source-to-target' }
const data = (length: number) => Uint8Array.from({ length }, (_, i) => (i * 31 + 7) & 0xff)
const same = (a: Uint8Array, b: Uint8Array) => Buffer.compare(a, b) === 0
const builds = [portable(), ...(native() ? [native()!] : [])]

for (const primitives of builds) {
  const pair = (options: { rekeyBytes?: number } = {}) => {
    const sealer = createSealer({ key, context, primitives, ...options })
    return { sealer, opener: createOpener({ key, context, primitives, header: sealer.header }) }
  }
  const named = (title: string) => `${title} (${primitives.name})`

  test(named('records of every size come back, padded to one of four sizes'), () => {
    const { sealer, opener } = pair()
    const sizes = [0, 1, 1019, 1020, 1021, 4092, 4093, 16380, 16381, 40000, RECORD_DATA_BYTES_MAX]
    for (const size of sizes) {
      const record = sealer.seal(data(size))
      assert.ok(PADDING_CLASSES.includes(record.length - 17), `${size} gave ${record.length}`)
      assert.ok(record.length <= FRAME_LIMITS.RECORD)
      const opened = opener.open(record)
      assert.ok(same(opened.data, data(size)))
      assert.not(opened.final)
    }
    assert.is(sealer.records, sizes.length)
    assert.is(opener.records, sizes.length)
    assert.ok(same(sealer.digest(), opener.digest()))
  })

  test(named('sizes of one class cannot be told apart'), () => {
    const { sealer } = pair()
    assert.is(sealer.seal(data(1021)).length, sealer.seal(data(4092)).length)
    assert.is(sealer.seal(data(0)).length, sealer.seal(data(1020)).length)
    assert.is(sealer.seal(data(16381)).length, sealer.seal(data(RECORD_DATA_BYTES_MAX)).length)
  })

  test(named('opening in place gives the same data without a copy'), () => {
    const { sealer, opener } = pair()
    const record = sealer.seal(data(5000))
    const opened = opener.open(record, { inPlace: true })
    assert.ok(same(opened.data, data(5000)))
    assert.is(opened.data.buffer, record.buffer)
    assert.ok(same(opener.open(sealer.seal(data(10)), { inPlace: true }).data, data(10)))
    assert.ok(same(sealer.digest(), opener.digest()))
  })

  test(named('a record altered in any byte is DECRYPT_FAILED'), async () => {
    const sealer = createSealer({ key, context, primitives })
    const record = sealer.seal(data(100))
    for (let at = 0; at < record.length; at++) {
      const altered = record.slice()
      altered[at]! ^= 1
      const opener = createOpener({ key, context, primitives, header: sealer.header })
      assert.is(await codeOf(() => opener.open(altered)), 'DECRYPT_FAILED')
    }
  })

  test(named('a record cut short or with a byte too many is DECRYPT_FAILED'), async () => {
    const sealer = createSealer({ key, context, primitives })
    const record = sealer.seal(data(100))
    const open = (bytes: Uint8Array) => createOpener({ key, context, primitives, header: sealer.header }).open(bytes)
    for (let cut = 0; cut < record.length; cut++) assert.is(await codeOf(() => open(record.subarray(0, cut))), 'DECRYPT_FAILED')
    assert.is(await codeOf(() => open(Uint8Array.from([...record, 0]))), 'DECRYPT_FAILED')
  })

  test(named('a record twice, out of order, or left out is DECRYPT_FAILED'), async () => {
    for (const order of [
      [0, 0],
      [1, 0],
      [0, 2],
    ]) {
      const { sealer, opener } = pair()
      const records = [1, 2, 3].map(size => sealer.seal(data(size)))
      assert.is(await codeOf(() => order.forEach(i => void opener.open(records[i]!))), 'DECRYPT_FAILED')
    }
  })

  test(named('the first error is final, and all errors read alike'), async () => {
    const { sealer, opener } = pair()
    const good = sealer.seal(data(1))
    const bad = good.slice()
    bad[5]! ^= 1
    assert.is(await codeOf(() => opener.open(bad)), 'DECRYPT_FAILED')
    assert.is(await codeOf(() => opener.open(good)), 'DECRYPT_FAILED')
    assert.is(await codeOf(() => opener.end()), 'DECRYPT_FAILED')
    assert.is(opener.records, 0)
  })

  test(named('a stream without its final record is truncated'), async () => {
    const cut = pair()
    cut.opener.open(cut.sealer.seal(data(9)))
    assert.is(await codeOf(() => cut.opener.end()), 'DECRYPT_FAILED')
    const whole = pair()
    assert.ok(whole.opener.open(whole.sealer.seal(data(9), { final: true })).final)
    assert.ok(whole.opener.finished)
    whole.opener.end()
    const empty = pair()
    assert.is(await codeOf(() => empty.opener.end()), 'DECRYPT_FAILED')
  })

  test(named('nothing is sealed or opened after the final record'), async () => {
    const { sealer, opener } = pair()
    const first = sealer.seal(data(1))
    const last = sealer.seal(data(2), { final: true })
    assert.throws(() => sealer.seal(data(3)), /final/)
    opener.open(first)
    opener.open(last)
    assert.is(await codeOf(() => opener.open(first)), 'DECRYPT_FAILED')
  })

  test(named('a record of another stream, direction, epoch, migration or key is DECRYPT_FAILED'), async () => {
    const sealer = createSealer({ key, context, primitives })
    const record = sealer.seal(data(1))
    const others: Partial<RecordContext>[] = [
      { index: 3 },
      { direction: 'target-to-source' },
      { epoch: 8 },
      { migrationId: 'f'.repeat(32) },
    ]
    for (const other of others) {
      const opener = createOpener({ key, context: { ...context, ...other }, primitives, header: sealer.header })
      assert.is(await codeOf(() => opener.open(record)), 'DECRYPT_FAILED')
    }
    for (const [wrongKey, header] of [
      [randomBytes(32), sealer.header],
      [key, randomBytes(24)],
    ] as const) {
      assert.is(await codeOf(() => createOpener({ key: wrongKey, context, primitives, header }).open(record)), 'DECRYPT_FAILED')
    }
  })

  test(named('a small rekey threshold changes the bytes and nothing else'), () => {
    const header = randomBytes(24)
    const often = createSealer({ key, context, primitives, header, rekeyBytes: 8192 })
    const never = createSealer({ key, context, primitives, header })
    const opener = createOpener({ key, context, primitives, header })
    let differed = 0
    for (let i = 0; i < 20; i++) {
      const record = often.seal(data(4000))
      if (!same(record, never.seal(data(4000)))) differed++
      assert.ok(same(opener.open(record).data, data(4000)))
    }
    // The second record carries the tag: from it on every byte differs.
    assert.is(differed, 19)
    assert.ok(same(often.digest(), opener.digest()))
  })

  test(named('the cutter makes full records of any writes, and the reader finds the bytes again'), () => {
    const { sealer, opener } = pair()
    const cutter = createCutter(sealer)
    const written = data(300_000)
    const frames: Uint8Array[] = []
    for (let at = 0; at < written.length; at += 7777) frames.push(...cutter.write(written.subarray(at, at + 7777)))
    assert.is(frames.length, Math.floor(written.length / RECORD_DATA_BYTES_MAX))
    assert.ok(frames.every(frame => frame.length === 5 + 65536 + 17))
    assert.is(cutter.pendingBytes, written.length % RECORD_DATA_BYTES_MAX)
    frames.push(...cutter.flush())
    assert.is(cutter.flush().length, 0)
    frames.push(...cutter.end())
    const decoder = new FrameDecoder(allow('RECORD'))
    const records = decoder.push(new Uint8Array(Buffer.concat(frames)))
    decoder.end()
    const read = records.map(frame => opener.open(frame.payload, { inPlace: true }).data)
    opener.end()
    assert.ok(same(Buffer.concat(read), written))
    assert.ok(same(sealer.digest(), opener.digest()))
  })

  test(named('the cutter goes to small records and back in the middle of one, and the reader finds the bytes again'), () => {
    const { sealer, opener } = pair()
    const cutter = createCutter(sealer)
    const written = data(200_000)
    const frames = [
      ...cutter.write(written.subarray(0, 30_000)),
      ...cutter.write(written.subarray(30_000, 100_000), true),
      ...cutter.write(written.subarray(100_000)),
      ...cutter.end(),
    ]
    // What waited was more than a small record holds: it goes as it is, in the class that it needs.
    assert.equal(
      frames.map(frame => frame.length - 5 - 17),
      [65536, 16384, 16384, 16384, 16384, 65536, 65536],
    )
    const decoder = new FrameDecoder(allow('RECORD'))
    const read = decoder.push(new Uint8Array(Buffer.concat(frames))).map(frame => opener.open(frame.payload, { inPlace: true }).data)
    opener.end()
    assert.ok(same(Buffer.concat(read), written))
  })

  test(named('sealFrame is a RECORD frame around what seal gives'), () => {
    const header = randomBytes(24)
    const record = createSealer({ key, context, primitives, header }).seal(data(50))
    const frame = createSealer({ key, context, primitives, header }).sealFrame(data(50))
    assert.is(frame[4], FRAME.RECORD)
    assert.ok(same(frame.subarray(5), record))
  })
}

test('stream keys differ in direction, index and attempt', () => {
  const root = randomBytes(32)
  const keys = new Set<string>()
  for (const direction of ['source-to-target', 'target-to-source'] as const) {
    for (const index of [0, 1, 2, 255, 256, 65535]) {
      for (const attempt of [0, 1, 2, 0xffff_ffff])
        keys.add(Buffer.from(deriveStreamKey(root, { direction, index, attempt })).toString('hex'))
    }
  }
  assert.is(keys.size, 2 * 6 * 4)
  assert.throws(() => deriveStreamKey(root, { direction: 'source-to-target', index: 65536, attempt: 0 }), TypeError)
})

test('data too large for a record is refused before anything is sealed', () => {
  const sealer = createSealer({ key, context })
  assert.throws(() => sealer.seal(new Uint8Array(RECORD_DATA_BYTES_MAX + 1)), TypeError)
  assert.is(sealer.records, 0)
})

test.run()
