// The hash of every chunk of a disk, and the Merkle root over them (chunk-tree.ts): what a site has, chunk by chunk.
// Enters: chunks. Leaves: hashes, the root.
// Always holds: a chunk that was never set is one of zeros; chunks of zeros take no memory where 4096 of them lie
// together.
import { CHUNK_BYTES, createLeafTree, HASH_BYTES, leafOf, zeroLeaf } from './chunk-tree.ts'

const BLOCK_LEAVES = 4096

export class Leaves {
  readonly chunks: number
  readonly sizeBytes: number
  readonly #zero: Buffer
  readonly #lastZero: Buffer
  readonly #blocks = new Map<number, Buffer>()

  /** `sizeBytes` of the disk: its last chunk may be shorter. */
  constructor(sizeBytes: number) {
    this.sizeBytes = sizeBytes
    this.chunks = Math.ceil(sizeBytes / CHUNK_BYTES)
    this.#zero = zeroLeaf()
    const rest = sizeBytes % CHUNK_BYTES
    this.#lastZero = rest === 0 ? this.#zero : leafOf(new Uint8Array(rest))
  }

  get(chunk: number): Buffer {
    const block = this.#blocks.get(Math.floor(chunk / BLOCK_LEAVES))
    const at = (chunk % BLOCK_LEAVES) * HASH_BYTES
    return block ? block.subarray(at, at + HASH_BYTES) : this.#zeroOf(chunk)
  }

  set(chunk: number, hash: Uint8Array): void {
    if (chunk < 0 || chunk >= this.chunks) throw new RangeError(`chunk ${chunk} of ${this.chunks}`)
    const number = Math.floor(chunk / BLOCK_LEAVES)
    let block = this.#blocks.get(number)
    if (!block) {
      if (this.#zeroOf(chunk).equals(hash)) return
      block = Buffer.alloc(BLOCK_LEAVES * HASH_BYTES)
      for (let i = 0; i < BLOCK_LEAVES; i++) this.#zeroOf(number * BLOCK_LEAVES + i).copy(block, i * HASH_BYTES)
      this.#blocks.set(number, block)
    }
    block.set(hash, (chunk % BLOCK_LEAVES) * HASH_BYTES)
  }

  /** Those of neighbours, one after the other. */
  setAll(first: number, hashes: Uint8Array): void {
    for (let at = 0; at < hashes.length; at += HASH_BYTES) this.set(first + at / HASH_BYTES, hashes.subarray(at, at + HASH_BYTES))
  }

  setZero(chunk: number): void {
    this.set(chunk, this.#zeroOf(chunk))
  }

  copy(): Leaves {
    const copy = new Leaves(this.sizeBytes)
    for (const [number, block] of this.#blocks) copy.#blocks.set(number, Buffer.from(block))
    return copy
  }

  isZero(chunk: number): boolean {
    return this.get(chunk).equals(this.#zeroOf(chunk))
  }

  /** In ascending order: the chunks that another disk of this size has otherwise. */
  *differing(other: Leaves): Generator<number> {
    for (let number = 0; number * BLOCK_LEAVES < this.chunks; number++) {
      // Both are zeros.
      if (!this.#blocks.has(number) && !other.#blocks.has(number)) continue
      const end = Math.min((number + 1) * BLOCK_LEAVES, this.chunks)
      for (let chunk = number * BLOCK_LEAVES; chunk < end; chunk++) if (!this.get(chunk).equals(other.get(chunk))) yield chunk
    }
  }

  /** In ascending order, runs of at most `most` chunks that are not zeros, with their hashes. */
  *runs(most: number): Generator<{ first: number; hashes: Uint8Array }> {
    for (const number of [...this.#blocks.keys()].sort((a, b) => a - b)) {
      const end = Math.min((number + 1) * BLOCK_LEAVES, this.chunks)
      for (let first = number * BLOCK_LEAVES; first < end; first++) {
        if (this.isZero(first)) continue
        let last = first
        while (last + 1 < end && last + 1 - first < most && !this.isZero(last + 1)) last++
        const at = (first % BLOCK_LEAVES) * HASH_BYTES
        yield { first, hashes: this.#blocks.get(number)!.subarray(at, at + (last + 1 - first) * HASH_BYTES) }
        first = last
      }
    }
  }

  /** In hex. The same as the root of a file with this content (digests.ts). */
  root(): string {
    const tree = createLeafTree()
    const whole = this.#lastZero === this.#zero ? this.chunks : this.chunks - 1
    for (let chunk = 0; chunk < this.chunks; ) {
      const number = Math.floor(chunk / BLOCK_LEAVES)
      const end = Math.min((number + 1) * BLOCK_LEAVES, this.chunks)
      if (this.#blocks.has(number)) for (; chunk < end; chunk++) tree.pushLeaf(this.get(chunk))
      else {
        const zeros = Math.max(0, Math.min(end, whole) - chunk)
        tree.pushZeros(zeros)
        if (end > whole) tree.pushLeaf(this.#lastZero)
        chunk = end
      }
    }
    return tree.root()
  }

  #zeroOf(chunk: number): Buffer {
    return chunk === this.chunks - 1 ? this.#lastZero : this.#zero
  }
}
