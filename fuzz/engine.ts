// The loop of the fuzzer: choose an input of the corpus, mutate it, run it, keep it if it reached new code. Enters: a
// target, a seed, a corpus, possibly coverage. Leaves: a report; findings are shrunk, with the bytes that replay them.
// Always holds: without coverage the seed alone determines the inputs (with it, the seed and V8's counts); the hostile
// inputs and every seed run first; `onInput` is called before each run, so a watchdog can name the input that hangs.
import { performance } from 'node:perf_hooks'
import { createRandom, type Random } from '../sim-network/random.ts'
import type { CodeCoverage } from './coverage.ts'
import { execute, signature } from './execute.ts'
import { below, type MutateOptions, mutate, pick } from './mutate.ts'
import { mutateJson } from './mutate-json.ts'
import { shrink } from './shrink.ts'
import type { Target } from './target.ts'

type Failure = { problem: string; input: Uint8Array; error?: unknown; name?: string }

export type FuzzReport = {
  target: string
  seed: string
  executions: number
  /** 'ok' or an error code -> number of executions with this result. */
  outcomes: Record<string, number>
  /** Inputs that reached new code, including seeds. */
  kept: Uint8Array[]
  features: number
  findings: Failure[]
  tookMs: number
}

export type FuzzOptions = {
  target: Target
  seed: number | string
  corpus?: readonly Uint8Array[]
  coverage?: CodeCoverage | undefined
  onInput?: (input: Uint8Array) => void
}

/** `isOver`: called before each batch of inputs. */
type RunLimits = { executions?: number; seconds?: number; isOver?: () => boolean }

const BYTES_MAX = 16 * 1024
const BATCH = 64
const CORPUS_MAX = 2000
const FINDINGS_MAX = 5
const RECENT = 40

export async function fuzz(options: FuzzOptions, limits: RunLimits): Promise<FuzzReport> {
  await options.target.setup?.()
  return await new Fuzzer(options).run(limits)
}

class Fuzzer {
  readonly #target: Target
  readonly #seed: string
  readonly #random: Random
  readonly #coverage: CodeCoverage | undefined
  readonly #onInput: (input: Uint8Array) => void
  readonly #corpus: Uint8Array[] = []
  readonly #words: Uint8Array[]
  readonly #outcomes: Record<string, number> = {}
  readonly #findings = new Map<string, Failure>()
  #executions = 0

  constructor({ target, seed, corpus = [], coverage, onInput = () => {} }: FuzzOptions) {
    this.#target = target
    this.#seed = String(seed)
    this.#random = createRandom(`${seed}/${target.name}`)
    this.#coverage = coverage
    this.#onInput = onInput
    // Copies, not Buffers, because slice() of a Buffer is a view.
    this.#corpus.push(...[...target.seeds(), ...corpus].map(input => new Uint8Array(input)))
    this.#words = (target.words ?? []).map(word => (typeof word === 'string' ? Buffer.from(word) : word))
  }

  async run({
    executions = Number.POSITIVE_INFINITY,
    seconds = Number.POSITIVE_INFINITY,
    isOver: isAsked = () => false,
  }: RunLimits): Promise<FuzzReport> {
    const started = performance.now()
    for (const [name, input] of Object.entries(this.#target.hostile?.() ?? {})) await this.#execute(input, name)
    for (const input of [...this.#corpus]) await this.#execute(input)
    this.#coverage?.know(this.#coverage.fresh())
    const isOver = () =>
      this.#executions >= executions || performance.now() - started >= seconds * 1000 || isAsked() || this.#findings.size >= FINDINGS_MAX
    while (!isOver()) {
      const batch = Array.from({ length: Math.min(BATCH, executions - this.#executions) }, () => this.#next())
      for (const input of batch) await this.#execute(input)
      await this.#keepNew(batch)
    }
    return {
      target: this.#target.name,
      seed: this.#seed,
      executions: this.#executions,
      outcomes: this.#outcomes,
      kept: this.#corpus,
      features: this.#coverage?.features ?? 0,
      findings: [...this.#findings.values()],
      tookMs: performance.now() - started,
    }
  }

  #next(): Uint8Array {
    const recent = this.#random.chance(0.3) ? this.#corpus.slice(-RECENT) : this.#corpus
    const input = pick(this.#random, recent) ?? new Uint8Array(0)
    const { jsonAt, bytesMax = BYTES_MAX } = this.#target
    if (jsonAt !== undefined && this.#random.chance(0.7)) {
      const text = (bytes: Uint8Array) => Buffer.from(bytes.subarray(jsonAt)).toString()
      const other = pick(this.#random, this.#corpus)
      const altered = mutateJson(text(input), this.#random, other ? [text(other)] : [])
      if (altered !== undefined) {
        const head = input.slice(0, jsonAt)
        if (this.#random.chance(0.1) && jsonAt > 0) head[below(this.#random, jsonAt)] = below(this.#random, 256)
        return new Uint8Array(Buffer.concat([head, Buffer.from(altered)])).slice(0, bytesMax)
      }
    }
    const how: MutateOptions = { others: this.#corpus, words: this.#words, bytesMax }
    return mutate(input, this.#random, how)
  }

  async #execute(input: Uint8Array, name?: string): Promise<void> {
    this.#onInput(input)
    const verdict = await execute(this.#target, input)
    this.#executions++
    if (verdict.problem === undefined) {
      this.#outcomes[verdict.outcome] = (this.#outcomes[verdict.outcome] ?? 0) + 1
      return
    }
    const mark = signature(verdict.problem)
    if (this.#findings.has(mark)) return
    this.#findings.set(mark, { problem: verdict.problem, input, error: verdict.error, ...(name === undefined ? {} : { name }) })
    // A hostile input is large and slow on purpose, so the report names it.
    if (name !== undefined) return
    const smaller = await shrink(input, async candidate => {
      this.#onInput(candidate)
      const again = await execute(this.#target, candidate)
      return again.problem !== undefined && signature(again.problem) === mark
    })
    const last = await execute(this.#target, smaller)
    this.#findings.set(mark, { problem: last.problem ?? verdict.problem, input: smaller, error: verdict.error })
  }

  /** If a batch reached new code, runs its inputs again one by one to find the input. */
  async #keepNew(batch: readonly Uint8Array[]): Promise<void> {
    const coverage = this.#coverage
    const news = coverage?.fresh() ?? []
    if (!coverage || news.length === 0) return
    for (const input of batch) {
      this.#onInput(input)
      await execute(this.#target, input)
      const fresh = coverage.fresh()
      if (fresh.length === 0) continue
      coverage.know(fresh)
      if (this.#corpus.length < CORPUS_MAX) this.#corpus.push(input)
    }
    coverage.know(news)
  }
}
