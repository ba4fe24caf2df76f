// Mutates inputs. Pure: the same sequence of random numbers gives the same bytes. Enters: an input, others to splice
// with. Leaves: a new one.

import { concatBytes } from '../crypto/bytes.ts'
import type { Random } from '../sim-network/random.ts'

export type MutateOptions = {
  /** Inputs to splice with. */
  others: readonly Uint8Array[]
  words: readonly Uint8Array[]
  bytesMax: number
}

const NUMBERS = [0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 100, 127, 128, 255, 256, 4095, 4096, 0x7fff, 0x8000, 0xffff, 0x1_0000].concat(
  [0xf_ffff, 0x10_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 2 ** 32, 2 ** 53 - 1, 2 ** 53, 2 ** 63, 2 ** 64 - 2 ** 11],
)

const STACKED_MAX = 6
const PIECE_BYTES_MAX = 64

/** One to a few mutations, one after the other. */
export function mutate(input: Uint8Array, random: Random, options: MutateOptions): Uint8Array {
  let bytes: Uint8Array = input.slice()
  for (let left = 1 + below(random, STACKED_MAX); left > 0; left--) bytes = once(bytes, random, options)
  return bytes.length > options.bytesMax ? bytes.slice(0, options.bytesMax) : bytes
}

export const below = (random: Random, limit: number): number => Math.floor(random.between(0, limit))
export const pick = <T>(random: Random, list: readonly T[]): T | undefined => list[below(random, list.length)]

type Mutator = (bytes: Uint8Array, random: Random, options: MutateOptions) => Uint8Array

const flipBit: Mutator = (bytes, random) => {
  const at = below(random, bytes.length)
  if (bytes.length > 0) bytes[at] = bytes[at]! ^ (1 << below(random, 8))
  return bytes
}
const setByte: Mutator = (bytes, random) => {
  if (bytes.length > 0) bytes[below(random, bytes.length)] = below(random, 256)
  return bytes
}
/** Overwrites a big-endian field, mostly a length or a count, with an unusual number. */
const setNumber: Mutator = (bytes, random) => {
  const width = [1, 2, 4, 8][below(random, 4)]!
  const at = below(random, Math.max(1, bytes.length - width + 1))
  const near = bytes.length - at - width + below(random, 5) - 2
  return putNumber(bytes, at, width, random.chance(0.2) ? Math.max(0, near) : pick(random, NUMBERS)!)
}
const addToNumber: Mutator = (bytes, random) => {
  const width = [1, 2, 4][below(random, 3)]!
  const at = below(random, Math.max(1, bytes.length - width + 1))
  let value = 0
  for (let i = 0; i < width; i++) value = value * 256 + (bytes[at + i] ?? 0)
  return putNumber(bytes, at, width, (value + below(random, 33) - 16 + 256 ** width) % 256 ** width)
}
const truncate: Mutator = (bytes, random) => bytes.slice(0, below(random, bytes.length + 1))
const remove: Mutator = (bytes, random) => {
  const { from, to } = range(bytes, random)
  return concatBytes(bytes.subarray(0, from), bytes.subarray(to))
}
const double: Mutator = (bytes, random) => {
  const { from, to } = range(bytes, random)
  return concatBytes(bytes.subarray(0, to), bytes.subarray(from))
}
const insert: Mutator = (bytes, random) => {
  const at = below(random, bytes.length + 1)
  const piece = Uint8Array.from({ length: 1 + below(random, 16) }, () => below(random, 256))
  return concatBytes(bytes.subarray(0, at), piece, bytes.subarray(at))
}
const swap: Mutator = (bytes, random) => {
  const { from, to } = range(bytes, random)
  const at = below(random, bytes.length + 1)
  return concatBytes(bytes.subarray(0, at), bytes.subarray(from, to), bytes.subarray(at))
}
const splice: Mutator = (bytes, random, { others }) => {
  const other = pick(random, others)
  if (!other) return bytes
  const { from, to } = random.chance(0.5) ? { from: below(random, other.length + 1), to: other.length } : range(other, random)
  const at = below(random, bytes.length + 1)
  return concatBytes(bytes.subarray(0, at), other.subarray(from, to), random.chance(0.5) ? bytes.subarray(at) : new Uint8Array(0))
}
const word: Mutator = (bytes, random, { words }) => {
  const chosen = pick(random, words)
  if (!chosen) return bytes
  const at = below(random, bytes.length + 1)
  return concatBytes(bytes.subarray(0, at), chosen, bytes.subarray(random.chance(0.5) ? at : Math.min(bytes.length, at + chosen.length)))
}

const MUTATORS: readonly Mutator[] = [
  flipBit,
  setByte,
  setNumber,
  setNumber,
  addToNumber,
  truncate,
  remove,
  double,
  insert,
  swap,
  splice,
  word,
  word,
]

const once: Mutator = (bytes, random, options) => pick(random, MUTATORS)!(bytes, random, options)

function range(bytes: Uint8Array, random: Random): { from: number; to: number } {
  const from = below(random, bytes.length + 1)
  const longest = random.chance(0.2) ? bytes.length : PIECE_BYTES_MAX
  return { from, to: Math.min(bytes.length, from + 1 + below(random, longest)) }
}

function putNumber(bytes: Uint8Array, at: number, width: number, value: number): Uint8Array {
  let rest = value
  for (let i = width - 1; i >= 0; i--) {
    if (at + i < bytes.length) bytes[at + i] = rest % 256
    rest = Math.floor(rest / 256)
  }
  return bytes
}
