// Fuzzes one target in a thread and watches over it. Enters: target, seed, limits. Leaves: its report; an input that hangs or exhausts memory is a finding too.
import { Worker } from 'node:worker_threads'
import { SHARED_HEAD_BYTES, SHARED_INPUT_BYTES, type Work, type WorkerReport } from './worker.ts'

export type WatchOptions = Omit<Work, 'shared'> & {
  /** An input that takes longer is a finding, ms. */
  hangMs?: number
  signal?: AbortSignal
}

const HANG_MS = 20_000
const POLL_MS = 250
const HEAP_MIB = 1024

/** Never rejects for what a target does. */
export async function watch({ hangMs = HANG_MS, signal, ...work }: WatchOptions): Promise<WorkerReport> {
  const shared = new SharedArrayBuffer(SHARED_HEAD_BYTES + SHARED_INPUT_BYTES)
  const head = new Int32Array(shared, 0, 2)
  const started = performance.now()
  const lost = (problem: string): WorkerReport => {
    const input = new Uint8Array(shared, SHARED_HEAD_BYTES).slice(0, Atomics.load(head, 1))
    const executions = Atomics.load(head, 0)
    const findings = [{ problem, input }]
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
  const worker = new Worker(new URL('./worker.ts', import.meta.url), {
    workerData: { ...work, shared } satisfies Work,
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MIB },
  })
  let last = -1
  let lastAt = performance.now()
  const report = await new Promise<WorkerReport>(resolve => {
    const timer = setInterval(() => {
      const count = Atomics.load(head, 0)
      if (count !== last) lastAt = performance.now()
      last = count
      if (performance.now() - lastAt > hangMs) resolve(lost(`it does not end within ${hangMs} ms`))
      else if (signal?.aborted) resolve({ ...lost('interrupted'), findings: [] })
    }, POLL_MS)
    worker.once('message', resolve)
    worker.once('error', error => resolve(lost(`the thread ends: ${error instanceof Error ? error.message : error}`)))
    worker.once('exit', () => resolve(lost('the thread ends')))
    void worker.once('exit', () => clearInterval(timer))
  })
  await worker.terminate()
  return report
}
