// Limits who may begin a QUIC handshake while too many are open: authenticated addresses, and a share of the others. It
// is a filter program of the kernel (classic BPF) for the server's UDP socket, because the binding shows no address
// before a handshake is done. Enters: addresses, counts of open handshakes. Leaves: the filter to set. Pure. Always
// holds: only Initial packets of QUIC (RFC 9000, section 17.2.2) are dropped, so established connections continue.
import { isIPv4 } from 'node:net'
import { placeOf } from './admission.ts'

/** Limit of known addresses in a program, for each family. */
export const KNOWN_MAX = 256

/** Shares of the maximum of open handshakes. Above each share, fewer of 2^n unknown Initial packets pass. */
const LEVELS = [
  { from: 0.5, keepOf: 16 },
  { from: 0.75, keepOf: 256 },
] as const
const OFF_BELOW = 0.125

const UDP_HEADER_BYTES = 8
/** Offsets of linux/filter.h that count from the network header, and from the kernel's own values. */
const NETWORK = 0xfff0_0000
const RANDOM = 0xffff_f000 + 56
const OP = { loadByte: 0x30, loadWord: 0x20, and: 0x54, equal: 0x15, jump: 0x05, end: 0x06 } as const
const PASS = 0xffff_ffff
const INSTRUCTION_BYTES = 8

type Instruction = readonly [op: number, ifTrue: number, ifFalse: number, value: number]

/** Stores the current level and the known addresses. */
export class InitialGate {
  readonly #handshakesMax: number
  /** By place (IPv4 address, IPv6 /64), the most recent last. */
  readonly #known = new Set<string>()
  #level = 0
  #isStale = false

  constructor(handshakesMax: number) {
    this.#handshakesMax = handshakesMax
  }

  /** A peer at `address` (`host:port`, or a bare address) is authenticated. */
  know(address: string): void {
    const place = placeOf(address)
    this.#isStale ||= !this.#known.has(place)
    this.#known.delete(place)
    this.#known.add(place)
    if (this.#known.size > KNOWN_MAX) this.#known.delete([...this.#known][0]!)
  }

  /** The program to set now, null to remove it, undefined for no change. */
  step(handshakes: number): Uint8Array | null | undefined {
    const share = handshakes / this.#handshakesMax
    const reached = LEVELS.filter(({ from }) => share >= from).length
    if (this.#level > 0 && share < OFF_BELOW) {
      this.#level = 0
      return null
    }
    const isNew = reached > this.#level
    if (isNew) this.#level = reached
    if (this.#level === 0 || !(isNew || this.#isStale)) return undefined
    this.#isStale = false
    return filterProgram([...this.#known], LEVELS[this.#level - 1]!.keepOf)
  }
}

/** Instructions of struct sock_filter. `keepOf`: a power of two. */
export function filterProgram(places: readonly string[], keepOf: number): Uint8Array {
  const v4 = places.filter(place => isIPv4(place)).flatMap(place => v4Test(place))
  const v6 = places.filter(place => !isIPv4(place)).flatMap(place => v6Test(place))
  const program: Instruction[] = [
    [OP.loadByte, 0, 0, UDP_HEADER_BYTES],
    [OP.and, 0, 0, 0xf0],
    [OP.equal, 1, 0, 0xc0],
    [OP.end, 0, 0, PASS],
    [OP.loadByte, 0, 0, NETWORK],
    [OP.and, 0, 0, 0xf0],
    [OP.equal, 0, 1, 0x60],
    [OP.jump, 0, 0, v4.length + 2],
    [OP.loadWord, 0, 0, NETWORK + 12],
    ...v4,
    [OP.jump, 0, 0, v6.length],
    ...v6,
    [OP.loadWord, 0, 0, RANDOM],
    [OP.and, 0, 0, keepOf - 1],
    [OP.equal, 0, 1, 0],
    [OP.end, 0, 0, PASS],
    [OP.end, 0, 0, 0],
  ]
  const bytes = Buffer.alloc(program.length * INSTRUCTION_BYTES)
  program.forEach(([op, ifTrue, ifFalse, value], i) => {
    const at = i * INSTRUCTION_BYTES
    bytes.writeUInt16LE(op, at)
    bytes[at + 2] = ifTrue
    bytes[at + 3] = ifFalse
    bytes.writeUInt32LE(value, at + 4)
  })
  return bytes
}

/** With the source address loaded: accepts this address. */
const v4Test = (place: string): Instruction[] => [
  [OP.equal, 0, 1, place.split('.').reduce((sum, part) => sum * 256 + Number(part), 0)],
  [OP.end, 0, 0, PASS],
]

/** Accepts source addresses of this /64. */
function v6Test(place: string): Instruction[] {
  const [a = 0, b = 0, c = 0, d = 0] = place.split(':').map(group => Number.parseInt(group, 16) || 0)
  return [
    [OP.loadWord, 0, 0, NETWORK + 8],
    [OP.equal, 0, 3, a * 65_536 + b],
    [OP.loadWord, 0, 0, NETWORK + 12],
    [OP.equal, 0, 1, c * 65_536 + d],
    [OP.end, 0, 0, PASS],
  ]
}
