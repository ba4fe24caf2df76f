// edge-node/pages/batch.ts, compress.ts, memory.ts: BATCH payloads into guest memory: raw, correctly compressed, or
// with malicious zstd frames.
import zlib from 'node:zlib'
import { concatBytes } from '../../crypto/bytes.ts'
import { blockOf, PageMap, pageIndexOf } from '../../edge-node/pages/address.ts'
import {
  BATCH_BODY_BYTES_MAX,
  BATCH_HEADER_BYTES,
  type BatchDeltas,
  CODEC,
  decodeBarrier,
  encodeBarrier,
  readBatchBody,
  readBatchHeader,
  writeBatchHeader,
  writeBatchLists,
} from '../../edge-node/pages/batch.ts'
import type { BatchBlocks } from '../../edge-node/pages/batch-blocks.ts'
import { loadZstd, openBatch } from '../../edge-node/pages/compress.ts'
import { PROOF_BYTES } from '../../edge-node/pages/hasher.ts'
import { applyBatch, type GuestMemory, resolveReferences } from '../../edge-node/pages/memory.ts'
import { writeVarint } from '../../edge-node/pages/varint.ts'
import type { Zstd } from '../../edge-node/pages/zstd.ts'
import { PAGE_BYTES } from '../../wire/types.ts'
import { attempt, Choices, demand, sameBytes, type Target } from '../target.ts'

const BLOCKS = [
  { id: 0, bytes: 64 * PAGE_BYTES },
  { id: 3, bytes: 16 * PAGE_BYTES },
]
const map = new PageMap(BLOCKS)
let engines: Zstd[] = []

/** Memory that detects writes outside its range. */
export function fuzzMemory(): GuestMemory {
  const bytes = new Map(BLOCKS.map(block => [block.id, new Uint8Array(block.bytes)]))
  const place = (address: number, length: number) => {
    const block = bytes.get(blockOf(address))
    const at = pageIndexOf(address) * PAGE_BYTES
    demand(
      block !== undefined && Number.isInteger(at) && at >= 0 && at + length <= block.length,
      `guest memory has no ${length} bytes at ${address}`,
    )
    return block.subarray(at, at + length)
  }
  return {
    map,
    read: (address, into) => into.set(place(address, into.length)),
    write: (address, from) => place(address, from.length).set(from),
  }
}

/** A delta: its page, and its pieces as [offset, bytes]. */
type Lists = {
  pages?: number[]
  zeros?: number[]
  references?: number[]
  /** [address, place]* */
  blocks?: [number, number][]
  deltas?: { page: number; pieces: number[][] }[]
  fill?: number
}

const blocksOf = (blocks: [number, number][]): BatchBlocks => ({
  addresses: Float64Array.from(blocks, ([address]) => address),
  places: Float64Array.from(blocks, ([, place]) => place),
  proof: new Uint8Array(PROOF_BYTES).fill(blocks.length),
})

function deltasOf(deltas: Required<Lists>['deltas'], fill: number): BatchDeltas {
  const bytes: number[] = []
  const places: number[] = []
  let literalBytes = 0
  for (const { pieces } of deltas) {
    places.push(bytes.length)
    let end = 0
    for (const [i, [place, size]] of (pieces as [number, number][]).entries()) {
      const room = new Uint8Array(16)
      const at = writeVarint(room, 0, place - end)
      bytes.push(...room.subarray(0, writeVarint(room, at, 2 * size + (i < pieces.length - 1 ? 1 : 0))))
      end = place + size
      literalBytes += size
    }
    places.push(bytes.length)
  }
  const addresses = Float64Array.from(deltas.map(({ page }) => page))
  return { addresses, bytes: Uint8Array.from(bytes), places: Uint32Array.from(places), literals: new Uint8Array(literalBytes).fill(fill) }
}

