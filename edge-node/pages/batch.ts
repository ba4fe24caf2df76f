// The layout inside a BATCH frame, both ways, and of BARRIER. Pure.
//
//   u8 version | u8 codec (1 raw, 2 zstd) | u16 pages | u16 zero runs | u16 references | u16 deltas | u32 body bytes
//   | body (raw, or one zstd frame of it)
//
//   body = pages * 4096 bytes of content
//        | per page: zigzag varint, address - (address of the page before + 1)   (a run of pages: one zero byte each)
//        | per zero run: varint, first address - end of the run before; varint, pages in the run
//                                                                          (ascending, not touching an earlier run)
//        | per reference: zigzag varint, address - (address of the reference before + 1);
//                         zigzag varint, holder - address
//        | version 3: the pages that are blocks of disks (batch-blocks.ts)
//        | per delta: zigzag varint, address - (address of the delta before + 1); its pieces (patch.ts)
//        | the new bytes of all pieces of all deltas
//
// Integers are big-endian; varints are little-endian base 128, at most 8 bytes, shortest form. Addresses: see
// address.ts. A batch without blocks of disks is of version 2. The pages come first so that a sender can fill them in
// place before it knows the rest. A delta replaces pieces of what the target holds of that page; applied twice it gives
// the same, so a batch may be sent again.
// Always holds: everything a header declares is checked against a limit before anything is allocated for it, every
// address names an existing page, and a body is consumed to its last byte. Any other input is FRAME_MALFORMED.
import { GodwitError } from '../../wire/errors.ts'
import { PAGE_BYTES } from '../../wire/types.ts'
import type { PageMap } from './address.ts'
import { BATCH_BLOCKS_BYTES_MAX, BATCH_BLOCKS_BYTES_MIN, type BatchBlocks, readBlocks, writeBlocks } from './batch-blocks.ts'
import { PATCH_BYTES_MAX, readPieces } from './patch.ts'
import { malformed, VARINT_BYTES_MAX, VarintReader, writeVarint, zigzag } from './varint.ts'

const PLAIN = 2
const WITH_BLOCKS = 3
export const BATCH_HEADER_BYTES = 14
export const CODEC = { raw: 1, zstd: 2 } as const
type Codec = (typeof CODEC)[keyof typeof CODEC]

/** Most pages of content in a batch: 1 MiB, so that the body stays below the frame limit of 2 MiB. */
export const BATCH_PAGES_MAX = 256
export const BATCH_ZERO_RUNS_MAX = 2048
export const BATCH_REFERENCES_MAX = 1024
export const BATCH_DELTAS_MAX = 1024
const BATCH_VARINTS_MAX = BATCH_PAGES_MAX + 2 * BATCH_ZERO_RUNS_MAX + 2 * BATCH_REFERENCES_MAX + BATCH_DELTAS_MAX
const BATCH_LISTS_BYTES_MAX = BATCH_VARINTS_MAX * VARINT_BYTES_MAX + BATCH_BLOCKS_BYTES_MAX
/** Largest body that a batch may declare, bytes. Pieces of deltas share the room of the pages. */
export const BATCH_BODY_BYTES_MAX = BATCH_PAGES_MAX * PAGE_BYTES + BATCH_LISTS_BYTES_MAX

const CODEC_AT = 1

/** A buffer of this size takes a batch of `pages` pages with header and whatever else may be in it, bytes. */
export const batchBufferBytes = (pages: number): number => BATCH_HEADER_BYTES + pages * PAGE_BYTES + BATCH_LISTS_BYTES_MAX

export type BatchHeader = {
  codec: Codec
  pages: number
  zeroRuns: number
  references: number
  /** Whether there are pages that are blocks of disks. */
  hasBlocks: boolean
  deltas: number
  bodyBytes: number
}

/**
 * Deltas by page: `places` = [from, to]* says where in `bytes` the pieces of each stand; `literals` are the new bytes
 * of all pieces, in order.
 */
export type BatchDeltas = { addresses: Float64Array; bytes: Uint8Array; places: Uint32Array; literals: Uint8Array }

/**
 * What a batch says. Lists are flat: zeroRuns = [first address, pages]*, references = [address, holder's address]*.
 * `content` and `deltas` are views of the body.
 */
type BatchContent = {
  content: Uint8Array
  pages: Float64Array
  zeroRuns: Float64Array
  references: Float64Array
  blocks: BatchBlocks | undefined
  deltas: BatchDeltas
}

