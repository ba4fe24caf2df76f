// The outcome of one move of bench:disk, and medians over repetitions. Pure. Times by the benchmark's own clock, bytes
// by the link's driver (IP packets that entered the link).
import type { Spread } from '../wan/summary.ts'
import { spreadOf } from '../wan/summary.ts'

export type Outcome = {
  cell: string
  mover: string
  /** What the target has: `nothing`, `image`; `back to ...`: the way back after some minutes. */
  case: string
  repetition: number
  /** Absent: completed. */
  failure?: string
  totalMs?: number
  /** The longest gap of the guest's beats from the command to the end. */
  downtimeMs?: number
  bytesForth: number
  bytesBack: number
  cpuSeconds: number
  /** p99 of the guest's durable writes of 4 KiB, before and during the move, us. */
  calmP99Us?: number | undefined
  busyP99Us?: number | undefined
  /** `zstd -19 --long` over the chunks and pages that the target lacks. */
  oracleBytes?: number | undefined
  /** Pages and blocks that the guest found wrong after the move. */
  bad?: number
  note?: string | undefined
  commit?: string
}

export type Row = {
  cell: string
  mover: string
  case: string
  runs: number
  failures: string[]
  bad: number
  totalMs?: Spread | undefined
  downtimeMs?: Spread | undefined
  megabytes?: Spread | undefined
  cpuSeconds?: Spread | undefined
  calmP99Ms?: Spread | undefined
  busyP99Ms?: Spread | undefined
  oracleMegabytes?: Spread | undefined
}

export function p99(values: readonly number[]): number | undefined {
  if (values.length === 0) return undefined
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.99))]
}

const scaled = (value: number | undefined, by: number): number | undefined => (value === undefined ? undefined : value / by)

export function summarise(outcomes: readonly Outcome[]): Row[] {
  const groups = Map.groupBy(outcomes, ({ cell, mover, case: which }) => `${cell} ${mover} ${which}`)
  return [...groups.values()].map(runs => {
    const { cell, mover, case: which } = runs[0]!
    const done = runs.filter(({ failure }) => failure === undefined)
    return {
      ...{ cell, mover, case: which, runs: runs.length, failures: runs.flatMap(({ failure }) => failure ?? []) },
      bad: runs.reduce((sum, { bad = 0 }) => sum + bad, 0),
      totalMs: spreadOf(done.map(({ totalMs }) => totalMs)),
      downtimeMs: spreadOf(done.map(({ downtimeMs }) => downtimeMs)),
      megabytes: spreadOf(done.map(({ bytesForth, bytesBack }) => (bytesForth + bytesBack) / 1e6)),
      cpuSeconds: spreadOf(done.map(({ cpuSeconds }) => cpuSeconds)),
      calmP99Ms: spreadOf(done.map(({ calmP99Us }) => scaled(calmP99Us, 1000))),
      busyP99Ms: spreadOf(done.map(({ busyP99Us }) => scaled(busyP99Us, 1000))),
      oracleMegabytes: spreadOf(done.map(({ oracleBytes }) => scaled(oracleBytes, 1e6))),
    }
  })
}
