// The end-to-end channel through a relay that behaves, and through relays that do not.
import { utf8 } from '../../../crypto/bytes.ts'
import { hashBytes } from '../../../crypto/hash.ts'
import { generateSiteKeys, loadSodium } from '../../../crypto/identity.ts'
import { type Channel, openChannel, prologueOf } from '../../../edge-node/channel/channel.ts'
import { Flight } from '../../../edge-node/rate/flight.ts'
import { createGate } from '../../../edge-node/rate/gate.ts'
import type { Plan } from '../../../wire/control.ts'
import { pages } from '../../../wire/roles.ts'
import { FRAME } from '../../../wire/types.ts'
import { streamPair, type Tamper } from '../../support/pipe.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

await loadSodium()
const test = suite('end-to-end channel')

const plan: Plan = {
  version: 1,
  migrationId: '0123456789abcdef0123456789abcdef',
  vm: 'till-7',
  epoch: 3,
  source: 'shop',
  target: 'depot',
  method: 'live',
  downtimeMs: 300,
  streams: 2,
  attempt: 1,
  compression: 'zstd',
  createdAt: 1_700_000_000_000,
}
const keys = { source: generateSiteKeys(), target: generateSiteKeys() }
const certificates = { sourceCertificate: Buffer.from('certificate of shop'), targetCertificate: Buffer.from('certificate of depot') }

type Change = {
  source?: Partial<Plan>
  target?: Partial<Plan>
  targetKeys?: typeof keys.target
  tamper?: { forward?: Tamper; backward?: Tamper }
}

async function open({ source = {}, target = {}, targetKeys = keys.target, tamper = {} }: Change = {}): Promise<[Channel, Channel]> {
  const [a, b] = streamPair(tamper)
  const timeoutMs = 2_000
  return await Promise.all([
    openChannel({
      side: 'source',
      stream: a,
      plan: { ...plan, ...source },
      keys: keys.source,
      peerBoxPublic: keys.target.boxPublic,
      timeoutMs,
      ...certificates,
    }),
    openChannel({
      side: 'target',
      stream: b,
      plan: { ...plan, ...target },
      keys: targetKeys,
      peerBoxPublic: keys.source.boxPublic,
      timeoutMs,
      ...certificates,
    }),
  ])
}

async function firstFrame(channel: Channel) {
  for await (const frame of channel.frames()) return { type: frame.type, text: Buffer.from(frame.payload).toString() }
  return undefined
}

test('both sides agree on a root key and talk both ways', async () => {
  const [source, target] = await open()
  assert.equal(source.rootKey, target.rootKey)
  await source.send(FRAME.MESSAGE, Buffer.from('to the target'))
  await target.send(FRAME.MESSAGE, Buffer.from('to the source'))
  assert.equal(await firstFrame(target), { type: FRAME.MESSAGE, text: 'to the target' })
  assert.equal(await firstFrame(source), { type: FRAME.MESSAGE, text: 'to the source' })
})

test('a plan has the hash of the releases before, and fields that a site does not know count in it', () => {
  const { sourceCertificate, targetCertificate } = certificates
  const prologue = (more: object = {}) =>
    Buffer.from(prologueOf({ ...plan, ...more } as Plan, sourceCertificate, targetCertificate)).toString('hex')
  const former = hashBytes(utf8(JSON.stringify(plan, Object.keys(plan).sort())))
  assert.ok(prologue().includes(Buffer.from(former).toString('hex')))
  const all = [prologue(), prologue({ later: { a: 1 } }), prologue({ later: { a: 2 } }), prologue({ version: 2 })]
  assert.is(new Set(all).size, all.length)
})

test('two sessions never share a key', async () => {
  const [one] = await open()
  const [two] = await open()
  assert.is.not(Buffer.from(one.rootKey).toString('hex'), Buffer.from(two.rootKey).toString('hex'))
})

const stories: [string, Partial<Plan>][] = [
  ['another VM', { vm: 'till-8' }],
  ['another epoch', { epoch: 4 }],
  ['another migration', { migrationId: 'ffff456789abcdef0123456789abcdef' }],
  ['another method', { method: 'cold' }],
  ['another target', { target: 'elsewhere' }],
  ['another attempt', { attempt: 2 }],
  ['compression switched off', { compression: 'off' }],
  ['another number of streams', { streams: 3 }],
  ['another version', { version: 2 }],
]
for (const [what, target] of stories) {
  test(`a gateway that tells the target ${what} fails the handshake`, async () => {
    assert.is(await codeOf(() => open({ target })), 'HANDSHAKE_FAILED')
  })
}

test('the prologue does not depend on the order of the fields of the plan', () => {
  const reversed = Object.fromEntries(Object.entries(plan).reverse()) as Plan
  const { sourceCertificate, targetCertificate } = certificates
  assert.equal(prologueOf(plan, sourceCertificate, targetCertificate), prologueOf(reversed, sourceCertificate, targetCertificate))
})

test('an agent with other keys than its certificate says fails the handshake', async () => {
  assert.is(await codeOf(() => open({ targetKeys: generateSiteKeys() })), 'HANDSHAKE_FAILED')
})

