// Seeded random numbers, the same on every machine. Enters: a seed. Leaves: a sequence. sfc32 (Chris Doty-Humphrey,
// PractRand, public domain), seeded through FNV-1a and 16 discarded rounds. Never use it for keys.

export type Random = {
  /** Uniform in [0, 1), 32 bits. */
  next(): number
  uint32(): number
  /** Uniform in [low, high). */
  between(low: number, high: number): number
  /** True with this probability; always draws exactly one number. */
  chance(probability: number): boolean
  /** An independent sequence, determined by this seed and the label (not by the position of this sequence). */
  fork(label: string): Random
}

export function createRandom(seed: number | string): Random {
  const text = String(seed)
  let a = hash32(text, 0x811c9dc5)
  let b = hash32(text, 0x9e3779b9)
  let c = hash32(text, 0x85ebca6b)
  let counter = 1
  const uint32 = (): number => {
    const out = (((a + b) | 0) + counter) | 0
    counter = (counter + 1) | 0
    a = b ^ (b >>> 9)
    b = (c + (c << 3)) | 0
    c = (((c << 21) | (c >>> 11)) + out) | 0
    return out >>> 0
  }
  for (let round = 0; round < 16; round++) uint32()
  const next = () => uint32() / 0x1_0000_0000
  return {
    next,
    uint32,
    between: (low, high) => low + next() * (high - low),
    chance: probability => next() < probability,
    fork: label => createRandom(`${text}/${label}`),
  }
}

/** FNV-1a, 32 bits, over the UTF-16 units of a text. */
export function hash32(text: string, basis = 0x811c9dc5): number {
  let hash = basis
  for (let at = 0; at < text.length; at++) hash = Math.imul(hash ^ text.charCodeAt(at), 0x01000193)
  return hash >>> 0
}

/**
 * A number in [0, 1) determined by (seed, index), for series that are read out of order (murmur3's finaliser, public
 * domain).
 */
export function randomAt(seed: number, index: number): number {
  let x = (seed ^ Math.imul(index | 0, 0x9e3779b1)) >>> 0
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b)
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
  return ((x ^ (x >>> 16)) >>> 0) / 0x1_0000_0000
}
