// The target's way of a page, from the page streams into the memory of a QEMU that waits for the rest of its state. The
// other end of pipeline.ts.
// Enters: BATCH and BARRIER payloads of each page stream, BARRIER numbers of the skeleton stream; all from the peer.
// Leaves: bytes in guest memory.
//
// Batches are decompressed and written by workers in any order. At BARRIER(n) a stream waits until all streams have
// reached it. Then every write of the interval is done, references ("page X has the content of page P") are resolved by
// reading P and writing X, and everyone goes on: see classify.ts for why that is right.
//
// Always holds: what comes from the peer is checked by the worker before it writes (batch.ts, compress.ts); the first
// error is final. Memory is bounded: `buffered.batchesMax` batches of at most 2 MiB each, in buffers that are used
// again, as much again per worker while it decompresses, and 16 bytes per reference of the interval, of which there are
// at most as many as pages. Pages that are blocks of disks: place.ts.
import { GodwitError } from '../../wire/errors.ts'
import { type Log, silentLog } from '../../wire/log.ts'
import { behindBarriers } from '../../wire/roles.ts'
import { FRAME_LIMITS } from '../../wire/types.ts'
import { PageMap } from './address.ts'
import { Barriers } from './barriers.ts'
import type { ApplyJob, ApplyResult, BatchResult, MemoryRegion, ResolveResult } from './memory.ts'
import { createApplyPerformer, loadPageHasher } from './perform.ts'
import { type DiskBlocks, Placer } from './place.ts'
import { createInlinePool, createThreadPool, type Pool } from './pool.ts'

export type ApplierOptions = {
  /** Page streams; the skeleton is one more member of each barrier. */
  streams: number
  /** Where each block of guest memory is. `fd` is open for reading and writing, and stays open until `ended`. */
  memory: readonly MemoryRegion[]
  /** Threads that decompress and write; 0: in process. */
  workers: number
  /** The disks of the VM here, and the key of the source's proofs; absent: no page is a block of a disk. */
  disks?: { blocks: DiskBlocks; proofKey: Uint8Array } | undefined
  log?: Log
  /** In place of threads: for tests. */
  pool?: Pool<ApplyJob, ApplyResult>
}

type ApplierStats = {
  batches: number
  barriers: number
  /** Bytes of BATCH payloads, and of their bodies once decompressed. */
  bytesIn: number
  bodyBytes: number
  pages: { content: number; delta: number; zero: number; duplicate: number; fromDisk: number; zeroWritten: number }
  busyMs: { decompress: number; write: number; resolve: number; place: number }
  buffered: { batches: number; batchesMax: number; bytesMax: number }
}

export type Applier = {
  /**
   * A BATCH payload. Resolves when it is accepted: read on then; the payload may be reused then. Rejects with what made
   * the applier fail, now or before.
   */
  batch(stream: number, payload: Uint8Array): Promise<void>
  /**
   * BARRIER(n) has been read on a page stream or the skeleton. Resolves when everyone has reached it and all before it
   * is in memory: read on then.
   */
  barrier(stream: number | 'skeleton', n: number): Promise<void>
  /** All streams have ended. Throws FRAME_MALFORMED when something came after the last barrier. */
  finish(): Promise<void>
  /**
   * Gives up: everything under way and every later call fails with `error`. Resolves when the workers have ended;
   * INTERNAL when one hangs.
   */
  abort(error: unknown): Promise<void>
  /** Resolves when no worker can write to the memory any more. */
  readonly ended: Promise<void>
  stats(): ApplierStats
}

export const createApplier = (options: ApplierOptions): Applier => new PageApplier(options)

/** References resolved by one job. */
const REFERENCES_PER_JOB = 16_384
const BUFFER_BYTES_MIN = 64 * 1024

class PageApplier implements Applier {
  readonly #streams: number
  readonly #log: Log
  readonly #pagesMax: number
  readonly #pool: Pool<ApplyJob, ApplyResult>
  readonly #placer: Placer
  readonly #barriers: Barriers
  readonly #batchesMax: number
  readonly #stats = { batches: 0, bytesIn: 0, bodyBytes: 0 }
  readonly #pages = { content: 0, delta: 0, zero: 0, duplicate: 0, zeroWritten: 0 }
  readonly #busyMs = { decompress: 0, write: 0, resolve: 0 }
  /** Buffers not in use. */
  readonly #spare: ArrayBuffer[] = []
  /** Batches with the workers. */
  #underWay = 0
  /** Batches not accepted yet. */
  readonly #forRoom: PromiseWithResolvers<void>[] = []
  /** Batches read from a stream and not yet written, accepted or not. */
  #unwritten = 0
  #onWritten: (() => void) | undefined
  /** Of this interval, to be resolved at its barrier. */
  #references: Float64Array<ArrayBuffer>[] = []
  #referenceCount = 0
  #opening = openGate()
  #failure: Error | undefined
  #finished = false

