// Pages that are blocks of the target's own disks: read there, checked, written into guest memory.
// Enters: lists of such pages from batches, a reader of the disks. Leaves: jobs for the workers that write.
// Always holds: nothing is written that its proof does not cover. A list comes before or after the DISK frames that its
// blocks depend on; by the source's rules (disks/block-index.ts) both are before one barrier. So a list that does not
// fit is read once more at the barrier, and then it is an error: the disk is not what it was reported to be. Memory: 2
// MiB for each batch under way, 16 bytes for each page that waits for the barrier, of which there are at most as many
// as pages of the guest.
import { GodwitError } from '../../wire/errors.ts'
import { PAGE_BYTES } from '../../wire/types.ts'
import { BATCH_BLOCKS_MAX, type BatchBlocks } from './batch-blocks.ts'
import type { ApplyJob, ApplyResult, PlaceResult } from './memory.ts'
import type { Pool } from './pool.ts'

/** The disks of the VM at the target, by place (batch-blocks.ts). */
export type DiskBlocks = {
  /** Whether there is such a block. */
  has(place: number): boolean
  /**
   * Reads the blocks into `into`, one behind the other in this order, but for those that it gives: they should be in
   * plain files, [index, open file, offset]*. `isLast`: it gives none, and reads all of them.
   */
  read(places: Float64Array, into: Uint8Array, isLast: boolean): Promise<Float64Array>
}

export class Placer {
  readonly #disks: DiskBlocks | undefined
  readonly #pool: Pool<ApplyJob, ApplyResult>
  readonly #pagesMax: number
  /** Buffers not in use: at most one for each batch under way. */
  readonly #spare: ArrayBuffer[] = []
  #late: BatchBlocks[] = []
  #latePages = 0
  busyMs = 0
  /** Pages written. */
  pages = 0

  constructor(disks: DiskBlocks | undefined, pool: Pool<ApplyJob, ApplyResult>, pagesMax: number) {
    this.#disks = disks
    this.#pool = pool
    this.#pagesMax = pagesMax
  }

  /** Writes the pages, or keeps the list for the barrier. FRAME_MALFORMED; what the reader throws. */
  async place(blocks: BatchBlocks): Promise<void> {
    const missing = blocks.places.find(place => !this.#disks?.has(place))
    if (missing !== undefined) throw new GodwitError('FRAME_MALFORMED', `BATCH frame: no block of a disk at ${missing}`)
    if (await this.#isPlaced(blocks, false)) return
    this.#late.push(blocks)
    this.#latePages += blocks.places.length
    if (this.#latePages > this.#pagesMax) throw new GodwitError('FRAME_MALFORMED', 'more pages from disks than pages in one interval')
  }

  /** All frames before the barrier are done: places the rest. DISK_MISMATCH. */
  async settle(): Promise<void> {
    const late = this.#late
    this.#late = []
    this.#latePages = 0
    for (const blocks of late) {
      if (await this.#isPlaced(blocks, true)) continue
      throw new GodwitError('DISK_MISMATCH', `${blocks.places.length} blocks of local disks at the target differ from the source's record`)
    }
  }

  get isSettled(): boolean {
    return this.#late.length === 0
  }

  async #isPlaced({ addresses, places, proof }: BatchBlocks, isLast: boolean): Promise<boolean> {
    const content = this.#spare.pop() ?? new ArrayBuffer(BATCH_BLOCKS_MAX * PAGE_BYTES)
    const plain = await this.#disks!.read(places, new Uint8Array(content, 0, places.length * PAGE_BYTES), isLast)
    const job = () => ({ kind: 'place', content, plain, addresses, proof }) as const
    const { isRight, busyMs, content: back } = (await this.#pool.run(job, [content])) as PlaceResult
    this.#spare.push(back)
    this.busyMs += busyMs
    if (isRight) this.pages += places.length
    return isRight
  }
}
