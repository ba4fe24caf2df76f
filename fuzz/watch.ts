// Fuzzes one target in a thread with a watchdog. Enters: target, seed, limits. Leaves: its report; an input that hangs
// or exhausts memory is also a finding. A thread is not terminated: during the set-up of zstd that aborts the process
// (edge-node/pages/pool.ts). It is asked to end; a hanging thread stays until the process ends, after its finding has
// been printed.
import { Worker } from 'node:worker_threads'
import { sleep } from '../ops/deadline.ts'
import { askToEnd, createShared, readShared } from './shared.ts'
import type { Work, WorkerReport } from './worker.ts'

type WatchOptions = Omit<Work, 'shared'> & {
  /** An input that takes longer is a finding, ms. */
  hangMs?: number
  signal?: AbortSignal
  /** Replaces worker.ts in tests. */
  worker?: URL
}

const HANG_MS = 20_000
const POLL_MS = 250
const END_MS = 5_000
const START_MS = 60_000
const HEAP_MIB = 1024

/** Never rejects because of a target. */
export async function watch({ hangMs = HANG_MS, signal, worker: file, ...work }: WatchOptions): Promise<WorkerReport> {
  const shared = createShared()
  const started = performance.now()
  const partial = (findings: WorkerReport['findings']): WorkerReport => {
    const executions = readShared(shared).count
    return {
      target: work.target,
      seed: work.seed,
      executions,
      outcomes: {},
      kept: [],
      features: 0,
      findings,
      tookMs: performance.now() - started,
    }
  }
  const lost = (problem: string) => partial([{ problem, input: readShared(shared).input() }])
  const worker = new Worker(file ?? new URL('./worker.ts', import.meta.url), {
    workerData: { ...work, shared } satisfies Work,
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MIB },
  })
  const ended = new Promise<void>(resolve => worker.once('exit', () => resolve()))
  let timer: NodeJS.Timeout | undefined
  try {
    return await new Promise<WorkerReport>(resolve => {
      worker.once('message', resolve)
      worker.once('error', error => resolve(lost(`the thread ends: ${error instanceof Error ? error.message : error}`)))
      worker.once('exit', () => resolve(lost('the thread ends')))
      let last = { count: -1, atMs: performance.now() }
      timer = setInterval(() => {
        const { count } = readShared(shared)
        if (count !== last.count) last = { count, atMs: performance.now() }
        // Before the first input the thread loads its code, possibly on a busy machine.
        const patienceMs = count > 0 ? hangMs : hangMs + START_MS
        if (performance.now() - last.atMs > patienceMs) resolve(lost(`it does not end within ${hangMs} ms`))
        else if (signal?.aborted) askToEnd(shared)
      }, POLL_MS)
    })
  } finally {
    clearInterval(timer)
    askToEnd(shared)
    // It has reported and ends by itself, or it hangs.
    await Promise.race([ended, sleep(END_MS)])
    worker.unref()
  }
}