export function writeBatchHeader(out: Uint8Array, header: BatchHeader): void {
  const view = new DataView(out.buffer, out.byteOffset, BATCH_HEADER_BYTES)
  view.setUint8(0, header.hasBlocks ? WITH_BLOCKS : PLAIN)
  view.setUint8(CODEC_AT, header.codec)
  view.setUint16(2, header.pages)
  view.setUint16(4, header.zeroRuns)
  view.setUint16(6, header.references)
  view.setUint16(8, header.deltas)
  view.setUint32(10, header.bodyBytes)
}

/** Changes the codec of a written header. */
export function writeBatchCodec(out: Uint8Array, codec: Codec): void {
  out[CODEC_AT] = codec
}

/**
 * The header of a BATCH payload, every count within its limit and the body large enough for what is declared. Throws
 * FRAME_MALFORMED.
 */
export function readBatchHeader(payload: Uint8Array): BatchHeader {
  if (payload.length < BATCH_HEADER_BYTES) throw malformed(`${payload.length} bytes are no header`)
  const view = new DataView(payload.buffer, payload.byteOffset, BATCH_HEADER_BYTES)
  const version = view.getUint8(0)
  if (version !== PLAIN && version !== WITH_BLOCKS) throw malformed(`version ${version}`)
  const codec = view.getUint8(CODEC_AT)
  if (codec !== CODEC.raw && codec !== CODEC.zstd) throw malformed(`codec ${codec}`)
  const header = {
    codec,
    pages: view.getUint16(2),
    zeroRuns: view.getUint16(4),
    references: view.getUint16(6),
    hasBlocks: version === WITH_BLOCKS,
    deltas: view.getUint16(8),
    bodyBytes: view.getUint32(10),
  }
  if (header.pages > BATCH_PAGES_MAX) throw malformed(`${header.pages} pages`)
  if (header.zeroRuns > BATCH_ZERO_RUNS_MAX) throw malformed(`${header.zeroRuns} zero runs`)
  if (header.references > BATCH_REFERENCES_MAX) throw malformed(`${header.references} references`)
  if (header.deltas > BATCH_DELTAS_MAX) throw malformed(`${header.deltas} deltas`)
  checkBodyBytes(header)
  if (codec === CODEC.raw && payload.length - BATCH_HEADER_BYTES !== header.bodyBytes)
    throw malformed('a raw body of another length than declared')
  return header
}

function checkBodyBytes(header: BatchHeader): void {
  const [blocksMin, blocksMax] = header.hasBlocks ? [BATCH_BLOCKS_BYTES_MIN, BATCH_BLOCKS_BYTES_MAX] : [0, 0]
  // A delta is at least an address, a piece's place and size, and a byte.
  const least = header.pages * (PAGE_BYTES + 1) + 2 * header.zeroRuns + 2 * header.references + blocksMin + 4 * header.deltas
  const words = header.pages + 2 * header.zeroRuns + 2 * header.references + header.deltas
  const lists = words * VARINT_BYTES_MAX + blocksMax
  const most = Math.min(BATCH_BODY_BYTES_MAX, header.pages * PAGE_BYTES + lists + header.deltas * PATCH_BYTES_MAX)
  if (header.bodyBytes < least || header.bodyBytes > most) throw malformed(`a body of ${header.bodyBytes} bytes for what it declares`)
}

/** Reads a body (already decompressed) against the pages that exist. Throws FRAME_MALFORMED. */
export function readBatchBody(header: BatchHeader, body: Uint8Array, map: PageMap): BatchContent {
  if (body.length !== header.bodyBytes) throw malformed(`a body of ${body.length} bytes, declared ${header.bodyBytes}`)
  const contentBytes = header.pages * PAGE_BYTES
  const reader = new VarintReader(body, contentBytes)
  const pages = readPages(reader, header.pages, map)
  const zeroRuns = readZeroRuns(reader, header.zeroRuns, map)
  const references = readReferences(reader, header.references, map)
  const blocks = header.hasBlocks ? readBlocks(reader, map) : undefined
  const deltas = readDeltas(reader, header.deltas, map)
  return { content: body.subarray(0, contentBytes), pages, zeroRuns, references, blocks, deltas }
}

function readPages(reader: VarintReader, count: number, map: PageMap): Float64Array {
  const pages = new Float64Array(count)
  let next = 0
  for (let i = 0; i < count; i++) {
    const address = next + reader.signed()
    if (!map.covers(address, 1)) throw malformed(`no page ${address}`)
    pages[i] = address
    next = address + 1
  }
  return pages
}

