// Draws the policies as an SVG chart: one panel of bars for each figure. Enters: reports. Leaves: SVG text without
// scripts and external fonts. Pure.
import type { SimulationReport } from './metrics.ts'

type Panel = {
  title: string
  unit: string
  value(report: SimulationReport): number
  mark?: (report: SimulationReport) => number
  label?: (report: SimulationReport) => string
}

const PANELS: readonly Panel[] = [
  { title: 'SLO violation', unit: '% of time', value: report => report.sloViolationPercent, mark: report => report.unavoidablePercent },
  {
    title: 'Migrations',
    unit: 'per user hour',
    value: report => report.migrationsPerHour,
    mark: report => report.optimumMigrationsPerHour,
  },
  { title: 'Ping-pong', unit: '% of migrations', value: report => report.pingPongPercent },
  { title: 'Wire bytes', unit: 'GB per user hour', value: report => report.gigabytesPerHour },
  {
    title: 'Downtime of a migration',
    unit: 'ms, p50 / p95 (bar: p95)',
    value: report => report.interruptionP95Ms ?? 0,
    label: ({ interruptionP50Ms, interruptionP95Ms }) =>
      interruptionP50Ms === null ? '-' : `${interruptionP50Ms.toFixed(0)} / ${(interruptionP95Ms ?? 0).toFixed(0)}`,
  },
  { title: 'Cost', unit: 'multiple of the offline optimum', value: report => report.regretRatio ?? 0, mark: () => 1 },
]
const PANEL_WIDTH = 200
const PANEL_GAP = 24
const BAR_HEIGHT = 22
const ROW_HEIGHT = 34
const LABEL_WIDTH = 150
const TOP = 70
/** Colours that are distinct for colour-blind people (Okabe and Ito). */
const COLORS = ['#999999', '#e69f00', '#56b4e9', '#009e73', '#0072b2', '#cc79a7']

export function comparisonSvg(title: string, reports: readonly SimulationReport[]): string {
  const width = LABEL_WIDTH + PANELS.length * (PANEL_WIDTH + PANEL_GAP) + PANEL_GAP
  const height = TOP + reports.length * ROW_HEIGHT + 60
  const labels = reports.map(({ policy }, at) => {
    const y = TOP + at * ROW_HEIGHT + BAR_HEIGHT * 0.7
    return text(LABEL_WIDTH - 10, y, policy, 'end')
  })
  const panels = PANELS.map((panel, at) => drawPanel(panel, reports, LABEL_WIDTH + at * (PANEL_WIDTH + PANEL_GAP)))
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12">`,
    `<rect width="${width}" height="${height}" fill="white"/>`,
    text(PANEL_GAP, 26, title, 'start', 16),
    ...labels,
    ...panels,
    text(
      PANEL_GAP,
      height - 18,
      'Dashed: the lowest possible SLO violation, and the migrations and the cost (1) of the offline optimum.',
      'start',
    ),
    '</svg>',
    '',
  ].join('\n')
}

function drawPanel(
  { title, unit, value, mark, label = report => value(report).toFixed(1) }: Panel,
  reports: readonly SimulationReport[],
  left: number,
): string {
  const most = Math.max(1e-9, ...reports.map(value), ...(mark ? reports.map(mark) : []))
  const scale = (PANEL_WIDTH - 62) / most
  const bottom = TOP + reports.length * ROW_HEIGHT
  const bars = reports.map((report, at) => {
    const y = TOP + at * ROW_HEIGHT
    const length = Math.max(0, value(report) * scale)
    const bar = `<rect x="${left}" y="${y}" width="${length.toFixed(1)}" height="${BAR_HEIGHT}" fill="${COLORS[at % COLORS.length]}"/>`
    return `${bar}\n${text(left + length + 5, y + BAR_HEIGHT * 0.7, label(report), 'start')}`
  })
  const first = reports[0]
  const at = mark && first ? left + mark(first) * scale : 0
  const line = mark ? [`<path d="M${at.toFixed(1)} ${TOP - 6}V${bottom}" stroke="black" stroke-dasharray="4 3"/>`] : []
  return [
    text(left, TOP - 24, title, 'start', 13),
    text(left, TOP - 9, unit, 'start', 10),
    `<path d="M${left} ${TOP - 4}V${bottom}" stroke="black"/>`,
    ...bars,
    ...line,
  ].join('\n')
}

const ENTITIES: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' }

function text(x: number, y: number, content: string, anchor: 'start' | 'end', size = 12): string {
  const safe = content.replace(/[&<>"]/g, letter => ENTITIES[letter]!)
  return `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}" font-size="${size}">${safe}</text>`
}