test('a relay that flips any byte of a handshake message fails the handshake', async () => {
  const flip =
    (at: number): Tamper =>
    (chunk, n) => {
      if (n === 0) chunk[Math.min(at, chunk.length - 1)]! ^= 1
      return chunk
    }
  for (const at of [5, 40, 300, 1300, 1e9]) {
    assert.is(await codeOf(() => open({ tamper: { forward: flip(at) } })), 'HANDSHAKE_FAILED', `message 1, byte ${at}`)
    assert.is(await codeOf(() => open({ tamper: { backward: flip(at) } })), 'HANDSHAKE_FAILED', `message 2, byte ${at}`)
  }
})

/** Sends `frames` on a page stream through a relay and gives what the target reads of it, or its error's code. */
async function transfer(forward: Tamper, frames = 200): Promise<{ received: number; code?: string }> {
  const [source, target] = await open()
  const [out, into] = streamPair({ forward })
  const gate = createGate(new Flight(), () => performance.now())
  const writer = source.writer(out, pages(0), gate)
  let wire = 0
  const reader = target.reader(into, pages(0), ['BATCH', 'BARRIER'], bytes => {
    wire += bytes
    gate.acked(wire)
  })
  const send = async () => {
    for (let i = 0; i < frames; i++) await writer.send(FRAME.BATCH, Buffer.alloc(5_000, i))
    await writer.flush()
    await writer.finish()
  }
  const sent = send().catch(() => {})
  let received = 0
  try {
    for await (const { type, payload } of reader.frames()) {
      assert.is(type, FRAME.BATCH)
      assert.ok(payload.length === 5_000 && payload.every(byte => byte === (received & 0xff)), `frame ${received}`)
      received += 1
    }
    await sent
    assert.is(reader.records, writer.records)
    assert.equal(reader.digest(), writer.digest())
    assert.is(wire, writer.wireBytes)
    return { received }
  } catch (error) {
    return { received, code: String((error as { code?: unknown }).code) }
  } finally {
    gate.close(new Error('over'))
  }
}

test('frames of any size arrive whole, in order, counted alike on both sides', async () => {
  assert.equal(await transfer(chunk => chunk), { received: 200 })
})

test('a full record on the wire has one size, whatever is in it', async () => {
  const sizes = new Set<number>()
  await transfer(chunk => {
    sizes.add(chunk.length)
    return chunk
  })
  assert.ok(sizes.size <= 4, `sizes ${[...sizes]}`)
})

/** A relay that leaves everything alone but the sixth record. */
const onSixth =
  (change: (chunk: Uint8Array) => Uint8Array | null | undefined): Tamper =>
  (chunk, n) =>
    n === 5 ? change(chunk) : chunk
const setByte = (at: number, value: (old: number) => number) =>
  onSixth(chunk => {
    chunk[at] = value(chunk[at]!)
    return chunk
  })
const attacks: [string, Tamper, string][] = [
  ['flips a bit', setByte(1000, old => old ^ 4), 'DECRYPT_FAILED'],
  ['drops a record', onSixth(() => undefined), 'DECRYPT_FAILED'],
  ['doubles a record', onSixth(chunk => Buffer.concat([chunk, chunk])), 'DECRYPT_FAILED'],
  ['ends the stream early', onSixth(() => null), 'FRAME_TRUNCATED'],
  ['cuts a record short', (chunk, n) => (n === 5 ? chunk.subarray(0, 100) : n > 5 ? null : chunk), 'FRAME_TRUNCATED'],
  ['says a record is larger than the limit', setByte(1, () => 0xff), 'FRAME_TOO_LARGE'],
  ['sends a frame of another type', setByte(4, () => 5), 'FRAME_TYPE'],
]
for (const [what, tamper, code] of attacks) {
  test(`a relay that ${what} is ${code}, and nothing wrong is delivered`, async () => {
    const result = await transfer(tamper)
    assert.is(result.code, code)
    assert.ok(result.received < 200)
  })
}

test('a relay that swaps two records is caught', async () => {
  let held: Uint8Array | undefined
  const result = await transfer((chunk, n) => {
    if (n === 5) {
      held = chunk
      return undefined
    }
    return n === 6 ? Buffer.concat([chunk, held!]) : chunk
  })
  assert.is(result.code, 'DECRYPT_FAILED')
})

test('two ends that do not agree how many frames earlier meetings have brought open nothing of each other', async () => {
  for (const [said, heard] of [
    [3, 3],
    [3, 4],
    [0, 3],
  ] as const) {
    const [source, target] = await open()
    const [out, into] = streamPair()
    const writer = source.writer(
      out,
      pages(0),
      createGate(new Flight(), () => performance.now()),
      said,
    )
    const reader = target.reader(into, pages(0), ['BATCH'], () => {}, heard)
    await writer.send(FRAME.BATCH, Buffer.from('go on from here'))
    await writer.finish()
    const read = async () => {
      for await (const frame of reader.frames()) assert.is(Buffer.from(frame.payload).toString(), 'go on from here')
    }
    if (said === heard) await read()
    else assert.is(await codeOf(read), 'DECRYPT_FAILED')
  }
})

test.run()
