// The source's way of a page, from QEMU's stream to the page streams. Read this file to know how Godwit sends memory.
//
//   QEMU -> parse -> page(), zero() -> classify -> batch -> compress -> page streams -> (seal, relay, open) -> apply.ts
//                                      zero?       64 pages  worker      frames BATCH and BARRIER
//                                      unchanged?            threads
//                                      duplicate?
//
// Enters: pages of guest memory, each a view that is valid only during the call. Leaves: BATCH and BARRIER frames,
// through a FrameSink.
//
// QEMU sends a page again whenever the guest has written it again, and all that counts is what the target holds when
// the guest starts there. Between two barriers (an interval) a page is said once; so batches may be compressed and
// delivered in any order and by any stream, and only barriers keep everyone in step: the target takes nothing that
// follows BARRIER(n) on any stream before it has all that precedes it on every stream. classify.ts tells which page
// needs a barrier first; the caller asks for one where order matters to it: before device state, above all, for devices
// read guest memory when they load.
//
// Always holds: memory is bounded. Page bytes are copied once, into a batch buffer; there are at most
// `buffered.batchesMax` of these (while the caller stops feeding when `saturated`; beyond a slack for what it has at
// hand it is an error), each with as much again for the compressed form, plus 35 bytes per guest page of bookkeeping
// and the budget for deltas. So at most `buffered.bytesMax` of guest pages wait here: they count against the downtime
// of a migration, as QEMU believes them sent.
import type { Log } from '../../wire/log.ts'
import { PAGE_BYTES } from '../../wire/types.ts'
import type { Level } from '../rate/level.ts'
import { type GuestBlock, PageMap } from './address.ts'
import { BATCH_PAGES_MAX, batchBufferBytes } from './batch.ts'
import { Classifier, type HeldBlocks, type PageCounts } from './classify.ts'
import { type CompressJob, type CompressResult, LEVEL_MAX, LEVEL_MIN } from './compress.ts'
import type { PageHasher } from './hasher.ts'
import { type FrameSink, Lanes } from './lanes.ts'
import type { FilledBatch } from './pending.ts'
import { createCompressPerformer } from './perform.ts'
import { createInlinePool, createThreadPool, type Pool } from './pool.ts'

export type { FrameSink } from './lanes.ts'

export type PipelineOptions = {
  sink: FrameSink
  blocks: readonly GuestBlock[]
  hasher: PageHasher
  compression: 'zstd' | 'off'
  /**
   * Whether equal pages are sent once. Default: as compression is, for it is an oracle of the same kind: who can place
   * a page beside a secret one and watch total sizes learns whether they are equal.
   */
  references?: boolean
  /**
   * Blocks of disks that the target has, and the hasher whose key the target has too; a page with the content of one
   * is sent as that block. Only with `references`.
   */
  held?: { blocks: HeldBlocks; proofHasher: PageHasher } | undefined
  /**
   * Memory for what was said of pages: one that is rewritten then travels as its difference to it. 0: none. Default 32
   * MiB, or none without compression (sizes tell how much of a page has changed).
   */
  deltaBudgetBytes?: number
  /** zstd level, -7..19, until setLevel (rate/controller.ts) says another. Default 1. */
  level?: number
  /** Threads that compress; 0: in process. */
  workers: number
  /** Pages of content in a batch, 1..256, until setBatching says another. Default 64. */
  batchPages?: number
  /**
   * Puts BARRIER(n) wherever else it must be (the skeleton stream); barriers come here in order, each after the one
   * before is done.
   */
  onBarrier?: (n: number) => void | Promise<void>
  /**
   * See classify.ts: how long holders of earlier intervals are left alone after one of them had to be kept by a
   * barrier.
   */
  earlyHolderPausePages?: number
  log?: Log | undefined
  /** In place of threads: for tests. */
  pool?: Pool<CompressJob, CompressResult>
}

