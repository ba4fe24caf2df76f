// The thread in which one target is fuzzed. Enters: what to run (workerData). Leaves: the report, as a message.
// Always holds: before an input runs, its bytes and the time stand in shared memory: the main thread reads them there when this one hangs or runs out of memory.
import { parentPort, workerData } from 'node:worker_threads'
import { readCorpus } from './corpus.ts'
import { type Coverage, startCoverage } from './coverage.ts'
import { type FuzzReport, fuzz } from './engine.ts'
import { targetNamed } from './targets.ts'

export type Work = { target: string; seed: string; seconds?: number; executions?: number; blind: boolean; shared: SharedArrayBuffer }
/** What is left of an error on its way between threads. */
export type WorkerReport = Omit<FuzzReport, 'findings'> & {
  findings: { problem: string; input: Uint8Array; name?: string; stack?: string }[]
}

/** Shared memory: u32 inputs so far | u32 length of the current one | its first bytes. */
export const SHARED_HEAD_BYTES = 8
export const SHARED_INPUT_BYTES = 2 * 1024 * 1024

const isOurs = (url: string) => url.startsWith('file:') && !/\/(node_modules|fuzz|sim-network)\//.test(url)

async function work({ target: name, seed, seconds, executions, blind, shared }: Work): Promise<WorkerReport> {
  const target = targetNamed(name)
  if (!target) throw new Error(`no target ${name}`)
  const head = new Int32Array(shared, 0, 2)
  const bytes = new Uint8Array(shared, SHARED_HEAD_BYTES)
  const coverage: Coverage | undefined = blind ? undefined : startCoverage(isOurs)
  const onInput = (input: Uint8Array) => {
    bytes.set(input.subarray(0, bytes.length))
    Atomics.store(head, 1, input.length)
    Atomics.add(head, 0, 1)
  }
  const limits = { ...(seconds === undefined ? {} : { seconds }), ...(executions === undefined ? {} : { executions }) }
  const report = await fuzz({ target, seed, corpus: readCorpus(name), coverage, onInput }, limits)
  coverage?.close()
  const findings = report.findings.map(({ error, ...rest }) => ({
    ...rest,
    ...(error instanceof Error && error.stack ? { stack: error.stack } : {}),
  }))
  return { ...report, findings }
}

if (parentPort && workerData) parentPort.postMessage(await work(workerData as Work))
