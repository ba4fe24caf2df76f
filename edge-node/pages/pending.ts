// The batch being filled. Enters: what is to be said about pages, by address. Leaves: a filled buffer (header, codec raw, and body: see batch.ts).
// Always holds: a page is in at most one of the lists, once; whoever wants to say something new about a page in here removes the old word first, and what
// was never sent is not sent. Page bytes are copied once, into the place from which they are compressed.
import { PAGE_BYTES } from './address.ts'
import {
  BATCH_HEADER_BYTES,
  BATCH_REFERENCES_MAX,
  BATCH_ZERO_RUNS_MAX,
  batchBufferBytes,
  CODEC,
  writeBatchHeader,
  writeBatchLists,
} from './batch.ts'

/** Worst case every zero page is a run of its own. */
const ZEROS_MAX = BATCH_ZERO_RUNS_MAX

/** A batch as it leaves: `bytes` of `buffer` are header and raw body. */
export type FilledBatch = { buffer: ArrayBuffer; bytes: number; pages: number; zeros: number; references: number }

export type Said = 'content' | 'zero' | 'reference'

export class PendingBatch {
  readonly #pagesMax: number
  readonly #takeBuffer: () => ArrayBuffer
  #bytes: Uint8Array<ArrayBuffer> | undefined
  readonly #pages: Float64Array
  #pageCount = 0
  readonly #zeros = new Float64Array(ZEROS_MAX)
  #zeroCount = 0
  /** [address, holder]* */
  readonly #references = new Float64Array(2 * BATCH_REFERENCES_MAX)
  #referenceCount = 0

  /** `takeBuffer` gives a buffer of at least `batchBufferBytes(pagesMax)`; it leaves with the batch. */
  constructor(pagesMax: number, takeBuffer: () => ArrayBuffer) {
    this.#pagesMax = pagesMax
    this.#takeBuffer = takeBuffer
    this.#pages = new Float64Array(pagesMax)
  }

  get full(): boolean {
    return this.#pageCount === this.#pagesMax || this.#zeroCount === ZEROS_MAX || this.#referenceCount === BATCH_REFERENCES_MAX
  }

  get empty(): boolean {
    return this.#pageCount + this.#zeroCount + this.#referenceCount === 0
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

  /** Takes back what was said of a page. Rare, hence a search. */
  remove(address: number, said: Said): void {
    if (said === 'content') this.#removeContent(address)
    else if (said === 'zero') this.#removeZero(address)
    else this.#removeReference(address)
  }

  /** The batch, complete; this is empty again after it. */
  take(): FilledBatch {
    const bytes = this.#buffer()
    const zeros = this.#zeros.subarray(0, this.#zeroCount).sort()
    const { end, zeroRuns } = writeBatchLists(bytes, placeOf(this.#pageCount), {
      pages: this.#pages.subarray(0, this.#pageCount),
      zeros,
      references: this.#references.subarray(0, 2 * this.#referenceCount),
    })
    const counts = { pages: this.#pageCount, references: this.#referenceCount }
    writeBatchHeader(bytes, { codec: CODEC.raw, ...counts, zeroRuns, bodyBytes: end - BATCH_HEADER_BYTES })
    const filled = { buffer: bytes.buffer, bytes: end, ...counts, zeros: this.#zeroCount }
    this.#bytes = undefined
    this.#pageCount = 0
    this.#zeroCount = 0
    this.#referenceCount = 0
    return filled
  }

  #buffer(): Uint8Array<ArrayBuffer> {
    if (!this.#bytes) {
      const buffer = this.#takeBuffer()
      if (buffer.byteLength < batchBufferBytes(this.#pagesMax)) throw new Error(`a batch buffer of ${buffer.byteLength} bytes is too small`)
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

  #removeReference(address: number): void {
    const references = this.#references
    let slot = this.#referenceCount - 1
    while (slot >= 0 && references[2 * slot] !== address) slot--
    found(slot, address)
    const last = --this.#referenceCount
    references[2 * slot] = references[2 * last]!
    references[2 * slot + 1] = references[2 * last + 1]!
  }
}

const placeOf = (slot: number): number => BATCH_HEADER_BYTES + slot * PAGE_BYTES

function found(slot: number, address: number): number {
  if (slot < 0) throw new Error(`page ${address} is not in the pending batch`)
  return slot
}
