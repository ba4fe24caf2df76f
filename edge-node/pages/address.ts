// Names of guest pages. Enters: blocks of guest memory (QEMU's RAM blocks: id, bytes). Leaves: a page's address, which
// is what the wire says, and a page's number, which is what arrays are indexed by.
// Always holds: an address is block id * 2^32 + index of the page in its block (exact in a double: ids have 16 bits);
// numbers are dense, 0..pages-1.
import { GodwitError } from '../../wire/errors.ts'
import { PAGE_BYTES } from '../../wire/types.ts'

const BLOCK_SPAN = 2 ** 32
const BLOCK_ID_MAX = 0xffff
/** 16 TiB of guest: keeps page numbers in 32 bits with room for a mark. */
const PAGES_MAX = 2 ** 32 - 2

/** A block of guest memory: its id in this migration and its size. */
export type GuestBlock = { id: number; bytes: number }

type Region = { id: number; pages: number; first: number }

export const blockOf = (address: number): number => Math.floor(address / BLOCK_SPAN)
export const pageIndexOf = (address: number): number => address % BLOCK_SPAN

/** The pages of a guest: which exist, and how each is named. */
export class PageMap {
  readonly pages: number
  readonly #regions: Region[] = []
  #last: Region

  /** Throws TypeError for no block, an id twice or outside 0..65535, or a size that is not whole pages. */
  constructor(blocks: readonly GuestBlock[]) {
    let first = 0
    for (const { id, bytes } of blocks) {
      if (!Number.isInteger(id) || id < 0 || id > BLOCK_ID_MAX) throw new TypeError(`block id ${id} is not 0..${BLOCK_ID_MAX}`)
      if (!Number.isSafeInteger(bytes) || bytes <= 0 || bytes % PAGE_BYTES !== 0)
        throw new TypeError(`block ${id}: ${bytes} bytes are not whole pages`)
      if (this.#regions.some(region => region.id === id)) throw new TypeError(`block ${id} twice`)
      this.#regions.push({ id, pages: bytes / PAGE_BYTES, first })
      first += bytes / PAGE_BYTES
    }
    const [last] = this.#regions
    if (!last) throw new TypeError('a guest needs at least one block')
    if (first > PAGES_MAX) throw new TypeError(`${first} pages: the limit is ${PAGES_MAX}`)
    this.#last = last
    this.pages = first
  }

  /**
   * The number of the page at `offset` bytes of a block. Throws QEMU_STREAM when there is no such page: the caller had
   * it from QEMU.
   */
  numberAt(block: number, offset: number): number {
    const region = this.#region(block)
    const index = offset / PAGE_BYTES
    if (!region || !Number.isInteger(index) || index < 0 || index >= region.pages) {
      throw new GodwitError('QEMU_STREAM', `no page at offset ${offset} of block ${block}`)
    }
    return region.first + index
  }

  /** The address of a page number. */
  addressOf(number: number): number {
    let region = this.#last
    if (number < region.first || number >= region.first + region.pages) {
      const found = this.#regions.find(({ first, pages }) => number >= first && number < first + pages)
      if (!found) throw new RangeError(`no page ${number}`)
      region = found
      this.#last = found
    }
    return region.id * BLOCK_SPAN + (number - region.first)
  }

  /** Whether `count` pages from `address` on exist, all in one block. Takes any number, as it came from the wire. */
  covers(address: number, count: number): boolean {
    if (!Number.isSafeInteger(address) || address < 0 || !Number.isSafeInteger(count) || count < 1) return false
    const region = this.#region(blockOf(address))
    return region !== undefined && pageIndexOf(address) + count <= region.pages
  }

  #region(block: number): Region | undefined {
    if (this.#last.id === block) return this.#last
    const found = this.#regions.find(({ id }) => id === block)
    if (found) this.#last = found
    return found
  }
}
