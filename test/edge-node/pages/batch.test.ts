import { readFileSync } from 'node:fs'
import { PageMap } from '../../../edge-node/pages/address.ts'
import {
  BATCH_BODY_BYTES_MAX,
  BATCH_DELTAS_MAX,
  BATCH_HEADER_BYTES,
  BATCH_PAGES_MAX,
  BATCH_REFERENCES_MAX,
  BATCH_ZERO_RUNS_MAX,
  batchBufferBytes,
  CODEC,
  decodeBarrier,
  encodeBarrier,
  readBatchBody,
  readBatchHeader,
  writeBatchHeader,
} from '../../../edge-node/pages/batch.ts'
import { BATCH_BLOCKS_MAX } from '../../../edge-node/pages/batch-blocks.ts'
import { proofOf } from '../../../edge-node/pages/hasher.ts'
import { applyPieces } from '../../../edge-node/pages/patch.ts'
import { PendingBatch } from '../../../edge-node/pages/pending.ts'
import { VARINT_BYTES_MAX, VarintReader } from '../../../edge-node/pages/varint.ts'
import { FRAME_LIMITS, PAGE_BYTES } from '../../../wire/types.ts'
import { assert, codeOf, suite, thrown } from '../../support/suite.ts'
import { pageOf, proofHasher } from './support.ts'

const test = suite('pages: batch')
const BLOCK = 2 ** 32
const map = new PageMap([
  { id: 0, bytes: 5000 * PAGE_BYTES },
  { id: 65535, bytes: 300 * PAGE_BYTES },
])

const pending = (pages = 64) => new PendingBatch(pages, () => new ArrayBuffer(batchBufferBytes(pages)), { hasher: proofHasher })
const payloadOf = (batch: PendingBatch): Uint8Array => {
  const { buffer, bytes } = batch.take()
  return new Uint8Array(buffer, 0, bytes).slice()
}
const read = (payload: Uint8Array) => readBatchBody(readBatchHeader(payload), payload.subarray(BATCH_HEADER_BYTES), map)
const header = (o: Partial<Parameters<typeof writeBatchHeader>[1]>): Uint8Array => {
  const out = new Uint8Array(BATCH_HEADER_BYTES)
  writeBatchHeader(out, { codec: CODEC.zstd, pages: 0, zeroRuns: 0, references: 0, hasBlocks: false, deltas: 0, bodyBytes: 0, ...o })
  return out
}

/** pageOf(1) with other bytes in some places. */
function changed(seed: number): Uint8Array {
  const page = pageOf(1).slice()
  page.fill(200, seed, seed + 3)
  page.fill(201, 4000, 4096)
  return page
}

function sample(): Uint8Array {
  const batch = pending()
  batch.content(7, pageOf(70))
  batch.content(8, pageOf(80))
  batch.content(65535 * BLOCK + 299, pageOf(90))
  batch.content(2, pageOf(20))
  for (const zero of [100, 101, 102, 4999, 65535 * BLOCK, 50]) batch.zero(zero)
  batch.reference(3, 7)
  batch.reference(4, 65535 * BLOCK + 299)
  batch.reference(65535 * BLOCK + 5, 8)
  for (const page of [30, 31, 65535 * BLOCK + 9]) assert.ok(batch.delta(page, pageOf(1), changed(page % BLOCK)))
  return payloadOf(batch)
}

test('what a batch says is read as it was said, with zeros as runs', () => {
  const { content, pages, zeroRuns, references, deltas } = read(sample())
  assert.equal([...deltas.addresses], [30, 31, 65535 * BLOCK + 9])
  for (const [i, page] of [30, 31, 9].entries()) {
    const held = pageOf(1).slice()
    const literals = deltas.literals.subarray(99 * i, 99 * (i + 1))
    assert.is(applyPieces(new VarintReader(deltas.bytes, deltas.places[2 * i]!), literals, 0, held), 99)
    assert.equal(held, changed(page))
  }
  assert.equal([...pages], [7, 8, 65535 * BLOCK + 299, 2])
  assert.equal(content, new Uint8Array(Buffer.concat([70, 80, 90, 20].map(pageOf))))
  assert.equal([...zeroRuns], [50, 1, 100, 3, 4999, 1, 65535 * BLOCK, 1])
  assert.equal([...references], [3, 7, 4, 65535 * BLOCK + 299, 65535 * BLOCK + 5, 8])
})

