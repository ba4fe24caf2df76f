// A set of chunks of a disk, by their number. Pure. Enters: chunks, byte ranges. Leaves: runs of chunks in order.
// Always holds: a byte range marks every chunk that it touches; memory is one bit for each chunk of the disk (16 MiB
// for 8 TiB).
import { CHUNK_BYTES } from './chunk-tree.ts'

export type ChunkRun = { first: number; count: number }

export const chunksOf = (sizeBytes: number): number => Math.ceil(sizeBytes / CHUNK_BYTES)

export class ChunkSet {
  /** Chunks of the disk: 0 .. chunks - 1. */
  readonly chunks: number
  readonly #bits: Uint32Array
  #count = 0

  constructor(chunks: number) {
    this.chunks = chunks
    this.#bits = new Uint32Array(Math.ceil(chunks / 32))
  }

  /** Of how many chunks the set is. */
  get count(): number {
    return this.#count
  }

  has(chunk: number): boolean {
    return (this.#bits[chunk >>> 5]! & (1 << (chunk & 31))) !== 0
  }

  add(chunk: number): void {
    if (chunk < 0 || chunk >= this.chunks) throw new RangeError(`chunk ${chunk} of ${this.chunks}`)
    if (this.has(chunk)) return
    this.#bits[chunk >>> 5]! |= 1 << (chunk & 31)
    this.#count++
  }

  delete(chunk: number): void {
    if (chunk < 0 || chunk >= this.chunks || !this.has(chunk)) return
    this.#bits[chunk >>> 5]! &= ~(1 << (chunk & 31))
    this.#count--
  }

  /** Every chunk that these bytes touch. */
  addBytes(offset: number, length: number): void {
    if (length <= 0) return
    const last = Math.min(this.chunks - 1, Math.floor((offset + length - 1) / CHUNK_BYTES))
    for (let chunk = Math.floor(offset / CHUNK_BYTES); chunk <= last; chunk++) this.add(chunk)
  }

  addAll(other: ChunkSet): void {
    for (const { first, count } of other.runs()) for (let i = 0; i < count; i++) this.add(first + i)
  }

  clear(): void {
    this.#bits.fill(0)
    this.#count = 0
  }

  /** Ascending, from `from` on, each of at most `most` chunks. The set must not change while they are read. */
  *runs(most = Number.POSITIVE_INFINITY, from = 0): Generator<ChunkRun> {
    let first = -1
    for (let chunk = from; chunk < this.chunks; chunk++) {
      // Whole words of nothing are passed over at once.
      if (first < 0 && (chunk & 31) === 0 && this.#bits[chunk >>> 5] === 0) {
        chunk += 31
        continue
      }
      if (!this.has(chunk)) {
        if (first >= 0) yield { first, count: chunk - first }
        first = -1
      } else if (first < 0) first = chunk
      if (first >= 0 && chunk - first + 1 >= most) {
        yield { first, count: chunk - first + 1 }
        first = -1
      }
    }
    if (first >= 0) yield { first, count: this.chunks - first }
  }
}
