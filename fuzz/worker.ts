// The thread that fuzzes one target. Enters: its task (workerData). Leaves: the report, as a message.
import { parentPort, workerData } from 'node:worker_threads'
import { readCorpus } from './corpus.ts'
import { startCoverage } from './coverage.ts'
import { type FuzzReport, fuzz } from './engine.ts'
import { inputTeller, isAskedToEnd } from './shared.ts'
import { targetNamed } from './targets.ts'

export type Work = { target: string; seed: string; seconds?: number; executions?: number; blind: boolean; shared: SharedArrayBuffer }
/** The form of an error in messages between threads. */
export type WorkerReport = Omit<FuzzReport, 'findings'> & {
  findings: { problem: string; input: Uint8Array; name?: string; stack?: string }[]
}

const isOurs = (url: string) => url.startsWith('file:') && !/\/(node_modules|fuzz|sim-network)\//.test(url)

async function work({ target: name, seed, blind, shared, ...limits }: Work): Promise<WorkerReport> {
  const target = targetNamed(name)
  if (!target) throw new Error(`unknown target ${name}`)
  const coverage = blind ? undefined : startCoverage(isOurs)
  const report = await fuzz(
    { target, seed, corpus: readCorpus(name), coverage, onInput: inputTeller(shared) },
    { ...limits, isOver: () => isAskedToEnd(shared) },
  )
  coverage?.close()
  const findings = report.findings.map(({ error, ...rest }) => ({
    ...rest,
    ...(error instanceof Error && error.stack ? { stack: error.stack } : {}),
  }))
  return { ...report, findings }
}

parentPort?.postMessage(await work(workerData as Work))