export type PipelineStats = {
  /** Bytes of guest memory that came in, zeros included. */
  guestBytes: number
  /**
   * Sent as: zero, duplicate, fromDisk, delta, compressed, raw. Not sent: unchanged, superseded. Of the sent, sent
   * before: rewritten.
   */
  pages: Omit<PageCounts, 'content'> & { compressed: number; raw: number }
  /** Bytes of batches before and after compression (payloads handed to the sink). */
  bytesIn: number
  bytesOut: number
  /** Of bytesIn: pieces and new bytes of deltas. */
  deltaBytes: number
  batches: number
  barriers: { asked: number; rewritten: number; referenced: number }
  /**
   * classify: hash, table and copy, on the caller's thread (from samples); compress: sum over workers; send: waiting
   * for room, sum over batches.
   */
  busyMs: { classify: number; compress: number; send: number }
  /** What batches are compressed with now. */
  level: Level
  /**
   * Of the batches that came from the workers: those that then waited for room on the link, and those that found it
   * idle while more waited for a worker.
   */
  waits: { compressed: number; link: number; workers: number }
  /** `bytes`: of the batches under way, before compression. */
  buffered: { batches: number; batchesMax: number; bytes: number; bytesMax: number }
}

export type Pipeline = {
  /**
   * A page QEMU sent. `bytes` (4096) may be reused after the call. Throws what aborted the pipeline, QEMU_STREAM for a
   * page that does not exist.
   */
  page(block: number, offset: number, bytes: Uint8Array): void
  /** A page QEMU said to be zero. Throws like page(). */
  zero(block: number, offset: number): void
  /** Stop feeding (pause QEMU's socket) while this is true, and wait for `drained()`. */
  readonly saturated: boolean
  drained(): Promise<void>
  /**
   * Sends everything said so far and BARRIER(n) behind it on every page stream (and through `onBarrier`). Resolves with
   * n when the sink has it all.
   */
  barrier(): Promise<number>
  /** Resolves when the sink has everything of interval `n` and its barrier; ends it where it goes on. */
  passed(n: number): Promise<void>
  /** A last barrier, and the workers are told to end. Nothing may be fed afterwards. */
  finish(): Promise<void>
  /**
   * Gives up: everything under way and every later call fails with `error`. Resolves when the workers have ended, or
   * hang and are left behind; never rejects.
   */
  abort(error: unknown): Promise<void>
  /** zstd level of batches filled from now on, -7..19, or 'off'. */
  setLevel(level: Level): void
  /**
   * Pages of content in batches from the next on, and how many batches may be under way (at least 2; at most 2 x
   * workers + streams + 1).
   */
  setBatching(batching: { pages: number; batchesMax: number }): void
  stats(): PipelineStats
}

export const createPipeline = (options: PipelineOptions): Pipeline => new PagePipeline(options)

/** How much a batch counts among those before it. */
const LEARN_SHARE = 1 / 8
const DELTA_BUDGET_BYTES = 32 * 1024 * 1024
/** What one chunk from QEMU's socket may bring after `saturated` has become true, batches. */
const SLACK_BATCHES = 32
/** One page in this many is timed. */
const TIMED_EVERY = 64

type Buffers = { input: ArrayBuffer; output: ArrayBuffer }

class PagePipeline implements Pipeline {
  readonly #map: PageMap
  readonly #classifier: Classifier
  readonly #pool: Pool<CompressJob, CompressResult>
  readonly #lanes: Lanes
  readonly #compression: 'zstd' | 'off'
  #batchPages: number
  #batchesMax: number
  readonly #batchesLimit: number
  readonly #stats = { guestBytes: 0, compressed: 0, raw: 0, bytesIn: 0, bytesOut: 0, deltaBytes: 0, batches: 0 }
  readonly #busyMs = { classify: 0, compress: 0, send: 0 }
  readonly #barriers = { asked: 0, rewritten: 0, referenced: 0 }
  /** Buffers not in use. */
  readonly #spare: Buffers[] = []
  /** Room for the compressed form of the batch being filled. */
  #output: ArrayBuffer | undefined
  /** Batches that have left the classifier and not yet the sink. */
  #underWay = 0
  #underWayBytes = 0
  readonly #waits = { compressed: 0, link: 0, workers: 0 }
  #level: Level
  /** Of late: a batch's bytes after compression for one before. */
  #share = 1
  #interval = 1
  #lastBarrier: Promise<void> = Promise.resolve()
  #seen = 0
  #drain: PromiseWithResolvers<void> | undefined
  #failure: Error | undefined
  #finished = false

