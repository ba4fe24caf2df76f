// The batch being filled. Enters: what is to be said about pages, by address. Leaves: a filled buffer (header, codec
// raw, and body: see batch.ts).
// Always holds: a page is in at most one of the lists, once; whoever wants to say something new about a page in here
// removes the old word first, and what was never sent is not sent. Page bytes are copied once, into the place from
// which they are compressed. Deltas share the room of the pages.
import { PAGE_BYTES } from '../../wire/types.ts'
import {
  BATCH_DELTAS_MAX,
  BATCH_HEADER_BYTES,
  BATCH_REFERENCES_MAX,
  BATCH_ZERO_RUNS_MAX,
  type BatchDeltas,
  batchBufferBytes,
  CODEC,
  writeBatchHeader,
  writeBatchLists,
} from './batch.ts'
import { BATCH_BLOCKS_MAX, type BatchBlocks } from './batch-blocks.ts'
import { type PageHasher, PROOF_BYTES, proofOf } from './hasher.ts'
import { createPatch, makePatch, WORTH_BYTES_MAX } from './patch.ts'

/** Worst case every zero page is a run of its own. */
const ZEROS_MAX = BATCH_ZERO_RUNS_MAX

/** A batch as it leaves: `bytes` of `buffer` are header and raw body. */
export type FilledBatch = {
  buffer: ArrayBuffer
  bytes: number
  pages: number
  zeros: number
  references: number
  blocks: number
  deltas: number
  /** Of the body: pieces of the deltas and their new bytes. */
  deltaBytes: number
}

type Said = 'content' | 'zero' | 'reference' | 'delta' | 'block'

export class PendingBatch {
  readonly #pagesMax: number
  /** Pages' worth of content in this batch, and in the next. */
  #limit: number
  #nextLimit: number
  readonly #takeBuffer: () => ArrayBuffer
  #bytes: Uint8Array<ArrayBuffer> | undefined
  readonly #pages: Float64Array
  #pageCount = 0
  readonly #zeros = new Float64Array(ZEROS_MAX)
  #zeroCount = 0
  /** [address, holder]* */
  readonly #references = new Float64Array(2 * BATCH_REFERENCES_MAX)
  #referenceCount = 0
  readonly #hasher: PageHasher
  /** Pages that are blocks of disks: [address, place]*, and the hash of each. */
  readonly #blocks = new Float64Array(2 * BATCH_BLOCKS_MAX)
  readonly #blockHashes = new Uint8Array(PROOF_BYTES * BATCH_BLOCKS_MAX)
  #blockCount = 0
  readonly #deltas = new Float64Array(BATCH_DELTAS_MAX)
  #deltaCount = 0
  readonly #patch = createPatch()
  /** Pieces and new bytes of the deltas, each in their order; allocated with the first. */
  #pieces: Uint8Array | undefined
  #literals: Uint8Array | undefined
  /** Where those of each delta end. */
  readonly #pieceEnds = new Uint32Array(BATCH_DELTAS_MAX)
  readonly #literalEnds = new Uint32Array(BATCH_DELTAS_MAX)

  /**
   * `takeBuffer` gives a buffer of at least `batchBufferBytes(limit)` (first `pagesMax`, see setLimit); it leaves with
   * the batch. `hasher`: of the proof (hasher.ts).
   */
  constructor(pagesMax: number, takeBuffer: () => ArrayBuffer, { limit = pagesMax, hasher }: { limit?: number; hasher: PageHasher }) {
    this.#hasher = hasher
    this.#pagesMax = pagesMax
    this.#limit = limit
    this.#nextLimit = limit
    this.#takeBuffer = takeBuffer
    this.#pages = new Float64Array(pagesMax)
  }

