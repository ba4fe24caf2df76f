// A pool of workers: jobs in, promises of results out. Buffers move with a job and come back with its result; nobody copies and nobody shares them.
// Always holds: at most JOBS_PER_WORKER jobs are with a worker (one at work, one waiting for it), the rest wait here in order; callers bound how many there are.
// The first failure of a worker itself (not of a job) is final: it fails every job. A job's own error fails that job.
import { Worker } from 'node:worker_threads'
import { fromBody, GodwitError } from '../../wire/errors.ts'
import type { CompressJob } from './compress.ts'
import type { ApplyJob } from './memory.ts'
import type { Answer, Performer, Task, WorkerRole } from './perform.ts'

export type Pool<Job, Result> = {
  /** Threads; 0: in process. */
  readonly size: number
  /** `job`: made when a worker takes it. `transfer`: its ArrayBuffers; the caller has them no more. */
  run(job: () => Job, transfer: ArrayBuffer[]): Promise<Result>
  /** Fails what is under way, ends the threads. */
  close(): Promise<void>
}

const JOBS_PER_WORKER = 2

type Waiting = { job: () => Task['job']; transfer: ArrayBuffer[]; resolve(result: unknown): void; reject(error: unknown): void }
type Thread = { worker: Worker; jobs: Map<number, Waiting> }

export function createThreadPool<Job extends CompressJob | ApplyJob, Result>(size: number, role: WorkerRole): Pool<Job, Result> {
  const backlog: Waiting[] = []
  let nextId = 1
  let failure: Error | undefined

  const fail = (error: Error) => {
    failure ??= error
    const lost = [...threads.flatMap(({ jobs }) => [...jobs.values()]), ...backlog]
    for (const { jobs } of threads) jobs.clear()
    backlog.length = 0
    for (const { reject } of lost) reject(failure)
  }

  /** Gives waiting jobs to the workers that have least to do. */
  const hand = () => {
    while (backlog.length > 0) {
      const thread = threads.reduce((least, other) => (other.jobs.size < least.jobs.size ? other : least))
      if (thread.jobs.size >= JOBS_PER_WORKER) return
      const waiting = backlog.shift()!
      const task = { id: nextId++, job: waiting.job() } as Task
      thread.jobs.set(task.id, waiting)
      thread.worker.postMessage(task, waiting.transfer)
    }
  }

  const settle = (thread: Thread, answer: Answer) => {
    const waiting = thread.jobs.get(answer.id)
    if (!waiting) return
    thread.jobs.delete(answer.id)
    hand()
    if ('error' in answer) waiting.reject(fromBody(answer.error))
    else waiting.resolve(answer.result)
  }

  const start = (): Thread => {
    const thread: Thread = { worker: new Worker(new URL('./worker.ts', import.meta.url), { workerData: role }), jobs: new Map() }
    thread.worker.on('message', (answer: Answer) => settle(thread, answer))
    thread.worker.on('error', error => fail(new GodwitError('INTERNAL', `a page worker failed: ${String(error)}`, { cause: error })))
    thread.worker.on('exit', code => fail(new GodwitError('INTERNAL', `a page worker ended (${code})`)))
    return thread
  }

  const threads: Thread[] = []
  for (let i = 0; i < size; i++) threads.push(start())

  return {
    size,
    run(job, transfer) {
      if (failure) return Promise.reject(failure)
      return new Promise<Result>((resolve, reject) => {
        backlog.push({ job, transfer, resolve: resolve as (result: unknown) => void, reject })
        hand()
      })
    },
    async close() {
      fail(new GodwitError('INTERNAL', 'the page workers were closed'))
      await Promise.all(threads.map(({ worker }) => worker.terminate()))
    },
  }
}

/** The same without threads: every job is done in a turn of its own. */
export function createInlinePool<Job, Result>(performer: Promise<Performer<Job, Result>>): Pool<Job, Result> {
  let closed = false
  return {
    size: 0,
    async run(job) {
      const perform = await performer
      if (closed) throw new GodwitError('INTERNAL', 'the page workers were closed')
      return perform(job()).result
    },
    async close() {
      closed = true
    },
  }
}
