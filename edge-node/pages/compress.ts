// Compression of a batch, both ways, behind a seam with two engines: node:zlib's zstd where Node has it, zstd-codec
// otherwise. Each reads what the other wrote.
// Enters: a batch with a raw body (source), a zstd body from the peer (target). Leaves: the smaller of raw and zstd; a
// body of exactly the declared size.
// Always holds: a body that would not shrink by WORTH_RATIO travels raw; decompression allocates the declared size,
// checked before, and no more: the frame's own header must declare the same size, no dictionary and a small window, so
// neither output nor window can be made large by a few bytes (zstd bomb). Calls are synchronous: made in worker
// threads. (node:zlib's asynchronous ones did 160 MB/s in place of 800.)
import zlib from 'node:zlib'
import { GodwitError } from '../../wire/errors.ts'
import type { Level } from '../rate/level.ts'
import { BATCH_BODY_BYTES_MAX, BATCH_HEADER_BYTES, type BatchHeader, CODEC, readBatchHeader, writeBatchCodec } from './batch.ts'
import type { Zstd } from './zstd.ts'

/**
 * Levels that can be asked for: below -7 hardly anything shrinks, above 19 zstd wants more memory than a batch is
 * worth.
 */
export const LEVEL_MIN = -7
export const LEVEL_MAX = 19

const WINDOW_LOG_MAX = 21
/**
 * Compressed must be below this share of raw: decompressing costs the target about as much time as sending a few per
 * cent.
 */
const WORTH_RATIO = 0.97
/** Smaller bodies (zero runs, references) go raw. */
const WORTH_BYTES_MIN = 128
const SAMPLES = 8
const SAMPLE_BYTES = 1024
const SAMPLE_LEVEL = -1

/** The engine for this Node, or the one asked for. Throws ENGINE_UNAVAILABLE. */
export async function loadZstd(name?: 'node' | 'portable'): Promise<Zstd> {
  const hasNode = typeof zlib.zstdCompressSync === 'function'
  if (name === 'node' && !hasNode) throw new GodwitError('ENGINE_UNAVAILABLE', `Node ${process.version} has no zstd`)
  if (name === 'portable' || !hasNode) return (await import('./zstd-portable.ts')).loadPortableZstd()
  return nodeZstd()
}

function nodeZstd(): Zstd {
  const { ZSTD_c_compressionLevel, ZSTD_d_windowLogMax } = zlib.constants
  return {
    name: 'node',
    compress(input, level) {
      // pledgedSrcSize: the size is in the header, and zstd takes tables fit for it. chunkSize: one output buffer, no
      // joining.
      const options = { pledgedSrcSize: input.length, chunkSize: input.length + 1024, params: { [ZSTD_c_compressionLevel]: level } }
      return zlib.zstdCompressSync(input, options)
    },
    decompress(frame, bytes) {
      const options = { maxOutputLength: Math.max(bytes, 1), chunkSize: bytes + 1024, params: { [ZSTD_d_windowLogMax]: WINDOW_LOG_MAX } }
      return zlib.zstdDecompressSync(frame, options)
    },
  }
}

/**
 * A filled batch (`bytes` of header and raw body in `input`) and room for its compressed form. Both buffers come back
 * with the result.
 */
export type CompressJob = { input: ArrayBuffer; output: ArrayBuffer; bytes: number; level: Level }
/** The payload to send: `bytes` of `output` when compressed, else of `input`. */
export type CompressResult = { input: ArrayBuffer; output: ArrayBuffer; bytes: number; compressed: boolean; busyMs: number }

export function compressBatch(zstd: Zstd, { input, output, bytes, level }: CompressJob): CompressResult {
  const started = performance.now()
  const raw = new Uint8Array(input, 0, bytes)
  const packed = level === 'off' ? undefined : shrink(zstd, raw.subarray(BATCH_HEADER_BYTES), level)
  if (packed) {
    const out = new Uint8Array(output)
    out.set(raw.subarray(0, BATCH_HEADER_BYTES))
    out.set(packed, BATCH_HEADER_BYTES)
    writeBatchCodec(out, CODEC.zstd)
  }
  const busyMs = performance.now() - started
  return { input, output, bytes: packed ? BATCH_HEADER_BYTES + packed.length : bytes, compressed: packed !== undefined, busyMs }
}

/** The body compressed, or undefined where that does not pay. */
function shrink(zstd: Zstd, body: Uint8Array, level: number): Uint8Array | undefined {
  if (body.length < WORTH_BYTES_MIN || !samplesShrink(zstd, body)) return undefined
  const packed = zstd.compress(body, level)
  return packed.length < body.length * WORTH_RATIO ? packed : undefined
}

const sample = new Uint8Array(SAMPLES * SAMPLE_BYTES)

