// The numbers of the protocol: frame types, their limits, the form of names. docs/reference/protocol.md has the same
// tables. Always holds: zero is not a frame type; a receiver knows the limit of every type before the first payload
// byte; a number never changes its meaning.
import { KIB, MIB } from './units.ts'

/** A guest page, bytes. The flags of QEMU's stream are the bits below it on x86 and on 4 KiB Arm guests. */
export const PAGE_BYTES = 4 * KIB

/** Largest padded plaintext of one record (the largest padding class), bytes. */
export const RECORD_PLAINTEXT_BYTES_MAX = 64 * KIB
/** Bytes that sealing adds to the padded plaintext: secretstream's tag byte and MAC, bytes. */
export const RECORD_OVERHEAD_BYTES = 17

/**
 * Frame type numbers. 1..31 hop (node and gateway), 32..63 end to end in the clear or sealed, 64..95 inside sealed
 * records.
 */
export const FRAME = {
  HELLO: 1,
  CHALLENGE: 2,
  AUTH: 3,
  WELCOME: 4,
  RPC: 5,
  JOIN: 6,
  ENROL: 7,
  ENROL_REPLY: 8,
  ERROR: 9,
  PING: 10,
  PONG: 11,
  SERVICE: 12,
  WARM_UP: 13,
  ENROL_HELLO: 14,
  HANDSHAKE_1: 32,
  HANDSHAKE_2: 33,
  RECORD: 34,
  BATCH: 64,
  SKELETON: 65,
  BARRIER: 66,
  MESSAGE: 67,
  RETURN_PATH: 68,
  ACK: 69,
  DISK: 70,
} as const

export type FrameName = keyof typeof FRAME

/** Largest payload of each frame type, bytes. */
export const FRAME_LIMITS = {
  HELLO: 64 * KIB,
  CHALLENGE: 64 * KIB,
  AUTH: 64 * KIB,
  WELCOME: 64 * KIB,
  RPC: 1 * MIB,
  JOIN: 64 * KIB,
  ENROL: 64 * KIB,
  ENROL_REPLY: 64 * KIB,
  ERROR: 64 * KIB,
  PING: 64 * KIB,
  PONG: 64 * KIB,
  SERVICE: 64 * KIB,
  WARM_UP: 64 * KIB,
  ENROL_HELLO: 64 * KIB,
  HANDSHAKE_1: 64 * KIB,
  HANDSHAKE_2: 64 * KIB,
  RECORD: RECORD_PLAINTEXT_BYTES_MAX + RECORD_OVERHEAD_BYTES,
  BATCH: 2 * MIB,
  SKELETON: 1 * MIB,
  BARRIER: 64 * KIB,
  MESSAGE: 64 * KIB,
  RETURN_PATH: 64 * KIB,
  ACK: 64 * KIB,
  DISK: 2 * MIB,
} as const satisfies Record<FrameName, number>

/** The `limitOf` of a FrameDecoder that accepts exactly these types. */
export function allow(...names: FrameName[]): (type: number) => number | undefined {
  const limits = new Map<number, number>(names.map(name => [FRAME[name], FRAME_LIMITS[name]]))
  return type => limits.get(type)
}

const NAMES = new Map<number, FrameName>((Object.keys(FRAME) as FrameName[]).map(name => [FRAME[name], name]))

/** A frame type for logs and messages: its name, or `type 99`. */
export const frameName = (type: number): string => NAMES.get(type) ?? `type ${type}`

/** Names of sites, gateways and VMs. */
export const NAME_PATTERN = /^[a-z0-9-]{1,64}$/
/** Migration ids, session ids, certificate serials: 16 bytes as lower-case hex. */
export const ID_PATTERN = /^[0-9a-f]{32}$/
