// The NBD protocol, as far as Godwit speaks it: fixed newstyle negotiation, structured replies, metadata contexts, no
// TLS (a unix socket on one host).
// Source: the NetworkBlockDevice project's doc/proto.md. Enters: bytes of a server, requests of ours. Leaves: requests
// as bytes, replies as events. Pure.
// Always holds: no length of a server is trusted further than the limits below; an unknown or unexpected byte sequence
// is NBD_PROTOCOL, never a guess; read data leaves in the pieces in which it came, and is not copied here.
import { GodwitError } from '../../../wire/errors.ts'

const NBDMAGIC = 0x4e42444d41474943n
const IHAVEOPT = 0x49484156454f5054n
const OPTION_REPLY = 0x3e889045565a9n
const REQUEST = 0x25609513
const SIMPLE_REPLY = 0x67446698
const STRUCTURED_REPLY = 0x668e33ef

/** Handshake flags of the server, and the same bits of the client. */
const FIXED_NEWSTYLE = 1
const NO_ZEROES = 2

export const OPTION = { ABORT: 2, GO: 7, STRUCTURED_REPLY: 8, SET_META_CONTEXT: 10 } as const
export const OPTION_REPLY_TYPE = { ACK: 1, INFO: 3, META_CONTEXT: 4 } as const
const REPLY_IS_ERROR = 0x80000000
const INFO_EXPORT = 0
const INFO_BLOCK_SIZE = 3

export const NBD_COMMAND = { READ: 0, WRITE: 1, DISCONNECT: 2, FLUSH: 3, TRIM: 4, WRITE_ZEROES: 6, BLOCK_STATUS: 7 } as const
/** Transmission flags of an export. */
export const EXPORT_FLAG = { HAS_FLAGS: 1, READ_ONLY: 2, FLUSH: 4, FUA: 8, TRIM: 32, WRITE_ZEROES: 64, MULTI_CONN: 256 } as const
/** Flags of `base:allocation`. */
export const ALLOCATION = { HOLE: 1, ZERO: 2 } as const
/** Flag of `qemu:dirty-bitmap:NAME`. */
export const DIRTY = 1

const CHUNK = { NONE: 0, OFFSET_DATA: 1, OFFSET_HOLE: 2, BLOCK_STATUS: 5, ERROR: 0x8001, ERROR_OFFSET: 0x8002 } as const
const CHUNK_DONE = 1

/** Bytes of one read or write. QEMU allows 32 MiB; the smallest limit that a server must keep. */
export const REQUEST_BYTES_MAX = 32 * 1024 * 1024
const OPTION_REPLY_BYTES_MAX = 64 * 1024
/** Descriptors of one block status: QEMU sends at most 128 Ki of them (its own limit). */
const STATUS_BYTES_MAX = 4 + 8 * 128 * 1024
const ERROR_BYTES_MAX = 4096 + 64

export const GREETING_BYTES = 18

/** Checks the server's first 18 bytes. NBD_PROTOCOL when it is no fixed-newstyle server. */
export function readGreeting(bytes: Buffer): void {
  const isNbd = bytes.readBigUInt64BE(0) === NBDMAGIC && bytes.readBigUInt64BE(8) === IHAVEOPT
  if (!isNbd) throw broken('the greeting is not that of an NBD server')
  const flags = bytes.readUInt16BE(16)
  if ((flags & FIXED_NEWSTYLE) === 0 || (flags & NO_ZEROES) === 0) throw broken('the server does not support fixed newstyle without zeroes')
}

/** The client's answer to the greeting. */
export function writeClientFlags(): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(FIXED_NEWSTYLE | NO_ZEROES)
  return bytes
}

export function writeOption(option: number, data: Uint8Array = new Uint8Array()): Buffer {
  const head = Buffer.alloc(16)
  head.writeBigUInt64BE(IHAVEOPT, 0)
  head.writeUInt32BE(option, 8)
  head.writeUInt32BE(data.length, 12)
  return Buffer.concat([head, data])
}

const textWithLength = (text: string): Buffer => {
  const bytes = Buffer.from(text)
  const head = Buffer.alloc(4)
  head.writeUInt32BE(bytes.length)
  return Buffer.concat([head, bytes])
}

/** Data of option SET_META_CONTEXT. */
export function metaContextsOf(exportName: string, names: readonly string[]): Buffer {
  const count = Buffer.alloc(4)
  count.writeUInt32BE(names.length)
  return Buffer.concat([textWithLength(exportName), count, ...names.map(textWithLength)])
}

/** Data of option GO; asks for the block sizes as well. */
export function goOf(exportName: string): Buffer {
  const infos = Buffer.alloc(4)
  infos.writeUInt16BE(1, 0)
  infos.writeUInt16BE(INFO_BLOCK_SIZE, 2)
  return Buffer.concat([textWithLength(exportName), infos])
}

