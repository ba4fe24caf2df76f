// What must be said about each page, and when a barrier has to come first. Pure: no IO, no clock.
// Enters: pages and zeros in the order in which QEMU sends them. Leaves, in order: batches, and barriers between them
// (through `PlanEvents`).
//
// The target applies content and zeros of an interval (from one barrier to the next) in any order, and resolves the
// interval's references at its end, reading the holder then. So this must always hold of what leaves:
//   1. within an interval a page is said at most once (as content, zero or reference);
//   2. a reference names a holder that was sent as content, in this interval or an earlier one, and that still holds
//      that content at the end of the interval;
//   3. so a holder is never itself a reference of the same interval: no chains, and no order among references;
//   4. a delta is against what was last said of the same page in an earlier interval: by 1 nothing else touches that
//      page before the delta does;
//   5. a page that is said to be a block of a disk has the content that the target's block has at the end of the
//      interval. Who writes to that disk asks for a barrier before (disks/block-index.ts). Such a page is no holder.
// What would break this, and what is done:
//   - a page in the pending (unsent) batch is said anew: the old word is taken back, last writer wins; what was said
//     before that is not kept, so no delta (4);
//   - a page said in this interval, in a batch that is gone, is said anew: barrier first (1);
//   - a page that a reference of this interval names is to change, to zero, other content or a reference: barrier
//     first (2). Even if that reference was taken back since: a needless barrier is harmless, a forgotten one is a
//     corrupted guest;
//   - any page that comes with the content it has been said to hold: nothing, so neither rule is touched. This
//     covers a holder rewritten as it was;
//   - a holder that changes is forgotten as one, although pages that referred to it hold the content yet: the next
//     page with it travels as content.
// A guest could arrange a barrier per page by the third case (copy a page, change the original). Against it: after such
// a barrier, holders of earlier intervals are left alone for the next EARLY_HOLDER_PAUSE_PAGES pages; holders of the
// same interval cannot change within one round of QEMU.
import { PAGE_BYTES } from '../../wire/types.ts'
import type { PageMap } from './address.ts'
import { BATCH_PAGES_MAX } from './batch.ts'
import type { PageHasher } from './hasher.ts'
import { WORTH_BYTES_MAX } from './patch.ts'
import { type FilledBatch, PendingBatch } from './pending.ts'
import { SentPages } from './sent.ts'
import { ContentTable, HASH_WORDS, NO_PAGE } from './table.ts'

/** Blocks of disks that the target has, by place (batch-blocks.ts). */
export type HeldBlocks = {
  /** The place of a block with this hash (of the hasher that the classifier has), or -1. */
  find(hash: Uint32Array): number
  /** A page of this interval is said to be that block. */
  named(place: number, interval: number): void
}

type PlanEvents = {
  /** A buffer for the next batch, of at least batchBufferBytes(pages). */
  takeBuffer(pages: number): ArrayBuffer
  batch(filled: FilledBatch): void
  /** All batches since the last barrier make up interval `n`; it ends here. Numbers rise by one from 1. */
  barrier(n: number, reason: 'asked' | 'rewritten' | 'referenced'): void
}

export type PageCounts = {
  /** Said to be zero. */
  zero: number
  /** Said by reference to a page with the same content. */
  duplicate: number
  /** Said to be a block of a disk that the target has. */
  fromDisk: number
  /** Said with their bytes. */
  content: number
  /** Said as their difference to what the target holds. */
  delta: number
  /** Came with the content that the target has: nothing said. */
  unchanged: number
  /** Taken back from the pending batch before they were sent. */
  superseded: number
  /** Said although they had been said before (dirtied again). */
  rewritten: number
}

type ClassifierOptions = {
  map: PageMap
  hasher: PageHasher
  batchPages: number
  events: PlanEvents
  /** False: equal pages are sent each with its content (default true). */
  references?: boolean | undefined
  blocks?: HeldBlocks | undefined
  /** For the proof of the pages that are blocks of disks; the target has its key. Default: as `hasher`. */
  proofHasher?: PageHasher | undefined
  earlyHolderPausePages?: number | undefined
  /** Memory for what was said of pages, for deltas; 0 (default): none. */
  deltaBudgetBytes?: number | undefined
}

const UNSAID = 0
const ZERO = 1
const CONTENT = 2
const REFERENCE = 3
const DELTA = 4
const BLOCK = 5
const SAID = ['content', 'zero', 'content', 'reference', 'delta', 'block'] as const
type Kind = 0 | 1 | 2 | 3 | 4 | 5
const COUNTED = { [CONTENT]: 'content', [REFERENCE]: 'duplicate', [DELTA]: 'delta', [BLOCK]: 'fromDisk' } as const