function readZeroRuns(reader: VarintReader, count: number, map: PageMap): Float64Array {
  const runs = new Float64Array(2 * count)
  let end = 0
  for (let i = 0; i < count; i++) {
    const gap = reader.unsigned()
    const pages = reader.unsigned()
    const first = end + gap
    if (i > 0 && gap === 0) throw malformed('zero runs that touch')
    if (!map.covers(first, pages)) throw malformed(`no ${pages} pages from ${first} on`)
    runs[2 * i] = first
    runs[2 * i + 1] = pages
    end = first + pages
  }
  return runs
}

function readReferences(reader: VarintReader, count: number, map: PageMap): Float64Array {
  const references = new Float64Array(2 * count)
  let next = 0
  for (let i = 0; i < count; i++) {
    const address = next + reader.signed()
    const holder = address + reader.signed()
    if (!map.covers(address, 1) || !map.covers(holder, 1)) throw malformed(`no page ${address} or ${holder}`)
    if (address === holder) throw malformed(`page ${address} refers to itself`)
    references[2 * i] = address
    references[2 * i + 1] = holder
    next = address + 1
  }
  return references
}

/** The deltas, and behind them their new bytes to the end of the body. */
function readDeltas(reader: VarintReader, count: number, map: PageMap): BatchDeltas {
  const { bytes } = reader
  const addresses = new Float64Array(count)
  const places = new Uint32Array(2 * count)
  let next = 0
  let literalBytes = 0
  for (let i = 0; i < count; i++) {
    const address = next + reader.signed()
    if (!map.covers(address, 1)) throw malformed(`no page ${address}`)
    addresses[i] = address
    next = address + 1
    places[2 * i] = reader.at
    const patchBytes = readPieces(reader)
    places[2 * i + 1] = reader.at
    if (reader.at - places[2 * i]! + patchBytes > PATCH_BYTES_MAX) throw malformed('a delta larger than its page')
    literalBytes += patchBytes
  }
  if (bytes.length - reader.at !== literalBytes) throw malformed(`${bytes.length - reader.at - literalBytes} bytes too many`)
  return { addresses, bytes, places, literals: bytes.subarray(reader.at) }
}

/**
 * Writes the lists of a body at `at`; gives the place after them. Zero pages must be ascending (they become runs); runs
 * are counted in the result.
 */
export function writeBatchLists(
  out: Uint8Array,
  at: number,
  lists: {
    pages: Float64Array
    zeros: Float64Array
    references: Float64Array
    blocks?: BatchBlocks | undefined
    deltas: BatchDeltas
  },
): { end: number; zeroRuns: number } {
  let next = 0
  for (const address of lists.pages) {
    at = writeVarint(out, at, zigzag(address - next))
    next = address + 1
  }
  const { zeros } = lists
  let zeroRuns = 0
  let end = 0
  for (let i = 0; i < zeros.length; ) {
    const first = zeros[i]!
    let pages = 1
    while (zeros[i + pages] === first + pages) pages++
    at = writeVarint(out, at, first - end)
    at = writeVarint(out, at, pages)
    end = first + pages
    i += pages
    zeroRuns++
  }
  next = 0
  for (let i = 0; i < lists.references.length; i += 2) {
    const address = lists.references[i]!
    at = writeVarint(out, at, zigzag(address - next))
    at = writeVarint(out, at, zigzag(lists.references[i + 1]! - address))
    next = address + 1
  }
  if (lists.blocks) at = writeBlocks(out, at, lists.blocks)
  return { end: writeDeltas(out, at, lists.deltas), zeroRuns }
}

function writeDeltas(out: Uint8Array, at: number, { addresses, bytes, places, literals }: BatchDeltas): number {
  let next = 0
  for (const [i, address] of addresses.entries()) {
    at = writeVarint(out, at, zigzag(address - next))
    const pieces = bytes.subarray(places[2 * i], places[2 * i + 1])
    out.set(pieces, at)
    at += pieces.length
    next = address + 1
  }
  out.set(literals, at)
  return at + literals.length
}

/** Payload of a BARRIER frame: u32be number, 1 for the first. */
export function encodeBarrier(n: number): Uint8Array {
  if (!Number.isInteger(n) || n < 1 || n > 0xffff_ffff) throw new TypeError(`barrier ${n}`)
  const out = new Uint8Array(4)
  new DataView(out.buffer).setUint32(0, n)
  return out
}

/** The number in a BARRIER payload. Throws FRAME_MALFORMED. */
export function decodeBarrier(payload: Uint8Array): number {
  if (payload.length !== 4) throw new GodwitError('FRAME_MALFORMED', `barrier: ${payload.length} bytes`)
  const n = new DataView(payload.buffer, payload.byteOffset, 4).getUint32(0)
  if (n === 0) throw new GodwitError('FRAME_MALFORMED', 'barrier: number 0')
  return n
}
