// 64 bits of a keyed hash for each block of a disk. Enters: chunks of a disk. Leaves: the hash of a block.
// Always holds: a block of zeros, and one that is not known, has none; memory is taken only for regions of 16 MiB that
// have a hash, 32 KiB each.
import { BLOCK_BYTES, CHUNK_BLOCKS } from './places.ts'

/** Keyed hash of 4096 bytes into `out` (16 bytes). */
export type BlockHasher = { hash(block: Uint8Array, out: Uint8Array): void }

/** Two words for each block of a chunk; both 0: none. */
export type ChunkHashes = Uint32Array

const REGION_BLOCKS = 4096
const WORDS = 2
const ZEROS = Buffer.alloc(BLOCK_BYTES)

export class BlockHashes {
  readonly #regions = new Map<number, Uint32Array>()

  /** The chunk's hashes, or undefined when none of its region is known: a view. */
  chunk(chunk: number): ChunkHashes | undefined {
    const region = this.#regions.get(Math.floor((chunk * CHUNK_BLOCKS) / REGION_BLOCKS))
    const at = ((chunk * CHUNK_BLOCKS) % REGION_BLOCKS) * WORDS
    return region?.subarray(at, at + CHUNK_BLOCKS * WORDS)
  }

  set(chunk: number, hashes: ChunkHashes): void {
    const number = Math.floor((chunk * CHUNK_BLOCKS) / REGION_BLOCKS)
    if (!this.#regions.has(number)) this.#regions.set(number, new Uint32Array(REGION_BLOCKS * WORDS))
    this.chunk(chunk)!.set(hashes)
  }

  /** Whether the block has this hash. */
  isAt(block: number, hash: Uint32Array): boolean {
    const region = this.#regions.get(Math.floor(block / REGION_BLOCKS))
    const at = (block % REGION_BLOCKS) * WORDS
    return region !== undefined && region[at] === hash[0] && region[at + 1] === hash[1]
  }

  /** The hash of a block of a chunk that was set: a view. */
  block(block: number): Uint32Array {
    return this.chunk(Math.floor(block / CHUNK_BLOCKS))!.subarray((block % CHUNK_BLOCKS) * WORDS, (block % CHUNK_BLOCKS) * WORDS + WORDS)
  }

  /** Chunks that may have a hash, ascending. */
  *chunks(): Generator<number> {
    const perRegion = REGION_BLOCKS / CHUNK_BLOCKS
    for (const region of [...this.#regions.keys()].sort((a, b) => a - b)) for (let i = 0; i < perRegion; i++) yield region * perRegion + i
  }
}

const full = new Uint32Array(4)
const fullBytes = new Uint8Array(full.buffer)

/** Hashes of the whole blocks of a chunk. */
export function hashBlocks(hasher: BlockHasher, chunk: Uint8Array): ChunkHashes {
  const hashes = new Uint32Array(CHUNK_BLOCKS * WORDS)
  for (let i = 0; (i + 1) * BLOCK_BYTES <= chunk.length; i++) {
    const block = chunk.subarray(i * BLOCK_BYTES, (i + 1) * BLOCK_BYTES)
    if (ZEROS.equals(block)) continue
    hasher.hash(block, fullBytes)
    hashes[2 * i] = full[0]!
    hashes[2 * i + 1] = full[1]!
  }
  return hashes
}

export const countHashes = (hashes: ChunkHashes): number => {
  let count = 0
  for (let i = 0; i < hashes.length; i += WORDS) if (hashes[i] !== 0 || hashes[i + 1] !== 0) count++
  return count
}