  constructor({ streams, memory, workers, disks, log = silentLog, pool }: ApplierOptions) {
    if (!Number.isInteger(streams) || streams < 1) throw new TypeError(`${streams} page streams`)
    this.#streams = streams
    this.#log = log
    this.#pagesMax = new PageMap(memory.map(({ block, bytes }) => ({ id: block, bytes }))).pages
    this.#barriers = new Barriers(behindBarriers(streams).length)
    this.#batchesMax = 2 * Math.max(1, workers) + 2
    this.#pool = pool ?? createPool(workers, { regions: memory, proofKey: disks?.proofKey }, log)
    this.#placer = new Placer(disks?.blocks, this.#pool, this.#pagesMax)
  }

  async batch(stream: number, payload: Uint8Array): Promise<void> {
    this.#check(this.#member(stream))
    if (payload.length > FRAME_LIMITS.BATCH) throw this.#fail(new GodwitError('FRAME_TOO_LARGE', `a batch of ${payload.length} bytes`))
    this.#unwritten++
    await this.#room()
    this.#stats.batches++
    this.#stats.bytesIn += payload.length
    const bytes = payload.length
    const input = this.#bufferFor(bytes)
    new Uint8Array(input).set(payload)
    const job = () => ({ kind: 'batch', input, bytes }) as const
    this.#pool.run(job, [input]).then(
      result => this.#written(result as BatchResult),
      error => this.#fail(error),
    )
  }

  /** Takes a place among the batches under way, or waits for one. */
  async #room(): Promise<void> {
    if (this.#underWay < this.#batchesMax) {
      this.#underWay++
      return
    }
    const turn = Promise.withResolvers<void>()
    this.#forRoom.push(turn)
    await turn.promise
  }

  /** The workers are done with a batch, but for its pages that are on disks. */
  #written(result: BatchResult): void {
    if (this.#failure) return
    this.#account(result)
    if (this.#spare.length < this.#batchesMax) this.#spare.push(result.input)
    if (!result.blocks) this.#done()
    else
      this.#placer.place(result.blocks).then(
        () => this.#done(),
        error => this.#fail(error),
      )
  }

  /** A batch is in memory. Its place goes to the batch that has waited longest. */
  #done(): void {
    if (this.#failure) return
    const next = this.#forRoom.shift()
    if (next) next.resolve()
    else this.#underWay--
    if (--this.#unwritten === 0) this.#onWritten?.()
  }

  #account({ references, ...result }: BatchResult): void {
    this.#stats.bodyBytes += result.bodyBytes
    this.#pages.content += result.pages
    this.#pages.delta += result.deltas
    this.#pages.zero += result.zeros
    this.#pages.zeroWritten += result.zerosWritten
    this.#busyMs.decompress += result.decompressMs
    this.#busyMs.write += result.writeMs
    if (references.length === 0) return
    this.#references.push(references)
    this.#referenceCount += references.length / 2
    // An honest source says each page once in an interval. Against another this keeps the list bounded.
    if (this.#referenceCount > this.#pagesMax) this.#fail(new GodwitError('FRAME_MALFORMED', 'more references than pages in one interval'))
  }

  async barrier(stream: number | 'skeleton', n: number): Promise<void> {
    const member = stream === 'skeleton' ? this.#streams : this.#member(stream)
    this.#check(member)
    const { promise } = this.#opening
    let last: boolean
    try {
      last = this.#barriers.arrive(member, n)
    } catch (error) {
      throw this.#fail(error)
    }
    if (last) this.#pass(n).catch(error => this.#fail(error))
    await promise
  }

  /** Everyone is at the barrier: waits for the writes, resolves the references, lets everyone on. */
  async #pass(n: number): Promise<void> {
    if (this.#unwritten > 0) await new Promise<void>(resolve => (this.#onWritten = resolve))
    this.#onWritten = undefined
    await this.#placer.settle()
    await this.#resolveReferences()
    if (this.#failure) return
    this.#log.debug('page barrier passed', { barrier: n })
    this.#barriers.open()
    const { resolve } = this.#opening
    this.#opening = openGate()
    resolve()
  }

  /** Each job reads only holders, which no job writes, and writes pages that no other job has: so all jobs at once. */
  async #resolveReferences(): Promise<void> {
    const jobs = joined(this.#references, 2 * REFERENCES_PER_JOB).map(references =>
      this.#pool.run(() => ({ kind: 'resolve', references }), [references.buffer]),
    )
    this.#pages.duplicate += this.#referenceCount
    this.#references = []
    this.#referenceCount = 0
    for (const { busyMs } of (await Promise.all(jobs)) as ResolveResult[]) this.#busyMs.resolve += busyMs
  }

  async finish(): Promise<void> {
    this.#check()
    if (this.#unwritten > 0 || this.#references.length > 0 || !this.#placer.isSettled || this.#barriers.arrived > 0) {
      throw this.#fail(new GodwitError('FRAME_MALFORMED', `the page streams ended before barrier ${this.#barriers.passed + 1}`))
    }
    this.#finished = true
    // Nothing is left to do for the workers, and the guest may stand still: their end is not waited for.
    this.#pool.close().catch(() => {})
  }

  get ended(): Promise<void> {
    return this.#pool.ended
  }

  async abort(error: unknown): Promise<void> {
    this.#fail(error)
    await this.#pool.close()
  }

  /** The first failure is final; gives it. */
  #fail(error: unknown): Error {
    if (this.#failure) return this.#failure
    this.#failure = error instanceof Error ? error : new Error(String(error))
    this.#opening.reject(this.#failure)
    for (const { reject } of this.#forRoom.splice(0)) reject(this.#failure)
    this.#pool.close().catch(() => {})
    return this.#failure
  }

  #check(member?: number): void {
    if (this.#failure) throw this.#failure
    if (this.#finished) throw new Error('the applier is finished')
    if (member !== undefined && this.#barriers.waits(member)) throw new Error(`stream ${member} was read on past a barrier`)
  }

  #member(stream: number): number {
    if (!Number.isInteger(stream) || stream < 0 || stream >= this.#streams) throw new TypeError(`no page stream ${stream}`)
    return stream
  }

  #bufferFor(bytes: number): ArrayBuffer {
    const buffer = this.#spare.pop()
    if (buffer && buffer.byteLength >= bytes) return buffer
    let size = buffer?.byteLength ?? BUFFER_BYTES_MIN
    while (size < bytes) size *= 2
    return new ArrayBuffer(size)
  }

  stats(): ApplierStats {
    const batchesMax = this.#batchesMax
    return {
      ...this.#stats,
      barriers: this.#barriers.passed,
      pages: { ...this.#pages, fromDisk: this.#placer.pages },
      busyMs: { ...this.#busyMs, place: this.#placer.busyMs },
      buffered: { batches: this.#unwritten, batchesMax, bytesMax: batchesMax * FRAME_LIMITS.BATCH },
    }
  }
}

function openGate(): PromiseWithResolvers<void> {
  const opening = Promise.withResolvers<void>()
  // It may fail while nobody waits.
  opening.promise.catch(() => {})
  return opening
}

type Memory = { regions: readonly MemoryRegion[]; proofKey?: Uint8Array | undefined }
const createPool = (workers: number, memory: Memory, log: Log): Pool<ApplyJob, ApplyResult> =>
  workers > 0 ? createThreadPool(workers, { role: 'apply', ...memory }, { log }) : createInlinePool(performerOf(memory))

const performerOf = async ({ regions, proofKey }: Memory) => createApplyPerformer(regions, proofKey && (await loadPageHasher(proofKey)))

/** The lists of many batches as few of about `length` numbers each. */
function joined(lists: readonly Float64Array[], length: number): Float64Array<ArrayBuffer>[] {
  const pieces: Float64Array<ArrayBuffer>[] = []
  for (let i = 0; i < lists.length; ) {
    let total = 0
    const first = i
    while (i < lists.length && total < length) total += lists[i++]!.length
    const piece = new Float64Array(total)
    let at = 0
    for (const list of lists.slice(first, i)) {
      piece.set(list, at)
      at += list.length
    }
    pieces.push(piece)
  }
  return pieces
}
