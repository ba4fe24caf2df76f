import { randomBytes } from 'node:crypto'
import zlib from 'node:zlib'
import { PageMap } from '../../../edge-node/pages/address.ts'
import { BATCH_BODY_BYTES_MAX, batchBufferBytes, CODEC, readBatchBody, readBatchHeader } from '../../../edge-node/pages/batch.ts'
import { compressBatch, inflate, loadZstd, openBatch } from '../../../edge-node/pages/compress.ts'
import { PendingBatch } from '../../../edge-node/pages/pending.ts'
import type { Zstd } from '../../../edge-node/pages/zstd.ts'
import { LEVELS, type Level } from '../../../edge-node/rate/level.ts'
import { PAGE_BYTES } from '../../../wire/types.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { pageOf, proofHasher } from './support.ts'

const test = suite('pages: compress')
const node = await loadZstd('node')
const portable = await loadZstd('portable')
const PAGES = 64
const text = (seed: number): Uint8Array => new TextEncoder().encode(`the quick ${seed} brown `.repeat(400).slice(0, PAGE_BYTES))

function compressed(zstd: Zstd, pages: readonly Uint8Array[], level: Level): Uint8Array {
  const batch = new PendingBatch(PAGES, () => new ArrayBuffer(batchBufferBytes(PAGES)), { hasher: proofHasher })
  for (const [index, page] of pages.entries()) batch.content(index, page)
  if (pages.length === 0) batch.zero(0)
  const { buffer, bytes } = batch.take()
  const result = compressBatch(zstd, { input: buffer, output: new ArrayBuffer(buffer.byteLength), bytes, level })
  return new Uint8Array(result.compressed ? result.output : result.input, 0, result.bytes)
}

function contentOf(zstd: Zstd, payload: Uint8Array): Uint8Array {
  const { header, body } = openBatch(zstd, payload)
  return readBatchBody(header, body, new PageMap([{ id: 0, bytes: PAGES * PAGE_BYTES }])).content
}

test('both engines read what either wrote, at every level of the ladder', () => {
  const pages = Array.from({ length: 20 }, (_, i) => text(i))
  for (const writer of [node, portable]) {
    for (const { level } of LEVELS) {
      const payload = compressed(writer, pages, level)
      assert.is(readBatchHeader(payload).codec, level === 'off' ? CODEC.raw : CODEC.zstd)
      for (const reader of [node, portable]) assert.equal(Buffer.compare(contentOf(reader, payload), Buffer.concat(pages)), 0)
    }
  }
})

test('random bytes and tiny batches travel raw', () => {
  for (const zstd of [node, portable]) {
    const random = Array.from({ length: PAGES }, () => new Uint8Array(randomBytes(PAGE_BYTES)))
    assert.is(readBatchHeader(compressed(zstd, random, 1)).codec, CODEC.raw)
    assert.is(readBatchHeader(compressed(zstd, random.slice(0, 1), 1)).codec, CODEC.raw)
    assert.is(readBatchHeader(compressed(zstd, [], 1)).codec, CODEC.raw)
  }
})

test('a batch of which a small part shrinks is compressed', () => {
  const pages = Array.from({ length: PAGES }, (_, i) => (i % 4 === 0 ? text(i) : new Uint8Array(randomBytes(PAGE_BYTES))))
  assert.is(readBatchHeader(compressed(node, pages, 1)).codec, CODEC.zstd)
})

const frameOf = (content: Uint8Array): Uint8Array => new Uint8Array(zlib.zstdCompressSync(content, { pledgedSrcSize: content.length }))

for (const zstd of [node, portable]) {
  test(`${zstd.name}: a frame of another size than declared is refused, whichever of the two lies`, async () => {
    const frame = frameOf(new Uint8Array(1_000_000))
    assert.is(await codeOf(() => inflate(zstd, frame, 100_000)), 'FRAME_MALFORMED')
    // The bomb: a header that declares 100 000, content of ten times that. Descriptor 0xa0: four bytes of size at 5.
    assert.is(frame[4], 0xa0)
    const bomb = frame.slice()
    new DataView(bomb.buffer).setUint32(5, 100_000, true)
    assert.is(await codeOf(() => inflate(zstd, bomb, 100_000)), 'FRAME_MALFORMED')
    const short = frame.slice()
    new DataView(short.buffer).setUint32(5, 1_000_001, true)
    assert.is(await codeOf(() => inflate(zstd, short, 1_000_001)), 'FRAME_MALFORMED')
    assert.is(inflate(zstd, frame, 1_000_000).length, 1_000_000)
  })

  test(`${zstd.name}: a second frame behind the first does not come through`, async () => {
    const frame = frameOf(new Uint8Array(70_000))
    assert.is(await codeOf(() => inflate(zstd, new Uint8Array(Buffer.concat([frame, frame])), 70_000)), 'FRAME_MALFORMED')
  })

  test(`${zstd.name}: every truncation and flipped bit is FRAME_MALFORMED or gives the declared size`, async () => {
    const content = Buffer.concat([text(1), randomBytes(200), text(2)])
    const frame = frameOf(new Uint8Array(content))
    for (let length = 0; length < frame.length; length++) {
      assert.is(await codeOf(() => inflate(zstd, frame.subarray(0, length), content.length)), 'FRAME_MALFORMED', `${length} bytes`)
    }
    for (let bit = 0; bit < frame.length * 8; bit++) {
      const flipped = frame.slice()
      flipped[bit >> 3]! ^= 1 << (bit & 7)
      try {
        assert.is(inflate(zstd, flipped, content.length).length, content.length)
      } catch (error) {
        assert.is((error as { code?: string }).code, 'FRAME_MALFORMED', String(error))
      }
    }
  })
}

test('a frame with a large window, a dictionary, a reserved bit or no size is refused before it is opened', async () => {
  let opened = 0
  const counting: Zstd = {
    ...node,
    decompress: () => {
      opened++
      return new Uint8Array(0)
    },
  }
  const header = (descriptor: number, ...rest: number[]) => Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd, descriptor, ...rest)
  const refused = [
    header(0x80, 17 << 3, 100, 0, 0, 0, 0),
    header(0x80, 11 << 3, 100, 0, 0, 0, 0),
    header(0xa1, 1, 100, 0, 0, 0, 0),
    header(0xa8, 100, 0, 0, 0, 0),
    header(0x00, 0, 100, 0, 0, 0, 0),
    header(0xe0, 100, 0, 0, 0, 1, 0, 0, 0),
    header(0xa0, 100, 0, 0),
    Uint8Array.of(0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0),
  ]
  for (const frame of refused)
    assert.is(await codeOf(() => inflate(counting, frame, 100)), 'FRAME_MALFORMED', Buffer.from(frame).toString('hex'))
  assert.is(await codeOf(() => inflate(counting, header(0xa0, 0xff, 0xff, 0xff, 0x7f, 0), 0x7fff_ffff)), 'FRAME_MALFORMED')
  assert.is(opened, 0)
  assert.ok(BATCH_BODY_BYTES_MAX < 2 * 1024 * 1024)
})

test('pages of every kind come back whole through both codecs', () => {
  const pages = [pageOf(1), text(3), new Uint8Array(randomBytes(PAGE_BYTES)), pageOf(2)]
  for (const level of ['off', -5, 3] as const)
    assert.equal(Buffer.compare(contentOf(node, compressed(node, pages, level)), Buffer.concat(pages)), 0)
})

test.run()
