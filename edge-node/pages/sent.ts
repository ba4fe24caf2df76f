// What the target holds of pages that are likely to be rewritten: the source's bounded memory of what it said last. A
// rewritten page of which the last word is here travels as a patch. Enters: pages as they are said. Leaves: the content
// last said of a page, where it is kept.
// Always holds: what is kept of a page is exactly what was last said of it, or nothing; memory is at most the budget
// plus 5 bytes per guest page.
//
// Whom to keep: guests rewrite some pages over and over, and QEMU brings them in the order of their addresses, round
// after round. Forgetting the oldest would forget, in each round, just what comes next. So among a few places a page
// takes the one whose page was said longest ago, and only where that is longer ago than this page's own last time: of a
// set that is too large, the same part stays; a set that the guest has left gives way.
import { PAGE_BYTES } from '../../wire/types.ts'

/** Pages are kept in pieces of this many, allocated when needed. */
const SHELF_PAGES = 256
/** Places looked at for one that may be taken. */
const TRIES = 4
const NEVER = 0

export class SentPages {
  readonly #slotsMax: number
  readonly #shelves: Uint8Array[] = []
  /** Per page: its slot + 1, or 0. */
  readonly #slotOf: Int32Array
  /** Per slot: its page, or -1. */
  readonly #pageIn: Int32Array
  readonly #free: number[] = []
  #used = 0
  #seed = 1

  /** `budgetBytes` of content at most. */
  constructor(pages: number, budgetBytes: number) {
    this.#slotsMax = Math.min(pages, Math.floor(budgetBytes / PAGE_BYTES))
    this.#slotOf = new Int32Array(this.#slotsMax > 0 ? pages : 0)
    this.#pageIn = new Int32Array(this.#slotsMax).fill(-1)
  }

  /** What was last said of the page: 4096 bytes, aligned, valid until the next keep() or drop(). */
  last(page: number): Uint8Array | undefined {
    const slot = this.#slotOf[page]
    return slot ? this.#place(slot - 1) : undefined
  }

  /**
   * `bytes` have been said of the page; before that it was last said at `before` (0: never), others when `saidAt` says.
   * Numbers rise with time.
   */
  keep(page: number, bytes: Uint8Array, before: number, saidAt: Uint32Array): void {
    if (this.#slotsMax === 0) return
    const slot = (this.#slotOf[page] || this.#slotFor(page, before, saidAt)) - 1
    if (slot >= 0) this.#place(slot).set(bytes)
  }

  /** Something else was said of the page. */
  drop(page: number): void {
    const slot = this.#slotOf[page]
    if (!slot) return
    this.#slotOf[page] = 0
    this.#pageIn[slot - 1] = -1
    this.#free.push(slot - 1)
  }

  get bytes(): number {
    return (this.#used - this.#free.length) * PAGE_BYTES
  }

  /** A slot + 1 for the page, or 0. */
  #slotFor(page: number, before: number, saidAt: Uint32Array): number {
    const slot = this.#free.pop() ?? (this.#used < this.#slotsMax ? this.#used++ : this.#oldest(before, saidAt))
    if (slot < 0) return 0
    const old = this.#pageIn[slot]!
    if (old >= 0) this.#slotOf[old] = 0
    this.#pageIn[slot] = page
    this.#slotOf[page] = slot + 1
    return slot + 1
  }

  #oldest(before: number, saidAt: Uint32Array): number {
    if (before === NEVER) return -1
    let best = -1
    let bestAt = before
    for (let i = 0; i < TRIES; i++) {
      // xorshift32: any spread will do.
      this.#seed ^= this.#seed << 13
      this.#seed ^= this.#seed >>> 17
      this.#seed ^= this.#seed << 5
      const slot = (this.#seed >>> 0) % this.#slotsMax
      const at = saidAt[this.#pageIn[slot]!]!
      if (at >= bestAt) continue
      best = slot
      bestAt = at
    }
    return best
  }

  #place(slot: number): Uint8Array {
    const shelf = Math.floor(slot / SHELF_PAGES)
    while (this.#shelves.length <= shelf) this.#shelves.push(new Uint8Array(SHELF_PAGES * PAGE_BYTES))
    const at = (slot % SHELF_PAGES) * PAGE_BYTES
    return this.#shelves[shelf]!.subarray(at, at + PAGE_BYTES)
  }
}
