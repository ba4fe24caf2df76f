// Sealed records: one crypto_secretstream_xchacha20poly1305 for each direction of a stream. Enters: data. Leaves:
// records of four sizes only, and back. Always holds: a record opens only in its place, on its stream, in its
// direction, of its migration and epoch; the first error is final and all errors are one (DECRYPT_FAILED); a stream
// without its final record is a truncated one, and end() says so; nothing is sealed or opened after the final record.
import { GodwitError } from '../../wire/errors.ts'
import { FRAME_HEADER_BYTES, writeFrameHeader } from '../../wire/frame.ts'
import type { Direction } from '../../wire/roles.ts'
import { FRAME, ID_PATTERN, RECORD_OVERHEAD_BYTES, RECORD_PLAINTEXT_BYTES_MAX } from '../../wire/types.ts'
import { concatBytes, fromHex, u8, u32, u64, utf8 } from '../bytes.ts'
import { type Primitives, STREAM_HEADER_BYTES, STREAM_KEY_BYTES, TAG_FINAL, TAG_MESSAGE, TAG_REKEY } from '../primitives.ts'
import { fastest, randomBytes } from '../sodium.ts'
import { directionNumber } from './keys.ts'

/**
 * Sizes of padded plaintext, bytes. The layer above cuts a byte stream into full 64 KiB records, so the size of a
 * single compressed batch is not visible. Smaller classes exist because the rest at a flush (a control message, the end
 * of a round) would cost up to 60 times its size in a 64 KiB record.
 */
export const PADDING_CLASSES: readonly number[] = [1024, 4096, 16384, RECORD_PLAINTEXT_BYTES_MAX]
const LENGTH_BYTES = 4
/** Largest data of one record, bytes. */
export const RECORD_DATA_BYTES_MAX = RECORD_PLAINTEXT_BYTES_MAX - LENGTH_BYTES
/** The same of a record of the next smaller class. */
export const SMALL_RECORD_DATA_BYTES = 16384 - LENGTH_BYTES
/** TAG_REKEY after this much padded plaintext, bytes. */
const REKEY_BYTES = 1024 ** 3

const TAG_BYTE = 1
const MAC_BYTES = RECORD_OVERHEAD_BYTES - TAG_BYTE
const DIGEST_BYTES = 32
/** Where data starts in a buffer for sealFrameInPlace: after frame header, tag byte and length. */
export const FRAME_DATA_OFFSET = FRAME_HEADER_BYTES + TAG_BYTE + LENGTH_BYTES
/** Size of a buffer for sealFrameInPlace. */
export const FRAME_BUFFER_BYTES = FRAME_HEADER_BYTES + RECORD_PLAINTEXT_BYTES_MAX + RECORD_OVERHEAD_BYTES

export type RecordContext = {
  /** 32 hex digits. */
  migrationId: string
  epoch: number
  index: number
  direction: Direction
  /** Frames of this stream that earlier attempts delivered: this attempt continues after them. Default 0. */
  from?: number
}

type Common = { key: Uint8Array; context: RecordContext; primitives?: Primitives }
type SealerOptions = Common & {
  /** Default REKEY_BYTES; the opener follows the sealer. */
  rekeyBytes?: number
  /** 24 bytes; for vectors only. Default random. */
  header?: Uint8Array
}
type OpenerOptions = Common & { header: Uint8Array }
type SealOptions = { final?: boolean | undefined }

export type Sealer = {
  /**
   * The second input of the opener besides the key, 24 bytes, not secret: the payload of the stream's first RECORD
   * frame.
   */
  readonly header: Uint8Array
  readonly records: number
  /**
   * Seals up to RECORD_DATA_BYTES_MAX bytes (none is allowed) into a fresh record. `final`: the last record of the
   * stream.
   */
  seal(data: Uint8Array, options?: SealOptions): Uint8Array
  /** As seal, as a whole RECORD frame in one fresh buffer. */
  sealFrame(data: Uint8Array, options?: SealOptions): Uint8Array
  /**
   * For the hot path: `buffer` (FRAME_BUFFER_BYTES) holds `dataBytes` of data at FRAME_DATA_OFFSET; it is sealed in
   * place. Returns the frame, a view of `buffer`.
   */
  sealFrameInPlace(buffer: Uint8Array, dataBytes: number, options?: SealOptions): Uint8Array
  /** Running digest over all records so far, for the manifest (32 bytes, a copy). */
  digest(): Uint8Array
  /** Zeroes the stream's state; nothing can be sealed after it. The final record does the same. */
  wipe(): void
}

