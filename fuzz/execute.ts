// One execution with its verdict. Enters: a target and an input. Leaves: the resulting code (or 'ok'), or the problem.
// Always holds: a verdict about memory needs a second measurement, so garbage of another execution never counts.
import { GodwitError } from '../wire/errors.ts'
import type { Target } from './target.ts'

type Verdict = { outcome: string; problem?: undefined } | { outcome?: undefined; problem: string; error?: unknown }

const MEMORY_BYTES = 8 * 1024 * 1024
const MEMORY_PER_BYTE = 32
/** Longer messages contain text of the peer. */
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
  if (taken > allowed) return { problem: `it allocates ${mib(taken)} for ${input.length} bytes of input; the limit is ${mib(allowed)}` }
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
  // The location in the fuzzed code: the frames below the fuzzer differ between calls.
  const frames = error.stack?.split('\n') ?? []
  const below = frames.findIndex(line => line.includes('/fuzz/execute.ts'))
  const place = frames.slice(0, Math.max(0, below)).find(line => line.includes('file://') && !line.includes('/fuzz/')) ?? ''
  return `${error.name}: ${error.message.slice(0, 300)}${place ? ` ${place.trim().replace(/\(?file:\/\/.*\/(?=[^/]+\/[^/]+:\d)/, '(')}` : ''}`
}

/** The key of a finding: two inputs with the same text, apart from numbers, are one finding. */
export const signature = (problem: string): string => problem.replace(/[\d.]+/g, '0').slice(0, 200)