export const OPTION_REPLY_HEAD_BYTES = 20
type OptionReply = { option: number; type: number; bytes: number }

export function readOptionReplyHead(bytes: Buffer): OptionReply {
  if (bytes.readBigUInt64BE(0) !== OPTION_REPLY) throw broken('a wrong reply to an option')
  const reply = { option: bytes.readUInt32BE(8), type: bytes.readUInt32BE(12), bytes: bytes.readUInt32BE(16) }
  if (reply.bytes > OPTION_REPLY_BYTES_MAX) throw broken(`a reply of ${reply.bytes} bytes to an option`)
  return reply
}

/** The error that an option's reply carries, or undefined. */
export function optionError({ type, option }: OptionReply, data: Buffer): GodwitError | undefined {
  if (type < REPLY_IS_ERROR) return undefined
  const text = data.toString('utf8').slice(0, 500)
  return new GodwitError(
    'NBD_REFUSED',
    `the NBD server rejected option ${option} (error ${type - REPLY_IS_ERROR})${text ? `: ${text}` : ''}`,
  )
}

export type ExportInfo = { sizeBytes?: number; flags?: number; blockBytesMin?: number; payloadBytesMax?: number }

/** One INFO reply; of kinds that are unknown nothing is taken. */
export function readInfo(data: Buffer): ExportInfo {
  if (data.length < 2) throw broken('an empty information reply')
  const kind = data.readUInt16BE(0)
  if (kind === INFO_EXPORT) {
    if (data.length !== 12) throw broken('the information of the export has a wrong length')
    const size = data.readBigUInt64BE(2)
    if (size > BigInt(Number.MAX_SAFE_INTEGER)) throw broken('the export is larger than 8 PiB')
    return { sizeBytes: Number(size), flags: data.readUInt16BE(10) }
  }
  if (kind === INFO_BLOCK_SIZE) {
    if (data.length !== 14) throw broken('the information of block sizes has a wrong length')
    return { blockBytesMin: data.readUInt32BE(2), payloadBytesMax: data.readUInt32BE(10) }
  }
  return {}
}

/** One META_CONTEXT reply. */
export function readMetaContext(data: Buffer): { id: number; name: string } {
  if (data.length < 5) throw broken('a metadata context without a name')
  return { id: data.readUInt32BE(0), name: data.toString('utf8', 4) }
}

type Request = { command: number; flags?: number; cookie: bigint; offset: number; length: number }

/** The 28 bytes of a request; a write's data follows them. */
export function writeRequest({ command, flags = 0, cookie, offset, length }: Request): Buffer {
  const bytes = Buffer.allocUnsafe(28)
  bytes.writeUInt32BE(REQUEST, 0)
  bytes.writeUInt16BE(flags, 4)
  bytes.writeUInt16BE(command, 6)
  bytes.writeBigUInt64BE(cookie, 8)
  bytes.writeBigUInt64BE(BigInt(offset), 16)
  bytes.writeUInt32BE(length, 24)
  return bytes
}

export type Extent = { length: number; flags: number }

export type ReplyEvent =
  | { type: 'data'; cookie: bigint; offset: number; bytes: Buffer }
  | { type: 'hole'; cookie: bigint; offset: number; length: number }
  | { type: 'status'; cookie: bigint; context: number; extents: Extent[] }
  /** `errno`: Linux's number. */
  | { type: 'error'; cookie: bigint; errno: number; text: string }
  | { type: 'done'; cookie: bigint }

type Chunk = { kind: number; cookie: bigint; isDone: boolean; bytes: number }

/**
 * Reads replies from bytes that come in any pieces. A piece of read data refers to the bytes that were pushed: use it
 * before the next push.
 * Throws NBD_PROTOCOL; the connection is then of no more use.
 */
export class ReplyReader {
  #kept: Buffer = Buffer.alloc(0)
  #chunk: Chunk | undefined
  /** Of an OFFSET_DATA chunk: where the next byte belongs, and how many follow. */
  #data: { offset: number; left: number } | undefined