export type Opener = {
  readonly records: number
  /** Whether the final record has been opened. */
  readonly finished: boolean
  /**
   * Throws DECRYPT_FAILED, from then on always. With `inPlace` the record's own bytes are overwritten and `data` is a
   * view of them (nothing is copied); without, `data` is fresh.
   */
  open(record: Uint8Array, options?: { inPlace?: boolean }): { data: Uint8Array; final: boolean }
  /** Call at the end of the stream: throws DECRYPT_FAILED unless the final record has been opened. */
  end(): void
  digest(): Uint8Array
  wipe(): void
}

const paddedBytes = (dataBytes: number): number => PADDING_CLASSES.find(size => size >= dataBytes + LENGTH_BYTES)!

/** An uninitialised Uint8Array (not a Buffer: its slice() copies). */
const uninitialised = (bytes: number): Uint8Array => new Uint8Array(Buffer.allocUnsafeSlow(bytes).buffer)

export function createSealer(options: SealerOptions): Sealer {
  const { key, context, primitives = fastest(), rekeyBytes = REKEY_BYTES, header = randomBytes(STREAM_HEADER_BYTES) } = options
  checkKey(key, header)
  const additionalData = encodeContext(context)
  const stream = primitives.secretStream(key, header)
  const chain = digestChain(primitives, additionalData)
  let records = 0
  let sinceRekey = 0
  let finished = false

  /** Seals `dataBytes` at `at + TAG_BYTE + LENGTH_BYTES` in place; returns the end of the record. */
  function sealAt(buffer: Uint8Array, at: number, dataBytes: number, final: boolean): number {
    if (finished) throw new Error('sealing after the final record')
    const padded = paddedBytes(dataBytes)
    const plain = buffer.subarray(at + TAG_BYTE, at + TAG_BYTE + padded)
    plain[0] = 0
    plain[1] = (dataBytes >>> 16) & 0xff
    plain[2] = (dataBytes >>> 8) & 0xff
    plain[3] = dataBytes & 0xff
    plain.fill(0, LENGTH_BYTES + dataBytes)
    sinceRekey += padded
    const rekey = sinceRekey >= rekeyBytes
    if (rekey) sinceRekey = 0
    const record = buffer.subarray(at, at + padded + RECORD_OVERHEAD_BYTES)
    stream.push(record, plain, additionalData, final ? TAG_FINAL : rekey ? TAG_REKEY : TAG_MESSAGE)
    chain.add(record)
    records++
    if (final) {
      finished = true
      stream.wipe()
    }
    return at + record.length
  }

  function sealFresh(data: Uint8Array, at: number, final: boolean): Uint8Array {
    if (data.length > RECORD_DATA_BYTES_MAX) throw new TypeError(`${data.length} bytes do not fit a record`)
    const out = uninitialised(at + paddedBytes(data.length) + RECORD_OVERHEAD_BYTES)
    out.set(data, at + TAG_BYTE + LENGTH_BYTES)
    sealAt(out, at, data.length, final)
    if (at > 0) writeFrameHeader(out, 0, FRAME.RECORD, out.length - FRAME_HEADER_BYTES)
    return out
  }

  return {
    header,
    get records() {
      return records
    },
    seal: (data, { final = false } = {}) => sealFresh(data, 0, final),
    sealFrame: (data, { final = false } = {}) => sealFresh(data, FRAME_HEADER_BYTES, final),
    sealFrameInPlace(buffer, dataBytes, { final = false } = {}) {
      if (buffer.length !== FRAME_BUFFER_BYTES) throw new TypeError(`the buffer is not of ${FRAME_BUFFER_BYTES} bytes`)
      if (!(dataBytes >= 0 && dataBytes <= RECORD_DATA_BYTES_MAX)) throw new TypeError(`${dataBytes} bytes do not fit a record`)
      const end = sealAt(buffer, FRAME_HEADER_BYTES, dataBytes, final)
      writeFrameHeader(buffer, 0, FRAME.RECORD, end - FRAME_HEADER_BYTES)
      return buffer.subarray(0, end)
    },
    digest: () => chain.digest(),
    wipe() {
      finished = true
      stream.wipe()
    },
  }
}

