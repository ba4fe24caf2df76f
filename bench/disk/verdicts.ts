// The goals of bench:disk and what the rows say of them, and the table of rows. Pure. Enters: rows. Leaves: verdicts,
// Markdown.
import type { GoalResult, Spread } from '../wan/summary.ts'
import { figure } from '../wan/table.ts'
import { DISK_CELLS } from './cases.ts'
import type { Row } from './outcome.ts'

const FASTER = { nothing: 1.3, image: 2 }
const FEWER_BYTES_BACK = 10
const SLOWER_WRITES = 2
const isSlow = (cell: string) => (DISK_CELLS.find(({ name }) => name === cell)?.megabits ?? 0) <= 25

/** Every goal that these rows can decide. */
export function judge(rows: readonly Row[]): GoalResult[] {
  return rows.filter(({ mover }) => mover === 'godwit').flatMap(ours => judgeRow(ours, rows))
}

function judgeRow(ours: Row, rows: readonly Row[]): GoalResult[] {
  const verdicts: GoalResult[] = []
  const say = (what: string, isReached: boolean, figure: string) =>
    verdicts.push({ cell: ours.cell, guest: ours.case, what, isReached, figure })
  if (!ours.totalMs || ours.failures.length > 0) say('the move is done', false, ours.failures.join('; '))
  if (!ours.totalMs || !ours.megabytes) return verdicts
  const rival = rows.find(row => row.mover === 'qemu' && row.cell === ours.cell && row.case === ours.case)
  if (rival?.totalMs) {
    const [gain, least] = [rival.totalMs.median / ours.totalMs.median, FASTER[ours.case as keyof typeof FASTER] ?? 1]
    say(`at least ${least} times as fast as QEMU`, gain >= least, `${gain.toFixed(2)} times`)
  }
  const first = rows.find(row => row.mover === 'godwit' && row.cell === ours.cell && ours.case === `back to ${row.case}`)
  if (first?.megabytes) {
    const factor = first.megabytes.median / ours.megabytes.median
    say(`the way back takes ${FEWER_BYTES_BACK} times fewer bytes`, factor >= FEWER_BYTES_BACK, `${factor.toFixed(1)} times fewer`)
  }
  if (ours.oracleMegabytes) {
    const [ratio, most] = [ours.megabytes.median / ours.oracleMegabytes.median, isSlow(ours.cell) ? 1.15 : 1.3]
    say(`bytes at most ${most} times the oracle`, ratio <= most, `${ratio.toFixed(2)} times`)
  }
  if (ours.calmP99Ms && ours.busyP99Ms) {
    const factor = ours.busyP99Ms.median / ours.calmP99Ms.median
    say(`p99 of the guest's writes at most ${SLOWER_WRITES} times`, factor <= SLOWER_WRITES, `${factor.toFixed(1)} times`)
  }
  return verdicts
}

const HEAD = [
  'cell',
  'target has',
  'mover',
  'total s',
  'downtime ms',
  'MB',
  'oracle MB',
  'CPU s',
  'write p99 before ms',
  'during ms',
  'bad',
]
const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`
const show = (spread: Spread | undefined, digits: number, scale = 1) => figure(spread, digits, scale)

export const diskTable = (rows: readonly Row[]): string =>
  [line(HEAD), line(HEAD.map(() => '---')), ...rows.map(row => line(cellsOf(row)))].join('\n')

function cellsOf(row: Row): string[] {
  const failed = row.failures.length > 0 ? `${row.failures.length}x ${row.failures[0]!.slice(0, 80)}` : ''
  const total = row.totalMs ? show(row.totalMs, 1, 0.001) : ''
  return [
    ...[row.cell, row.case, row.mover, [total, failed].filter(Boolean).join('; ')],
    ...[show(row.downtimeMs, 0), show(row.megabytes, 1), show(row.oracleMegabytes, 1), show(row.cpuSeconds, 1)],
    ...[show(row.calmP99Ms, 1), show(row.busyP99Ms, 1), String(row.bad)],
  ]
}