  push(piece: Uint8Array, onEvent: (event: ReplyEvent) => void): void {
    let bytes = Buffer.from(piece.buffer, piece.byteOffset, piece.byteLength)
    if (this.#kept.length > 0) bytes = Buffer.concat([this.#kept, bytes])
    for (;;) {
      const used = this.#step(bytes, onEvent)
      if (used < 0) break
      bytes = bytes.subarray(used)
    }
    // What is kept is a header or a small payload, never read data. It is copied: the piece belongs to the socket.
    this.#kept = Buffer.from(bytes)
  }

  /** How many bytes it has used, or -1 when it needs more. */
  #step(bytes: Buffer, onEvent: (event: ReplyEvent) => void): number {
    if (this.#data) return this.#readData(this.#data, bytes, onEvent)
    if (!this.#chunk) return this.#readHead(bytes, onEvent)
    const chunk = this.#chunk
    if (chunk.kind === CHUNK.OFFSET_DATA) {
      if (bytes.length < 8) return -1
      this.#data = { offset: offsetAt(bytes, 0), left: chunk.bytes - 8 }
      return 8
    }
    if (bytes.length < chunk.bytes) return -1
    const event = readChunk(chunk, bytes.subarray(0, chunk.bytes))
    if (event) onEvent(event)
    this.#end(onEvent)
    return chunk.bytes
  }

  #readData(data: { offset: number; left: number }, bytes: Buffer, onEvent: (event: ReplyEvent) => void): number {
    if (bytes.length === 0) return -1
    const part = bytes.subarray(0, Math.min(bytes.length, data.left))
    onEvent({ type: 'data', cookie: this.#chunk!.cookie, offset: data.offset, bytes: part })
    data.offset += part.length
    data.left -= part.length
    if (data.left === 0) {
      this.#data = undefined
      this.#end(onEvent)
    }
    return part.length
  }

  #readHead(bytes: Buffer, onEvent: (event: ReplyEvent) => void): number {
    if (bytes.length < 16) return -1
    const magic = bytes.readUInt32BE(0)
    if (magic === SIMPLE_REPLY) {
      const [errno, cookie] = [bytes.readUInt32BE(4), bytes.readBigUInt64BE(8)]
      if (errno !== 0) onEvent({ type: 'error', cookie, errno, text: '' })
      onEvent({ type: 'done', cookie })
      return 16
    }
    if (magic !== STRUCTURED_REPLY) throw broken('bytes that are not a reply')
    if (bytes.length < 20) return -1
    const chunk = {
      ...{ isDone: (bytes.readUInt16BE(4) & CHUNK_DONE) !== 0, kind: bytes.readUInt16BE(6) },
      ...{ cookie: bytes.readBigUInt64BE(8), bytes: bytes.readUInt32BE(16) },
    }
    checkLength(chunk)
    this.#chunk = chunk
    return 20
  }

  #end(onEvent: (event: ReplyEvent) => void): void {
    const { cookie, isDone } = this.#chunk!
    this.#chunk = undefined
    if (isDone) onEvent({ type: 'done', cookie })
  }
}

function checkLength({ kind, bytes, isDone }: Chunk): void {
  const isGood =
    kind === CHUNK.NONE
      ? bytes === 0 && isDone
      : kind === CHUNK.OFFSET_DATA
        ? bytes > 8 && bytes <= 8 + REQUEST_BYTES_MAX
        : kind === CHUNK.OFFSET_HOLE
          ? bytes === 12
          : kind === CHUNK.BLOCK_STATUS
            ? bytes >= 12 && bytes <= STATUS_BYTES_MAX && (bytes - 4) % 8 === 0
            : kind === CHUNK.ERROR || kind === CHUNK.ERROR_OFFSET
              ? bytes >= 6 && bytes <= ERROR_BYTES_MAX
              : false
  if (!isGood) throw broken(`a chunk of type ${kind} with ${bytes} bytes`)
}

function readChunk({ kind, cookie }: Chunk, bytes: Buffer): ReplyEvent | undefined {
  if (kind === CHUNK.NONE) return undefined
  if (kind === CHUNK.OFFSET_HOLE) return { type: 'hole', cookie, offset: offsetAt(bytes, 0), length: bytes.readUInt32BE(8) }
  if (kind === CHUNK.BLOCK_STATUS) {
    const extents: Extent[] = []
    for (let at = 4; at < bytes.length; at += 8) extents.push({ length: bytes.readUInt32BE(at), flags: bytes.readUInt32BE(at + 4) })
    return { type: 'status', cookie, context: bytes.readUInt32BE(0), extents }
  }
  const textBytes = bytes.readUInt16BE(4)
  const rest = kind === CHUNK.ERROR_OFFSET ? 8 : 0
  if (6 + textBytes + rest !== bytes.length) throw broken('an error whose text has a wrong length')
  return { type: 'error', cookie, errno: bytes.readUInt32BE(0), text: bytes.toString('utf8', 6, 6 + textBytes) }
}

function offsetAt(bytes: Buffer, at: number): number {
  const offset = bytes.readBigUInt64BE(at)
  if (offset > BigInt(Number.MAX_SAFE_INTEGER)) throw broken('an offset beyond 8 PiB')
  return Number(offset)
}

export const broken = (what: string): GodwitError => new GodwitError('NBD_PROTOCOL', `NBD: ${what}`)
