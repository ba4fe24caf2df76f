// Which blocks of its disks the target of a migration holds, by their hash: a page of memory with such content travels
// as the name of the block. Pure. Enters: hashes of blocks that the target begins with or has been sent, and which
// chunks are about to change there. Leaves: places (places.ts).
// Always holds: a place that is given names a block whose content at the target, at the next barrier of the pages, has
// this hash. For that
//   1. a chunk of the round under way (`pending` of sender.ts) is given to nobody before it has been looked at;
//   2. a chunk that is sent is forgotten before its frame leaves, and known again, with its new content, after that;
//   3. before a round sends, every interval that names one of its chunks has ended: `lastNamed` says which
//      (migration/source-disks.ts waits for its barrier). So no frame overtakes a reference to what it replaces.
// Memory: 8 bytes a block and at most 32 for the table, for at most BLOCKS_MAX blocks; further ones are not known.
import { BlockHashes, type ChunkHashes, countHashes } from './block-hashes.ts'
import type { ChunkSet } from './chunk-set.ts'
import { CHUNK_BLOCKS, diskBlockOf, diskOf, diskPlaceOf } from './places.ts'

/** 8 GiB of content, 64 MiB of memory. */
const BLOCKS_MAX = 2 ** 21
export const NO_PLACE = -1
const SLOTS_MIN = 4096
const FORGOTTEN: ChunkHashes = new Uint32Array(2 * CHUNK_BLOCKS)

type Disk = { hashes: BlockHashes /** By chunk: the last interval that named one of its blocks. */; named: Map<number, number> }

export class BlockIndex {
  readonly #disks: Disk[]
  readonly #blocksMax: number
  #pending: readonly ChunkSet[] = []
  /** Place + 1, or 0 where empty. An entry whose block has another hash by now is passed over. */
  #slots = new Float64Array(SLOTS_MIN)
  #used = 0
  #blocks = 0

  constructor(disks: number, blocksMax = BLOCKS_MAX) {
    this.#disks = Array.from({ length: disks }, () => ({ hashes: new BlockHashes(), named: new Map() }))
    this.#blocksMax = blocksMax
  }

  /** Blocks that are known. */
  get blocks(): number {
    return this.#blocks
  }

  /** What the target begins with: of the chunks for which `isHeld`. */
  begin(disk: number, hashes: BlockHashes, isHeld: (chunk: number) => boolean): void {
    for (const chunk of hashes.chunks()) if (isHeld(chunk)) this.put(disk, chunk, hashes.chunk(chunk)!)
  }

  /** The sets of a sender: chunks are in them while it is not known what the target will have of them. */
  watch(pending: readonly ChunkSet[]): void {
    this.#pending = pending
  }

  has(disk: number, chunk: number): boolean {
    const hashes = this.#disks[disk]!.hashes.chunk(chunk)
    return hashes !== undefined && countHashes(hashes) > 0
  }

  /** The target has this content of a chunk. */
  put(disk: number, chunk: number, hashes: ChunkHashes): void {
    this.forget(disk, chunk)
    const count = countHashes(hashes)
    if (count === 0 || this.#blocks + count > this.#blocksMax) return
    const own = this.#disks[disk]!.hashes
    own.set(chunk, hashes)
    this.#blocks += count
    for (let i = 0; i < CHUNK_BLOCKS; i++) {
      const hash = hashes.subarray(2 * i, 2 * i + 2)
      if (hash[0] !== 0 || hash[1] !== 0) this.#insert(diskPlaceOf(disk, chunk * CHUNK_BLOCKS + i), hash)
    }
  }

  forget(disk: number, chunk: number): void {
    const { hashes } = this.#disks[disk]!
    const known = hashes.chunk(chunk)
    if (!known) return
    this.#blocks -= countHashes(known)
    known.set(FORGOTTEN)
  }

  /** The place of a block with this hash (its first two words), or NO_PLACE. */
  find(hash: Uint32Array): number {
    const place = this.#slots[this.#slotOf(hash)]! - 1
    if (place === NO_PLACE) return NO_PLACE
    return this.#pending[diskOf(place)]?.has(Math.floor(diskBlockOf(place) / CHUNK_BLOCKS)) ? NO_PLACE : place
  }

  named(place: number, interval: number): void {
    this.#disks[diskOf(place)]!.named.set(Math.floor(diskBlockOf(place) / CHUNK_BLOCKS), interval)
  }

  /** The last interval that named a block of the chunks that are pending; 0: none. */
  lastNamed(): number {
    let last = 0
    for (const [disk, set] of this.#pending.entries()) {
      const { named } = this.#disks[disk]!
      if (named.size > 0)
        for (const { first, count } of set.runs()) for (let i = 0; i < count; i++) last = Math.max(last, named.get(first + i) ?? 0)
    }
    return last
  }

  /** The slot of the block with this hash, or the empty slot where it would go. */
  #slotOf(hash: Uint32Array): number {
    const mask = this.#slots.length - 1
    for (let slot = hash[0]! & mask; ; slot = (slot + 1) & mask) {
      const entry = this.#slots[slot]!
      if (entry === 0) return slot
      if (this.#disks[diskOf(entry - 1)]!.hashes.isAt(diskBlockOf(entry - 1), hash)) return slot
    }
  }

  /** Of equal blocks one is known by its hash. */
  #insert(place: number, hash: Uint32Array): void {
    const slot = this.#slotOf(hash)
    if (this.#slots[slot] !== 0) return
    this.#slots[slot] = place + 1
    if (++this.#used > this.#slots.length / 2) this.#rebuild()
  }

  /** A table for what is known now: without entries of blocks that have changed. */
  #rebuild(): void {
    let slots = SLOTS_MIN
    while (slots < 4 * this.#blocks) slots *= 2
    const old = this.#slots
    this.#slots = new Float64Array(slots)
    this.#used = 0
    const hash = new Uint32Array(2)
    for (const entry of old) {
      if (entry === 0) continue
      const { hashes } = this.#disks[diskOf(entry - 1)]!
      hash.set(hashes.block(diskBlockOf(entry - 1)))
      if (hash[0] === 0 && hash[1] === 0) continue
      const slot = this.#slotOf(hash)
      if (this.#slots[slot] !== 0) continue
      this.#slots[slot] = entry
      this.#used++
    }
  }
}
