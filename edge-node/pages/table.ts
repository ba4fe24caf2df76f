// What the target's memory holds, by content: per page the hash of its last-sent content, and from a hash to the one
// page that may be named as its holder.
// Enters: pages by number and 16-byte keyed hashes (as four 32-bit words). Leaves: "the page holds this already" and
// "that page holds this content".
// Always holds: a holder was sent as content, not as a reference, and has not been said to hold anything else since; so
// a reference never leads to a reference. Memory: 16 bytes of hash and 6 bytes of table per page. Equal keyed 128-bit
// hashes count as equal pages: the key is secret, so a guest cannot seek collisions.

export const HASH_WORDS = 4
export const NO_PAGE = -1

const SLOTS_PER_PAGE = 1.5

/**
 * Open addressing with linear probing and backward-shift deletion; at most one entry per page, so never more than two
 * thirds full.
 */
export class ContentTable {
  readonly #hashes: Uint32Array
  /** Page number + 1, or 0 where empty. */
  readonly #slots: Uint32Array
  readonly #capacity: number

  constructor(pages: number) {
    this.#hashes = new Uint32Array(pages * HASH_WORDS)
    this.#capacity = Math.ceil(pages * SLOTS_PER_PAGE) + 1
    this.#slots = new Uint32Array(this.#capacity)
  }

  /** Whether the content last said of `page` has this hash. Only asked of pages that have been said to hold content. */
  holds(page: number, hash: Uint32Array): boolean {
    const hashes = this.#hashes
    const at = page * HASH_WORDS
    return hashes[at] === hash[0] && hashes[at + 1] === hash[1] && hashes[at + 2] === hash[2] && hashes[at + 3] === hash[3]
  }

  /** The page that may be named as the holder of this content, or NO_PAGE. */
  holderOf(hash: Uint32Array): number {
    return this.#slots[this.#find(hash)]! - 1
  }

  /** `page` has been sent as content: it is the holder from now on (in place of an older one of the same content). */
  sentContent(page: number, hash: Uint32Array): void {
    this.#hashes.set(hash, page * HASH_WORDS)
    this.#slots[this.#find(hash)] = page + 1
  }

  /** `page` has been sent as a reference: it has the content, but is not a holder. */
  sentReference(page: number, hash: Uint32Array): void {
    this.#hashes.set(hash, page * HASH_WORDS)
  }

  /**
   * `page` is about to hold something else: whatever it was holder of has no holder now. Call before its hash changes.
   */
  forget(page: number): void {
    const hash = this.#hashes.subarray(page * HASH_WORDS, (page + 1) * HASH_WORDS)
    const slot = this.#find(hash)
    if (this.#slots[slot] === page + 1) this.#empty(slot)
  }

  /** The slot of the entry with this hash, or the empty slot where it would go. */
  #find(hash: Uint32Array): number {
    const slots = this.#slots
    let slot = this.#home(hash[0]!)
    for (;;) {
      const entry = slots[slot]!
      if (entry === 0 || this.holds(entry - 1, hash)) return slot
      slot = slot + 1 === this.#capacity ? 0 : slot + 1
    }
  }

  #home(word: number): number {
    return Math.floor((word / 2 ** 32) * this.#capacity)
  }

  /** Moves later entries of the same run back over the hole, so that no probe ever meets a false end. */
  #empty(hole: number): void {
    const slots = this.#slots
    const capacity = this.#capacity
    let slot = hole
    for (;;) {
      slot = slot + 1 === capacity ? 0 : slot + 1
      const entry = slots[slot]!
      if (entry === 0) break
      const home = this.#home(this.#hashes[(entry - 1) * HASH_WORDS]!)
      const fromHome = (slot - home + capacity) % capacity
      const fromHole = (slot - hole + capacity) % capacity
      if (fromHome < fromHole) continue
      slots[hole] = entry
      hole = slot
    }
    slots[hole] = 0
  }
}
