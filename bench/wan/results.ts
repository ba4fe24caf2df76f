// The results file: one JSON line for each run, appended at its end, so that an interrupted benchmark can continue.
// Always holds: a written line is never changed.
import { appendFileSync, existsSync, mkdirSync, readFileSync } from 'node:fs'
import { dirname } from 'node:path'
import type { BenchRun } from './outcome.ts'

type Lines<T> = {
  all(): readonly T[]
  has(outcome: T): boolean
  add(outcome: T): void
}
export type Results = Lines<BenchRun> & { has(outcome: Pick<BenchRun, 'cell' | 'guest' | 'variant' | 'repetition'>): boolean }

const keyOf = ({ cell, guest, variant, repetition }: Pick<BenchRun, 'cell' | 'guest' | 'variant' | 'repetition'>) =>
  `${cell} ${guest} ${variant} ${repetition}`

export const openResults = (path: string): Results =>
  openLines<BenchRun, Pick<BenchRun, 'cell' | 'guest' | 'variant' | 'repetition'>>(path, keyOf)

/** `keyOf`: what names one outcome. */
export function openLines<T extends K, K = T>(path: string, keyOf: (outcome: K) => string): Lines<T> & { has(outcome: K): boolean } {
  mkdirSync(dirname(path), { recursive: true })
  const lines = existsSync(path) ? readFileSync(path, 'utf8').split('\n') : []
  const outcomes = lines.filter(Boolean).map(line => JSON.parse(line) as T)
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