  get full(): boolean {
    if (this.#zeroCount === ZEROS_MAX || this.#referenceCount === BATCH_REFERENCES_MAX || this.#deltaCount === BATCH_DELTAS_MAX) return true
    if (this.#blockCount === BATCH_BLOCKS_MAX) return true
    return (this.#pageCount + 1) * PAGE_BYTES + this.#deltaBytes > this.#limit * PAGE_BYTES
  }

  /** Pages' worth of content, 1 to `pagesMax`, of the batches from the next on. */
  setLimit(pages: number): void {
    this.#nextLimit = pages
    if (this.empty) this.#limit = pages
  }

  /** Of the batch being filled. */
  get limit(): number {
    return this.#limit
  }

  get empty(): boolean {
    return this.#pageCount + this.#zeroCount + this.#referenceCount + this.#blockCount + this.#deltaCount === 0
  }

  /** Pages of content in here. */
  get pages(): number {
    return this.#pageCount
  }

  content(address: number, bytes: Uint8Array): void {
    this.#buffer().set(bytes, placeOf(this.#pageCount))
    this.#pages[this.#pageCount++] = address
  }

  zero(address: number): void {
    this.#zeros[this.#zeroCount++] = address
  }

  reference(address: number, holder: number): void {
    this.#references[2 * this.#referenceCount] = address
    this.#references[2 * this.#referenceCount + 1] = holder
    this.#referenceCount++
  }

  /** The page with these bytes as the block of a disk. */
  block(address: number, place: number, bytes: Uint8Array): void {
    const i = this.#blockCount++
    this.#blocks[2 * i] = address
    this.#blocks[2 * i + 1] = place
    this.#hasher.hash(bytes, hashAt(this.#blockHashes, i))
  }

  /** The page as its difference to `base`, where that takes at most `worthBytes`; false: nothing was said. */
  delta(address: number, base: Uint8Array, bytes: Uint8Array, worthBytes = WORTH_BYTES_MAX): boolean {
    const patch = this.#patch
    if (!makePatch(base, bytes, patch, worthBytes)) return false
    const room = this.#pagesMax * PAGE_BYTES
    this.#pieces ??= new Uint8Array(room)
    this.#literals ??= new Uint8Array(room)
    const i = this.#deltaCount++
    const pieceAt = i === 0 ? 0 : this.#pieceEnds[i - 1]!
    const literalAt = i === 0 ? 0 : this.#literalEnds[i - 1]!
    this.#pieces.set(patch.pieces.subarray(0, patch.pieceBytes), pieceAt)
    this.#literals.set(patch.literals.subarray(0, patch.literalBytes), literalAt)
    this.#pieceEnds[i] = pieceAt + patch.pieceBytes
    this.#literalEnds[i] = literalAt + patch.literalBytes
    this.#deltas[i] = address
    return true
  }

  get #deltaBytes(): number {
    const last = this.#deltaCount - 1
    return last < 0 ? 0 : this.#pieceEnds[last]! + this.#literalEnds[last]!
  }

  /** Takes back what was said of a page. Rare, hence a search. */
  remove(address: number, said: Said): void {
    if (said === 'content') this.#removeContent(address)
    else if (said === 'zero') this.#removeZero(address)
    else if (said === 'delta') this.#removeDelta(address)
    else if (said === 'reference') this.#referenceCount = removePair(this.#references, this.#referenceCount, address).count
    else this.#removeBlock(address)
  }

  /** The batch, complete; this is empty again after it. */
  take(): FilledBatch {
    const bytes = this.#buffer()
    const zeros = this.#zeros.subarray(0, this.#zeroCount).sort()
    const { end, zeroRuns } = writeBatchLists(bytes, placeOf(this.#pageCount), {
      pages: this.#pages.subarray(0, this.#pageCount),
      zeros,
      references: this.#references.subarray(0, 2 * this.#referenceCount),
      blocks: this.#takeBlocks(),
      deltas: this.#takeDeltas(),
    })
    const counts = { pages: this.#pageCount, references: this.#referenceCount, deltas: this.#deltaCount }
    const blocks = this.#blockCount
    writeBatchHeader(bytes, { codec: CODEC.raw, ...counts, hasBlocks: blocks > 0, zeroRuns, bodyBytes: end - BATCH_HEADER_BYTES })
    const filled = { buffer: bytes.buffer, bytes: end, ...counts, blocks, deltaBytes: this.#deltaBytes, zeros: this.#zeroCount }
    this.#bytes = undefined
    this.#pageCount = 0
    this.#zeroCount = 0
    this.#referenceCount = 0
    this.#blockCount = 0
    this.#deltaCount = 0
    this.#limit = this.#nextLimit
    return filled
  }

  #buffer(): Uint8Array<ArrayBuffer> {
    if (!this.#bytes) {
      const buffer = this.#takeBuffer()
      if (buffer.byteLength < batchBufferBytes(this.#limit)) throw new Error(`a batch buffer of ${buffer.byteLength} bytes is too small`)
      this.#bytes = new Uint8Array(buffer)
    }
    return this.#bytes
  }

  #removeContent(address: number): void {
    const slot = found(this.#pages.subarray(0, this.#pageCount).indexOf(address), address)
    const last = --this.#pageCount
    if (slot === last) return
    this.#buffer().copyWithin(placeOf(slot), placeOf(last), placeOf(last + 1))
    this.#pages[slot] = this.#pages[last]!
  }

  #removeZero(address: number): void {
    const slot = found(this.#zeros.subarray(0, this.#zeroCount).lastIndexOf(address), address)
    this.#zeros[slot] = this.#zeros[--this.#zeroCount]!
  }

  #takeDeltas(): BatchDeltas {
    const count = this.#deltaCount
    const places = new Uint32Array(2 * count)
    for (let i = 0; i < count; i++) {
      places[2 * i] = i === 0 ? 0 : this.#pieceEnds[i - 1]!
      places[2 * i + 1] = this.#pieceEnds[i]!
    }
    return {
      addresses: this.#deltas.subarray(0, count),
      bytes: this.#pieces ?? NOTHING,
      places,
      literals: count === 0 ? NOTHING : this.#literals!.subarray(0, this.#literalEnds[count - 1]),
    }
  }

  #removeDelta(address: number): void {
    const slot = found(this.#deltas.subarray(0, this.#deltaCount).indexOf(address), address)
    const last = --this.#deltaCount
    this.#deltas.copyWithin(slot, slot + 1, last + 1)
    closeHole(this.#pieces!, this.#pieceEnds, slot, last)
    closeHole(this.#literals!, this.#literalEnds, slot, last)
  }

  #takeBlocks(): BatchBlocks | undefined {
    const count = this.#blockCount
    if (count === 0) return undefined
    return {
      addresses: Float64Array.from({ length: count }, (_, i) => this.#blocks[2 * i]!),
      places: Float64Array.from({ length: count }, (_, i) => this.#blocks[2 * i + 1]!),
      proof: proofOf(this.#hasher, this.#blockHashes.subarray(0, PROOF_BYTES * count)),
    }
  }

  #removeBlock(address: number): void {
    const { slot, count } = removePair(this.#blocks, this.#blockCount, address)
    this.#blockHashes.copyWithin(slot * PROOF_BYTES, count * PROOF_BYTES, (count + 1) * PROOF_BYTES)
    this.#blockCount = count
  }
}

const hashAt = (hashes: Uint8Array, i: number): Uint8Array => hashes.subarray(i * PROOF_BYTES, (i + 1) * PROOF_BYTES)

/** Takes the pair of an address out of `count` pairs: the last one moves to its slot. Gives how many are left. */
function removePair(pairs: Float64Array, count: number, address: number): { slot: number; count: number } {
  let slot = count - 1
  while (slot >= 0 && pairs[2 * slot] !== address) slot--
  found(slot, address)
  const last = count - 1
  pairs[2 * slot] = pairs[2 * last]!
  pairs[2 * slot + 1] = pairs[2 * last + 1]!
  return { slot, count: last }
}

const NOTHING = new Uint8Array(0)

/** Takes item `slot` out of items that lie one behind the other; `ends` says where each ends, `last` is the last. */
function closeHole(bytes: Uint8Array, ends: Uint32Array, slot: number, last: number): void {
  const from = slot === 0 ? 0 : ends[slot - 1]!
  const size = ends[slot]! - from
  bytes.copyWithin(from, ends[slot]!, ends[last]!)
  for (let i = slot; i < last; i++) ends[i] = ends[i + 1]! - size
}

const placeOf = (slot: number): number => BATCH_HEADER_BYTES + slot * PAGE_BYTES

function found(slot: number, address: number): number {
  if (slot < 0) throw new Error(`page ${address} is not in the pending batch`)
  return slot
}
