// What a worker does with a job, apart from being a thread: the same functions run in worker threads and, with no
// workers, in process.
import type { ErrorBody } from '../../wire/errors.ts'
import { type CompressJob, type CompressResult, compressBatch, loadZstd } from './compress.ts'
import type { PageHasher } from './hasher.ts'
import {
  type ApplyJob,
  type ApplyResult,
  applyBatch,
  createFileMemory,
  type GuestMemory,
  type MemoryRegion,
  placePages,
  resolveReferences,
} from './memory.ts'
import type { Turn } from './turn.ts'

export type WorkerRole = { role: 'compress' } | { role: 'apply'; regions: readonly MemoryRegion[]; proofKey?: Uint8Array | undefined }
/** A thread's workerData. */
export type WorkerStart = { role: WorkerRole; turn: Turn }
/** A job, or the last message: the thread ends itself. */
export type WorkerTask = { id: number; job: CompressJob | ApplyJob } | 'end'
export type TaskAnswer = { id: number; result: unknown } | { id: number; error: ErrorBody }

/** Does a job; `transfer` lists the buffers of the result, which move with it. */
export type Performer<Job, Result> = (job: Job) => { result: Result; transfer: ArrayBuffer[] }

export async function createCompressPerformer(): Promise<Performer<CompressJob, CompressResult>> {
  const zstd = await loadZstd()
  return job => {
    const result = compressBatch(zstd, job)
    return { result, transfer: [result.input, result.output] }
  }
}

/** Over files, or over any memory (tests). `hasher`: of proofs; without it there are no pages from disks. */
export async function createApplyPerformer(
  regions: readonly MemoryRegion[] | GuestMemory,
  hasher?: PageHasher | undefined,
): Promise<Performer<ApplyJob, ApplyResult>> {
  const zstd = await loadZstd()
  const memory = 'map' in regions && 'read' in regions ? regions : createFileMemory(regions)
  return job => {
    if (job.kind === 'resolve') return { result: resolveReferences(memory, job), transfer: [] }
    if (job.kind === 'place') {
      if (!hasher) throw new Error('pages from disks without a key')
      const placed = placePages(memory, hasher, job)
      return { result: placed, transfer: [placed.content] }
    }
    const result = applyBatch(zstd, memory, job)
    return { result, transfer: [result.input, result.references.buffer] }
  }
}

/** libsodium is loaded by the threads that need it only: it takes each of them some 20 ms. */
export async function loadPageHasher(key: Uint8Array): Promise<PageHasher> {
  const [{ loadSodium }, { createPageHasher }] = await Promise.all([
    import('../../crypto/sodium.ts'),
    import('../../crypto/channel/page-hash.ts'),
  ])
  await loadSodium()
  return createPageHasher(key)
}