/**
 * Encrypted or already compressed memory is seen from samples spread over the body, at a small part of the cost of
 * trying it all.
 */
function samplesShrink(zstd: Zstd, body: Uint8Array): boolean {
  if (body.length < 4 * sample.length) return true
  const step = Math.floor((body.length - SAMPLE_BYTES) / (SAMPLES - 1))
  for (let i = 0; i < SAMPLES; i++) sample.set(body.subarray(i * step, i * step + SAMPLE_BYTES), i * SAMPLE_BYTES)
  return zstd.compress(sample, SAMPLE_LEVEL).length < sample.length * WORTH_RATIO
}

/**
 * Header and plain body of a BATCH payload. The body is a view of the payload when it came raw. Throws FRAME_MALFORMED.
 */
export function openBatch(zstd: Zstd, payload: Uint8Array): { header: BatchHeader; body: Uint8Array } {
  const header = readBatchHeader(payload)
  const body = payload.subarray(BATCH_HEADER_BYTES)
  return { header, body: header.codec === CODEC.raw ? body : inflate(zstd, body, header.bodyBytes) }
}

/** The content of a zstd frame from the peer, which must be of exactly `bytes`. Throws FRAME_MALFORMED. */
export function inflate(zstd: Zstd, frame: Uint8Array, bytes: number): Uint8Array {
  if (bytes > BATCH_BODY_BYTES_MAX) throw malformed(`${bytes} bytes declared`)
  const { contentBytes: declared, blocksAt, hasChecksum } = readFrameHeader(frame)
  if (declared !== bytes) throw malformed(`the frame declares ${declared} bytes, the batch ${bytes}`)
  if (endOfFrame(frame, blocksAt, hasChecksum) !== frame.length) throw malformed('not one whole frame')
  let content: Uint8Array
  try {
    content = zstd.decompress(frame, bytes)
  } catch (error) {
    throw new GodwitError('FRAME_MALFORMED', `zstd: ${error instanceof Error ? error.message : error}`, { cause: error })
  }
  if (content.length !== bytes) throw malformed(`${content.length} bytes came out, ${bytes} were declared`)
  return content
}

/**
 * A zstd frame's header (RFC 8878, 3.1.1.1), with the content size that every frame of ours has. Throws FRAME_MALFORMED
 * on what we would never write.
 */
function readFrameHeader(frame: Uint8Array): { contentBytes: number; blocksAt: number; hasChecksum: boolean } {
  if (frame.length < 6) throw malformed('no frame')
  const view = new DataView(frame.buffer, frame.byteOffset, frame.length)
  if (view.getUint32(0, true) !== 0xfd2fb528) throw malformed('no magic number')
  const descriptor = view.getUint8(4)
  const singleSegment = (descriptor & 0x20) !== 0
  if ((descriptor & 0x08) !== 0) throw malformed('a reserved bit')
  if ((descriptor & 0x03) !== 0) throw malformed('a dictionary')
  // 2^(10 + exponent) * (1 + eighths / 8), so the exponent bounds it.
  if (!singleSegment && 10 + (view.getUint8(5) >> 3) >= WINDOW_LOG_MAX) throw malformed('a window that is too large')
  const at = singleSegment ? 5 : 6
  const flag = descriptor >> 6
  const width = flag === 0 ? (singleSegment ? 1 : 0) : 1 << flag
  if (width === 0 || frame.length < at + width) throw malformed('no content size')
  const hasChecksum = (descriptor & 0x04) !== 0
  return { contentBytes: readContentBytes(view, at, flag), blocksAt: at + width, hasChecksum }
}

function readContentBytes(view: DataView, at: number, flag: number): number {
  if (flag === 0) return view.getUint8(at)
  if (flag === 1) return view.getUint16(at, true) + 256
  if (flag === 2) return view.getUint32(at, true)
  return Number(view.getBigUint64(at, true))
}

/**
 * Where the frame ends by the headers of its blocks (RFC 8878, 3.1.1.2). node:zlib is content when all output is there:
 * it would take a frame with anything behind it, or with its end missing, which the other engine refuses. Throws
 * FRAME_MALFORMED.
 */
function endOfFrame(frame: Uint8Array, blocksAt: number, hasChecksum: boolean): number {
  for (let at = blocksAt; at + 3 <= frame.length; ) {
    const block = frame[at]! | (frame[at + 1]! << 8) | (frame[at + 2]! << 16)
    const type = (block >> 1) & 3
    if (type === 3) throw malformed('a reserved block')
    at += 3 + (type === 1 ? 1 : block >> 3)
    if ((block & 1) === 1) return at + (hasChecksum ? 4 : 0)
  }
  throw malformed('a frame that is cut off')
}

const malformed = (what: string): GodwitError => new GodwitError('FRAME_MALFORMED', `zstd: ${what}`)