export function createOpener(options: OpenerOptions): Opener {
  const { key, context, primitives = fastest(), header } = options
  checkKey(key, header)
  const additionalData = encodeContext(context)
  const stream = primitives.secretStream(key, header)
  const chain = digestChain(primitives, additionalData)
  let records = 0
  let finished = false
  let failure: GodwitError | undefined

  function fail(): never {
    stream.wipe()
    // One message for every cause: a peer or relay must not learn which check failed.
    failure ??= new GodwitError(
      'DECRYPT_FAILED',
      `record ${records} of stream ${context.index} (${context.direction}) could not be decrypted`,
    )
    throw failure
  }

  return {
    get records() {
      return records
    },
    get finished() {
      return finished
    },
    open(record, { inPlace = false } = {}) {
      const padded = record.length - RECORD_OVERHEAD_BYTES
      if (failure || finished || !PADDING_CLASSES.includes(padded)) fail()
      const plain = inPlace ? record.subarray(TAG_BYTE, TAG_BYTE + padded) : uninitialised(padded)
      const tag = stream.pull(plain, record, additionalData)
      if (tag !== TAG_MESSAGE && tag !== TAG_REKEY && tag !== TAG_FINAL) fail()
      const dataBytes = ((plain[0]! << 24) | (plain[1]! << 16) | (plain[2]! << 8) | plain[3]!) >>> 0
      if (dataBytes > padded - LENGTH_BYTES) fail()
      chain.add(record)
      records++
      const final = tag === TAG_FINAL
      if (final) {
        finished = true
        stream.wipe()
      }
      return { data: plain.subarray(LENGTH_BYTES, LENGTH_BYTES + dataBytes), final }
    },
    end() {
      if (failure || !finished) fail()
    },
    digest: () => chain.digest(),
    wipe: () => stream.wipe(),
  }
}

function checkKey(key: Uint8Array, header: Uint8Array): void {
  if (key.length !== STREAM_KEY_BYTES) throw new TypeError('a stream key is 32 bytes')
  // The header is the first bytes of the peer on the stream.
  if (header.length !== STREAM_HEADER_BYTES) throw new GodwitError('DECRYPT_FAILED', 'a record header is 24 bytes')
}

/**
 * Additional data of every record: a record of one stream cannot be opened as a record of another stream, even if a key
 * were used twice.
 */
function encodeContext({ migrationId, epoch, index, direction, from = 0 }: RecordContext): Uint8Array {
  if (!ID_PATTERN.test(migrationId)) throw new TypeError('a migration id is 32 hex digits')
  const place = [utf8('GWD1'), fromHex(migrationId), u64(epoch), u32(index), u8(directionNumber(direction))]
  return concatBytes(...place, ...(from > 0 ? [u64(from)] : []))
}

/**
 * digest 0 = BLAKE2b-256(context); digest n+1 = BLAKE2b-256(digest n | u32be record length | MAC of the record). The
 * MAC represents the record: without the key nobody can create two records with the same MAC. Hashing every byte
 * instead was measured to cost more than sealing it (0.6 against 1.4 GB/s).
 */
function digestChain(primitives: Primitives, additionalData: Uint8Array): { add(record: Uint8Array): void; digest(): Uint8Array } {
  const input = new Uint8Array(DIGEST_BYTES + 4 + MAC_BYTES)
  const state = new Uint8Array(DIGEST_BYTES)
  primitives.hash(state, additionalData)
  return {
    add(record) {
      const length = record.length
      input.set(state)
      input[DIGEST_BYTES] = 0
      input[DIGEST_BYTES + 1] = (length >>> 16) & 0xff
      input[DIGEST_BYTES + 2] = (length >>> 8) & 0xff
      input[DIGEST_BYTES + 3] = length & 0xff
      for (let i = 0; i < MAC_BYTES; i++) input[DIGEST_BYTES + 4 + i] = record[length - MAC_BYTES + i]!
      primitives.hash(state, input)
    },
    digest: () => state.slice(),
  }
}
