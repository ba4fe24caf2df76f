// The results file: one JSON line for each run, appended at its end, so that an interrupted benchmark can continue.
// Always holds: a written line is never changed.
import { appendFileSync, existsSync, mkdirSync, readFileSync } from 'node:fs'
import { dirname } from 'node:path'
import type { BenchRun } from './outcome.ts'

export type Results = {
  all(): readonly BenchRun[]
  has(outcome: Pick<BenchRun, 'cell' | 'guest' | 'variant' | 'repetition'>): boolean
  add(outcome: BenchRun): void
}

const keyOf = ({ cell, guest, variant, repetition }: Pick<BenchRun, 'cell' | 'guest' | 'variant' | 'repetition'>) =>
  `${cell} ${guest} ${variant} ${repetition}`

export function openResults(path: string): Results {
  mkdirSync(dirname(path), { recursive: true })
  const lines = existsSync(path) ? readFileSync(path, 'utf8').split('\n') : []
  const outcomes = lines.filter(Boolean).map(line => JSON.parse(line) as BenchRun)
  const keys = new Set(outcomes.map(keyOf))
  return {
    all: () => outcomes,
    has: outcome => keys.has(keyOf(outcome)),
    add: outcome => {
      outcomes.push(outcome)
      keys.add(keyOf(outcome))
      appendFileSync(path, `${JSON.stringify(outcome)}\n`)
    },
  }
}