/** A sample of version 3: with pages that are blocks of disks, between references and deltas. */
function withBlocks(): Uint8Array {
  const batch = pending()
  batch.content(7, pageOf(70))
  batch.zero(9)
  batch.reference(3, 7)
  for (const [address, place] of BLOCKS) batch.block(address, place, pageOf(address % BLOCK))
  assert.ok(batch.delta(30, pageOf(1), changed(30)))
  return payloadOf(batch)
}
const BLOCKS = [
  [20, 5 * BLOCK + 100],
  [21, 5 * BLOCK + 101],
  [65535 * BLOCK + 4, 0],
  [22, 2 ** 48 - 1],
] as const
const proofOver = (...contents: number[]) => proofOf(proofHasher, Buffer.concat(contents.map(content => hashOf(pageOf(content)))))
const hashOf = (page: Uint8Array) => {
  const hash = new Uint8Array(16)
  proofHasher.hash(page, hash)
  return hash
}

test('pages that are blocks of disks are read as they were said, with the proof of their content', () => {
  const payload = withBlocks()
  assert.is(payload[0], 3)
  assert.is(sample()[0], 2, 'a batch without them is one of version 2')
  const { pages, zeroRuns, references, blocks, deltas } = read(payload)
  assert.equal(
    [...blocks!.addresses],
    BLOCKS.map(([address]) => address),
  )
  assert.equal(
    [...blocks!.places],
    BLOCKS.map(([, place]) => place),
  )
  assert.equal([...blocks!.proof], [...proofOver(20, 21, 4, 22)])
  assert.not.equal([...blocks!.proof], [...proofOver(20, 21, 22, 4)])
  assert.equal([[...pages], [...zeroRuns], [...references], [...deltas.addresses]], [[7], [9, 1], [3, 7], [30]])
})

test('a block taken back is not in the batch, and not in its proof', () => {
  const batch = pending()
  for (const [address, place] of BLOCKS) batch.block(address, place, pageOf(address % BLOCK))
  batch.remove(20, 'block')
  const { blocks } = read(payloadOf(batch))
  assert.equal([...blocks!.addresses], [22, 21, 65535 * BLOCK + 4])
  assert.equal([...blocks!.proof], [...proofOver(22, 21, 4)])
})

test('a run of blocks in a run of pages costs two bytes a page', () => {
  const batch = pending()
  for (let i = 0; i < BATCH_BLOCKS_MAX; i++) batch.block(i, 7 * BLOCK + i, pageOf(i + 1))
  assert.ok(batch.full)
  const payload = payloadOf(batch)
  assert.ok(payload.length < BATCH_HEADER_BYTES + 2 * (BATCH_BLOCKS_MAX + 1) + 16 + VARINT_BYTES_MAX, `${payload.length} bytes`)
  assert.is(read(payload).blocks!.places.length, BATCH_BLOCKS_MAX)
})

test('lists of blocks that declare what cannot be are FRAME_MALFORMED', async () => {
  const list = (...bytes: number[]) => {
    const out = new Uint8Array(BATCH_HEADER_BYTES + bytes.length + 16)
    out.set(header({ codec: CODEC.raw, hasBlocks: true, bodyBytes: bytes.length + 16 }))
    out.set(bytes, BATCH_HEADER_BYTES)
    return out
  }
  assert.equal([...read(list(1, 0, 0)).blocks!.places], [0])
  const refused: [string, Uint8Array][] = [
    ['none', list(0, 0, 0)],
    ['too many', list(0x81, 4, 0, 0)],
    ['fewer than announced', list(9, 0, 0)],
    ['a page that does not exist', list(1, 1, 0)],
    ['a place before the first', list(1, 0, 1)],
    ['a place beyond all', list(1, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1)],
    ['a byte too many', list(1, 0, 0, 0)],
    ['no room for a proof', header({ codec: CODEC.zstd, hasBlocks: true, bodyBytes: 18 })],
  ]
  for (const [what, bytes] of refused) assert.is(await codeOf(() => read(bytes)), 'FRAME_MALFORMED', what)
})

