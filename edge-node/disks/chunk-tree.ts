// The name of a file's content: a Merkle root over its chunks of 64 KiB (RFC 6962: leaf SHA-256(0x00 | chunk), node
// SHA-256(0x01 | left | right)).
// Enters: leaves of chunks in order, and runs of chunks that hold only zeros. Leaves: the root. Pure.
// Always holds: a run of zero chunks gives the same root as the same chunks one by one, and costs only the logarithm of
// its length.
import { createHash } from 'node:crypto'

export const CHUNK_BYTES = 64 * 1024
export const HASH_BYTES = 32

const LEAF = Uint8Array.of(0)
const NODE = Uint8Array.of(1)

/** The leaf of a chunk. */
export const leafOf = (chunk: Uint8Array): Buffer => createHash('sha256').update(LEAF).update(chunk).digest()
const nodeOf = (left: Uint8Array, right: Uint8Array): Buffer => createHash('sha256').update(NODE).update(left).update(right).digest()

/** Roots of 2^level whole chunks of zeros, by level; made when first asked for. */
const zeroRoots: Buffer[] = [leafOf(new Uint8Array(CHUNK_BYTES))]
function zeroRoot(level: number): Buffer {
  for (let known = zeroRoots.length; known <= level; known++) zeroRoots.push(nodeOf(zeroRoots[known - 1]!, zeroRoots[known - 1]!))
  return zeroRoots[level]!
}

/** The leaf of a whole chunk of zeros. */
export const zeroLeaf = (): Buffer => zeroRoot(0)

type LeafTree = {
  /** The next chunk, by its leaf. */
  pushLeaf(leaf: Uint8Array): void
  /** The next `count` whole chunks, all zero. */
  pushZeros(count: number): void
  /** In hex. */
  root(): string
}

export function createLeafTree(): LeafTree {
  /** Complete subtrees from left to right, each smaller than the one before. */
  const stack: { level: number; hash: Buffer }[] = []
  let chunks = 0

  const add = (level: number, hash: Buffer) => {
    chunks += 2 ** level
    let grown = { level, hash }
    for (let top = stack.at(-1); top?.level === grown.level; top = stack.at(-1)) {
      stack.pop()
      grown = { level: grown.level + 1, hash: nodeOf(top.hash, grown.hash) }
    }
    stack.push(grown)
  }
  return {
    pushLeaf: leaf => add(0, Buffer.from(leaf)),
    pushZeros(count) {
      for (let left = count; left > 0; ) {
        let level = 0
        while (chunks % 2 ** (level + 1) === 0 && 2 ** (level + 1) <= left) level++
        add(level, zeroRoot(level))
        left -= 2 ** level
      }
    },
    root() {
      if (stack.length === 0) return createHash('sha256').digest('hex')
      return stack
        .map(({ hash }) => hash)
        .reduceRight((right, left) => nodeOf(left, right))
        .toString('hex')
    },
  }
}
