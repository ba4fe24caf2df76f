// Medians and ranges of the runs of each (cell, guest, variant), and the goals with their verdicts. Pure.
import { CELLS, type Cell } from './cells.ts'
import type { BenchRun } from './outcome.ts'

export type Spread = { median: number; low: number; high: number }
export type Row = {
  cell: string
  guest: string
  variant: string
  runs: number
  failures: string[]
  totalMs?: Spread
  downtimeMs?: Spread
  megabytes?: Spread
  backMegabytes?: Spread
  slowdown?: Spread
  cpuSeconds?: Spread
  /** Share of the link's rate, over the whole migration. */
  goodput?: Spread
  late1: number
  steal: number
}

export function spreadOf(values: readonly (number | undefined)[]): Spread | undefined {
  const sorted = values.filter(value => value !== undefined).sort((a, b) => a - b)
  if (sorted.length === 0) return undefined
  const middle = sorted.length >> 1
  const median = sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
  return { median, low: sorted[0]!, high: sorted.at(-1)! }
}

export function summarise(outcomes: readonly BenchRun[]): Row[] {
  const groups = Map.groupBy(outcomes, ({ cell, guest, variant }) => `${cell} ${guest} ${variant}`)
  return [...groups.values()].map(runs => {
    const { cell, guest, variant } = runs[0]!
    const done = runs.filter(({ failure }) => failure === undefined)
    const bitsPerSecond = (CELLS.find(({ name }) => name === cell)?.megabits ?? 1) * 1e6
    const spreads = {
      totalMs: spreadOf(done.map(({ totalMs }) => totalMs)),
      downtimeMs: spreadOf(done.map(({ downtimeMs }) => downtimeMs)),
      megabytes: spreadOf(done.map(({ bytesAb }) => bytesAb / 1e6)),
      backMegabytes: spreadOf(done.map(({ bytesBa }) => bytesBa / 1e6)),
      slowdown: spreadOf(done.map(({ slowdown }) => slowdown)),
      cpuSeconds: spreadOf(done.map(({ cpuSeconds }) => cpuSeconds)),
      goodput: spreadOf(done.map(({ deliveredAb, totalMs }) => (deliveredAb * 8000) / totalMs! / bitsPerSecond)),
    }
    const given = Object.fromEntries(Object.entries(spreads).filter(([, spread]) => spread !== undefined))
    return {
      ...{ cell, guest, variant, runs: runs.length, failures: runs.flatMap(({ failure }) => failure ?? []) },
      ...given,
      late1: Math.max(...runs.map(run => run.late1)),
      steal: Math.max(...runs.map(run => run.steal)),
    }
  })
}

export type GoalResult = { cell: string; guest: string; what: string; isReached: boolean; figure: string }

const REPEATS = ['patches']
const isHeavy = (guest: string) => guest.startsWith('writer-1')

/** Every goal that these rows can decide. `oracleMegabytes`: by cell and guest, see oracle.ts. */
export function judgeGoals(rows: readonly Row[], oracleMegabytes: (cell: Cell, guest: string) => number | undefined): GoalResult[] {
  return CELLS.flatMap(cell =>
    [...new Set(rows.filter(row => row.cell === cell.name).map(({ guest }) => guest))].flatMap(guest => {
      const here = rows.filter(row => row.cell === cell.name && row.guest === guest)
      const ours = here.find(({ variant }) => variant === 'godwit')
      return ours
        ? judgeCell(
            cell,
            guest,
            ours,
            here.filter(({ variant }) => isRivalName(variant)),
            oracleMegabytes(cell, guest),
          )
        : []
    }),
  )
}

const isRivalName = (name: string) => /^(multifd|plain|xbzrle)/.test(name)

function judgeCell(cell: Cell, guest: string, ours: Row, rivals: readonly Row[], oracle: number | undefined): GoalResult[] {
  const verdicts: GoalResult[] = []
  const say = (what: string, isReached: boolean, figure: string) => verdicts.push({ cell: cell.name, guest, what, isReached, figure })
  if (!ours.totalMs || ours.failures.length > 0) {
    say('the move is done', false, ours.failures.join('; '))
    if (!ours.totalMs) return verdicts
  }
  const best = (pick: (row: Row) => Spread | undefined) => {
    const candidates = rivals.flatMap(row => (pick(row) ? [{ name: row.variant, value: pick(row)!.median }] : []))
    return candidates.sort((a, b) => a.value - b.value)[0]
  }
  const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`
  const fastest = best(row => row.totalMs)
  const factor = totalFactor(cell, guest)
  if (fastest) {
    const gain = fastest.value / ours.totalMs.median
    say(
      `total time: ${factor.text}`,
      gain >= factor.least,
      `${seconds(ours.totalMs.median)}; ${fastest.name} ${seconds(fastest.value)}: ${gain.toFixed(2)} times`,
    )
  } else if (rivals.length > 0) say(`total time: ${factor.text}`, true, `${seconds(ours.totalMs.median)}; no variant of QEMU was done`)
  const downtime = ours.downtimeMs!.median
  if (guest === 'idle' || guest === 'read-mostly') {
    const bound = 2 * cell.rttMs + 300
    say('downtime at most RTT + 300 ms, and the commit', downtime <= bound, `${downtime} ms of ${bound} ms`)
  }
  const shortest = best(row => row.downtimeMs)
  if (shortest)
    say("downtime below the best QEMU variant's", downtime < shortest.value, `${downtime} ms; ${shortest.name} ${shortest.value} ms`)
  const goodput = ours.goodput!.median
  if (!cell.hasBlackout && (cell.lossRatio === 0 || cell.lossRatio === 0.01)) {
    const least = cell.lossRatio === 0 ? 0.9 : 0.7
    say(`goodput at least ${least} of the link`, goodput >= least, goodput.toFixed(2))
  }
  if (oracle !== undefined) {
    const allowed = cell.megabits <= 25 ? 1.15 : 1.3
    const ratio = ours.megabytes!.median / oracle
    say(
      `bytes at most ${allowed} times the oracle with rewriting`,
      ratio <= allowed,
      `${ours.megabytes!.median.toFixed(1)} MB, oracle ${oracle.toFixed(1)} MB: ${ratio.toFixed(2)}`,
    )
  }
  return verdicts
}

function totalFactor(cell: Cell, guest: string): { least: number; text: string } {
  if (cell.megabits > 200) return { least: 1 / 1.1, text: 'at most 10 % above the best QEMU variant' }
  const isHard = cell.lossRatio > 0 || isHeavy(guest) || REPEATS.includes(guest)
  return isHard
    ? { least: 1.3, text: '1.3 times better than the best QEMU variant' }
    : { least: 1, text: 'better than the best QEMU variant' }
}