const NO_BLOCK = -1

const EARLY_HOLDER_PAUSE_PAGES = 1024
/**
 * A delta compresses too: it may be this many times what the whole page would become. Text of which half has changed
 * needs 2 (measured: half the bytes); records of small numbers, each changed, were a quarter larger as deltas with
 * more.
 */
const DELTA_WORTH_FACTOR = 2
const BATCH_NUMBER_MAX = 0xffff_fffe

/**
 * State: about 31 bytes per guest page (8 MiB per GiB of guest), allocated once; with deltas 4 more, and what is kept
 * for them.
 */
export class Classifier {
  readonly counts: PageCounts = {
    ...{ zero: 0, duplicate: 0, fromDisk: 0, content: 0, delta: 0 },
    ...{ unchanged: 0, superseded: 0, rewritten: 0 },
  }
  readonly #map: PageMap
  readonly #hasher: PageHasher
  readonly #events: PlanEvents
  readonly #pending: PendingBatch
  readonly #table: ContentTable
  /** Per page: what the target will hold at the next barrier. */
  readonly #kinds: Uint8Array
  /**
   * Per page: number of the batch in which it was said last. One number answers both "in this interval?" and "in the
   * pending batch?".
   */
  readonly #saidIn: Uint32Array
  /** Per page: number of the batch in which a reference last named it as holder. */
  readonly #namedIn: Uint32Array
  readonly #sent: SentPages
  #deltaWorthBytes = WORTH_BYTES_MAX
  /** The page at hand, aligned: QEMU's bytes lie anywhere. */
  readonly #aligned = new Uint8Array(PAGE_BYTES)
  readonly #hash = new Uint32Array(HASH_WORDS)
  readonly #hashBytes = new Uint8Array(this.#hash.buffer)
  readonly #zeroHash = new Uint32Array(HASH_WORDS)
  #batch = 1
  #intervalStart = 1
  #intervals = 0
  #pagesSeen = 0
  #earlyHoldersFrom = 0
  readonly #references: boolean
  readonly #blocks: HeldBlocks | undefined
  readonly #pausePages: number

