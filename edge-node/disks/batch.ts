// The layout inside a DISK frame, both ways. Pure.
//
//   u8 version 1 | u8 codec (1 raw, 2 zstd) | u16 disk | u16 runs | u16 data chunks | u16 0 | u32 body bytes | body
//   (the body raw, or one zstd frame of it)
//
//   body = runs * (u32 first chunk | u32 chunks, with bit 31 set where they are all zeros) (ascending, not overlapping)
//        | the bytes of all chunks that are not zeros, in order                  (64 KiB each, the last may be shorter)
//
// Integers are big-endian. Codec and length of the body stand where a BATCH has them (pages/batch.ts): the same threads
// compress both.
// Always holds: everything a header declares is checked against a limit before anything is allocated for it; every
// chunk is one of the disk; a body is consumed to its last byte. Any other input is FRAME_MALFORMED. A batch that is
// applied twice gives the same disk.
import { GodwitError } from '../../wire/errors.ts'
import type { ChunkRun } from './chunk-set.ts'
import { CHUNK_BYTES } from './chunk-tree.ts'

const DISK_BATCH_VERSION = 1
export const DISK_HEADER_BYTES = 14
const DISK_CODEC = { raw: 1, zstd: 2 } as const
type DiskCodec = (typeof DISK_CODEC)[keyof typeof DISK_CODEC]

/** 1 MiB of data: the body stays below the frame limit of 2 MiB. */
export const BATCH_CHUNKS_MAX = 16
export const BATCH_RUNS_MAX = 1024
/** All chunks of a batch are of one region of the disk: what writes a region keeps its order by that. */
export const REGION_CHUNKS = 64
const RUN_BYTES = 8
const ZEROS = 0x80000000

type DiskHeader = { codec: DiskCodec; disk: number; runs: number; chunks: number; bodyBytes: number }
export type DiskRun = ChunkRun & { isZero: boolean }
/** Content of data chunks in order: views of the body. */
type DiskBatch = { disk: number; runs: DiskRun[]; chunks: { chunk: number; bytes: Uint8Array }[] }

const malformed = (what: string): GodwitError => new GodwitError('FRAME_MALFORMED', `DISK frame: ${what}`)

/** The length of a chunk of a disk. */
export const chunkBytes = (chunk: number, sizeBytes: number): number => Math.min(CHUNK_BYTES, sizeBytes - chunk * CHUNK_BYTES)

/**
 * Writes an uncompressed batch to the start of `out`; gives its bytes. `content`: bytes of all data chunks, in the
 * order of the runs.
 */
export function writeDiskBatch(out: Uint8Array, disk: number, runs: readonly DiskRun[], content: readonly Uint8Array[]): number {
  const view = new DataView(out.buffer, out.byteOffset)
  let at = DISK_HEADER_BYTES
  let chunks = 0
  for (const { first, count, isZero } of runs) {
    view.setUint32(at, first)
    view.setUint32(at + 4, isZero ? (count | ZEROS) >>> 0 : count)
    at += RUN_BYTES
    chunks += isZero ? 0 : count
  }
  for (const bytes of content) {
    out.set(bytes, at)
    at += bytes.length
  }
  view.setUint8(0, DISK_BATCH_VERSION)
  view.setUint8(1, DISK_CODEC.raw)
  view.setUint16(2, disk)
  view.setUint16(4, runs.length)
  view.setUint16(6, chunks)
  view.setUint16(8, 0)
  view.setUint32(10, at - DISK_HEADER_BYTES)
  return at
}

/** The header of a DISK payload, every count within its limit. Throws FRAME_MALFORMED. */
export function readDiskHeader(payload: Uint8Array): DiskHeader {
  if (payload.length < DISK_HEADER_BYTES) throw malformed(`${payload.length} bytes are no header`)
  const view = new DataView(payload.buffer, payload.byteOffset, DISK_HEADER_BYTES)
  if (view.getUint8(0) !== DISK_BATCH_VERSION) throw malformed(`version ${view.getUint8(0)}`)
  const codec = view.getUint8(1)
  if (codec !== DISK_CODEC.raw && codec !== DISK_CODEC.zstd) throw malformed(`codec ${codec}`)
  if (view.getUint16(8) !== 0) throw malformed('a reserved field')
  const header = {
    codec: codec as DiskCodec,
    ...{ disk: view.getUint16(2), runs: view.getUint16(4), chunks: view.getUint16(6), bodyBytes: view.getUint32(10) },
  }
  if (header.runs < 1 || header.runs > BATCH_RUNS_MAX) throw malformed(`${header.runs} runs`)
  if (header.chunks > BATCH_CHUNKS_MAX) throw malformed(`${header.chunks} chunks`)
  const lists = header.runs * RUN_BYTES
  if (header.bodyBytes < lists || header.bodyBytes > lists + header.chunks * CHUNK_BYTES)
    throw malformed(`a body of ${header.bodyBytes} bytes for what it declares`)
  if (codec === DISK_CODEC.raw && payload.length - DISK_HEADER_BYTES !== header.bodyBytes)
    throw malformed('a raw body of another length than declared')
  return header
}

/** Reads a body (already decompressed) against the size of its disk. Throws FRAME_MALFORMED. */
export function readDiskBody(header: DiskHeader, body: Uint8Array, sizeBytes: number): DiskBatch {
  if (body.length !== header.bodyBytes) throw malformed(`a body of ${body.length} bytes, declared ${header.bodyBytes}`)
  const view = new DataView(body.buffer, body.byteOffset, body.length)
  const total = Math.ceil(sizeBytes / CHUNK_BYTES)
  const batch: DiskBatch = { disk: header.disk, runs: [], chunks: [] }
  let at = header.runs * RUN_BYTES
  let end = 0
  for (let i = 0; i < header.runs; i++) {
    const first = view.getUint32(i * RUN_BYTES)
    const word = view.getUint32(i * RUN_BYTES + 4)
    const run = { first, count: word & ~ZEROS, isZero: (word & ZEROS) !== 0 }
    if (run.count < 1 || first < end || first + run.count > total) throw malformed(`chunks ${first} to ${first + run.count} of ${total}`)
    end = first + run.count
    batch.runs.push(run)
    for (let chunk = first; !run.isZero && chunk < end; chunk++) {
      const length = chunkBytes(chunk, sizeBytes)
      if (batch.chunks.length >= header.chunks || at + length > body.length) throw malformed('fewer bytes than chunks')
      batch.chunks.push({ chunk, bytes: body.subarray(at, at + length) })
      at += length
    }
  }
  if (batch.chunks.length !== header.chunks || at !== body.length) throw malformed('more bytes than chunks')
  return batch
}

/**
 * The region of an uncompressed batch: a number that is the same for all batches of these chunks, and differs between
 * disks.
 */
export function regionOf(payload: Uint8Array): number {
  const view = new DataView(payload.buffer, payload.byteOffset)
  return view.getUint16(2) + Math.floor(view.getUint32(DISK_HEADER_BYTES) / REGION_CHUNKS)
}
