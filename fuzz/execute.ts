// One execution, judged. Enters: a target and an input. Leaves: the code that left (or 'ok'), or what is wrong with it.
// Always holds: a verdict on memory is given only when a second look confirms it: what another execution left for the collector counts for nobody.
import { GodwitError } from '../wire/errors.ts'
import type { Target } from './target.ts'

export type Verdict = { outcome: string; problem?: undefined } | { outcome?: undefined; problem: string; error?: unknown }

const MEMORY_BYTES = 8 * 1024 * 1024
const MEMORY_PER_BYTE = 32
/** Longer messages are the peer's text, handed on. */
const MESSAGE_LENGTH_MAX = 8 * 1024

export async function execute(target: Target, input: Uint8Array): Promise<Verdict> {
  const before = allocated()
  const verdict = await judge(target, input)
  if (verdict.problem !== undefined) return verdict
  const allowed = (target.memoryBytes ?? MEMORY_BYTES) + MEMORY_PER_BYTE * input.length
  let taken = allocated() - before
  for (let look = 0; look < 2 && taken > allowed; look++) {
    collect()
    const start = allocated()
    await judge(target, input)
    taken = Math.min(taken, allocated() - start)
  }
  if (taken > allowed) return { problem: `it allocates ${mib(taken)} for ${input.length} bytes of input; allowed are ${mib(allowed)}` }
  return verdict
}

async function judge(target: Target, input: Uint8Array): Promise<Verdict> {
  try {
    const running = target.run(new Uint8Array(input))
    if (running) await running
    return { outcome: 'ok' }
  } catch (error) {
    if (!(error instanceof GodwitError)) return { problem: describe(error), error }
    if (!target.codes.includes(error.code)) return { problem: `code ${error.code}: ${error.message.slice(0, 300)}`, error }
    if (error.message.length > MESSAGE_LENGTH_MAX) return { problem: `a message of ${error.message.length} characters`, error }
    return { outcome: error.code }
  }
}

const allocated = (): number => {
  const { heapUsed, external } = process.memoryUsage()
  return heapUsed + external
}
const collect = (): void => (globalThis as { gc?: () => void }).gc?.()
const mib = (bytes: number): string => `${(bytes / 1024 / 1024).toFixed(1)} MiB`

function describe(error: unknown): string {
  if (!(error instanceof Error)) return `thrown: ${String(error)}`
  // Where in the code that is fuzzed: what is below the fuzzer's own frames changes from call to call.
  const frames = error.stack?.split('\n') ?? []
  const below = frames.findIndex(line => line.includes('/fuzz/execute.ts'))
  const place = frames.slice(0, Math.max(0, below)).find(line => line.includes('file://') && !line.includes('/fuzz/')) ?? ''
  return `${error.name}: ${error.message.slice(0, 300)}${place ? ` ${place.trim().replace(/\(?file:\/\/.*\/(?=[^/]+\/[^/]+:\d)/, '(')}` : ''}`
}

/** What two inputs must share to be the same finding: numbers aside. */
export const signature = (problem: string): string => problem.replace(/[\d.]+/g, '0').slice(0, 200)
