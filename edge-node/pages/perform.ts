// What a worker does with a job, apart from being a thread: the same functions run in worker threads and, with no
// workers, in process.
import type { ErrorBody } from '../../wire/errors.ts'
import { type CompressJob, type CompressResult, compressBatch, loadZstd } from './compress.ts'
import {
  type ApplyJob,
  type ApplyResult,
  applyBatch,
  createFileMemory,
  type GuestMemory,
  type MemoryRegion,
  resolveReferences,
} from './memory.ts'
import type { Turn } from './turn.ts'

export type WorkerRole = { role: 'compress' } | { role: 'apply'; regions: readonly MemoryRegion[] }
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

/** Over files, or over any memory (tests). */
export async function createApplyPerformer(regions: readonly MemoryRegion[] | GuestMemory): Promise<Performer<ApplyJob, ApplyResult>> {
  const zstd = await loadZstd()
  const memory = 'map' in regions && 'read' in regions ? regions : createFileMemory(regions)
  return job => {
    if (job.kind === 'resolve') return { result: resolveReferences(memory, job), transfer: [] }
    const result = applyBatch(zstd, memory, job)
    return { result, transfer: [result.input, result.references.buffer] }
  }
}
