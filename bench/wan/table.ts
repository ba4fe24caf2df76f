// The results as a table in Markdown. Pure.
import type { GoalResult, Row, Spread } from './summary.ts'

const HEAD = [
  'cell',
  'guest',
  'variant',
  'total s',
  'downtime ms',
  'MB a->b',
  'MB b->a',
  'goodput',
  'slowdown',
  'CPU s',
  'late > 1 ms',
  'steal',
]

export function figure(spread: Spread | undefined, digits: number, scale = 1): string {
  if (!spread) return '-'
  const show = (value: number) => (value * scale).toFixed(digits)
  return spread.low === spread.high ? show(spread.median) : `${show(spread.median)} (${show(spread.low)}-${show(spread.high)})`
}

const percent = (part: number) => `${(part * 100).toFixed(1)} %`

function cellsOf(row: Row): string[] {
  const total = row.totalMs ? figure(row.totalMs, 1, 0.001) : ''
  const failed = row.failures.length > 0 ? `${row.failures.length}x ${row.failures[0]!.slice(0, 60)}` : ''
  return [
    ...[row.cell, row.guest, row.variant, [total, failed].filter(Boolean).join('; ')],
    ...[figure(row.downtimeMs, 0), figure(row.megabytes, 1), figure(row.backMegabytes, 1), figure(row.goodput, 2)],
    ...[figure(row.slowdown, 2), figure(row.cpuSeconds, 1), percent(row.late1), percent(row.steal)],
  ]
}

const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`

/** Rows keep their order. */
export const resultsTable = (rows: readonly Row[]): string =>
  [line(HEAD), line(HEAD.map(() => '---')), ...rows.map(row => line(cellsOf(row)))].join('\n')

export const goalsTable = (verdicts: readonly GoalResult[]): string =>
  [
    line(['cell', 'guest', 'target', 'verdict', 'figure']),
    line(['---', '---', '---', '---', '---']),
    ...verdicts.map(({ cell, guest, what, isReached, figure }) =>
      line([cell, guest, what, isReached ? 'reached' : '**NOT reached**', figure]),
    ),
  ].join('\n')