/** A whole raw batch. */
export function rawBatch({ pages = [], zeros = [], references = [], blocks = [], deltas = [], fill = 1 }: Lists): Uint8Array {
  const out = new Uint8Array(BATCH_HEADER_BYTES + (pages.length + deltas.length) * PAGE_BYTES + 1000)
  out.fill(fill, BATCH_HEADER_BYTES, BATCH_HEADER_BYTES + pages.length * PAGE_BYTES)
  const lists = {
    pages: Float64Array.from(pages),
    zeros: Float64Array.from(zeros),
    references: Float64Array.from(references),
    blocks: blocks.length > 0 ? blocksOf(blocks) : undefined,
    deltas: deltasOf(deltas, fill),
  }
  const { end, zeroRuns } = writeBatchLists(out, BATCH_HEADER_BYTES + pages.length * PAGE_BYTES, lists)
  writeBatchHeader(out, {
    codec: CODEC.raw,
    pages: pages.length,
    zeroRuns,
    references: references.length / 2,
    hasBlocks: blocks.length > 0,
    deltas: deltas.length,
    bodyBytes: end - BATCH_HEADER_BYTES,
  })
  return out.slice(0, end)
}

const packed = (body: Uint8Array) => new Uint8Array(zlib.zstdCompressSync(body, { pledgedSrcSize: body.length }))

/** The body, correctly compressed. */
function compressed(raw: Uint8Array): Uint8Array {
  const out = concatBytes(raw.subarray(0, BATCH_HEADER_BYTES), packed(raw.subarray(BATCH_HEADER_BYTES)))
  if (out.length > 1) out[1] = CODEC.zstd
  return out
}

/** Encoding the decoded lists must give the same bytes: one batch has one encoding. */
function demandCanonical(payload: Uint8Array): void {
  const { header, body } = openBatch(engines[0]!, payload)
  const { pages, zeroRuns, references, blocks, deltas } = readBatchBody(header, body, map)
  const zeros: number[] = []
  for (let i = 0; i < zeroRuns.length; i += 2) for (let page = 0; page < zeroRuns[i + 1]!; page++) zeros.push(zeroRuns[i]! + page)
  const again = new Uint8Array(body.length + 64)
  const { end } = writeBatchLists(again, header.pages * PAGE_BYTES, { pages, zeros: Float64Array.from(zeros), references, blocks, deltas })
  demand(
    end === body.length && sameBytes(again.subarray(header.pages * PAGE_BYTES, end), body.subarray(header.pages * PAGE_BYTES)),
    'one batch has two encodings',
  )
}

/** A zstd frame of RLE blocks: each block of 128 KiB costs 4 bytes. */
function bomb(declared: number, blocks: number): Uint8Array {
  const size = new Uint8Array(4)
  new DataView(size.buffer).setUint32(0, declared, true)
  const block = (last: boolean) => {
    const head = (131_072 << 3) | (1 << 1) | (last ? 1 : 0)
    return Uint8Array.of(head & 255, (head >> 8) & 255, head >> 16, 0)
  }
  return concatBytes(
    Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd, 0xa0),
    size,
    ...Array.from({ length: blocks }, (_, i) => block(i === blocks - 1)),
  )
}
const bombBatch = (bodyBytes: number, frame: Uint8Array): Uint8Array => {
  const head = new Uint8Array(BATCH_HEADER_BYTES)
  const pages = Math.floor(bodyBytes / (PAGE_BYTES + 1))
  writeBatchHeader(head, { codec: CODEC.zstd, pages, zeroRuns: 0, references: 0, hasBlocks: false, deltas: 0, bodyBytes })
  return concatBytes(Uint8Array.of(0), head, frame)
}

const two32 = 2 ** 32
const small = rawBatch({ zeros: [1, 2, 3, 9, 3 * two32], references: [5, 6, 7, 3 * two32 + 1] })
const paged = rawBatch({ pages: [0, 1, 3 * two32 + 2], zeros: [8], references: [4, 0] })
const named = rawBatch({
  pages: [1],
  references: [2, 1],
  blocks: [
    [0, 7],
    [5, 8],
    [3 * two32, two32 + 4],
  ],
})
const mended = rawBatch({
  pages: [5],
  zeros: [8],
  references: [4, 5],
  deltas: [
    {
      page: 20,
      pieces: [
        [0, 1],
        [9, 300],
        [4095, 1],
      ],
    },
    { page: 21, pieces: [[128, 8]] },
    { page: 3 * two32 + 15, pieces: [[0, 4094]] },
  ],
})
const LARGEST = 256 * (PAGE_BYTES + 1)

