// A number in [0, 1) that is fixed by a seed and two indexes (murmur3's finaliser, public domain). Never for keys.
// Pure.

export function seededHash(seed: number, a: number, b: number): number {
  let x = (Math.imul(seed | 0, 0x85ebca6b) ^ Math.imul(a | 0, 0x9e3779b1) ^ Math.imul(b | 0, 0xc2b2ae35)) >>> 0
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b)
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
  return ((x ^ (x >>> 16)) >>> 0) / 0x1_0000_0000
}