test('the example of protocol.md', () => {
  const batch = pending()
  const page = pageOf(0).slice()
  page[0] = 0xaa
  page.set([0xbb, 0xcc], 9)
  assert.ok(batch.delta(20, pageOf(0), page))
  const hex = Buffer.from(payloadOf(batch)).toString('hex')
  assert.is(hex, '02010000000000000001000000082800030804aabbcc')
  const documented = /Example: page 20 .*`(.*)`/.exec(readFileSync(new URL('../../../docs/reference/protocol.md', import.meta.url), 'utf8'))
  assert.is(documented?.[1]?.replaceAll(/[ |]/g, ''), hex)
})

test('a run of neighbours costs a byte per page beside its content', () => {
  const batch = pending()
  for (let i = 0; i < 64; i++) batch.content(i, pageOf(i))
  assert.is(batch.take().bytes, BATCH_HEADER_BYTES + 64 * (PAGE_BYTES + 1))
})

test('a word taken back is not in the batch', () => {
  const batch = pending()
  for (let i = 1; i <= 4; i++) batch.content(i, pageOf(i))
  for (let i = 11; i <= 14; i++) batch.zero(i)
  for (let i = 21; i <= 24; i++) batch.reference(i, 1)
  batch.remove(2, 'content')
  batch.remove(4, 'content')
  batch.remove(11, 'zero')
  batch.remove(23, 'reference')
  for (let i = 31; i <= 34; i++) batch.delta(i, pageOf(1), changed(i))
  batch.remove(32, 'delta')
  batch.remove(34, 'delta')
  const { content, pages, zeroRuns, references, deltas } = read(payloadOf(batch))
  assert.equal([...deltas.addresses], [31, 33])
  const held = pageOf(1).slice()
  applyPieces(new VarintReader(deltas.bytes, deltas.places[2]!), deltas.literals, 99, held)
  assert.equal(held, changed(33))
  assert.equal([...pages], [1, 3])
  assert.equal(content, new Uint8Array(Buffer.concat([1, 3].map(pageOf))))
  assert.equal([...zeroRuns], [12, 3])
  assert.equal([...references], [21, 1, 22, 1, 24, 1])
})

test('taking back what is not there is our own mistake, not a coded error', async () => {
  for (const said of ['content', 'zero', 'reference', 'block', 'delta'] as const) {
    const error = await thrown(() => pending().remove(1, said))
    assert.not('code' in (error as object))
  }
})

test('the largest batch fits its buffer, the declared limit and the frame', () => {
  const pages = BATCH_PAGES_MAX
  const batch = pending(pages)
  for (let i = 0; i < pages; i++) batch.content((i % 2) * 65535 * BLOCK + i, pageOf(i))
  for (let i = 0; i < BATCH_ZERO_RUNS_MAX; i++) batch.zero(2 * i)
  for (let i = 0; i < BATCH_REFERENCES_MAX; i++) batch.reference(i % 2 ? 4000 : 65535 * BLOCK, i % 2 ? 65535 * BLOCK + 1 : 1)
  assert.ok(batch.full)
  const payload = payloadOf(batch)
  assert.ok(payload.length <= batchBufferBytes(pages))
  assert.ok(payload.length - BATCH_HEADER_BYTES <= BATCH_BODY_BYTES_MAX)
  assert.ok(batchBufferBytes(pages) <= FRAME_LIMITS.BATCH)
  assert.is(read(payload).zeroRuns.length, 2 * BATCH_ZERO_RUNS_MAX)
})

test('every truncation is FRAME_MALFORMED', async () => {
  for (const payload of [sample(), withBlocks()])
    for (let length = 0; length < payload.length; length += length > 40 && length < payload.length - 160 ? 997 : 1) {
      assert.is(await codeOf(() => read(payload.subarray(0, length))), 'FRAME_MALFORMED', `${length} bytes`)
    }
})