  constructor(options: PipelineOptions) {
    const { compression, workers, sink, batchPages = 64 } = options
    this.#level = checkedLevel(options.level ?? 1)
    this.#compression = compression
    this.#batchPages = checkedPages(batchPages)
    this.#batchesLimit = 2 * Math.max(1, workers) + sink.streams + 1
    this.#batchesMax = this.#batchesLimit
    this.#map = new PageMap(options.blocks)
    this.#classifier = new Classifier({
      map: this.#map,
      hasher: options.hasher,
      batchPages,
      references: options.references ?? compression !== 'off',
      blocks: options.held?.blocks,
      proofHasher: options.held?.proofHasher,
      earlyHolderPausePages: options.earlyHolderPausePages,
      deltaBudgetBytes: options.deltaBudgetBytes ?? (compression === 'off' ? 0 : DELTA_BUDGET_BYTES),
      events: {
        takeBuffer: pages => this.#takeBuffer(pages),
        batch: filled => this.#compress(filled),
        barrier: (n, reason) => this.#endInterval(n, reason),
      },
    })
    this.#lanes = new Lanes({ sink, onBarrier: options.onBarrier ?? (() => {}), onError: error => this.abort(error) })
    this.#pool = options.pool ?? createPool(workers, options.log)
  }

  // The way of a page, in the order in which it meets these.

  page(block: number, offset: number, bytes: Uint8Array): void {
    if (bytes.length !== PAGE_BYTES) throw new TypeError(`a page of ${bytes.length} bytes`)
    const number = this.#admit(block, offset)
    if (this.#seen++ % TIMED_EVERY !== 0) {
      this.#classifier.page(number, bytes)
      return
    }
    const started = performance.now()
    this.#classifier.page(number, bytes)
    this.#busyMs.classify += (performance.now() - started) * TIMED_EVERY
  }

  zero(block: number, offset: number): void {
    this.#classifier.zero(this.#admit(block, offset))
  }

  #admit(block: number, offset: number): number {
    this.#check()
    this.#stats.guestBytes += PAGE_BYTES
    return this.#map.numberAt(block, offset)
  }

  /** The classifier begins a batch. */
  #takeBuffer(pages: number): ArrayBuffer {
    const bytes = batchBufferBytes(pages)
    const spare = this.#spare.pop()
    const { input, output } =
      spare && spare.input.byteLength >= bytes ? spare : { input: new ArrayBuffer(bytes), output: new ArrayBuffer(bytes) }
    this.#output = output
    return input
  }

  /** The classifier has filled a batch: a worker compresses it, in whatever order. */
  #compress({ buffer: input, bytes, pages, deltaBytes }: FilledBatch): void {
    this.#underWayBytes += bytes
    if (++this.#underWay > this.#batchesLimit + SLACK_BATCHES) {
      const error = new Error('fed although saturated')
      this.abort(error)
      throw error
    }
    this.#stats.batches++
    this.#stats.bytesIn += bytes
    this.#stats.deltaBytes += deltaBytes
    const interval = this.#interval
    this.#lanes.expect(interval)
    const output = this.#output!
    this.#pool
      .run(() => ({ input, output, bytes, level: this.#levelNow() }), [input, output])
      .then(
        result => {
          this.#learn(pages, bytes, result)
          this.#send(interval, { pages, bytes }, result)
        },
        error => this.abort(error),
      )
  }

  #levelNow(): Level {
    return this.#compression === 'off' ? 'off' : this.#level
  }

  /** Batches that are mostly whole pages tell what those become. */
  #learn(pages: number, bytesIn: number, { bytes }: CompressResult): void {
    if (2 * pages * PAGE_BYTES < bytesIn) return
    this.#share += (bytes / bytesIn - this.#share) * LEARN_SHARE
    this.#classifier.compressesTo(this.#share)
  }

  /** Compressed, it waits for its turn on a stream. */
  #send(interval: number, { pages, bytes }: { pages: number; bytes: number }, result: CompressResult): void {
    if (this.#failure) return
    this.#busyMs.compress += result.busyMs
    this.#waits.compressed++
    const limit = this.#limit()
    if (limit !== 'none') this.#waits[limit]++
    this.#stats[result.compressed ? 'compressed' : 'raw'] += pages
    const payload = new Uint8Array(result.compressed ? result.output : result.input, 0, result.bytes)
    const started = performance.now()
    const sent = () => {
      this.#busyMs.send += performance.now() - started
      this.#stats.bytesOut += result.bytes
      this.#underWayBytes -= bytes
      this.#release(result)
    }
    this.#lanes.add(interval, { payload, sent })
  }

  /** Who waits for whom, as a batch comes from the workers. */
  #limit(): 'link' | 'workers' | 'none' {
    const waiting = this.#lanes.waiting
    if (waiting > 0) return 'link'
    return this.#lanes.idle && this.saturated ? 'workers' : 'none'
  }

  /** The sink is done with a batch: its buffers are used again. */
  #release({ input, output }: Buffers): void {
    if (this.#spare.length < this.#batchesLimit) this.#spare.push({ input, output })
    this.#underWay--
    this.#wake()
  }

  #wake(): void {
    if (!this.#drain || this.saturated) return
    this.#drain.resolve()
    this.#drain = undefined
  }

  /**
   * The classifier ends an interval, because it must or was asked to. Batches of the next may be compressed meanwhile;
   * Lanes keeps them behind the barrier.
   */
  #endInterval(n: number, reason: 'asked' | 'rewritten' | 'referenced'): void {
    this.#barriers[reason]++
    this.#interval = n + 1
    this.#lastBarrier = this.#lanes.close(n)
    // Nobody awaits a barrier that the classifier forced; its failure is the pipeline's.
    this.#lastBarrier.catch(() => {})
  }

  // What the caller steers by.

  get saturated(): boolean {
    return this.#underWay >= this.#batchesMax
  }

  async drained(): Promise<void> {
    this.#check()
    if (!this.saturated) return
    this.#drain ??= Promise.withResolvers<void>()
    await this.#drain.promise
  }

  async barrier(): Promise<number> {
    this.#check()
    const n = this.#classifier.barrier()
    await this.#lastBarrier
    return n
  }

  async passed(n: number): Promise<void> {
    this.#check()
    if (n >= this.#interval) this.#classifier.barrier()
    await this.#lastBarrier
  }

  async finish(): Promise<void> {
    await this.barrier()
    this.#finished = true
    // Nothing is left to do for the workers, and the guest stands still: their end is not waited for.
    this.#closePool()
  }

  /** Its failure (a worker that hangs) is in the log; who aborts has an error already. */
  async #closePool(): Promise<void> {
    await this.#pool.close().catch(() => {})
  }

  async abort(error: unknown): Promise<void> {
    if (this.#failure || this.#finished) return await this.#closePool()
    this.#failure = error instanceof Error ? error : new Error(String(error))
    this.#lanes.stop(this.#failure)
    this.#drain?.reject(this.#failure)
    await this.#closePool()
  }

  setLevel(level: Level): void {
    this.#level = level === 'off' ? level : checkedLevel(level)
  }

  setBatching({ pages, batchesMax }: { pages: number; batchesMax: number }): void {
    this.#batchPages = checkedPages(pages)
    this.#classifier.setBatchPages(this.#batchPages)
    this.#batchesMax = Math.min(this.#batchesLimit, Math.max(2, batchesMax))
    this.#wake()
  }

  stats(): PipelineStats {
    const { content: _, ...counts } = this.#classifier.counts
    const { compressed, raw, ...sums } = this.#stats
    const batchesMax = this.#batchesMax
    return {
      ...sums,
      pages: { ...counts, compressed, raw },
      barriers: { ...this.#barriers },
      busyMs: { ...this.#busyMs },
      level: this.#levelNow(),
      waits: { ...this.#waits },
      buffered: {
        batches: this.#underWay,
        batchesMax,
        bytes: this.#underWayBytes,
        bytesMax: batchesMax * this.#batchPages * PAGE_BYTES,
      },
    }
  }

  #check(): void {
    if (this.#failure) throw this.#failure
    if (this.#finished) throw new Error('the pipeline is finished')
  }
}

const createPool = (workers: number, log: Log | undefined): Pool<CompressJob, CompressResult> =>
  workers > 0 ? createThreadPool(workers, { role: 'compress' }, { log }) : createInlinePool(createCompressPerformer())

function checkedPages(pages: number): number {
  if (!Number.isInteger(pages) || pages < 1 || pages > BATCH_PAGES_MAX) throw new TypeError(`${pages} pages in a batch`)
  return pages
}

function checkedLevel(level: number): number {
  if (!Number.isInteger(level) || level < LEVEL_MIN || level > LEVEL_MAX)
    throw new TypeError(`zstd level ${level} is not ${LEVEL_MIN}..${LEVEL_MAX}`)
  return level
}
