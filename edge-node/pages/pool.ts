// A pool of workers: jobs in, promises of results out. Buffers move with a job and come back with its result; nobody
// copies and nobody shares them.
// Always holds: at most JOBS_PER_WORKER jobs are with a worker (one at work, one waiting for it), the rest wait here in
// order; callers bound how many there are. The first failure of a worker itself (not of a job) is final: it fails every
// job. A job's own error fails that job.
//
// No thread is ended from outside while it may be in native code. Worker.terminate() stops it between any two steps;
// one that is setting up zstd just then ends the whole process ("close before init", node_zlib.cc), and so does
// process.exit(), which terminates all threads. So a thread is told to end, finishes the job at hand and ends itself.
// One that hangs in a job cannot be ended at all: terminate() would wait for it too. After END_MS it is left behind.
import { Worker } from 'node:worker_threads'
import { within } from '../../ops/deadline.ts'
import { fromBody, GodwitError } from '../../wire/errors.ts'
import { type Log, silentLog } from '../../wire/log.ts'
import type { CompressJob } from './compress.ts'
import type { ApplyJob } from './memory.ts'
import type { Performer, TaskAnswer, WorkerRole, WorkerStart, WorkerTask } from './perform.ts'
import { createTurn, end, idle, type Turn } from './turn.ts'

export type Pool<Job, Result> = {
  /** Threads; 0: in process. */
  readonly size: number
  /** `job`: made when a worker takes it. `transfer`: its ArrayBuffers; the caller has them no more. */
  run(job: () => Job, transfer: ArrayBuffer[]): Promise<Result>
  /**
   * Fails what is under way, ends the threads. Resolves when they have ended; INTERNAL when one hangs: `ended` then
   * waits on. Calling it again is the same.
   */
  close(): Promise<void>
  /** Resolves when no thread of the pool runs any more, however long that takes. */
  readonly ended: Promise<void>
}

export type PoolOptions = {
  log?: Log | undefined
  /** How long a thread may take to end, ms. */
  endMs?: number
  /** In place of worker.ts: for tests. */
  worker?: URL
}

const JOBS_PER_WORKER = 2
/** Many times what the longest job takes (a MiB at zstd's level 19: about a second). */
const END_MS = 10_000
/** How long the end of the process waits for jobs at hand. */
const EXIT_MS = 3_000

type Waiting = { job: () => CompressJob | ApplyJob; transfer: ArrayBuffer[]; resolve(result: unknown): void; reject(error: unknown): void }
type Thread = { worker: Worker; turn: Turn; jobs: Map<number, Waiting>; ended: Promise<void> }

export function createThreadPool<Job extends CompressJob | ApplyJob, Result>(
  size: number,
  role: WorkerRole,
  options: PoolOptions = {},
): Pool<Job, Result> {
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
      const id = nextId++
      const task = { id, job: waiting.job() } as WorkerTask
      thread.jobs.set(id, waiting)
      thread.worker.postMessage(task, waiting.transfer)
    }
  }

  const settle = (thread: Thread, answer: TaskAnswer) => {
    const waiting = thread.jobs.get(answer.id)
    if (!waiting) return
    thread.jobs.delete(answer.id)
    hand()
    if ('error' in answer) waiting.reject(fromBody(answer.error))
    else waiting.resolve(answer.result)
  }

  const start = (): Thread => {
    const thread: Thread = { ...startWorker(role, options.worker), jobs: new Map() }
    thread.worker.on('message', (answer: TaskAnswer) => settle(thread, answer))
    thread.worker.on('error', error => fail(new GodwitError('INTERNAL', `a page worker failed: ${String(error)}`, { cause: error })))
    thread.worker.on('exit', code => fail(new GodwitError('INTERNAL', `a page worker ended (${code})`)))
    return thread
  }

  const threads: Thread[] = []
  for (let i = 0; i < size; i++) threads.push(start())
  let closing: Promise<void> | undefined

  return {
    size,
    ended: Promise.all(threads.map(thread => thread.ended)).then(() => {}),
    run(job, transfer) {
      if (failure) return Promise.reject(failure)
      return new Promise<Result>((resolve, reject) => {
        backlog.push({ job, transfer, resolve: resolve as (result: unknown) => void, reject })
        hand()
      })
    },
    close() {
      fail(new GodwitError('INTERNAL', 'the page workers were closed'))
      closing ??= endThreads(threads, options)
      return closing
    },
  }
}

function startWorker(role: WorkerRole, file = new URL('./worker.ts', import.meta.url)): Omit<Thread, 'jobs'> {
  const turn = createTurn()
  const worker = new Worker(file, { workerData: { role, turn } satisfies WorkerStart })
  const ended = new Promise<void>(resolve => worker.once('exit', () => resolve()))
  if (running.size === 0) process.on('exit', endAtExit)
  running.add(turn)
  void ended.then(() => {
    running.delete(turn)
    if (running.size === 0) process.off('exit', endAtExit)
  })
  return { worker, turn, ended }
}

async function endThreads(threads: readonly Thread[], { log = silentLog, endMs = END_MS }: PoolOptions): Promise<void> {
  const left = new Set(threads)
  for (const thread of threads) {
    end(thread.turn)
    thread.worker.postMessage('end' satisfies WorkerTask)
    void thread.ended.then(() => left.delete(thread))
  }
  try {
    await within(Promise.all(threads.map(({ ended }) => ended)), { ms: endMs, what: 'the end of the page workers', code: 'INTERNAL' })
  } catch (error) {
    // They must not keep the process; what they may still write to stays open (ended).
    for (const { worker } of left) worker.unref()
    log.error('page workers hang: restart the node when its migrations have ended', { threads: left.size })
    throw error
  }
}

/** Threads of all pools of this process. */
const running = new Set<Turn>()

/**
 * When the process ends with threads at work (a second Ctrl-C, an exception that nobody caught), Node terminates them:
 * first they finish their jobs. If one hangs, only a signal ends the process: Node would wait for it for ever.
 */
function endAtExit(): void {
  for (const turn of running) end(turn)
  const deadlineMs = performance.now() + EXIT_MS
  for (const turn of running) if (!idle(turn, Math.max(0, deadlineMs - performance.now()))) process.kill(process.pid, 'SIGKILL')
}

/** The same without threads: every job is done in a turn of its own. */
export function createInlinePool<Job, Result>(performer: Promise<Performer<Job, Result>>): Pool<Job, Result> {
  let closed = false
  return {
    size: 0,
    ended: Promise.resolve(),
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