test('a body cut short with its declared size mended is FRAME_MALFORMED', async () => {
  for (const payload of [sample(), withBlocks()])
    for (let cut = 1; cut < 60; cut++) {
      const shorter = payload.slice(0, payload.length - cut)
      new DataView(shorter.buffer).setUint32(10, shorter.length - BATCH_HEADER_BYTES)
      assert.is(await codeOf(() => read(shorter)), 'FRAME_MALFORMED', `${cut} bytes less`)
    }
})

test('every flipped bit outside page content is FRAME_MALFORMED or says something about existing pages', () => {
  let refused = 0
  for (const payload of [sample(), withBlocks()])
    for (let bit = 0; bit < payload.length * 8; bit++) {
      const byte = bit >> 3
      const contentBytes = new DataView(payload.buffer).getUint16(2) * PAGE_BYTES
      if (byte >= BATCH_HEADER_BYTES && byte < BATCH_HEADER_BYTES + contentBytes) continue
      const flipped = payload.slice()
      flipped[byte]! ^= 1 << (bit & 7)
      try {
        const { pages, zeroRuns, references, blocks } = read(flipped)
        for (const address of [...pages, ...references, ...(blocks?.addresses ?? [])]) assert.ok(map.covers(address, 1))
        for (let i = 0; i < zeroRuns.length; i += 2) assert.ok(map.covers(zeroRuns[i]!, zeroRuns[i + 1]!))
      } catch (error) {
        assert.is((error as { code?: string }).code, 'FRAME_MALFORMED', String(error))
        refused++
      }
    }
  assert.ok(refused > 100)
})

test('counts and sizes beyond their limits are refused from the header alone', async () => {
  const refused: [string, Uint8Array][] = [
    ['pages', header({ pages: BATCH_PAGES_MAX + 1, bodyBytes: (BATCH_PAGES_MAX + 1) * 4097 })],
    ['zero runs', header({ zeroRuns: BATCH_ZERO_RUNS_MAX + 1, bodyBytes: 4 * BATCH_ZERO_RUNS_MAX })],
    ['deltas', header({ deltas: BATCH_DELTAS_MAX + 1, bodyBytes: 8 * BATCH_DELTAS_MAX })],
    ['a body larger than its deltas can be', header({ deltas: 1, bodyBytes: PAGE_BYTES + 9 })],
    ['a body smaller than its deltas', header({ deltas: 2, bodyBytes: 7 })],
    ['a body larger than any', header({ deltas: BATCH_DELTAS_MAX, bodyBytes: BATCH_BODY_BYTES_MAX + 1 })],
    ['references', header({ references: BATCH_REFERENCES_MAX + 1, bodyBytes: 4 * BATCH_REFERENCES_MAX })],
    ['a body larger than its lists can be', header({ pages: 1, bodyBytes: PAGE_BYTES + 9 })],
    ['a body smaller than its pages', header({ pages: 2, bodyBytes: 2 * PAGE_BYTES + 1 })],
    ['a huge body', header({ bodyBytes: 0xffff_ffff })],
    ['codec', header({ codec: 3 as 1 })],
    ['raw of another length', header({ codec: CODEC.raw, zeroRuns: 1, bodyBytes: 2 })],
    ['version', header({}).fill(1, 0, 1)],
  ]
  for (const [what, bytes] of refused) assert.is(await codeOf(() => readBatchHeader(bytes)), 'FRAME_MALFORMED', what)
})

test('places outside the guest are refused', async () => {
  const small = new PageMap([{ id: 0, bytes: 8 * PAGE_BYTES }])
  const readSmall = (fill: (batch: PendingBatch) => void) => {
    const batch = pending()
    fill(batch)
    const payload = payloadOf(batch)
    return readBatchBody(readBatchHeader(payload), payload.subarray(BATCH_HEADER_BYTES), small)
  }
  const refused: ((batch: PendingBatch) => void)[] = [
    batch => batch.content(8, pageOf(1)),
    batch => batch.content(BLOCK, pageOf(1)),
    batch => batch.zero(8),
    batch => {
      batch.zero(7)
      batch.zero(8)
    },
    batch => batch.reference(8, 1),
    batch => batch.reference(1, 8),
    batch => batch.reference(1, 1),
    batch => batch.reference(1, 7 * BLOCK),
  ]
  for (const fill of refused) assert.is(await codeOf(() => readSmall(fill)), 'FRAME_MALFORMED', String(fill))
  readSmall(batch => batch.content(7, pageOf(1)))
})