  constructor(o: ClassifierOptions) {
    this.#references = o.references ?? true
    this.#blocks = this.#references ? o.blocks : undefined
    this.#pausePages = o.earlyHolderPausePages ?? EARLY_HOLDER_PAUSE_PAGES
    this.#map = o.map
    this.#hasher = o.hasher
    this.#events = o.events
    this.#pending = new PendingBatch(BATCH_PAGES_MAX, () => o.events.takeBuffer(this.#pending.limit), {
      limit: o.batchPages,
      hasher: o.proofHasher ?? o.hasher,
    })
    this.#table = new ContentTable(o.map.pages)
    this.#kinds = new Uint8Array(o.map.pages)
    this.#saidIn = new Uint32Array(o.map.pages)
    this.#namedIn = new Uint32Array(o.map.pages)
    this.#sent = new SentPages(o.map.pages, o.deltaBudgetBytes ?? 0)
    o.hasher.hash(new Uint8Array(PAGE_BYTES), new Uint8Array(this.#zeroHash.buffer))
  }

  /** A page with its 4096 bytes, valid only during the call. */
  page(number: number, bytes: Uint8Array): void {
    const hash = this.#hash
    this.#hasher.hash(bytes, this.#hashBytes)
    if (equal(hash, this.#zeroHash)) {
      this.zero(number)
      return
    }
    this.#pagesSeen++
    if (this.#kinds[number]! >= CONTENT && this.#table.holds(number, hash)) {
      this.counts.unchanged++
      return
    }
    const before = this.#saidIn[number]!
    const takenBack = this.#clearTheWay(number)
    const holder = this.#usableHolder(hash)
    const block = holder === NO_PAGE && this.#blocks ? this.#blocks.find(hash) : NO_BLOCK
    const kind = this.#say(number, bytes, { holder, block, mayDiffer: !takenBack })
    this.counts[COUNTED[kind]]++
    if (kind === REFERENCE || kind === BLOCK) this.#table.sentReference(number, hash)
    else this.#table.sentContent(number, hash)
    this.#sent.keep(number, bytes, before, this.#saidIn)
    this.#said(number, kind)
  }

  /** Puts the page into the pending batch, in the shortest form. */
  #say(number: number, bytes: Uint8Array, { holder, block, mayDiffer }: { holder: number; block: number; mayDiffer: boolean }) {
    const address = this.#map.addressOf(number)
    if (holder !== NO_PAGE) {
      this.#pending.reference(address, this.#map.addressOf(holder))
      this.#namedIn[holder] = this.#batch
      return REFERENCE
    }
    if (block !== NO_BLOCK) {
      this.#pending.block(address, block, bytes)
      this.#blocks!.named(block, this.#intervals + 1)
      return BLOCK
    }
    if (mayDiffer && this.#asDelta(number, bytes)) return DELTA
    this.#pending.content(address, bytes)
    return CONTENT
  }

  /** Says the page as its difference to what was last said of it, where that is known and pays. */
  #asDelta(number: number, bytes: Uint8Array): boolean {
    const base = this.#sent.last(number)
    if (!base) return false
    this.#aligned.set(bytes)
    return this.#pending.delta(this.#map.addressOf(number), base, this.#aligned, this.#deltaWorthBytes)
  }

  /** What whole pages become when compressed, as a share: where that is little, only small deltas pay. */
  compressesTo(share: number): void {
    this.#deltaWorthBytes = Math.min(WORTH_BYTES_MAX, DELTA_WORTH_FACTOR * share * PAGE_BYTES)
  }

  /**
   * A page that is zero. Said even of a page never said before: the target's memory may come from an earlier attempt.
   */
  zero(number: number): void {
    this.#pagesSeen++
    if (this.#kinds[number] === ZERO) {
      this.counts.unchanged++
      return
    }
    this.#clearTheWay(number)
    this.#sent.drop(number)
    this.#pending.zero(this.#map.addressOf(number))
    this.counts.zero++
    this.#said(number, ZERO)
  }

  /** Ends the interval; gives its number. */
  barrier(reason: 'asked' | 'rewritten' | 'referenced' = 'asked'): number {
    this.#flush()
    this.#intervalStart = this.#batch
    this.#intervals++
    this.#events.barrier(this.#intervals, reason)
    return this.#intervals
  }

  /** Pages of content in a batch, 1..256, from the next batch on. */
  setBatchPages(pages: number): void {
    this.#pending.setLimit(pages)
  }

  /** Pages of content in the batch being filled. */
  get pendingPages(): number {
    return this.#pending.pages
  }

  /** What is kept for deltas, bytes. */
  get keptBytes(): number {
    return this.#sent.bytes
  }

  /**
   * After this the page may be said anew, in the pending batch. True when what was last said of it was never sent:
   * nobody knows what the target holds.
   */
  #clearTheWay(number: number): boolean {
    if (this.#kinds[number] === UNSAID) return false
    const saidIn = this.#saidIn[number]!
    const named = this.#namedIn[number]! >= this.#intervalStart
    if (named) {
      this.barrier('referenced')
      this.#earlyHoldersFrom = this.#pagesSeen + this.#pausePages
    } else if (saidIn >= this.#intervalStart && saidIn !== this.#batch) {
      this.barrier('rewritten')
    }
    const takenBack = saidIn === this.#batch
    if (takenBack) this.#takeBack(number)
    else this.counts.rewritten++
    if (this.#kinds[number] === CONTENT || this.#kinds[number] === DELTA) this.#table.forget(number)
    return takenBack
  }

  #takeBack(number: number): void {
    const kind = this.#kinds[number]!
    this.#pending.remove(this.#map.addressOf(number), SAID[kind as Kind])
    this.counts.superseded++
    this.counts[kind === ZERO ? 'zero' : COUNTED[kind as keyof typeof COUNTED]]--
  }

  #usableHolder(hash: Uint32Array): number {
    const holder = this.#references ? this.#table.holderOf(hash) : NO_PAGE
    if (holder === NO_PAGE) return NO_PAGE
    const early = this.#saidIn[holder]! < this.#intervalStart
    return early && this.#pagesSeen < this.#earlyHoldersFrom ? NO_PAGE : holder
  }

  #said(number: number, kind: number): void {
    this.#kinds[number] = kind
    this.#saidIn[number] = this.#batch
    if (this.#pending.full) this.#flush()
  }

  #flush(): void {
    if (this.#pending.empty) return
    const filled = this.#pending.take()
    if (this.#batch === BATCH_NUMBER_MAX) throw new Error('batch numbers are used up')
    this.#batch++
    this.#events.batch(filled)
  }
}

const equal = (a: Uint32Array, b: Uint32Array): boolean => a[0] === b[0] && a[1] === b[1] && a[2] === b[2] && a[3] === b[3]
