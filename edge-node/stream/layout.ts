// The layout of QEMU's migration stream and of its return path, as numbers, and the few readers and writers of
// big-endian fields. Nothing here holds state. Everything in the stream is big-endian. Source: QEMU's migration
// documentation and recorded streams.
import { GodwitError } from '../../wire/errors.ts'
import { PAGE_BYTES } from '../../wire/types.ts'

/** "QEVM", then the stream version. */
export const STREAM_MAGIC = 0x5145564d
export const STREAM_VERSION = 3

/** First byte of each part of the stream. */
export const SECTION = {
  eof: 0x00,
  start: 0x01,
  part: 0x02,
  end: 0x03,
  full: 0x04,
  subsection: 0x05,
  vmDescription: 0x06,
  configuration: 0x07,
  command: 0x08,
  footer: 0x7e,
} as const

/** The section that carries guest memory. */
export const RAM_SECTION = { name: 'ram', instance: 0, version: 4 } as const

/** Low bits of the u64 that opens each record of a RAM body; the rest of it is the offset (or a total). */
export const RAM_FLAG = {
  zero: 0x002,
  memSize: 0x004,
  page: 0x008,
  eos: 0x010,
  continue: 0x020,
  xbzrle: 0x040,
  hook: 0x080,
  compressPage: 0x100,
  multifdFlush: 0x200,
} as const

export const QEMU_COMMAND = {
  openReturnPath: 1,
  ping: 2,
  postcopyAdvise: 3,
  postcopyListen: 4,
  postcopyRun: 5,
  ramDiscard: 6,
  packaged: 7,
  enableColo: 8,
  postcopyResume: 9,
  recvBitmap: 10,
  switchoverStart: 11,
} as const

/** Types of the messages that the target sends back. */
export const RETURN_PATH = { shut: 1, pong: 2, reqPagesId: 3, reqPages: 4, recvBitmap: 5, resumeAck: 6, switchoverAck: 7 } as const

/** log2 of PAGE_BYTES, as `configuration/target-page-bits` states it. */
export const PAGE_BITS = 12

/** More blocks than any machine has; more means that we have lost the thread. */
export const BLOCKS_MAX = 4096
/** Longest machine name that is believed. */
export const MACHINE_NAME_BYTES_MAX = 255
/** `configuration/capabilities`: most entries, longest entry. */
export const CAPABILITIES_MAX = 64
export const CAPABILITY_NAME_BYTES_MAX = 60

/** The end marker of a RAM body. */
export const EOS_RECORD: Uint8Array = Uint8Array.of(0, 0, 0, 0, 0, 0, 0, RAM_FLAG.eos)

export const readU16 = (bytes: Uint8Array, at: number): number => (bytes[at]! << 8) | bytes[at + 1]!

export const readU32 = (bytes: Uint8Array, at: number): number =>
  ((bytes[at]! << 24) | (bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!) >>> 0

/** A u64 as a number; above 2^53 it loses its low bits, and is then above Number.MAX_SAFE_INTEGER. */
export const readU64 = (bytes: Uint8Array, at: number): number => readU32(bytes, at) * 2 ** 32 + readU32(bytes, at + 4)

/** The u64 of a RAM record without its flags. */
export const readOffset = (bytes: Uint8Array, at: number): number =>
  readU32(bytes, at) * 2 ** 32 + ((readU32(bytes, at + 4) & ~(PAGE_BYTES - 1)) >>> 0)

export const readFlags = (bytes: Uint8Array, at: number): number => ((bytes[at + 6]! & 0x0f) << 8) | bytes[at + 7]!

/** Bytes as a string of the same length, one character each: keeps any name exactly. */
export function readName(bytes: Uint8Array, at: number, length: number): string {
  let name = ''
  for (let index = at; index < at + length; index++) name += String.fromCharCode(bytes[index]!)
  return name
}

export const nameBytes = (name: string): Uint8Array => Uint8Array.from(name, character => character.charCodeAt(0))

/** Big-endian, without the checks of crypto/bytes.ts: a test may write a wrong stream. */
export function be16(value: number): Uint8Array {
  return Uint8Array.of(value >>> 8, value & 0xff)
}

export function be32(value: number): Uint8Array {
  return Uint8Array.of(value >>> 24, (value >>> 16) & 0xff, (value >>> 8) & 0xff, value & 0xff)
}

export function be64(value: number): Uint8Array {
  return concat([be32(Math.floor(value / 2 ** 32)), be32(value % 2 ** 32)])
}

/** u8 length, then the name. */
export const counted = (name: string): Uint8Array => concat([Uint8Array.of(name.length), nameBytes(name)])

/** The head of a page record: offset and flags, and the block's name unless the flags say CONTINUE. */
export function pageHead(offset: number, flags: number, name: string): Uint8Array {
  const head = be64(offset + flags)
  return (flags & RAM_FLAG.continue) === 0 ? concat([head, counted(name)]) : head
}

export function concat(parts: readonly Uint8Array[]): Uint8Array {
  let length = 0
  for (const part of parts) length += part.length
  const bytes = new Uint8Array(length)
  let at = 0
  for (const part of parts) {
    bytes.set(part, at)
    at += part.length
  }
  return bytes
}

/** The bytes contradict the layout. */
export const wrong = (what: string): GodwitError => new GodwitError('QEMU_STREAM', `QEMU's migration stream: ${what}`)