test('pieces that are empty, touch, leave their page or lack their bytes are refused', async () => {
  const delta = (...list: number[]) => {
    const out = new Uint8Array(BATCH_HEADER_BYTES + list.length)
    out.set(header({ codec: CODEC.raw, deltas: 1, bodyBytes: list.length }))
    out.set(list, BATCH_HEADER_BYTES)
    return out
  }
  assert.equal([...read(delta(0, 5, 2, 77)).deltas.literals], [77])
  assert.equal([...read(delta(0, 5, 3, 1, 2, 77, 78)).deltas.literals], [77, 78])
  const refused: [string, Uint8Array][] = [
    ['empty', delta(0, 5, 0, 77)],
    ['touching', delta(0, 5, 3, 0, 2, 77, 78)],
    ['beyond the page', delta(0, 0xff, 0x1f, 4, 77, 78)],
    ['a byte short', delta(0, 5, 4, 77)],
    ['a byte too many', delta(0, 5, 2, 77, 78)],
    ['without end', delta(0, 5, 3, 9)],
    ['a page that does not exist', delta(1, 5, 2, 77)],
  ]
  for (const [what, bytes] of refused) assert.is(await codeOf(() => read(bytes)), 'FRAME_MALFORMED', what)
  read(delta(0, 0xff, 0x1f, 2, 77))
})

test('a varint that is too long, too large or not the shortest is refused', async () => {
  const zeroRun = (...list: number[]) => {
    const out = new Uint8Array(BATCH_HEADER_BYTES + list.length)
    out.set(header({ codec: CODEC.raw, zeroRuns: 1, bodyBytes: list.length }))
    out.set(list, BATCH_HEADER_BYTES)
    return out
  }
  assert.equal([...read(zeroRun(5, 1)).zeroRuns], [5, 1])
  assert.is(await codeOf(() => read(zeroRun(0x85, 0, 1))), 'FRAME_MALFORMED')
  assert.is(await codeOf(() => read(zeroRun(5, 0))), 'FRAME_MALFORMED')
  assert.is(await codeOf(() => read(zeroRun(...new Array(7).fill(0xff), 0x7f, 1))), 'FRAME_MALFORMED')
  assert.is(await codeOf(() => read(zeroRun(...new Array(9).fill(0xff), 1))), 'FRAME_MALFORMED')
})

test('barriers are numbered from one', async () => {
  for (const n of [1, 255, 65536, 0xffff_ffff]) assert.is(decodeBarrier(encodeBarrier(n)), n)
  for (const bytes of [0, 3, 5]) assert.is(await codeOf(() => decodeBarrier(new Uint8Array(bytes))), 'FRAME_MALFORMED')
  assert.is(await codeOf(() => decodeBarrier(new Uint8Array(4))), 'FRAME_MALFORMED')
  assert.instance(await thrown(() => encodeBarrier(0)), TypeError)
})

test('a page map refuses what is no guest and no page', async () => {
  for (const blocks of [
    [],
    [{ id: 0, bytes: 100 }],
    [{ id: 0, bytes: 0 }],
    [{ id: 65536, bytes: 4096 }],
    [
      { id: 1, bytes: 4096 },
      { id: 1, bytes: 4096 },
    ],
  ]) {
    assert.instance(await thrown(() => new PageMap(blocks)), TypeError)
  }
  for (const [block, offset] of [
    [0, -4096],
    [0, 1],
    [0, 5000 * 4096],
    [1, 0],
    [65535, Number.NaN],
  ] as const) {
    assert.is(await codeOf(() => map.numberAt(block, offset)), 'QEMU_STREAM')
  }
  for (const number of [0, 4999, 5000, 5299]) {
    const address = map.addressOf(number)
    assert.is(map.numberAt(Math.floor(address / BLOCK), (address % BLOCK) * PAGE_BYTES), number)
  }
})

test.run()
