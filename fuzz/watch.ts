// Fuzzes one target in a thread and watches over it. Enters: target, seed, limits. Leaves: its report; an input that hangs or exhausts memory is a finding too.
import { Worker } from 'node:worker_threads'
import { createShared, readShared } from './shared.ts'
import type { Work, WorkerReport } from './worker.ts'

export type WatchOptions = Omit<Work, 'shared'> & {
  /** An input that takes longer is a finding, ms. */
  hangMs?: number
  signal?: AbortSignal
  /** In place of worker.ts: for tests. */
  worker?: URL
}

const HANG_MS = 20_000
const POLL_MS = 250
const START_MS = 60_000
const HEAP_MIB = 1024

/** Never rejects for what a target does. */
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
        // Before the first input the thread loads its code, perhaps on a busy machine.
        const patienceMs = count > 0 ? hangMs : hangMs + START_MS
        if (performance.now() - last.atMs > patienceMs) resolve(lost(`it does not end within ${hangMs} ms`))
        else if (signal?.aborted) resolve(partial([]))
      }, POLL_MS)
    })
  } finally {
    clearInterval(timer)
    await worker.terminate()
  }
}