export const batch: Target = {
  name: 'batch',
  what: 'edge-node/pages/batch.ts, compress.ts, memory.ts: batches, zstd bombs, references, blocks of disks, deltas; BARRIER payloads',
  codes: ['FRAME_MALFORMED'],
  testRuns: 2500,
  bytesMax: 32 * 1024,
  memoryBytes: 3 * BATCH_BODY_BYTES_MAX + 2 * 1024 * 1024,
  words: [
    Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd),
    Uint8Array.of(255, 255, 255, 255, 255, 255, 255, 15),
    Uint8Array.of(0x80, 0x80, 0x80, 0x80, 0x10),
    Uint8Array.of(0x80, 0),
  ],
  async setup() {
    engines = [await loadZstd('node'), await loadZstd('portable')]
  },
  seeds: () => [
    concatBytes(Uint8Array.of(0), small),
    concatBytes(Uint8Array.of(0), paged),
    concatBytes(Uint8Array.of(0), mended),
    concatBytes(Uint8Array.of(0), named),
    concatBytes(Uint8Array.of(1), named),
    concatBytes(Uint8Array.of(0), compressed(paged)),
    concatBytes(Uint8Array.of(1), mended),
    concatBytes(Uint8Array.of(1), small),
    concatBytes(Uint8Array.of(1), paged),
    concatBytes(Uint8Array.of(2), encodeBarrier(5)),
    bombBatch(256, packed(new Uint8Array(256))),
  ],
  hostile: () => ({
    'a bomb that says what it is': bombBatch(LARGEST, bomb(0x7fff_ffff, 300)),
    'a bomb that lies': bombBatch(LARGEST, bomb(LARGEST, 4000)),
    'a small bomb that lies': bombBatch(4200, bomb(4200, 100_000)),
    'two frames': bombBatch(LARGEST, concatBytes(bomb(LARGEST, 2), bomb(LARGEST, 2000))),
    'the largest batch, announced': bombBatch(BATCH_BODY_BYTES_MAX, bomb(BATCH_BODY_BYTES_MAX, 1)),
    'references without end': concatBytes(
      Uint8Array.of(0),
      rawBatch({ references: Array.from({ length: 40 }, (_, i) => (i % 2 === 0 ? i : 60)) }),
    ),
  }),
  run(input) {
    const choices = new Choices(input)
    const how = choices.number(1) % 3
    const rest = choices.rest()
    if (how === 2) {
      demand(sameBytes(encodeBarrier(decodeBarrier(rest)), rest), 'one barrier has two encodings')
      return
    }
    const payload = how === 1 && rest.length >= BATCH_HEADER_BYTES ? compressed(rest) : rest
    const [node, portable] = engines.map(engine => attempt(() => openBatch(engine, payload)))
    // zstd-codec contains an older zstd, which accepts some frames that a newer one rejects (harmless: a sender could
    // send the content itself). This is the only allowed difference: both reject what Godwit's own checks reject (an
    // error without a cause), and both accept what node:zlib accepts.
    const isLaxer = node!.error?.cause !== undefined && portable!.error === undefined
    demand(isLaxer || (node!.error === undefined) === (portable!.error === undefined), 'the two engines of zstd disagree')
    if (!node!.error && !portable!.error) demand(sameBytes(node!.value.body, portable!.value.body), 'the two engines of zstd differ')
    const memory = fuzzMemory()
    const result = applyBatch(engines[0]!, memory, { kind: 'batch', input: new Uint8Array(payload).buffer, bytes: payload.length })
    resolveReferences(memory, { kind: 'resolve', references: result.references })
    demand(result.bodyBytes === readBatchHeader(payload).bodyBytes && result.bodyBytes <= BATCH_BODY_BYTES_MAX, 'a body of another size')
    demandCanonical(payload)
  },
}
