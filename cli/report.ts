// The report of a migration for people. Pure; --json prints the report unchanged.
import { formatBytes, formatDuration } from '../ops/units.ts'
import type { Report } from '../wire/control.ts'
import { PAGE_BYTES } from '../wire/types.ts'
import { clean, listing } from './output.ts'

const PARTS: readonly [keyof Report['downtimeParts'] & string, string][] = [
  ['finalPagesMs', 'final pages'],
  ['deviceStateMs', 'device state'],
  ['loadMs', 'load'],
  ['commitMs', 'commit'],
  ['resumeMs', 'resume'],
]
const CLASSES = ['Zero', 'Duplicate', 'Unchanged', 'Compressed', 'Raw'] as const
const DECISIONS_SHOWN = 6

export function renderReport(report: Report): string {
  const headline = `${report.vm}: ${report.source} -> ${report.target}, ${report.method}, ${report.outcome} in ${formatDuration(report.totalMs)}\n`
  const rounds: [string, string][] = [
    ['downtime', report.downtimeMs === null ? noDowntime(report) : `${formatDuration(report.downtimeMs)} (${parts(report)})`],
    ['guest bytes', `${formatBytes(report.guestBytes)} in ${report.rounds} ${report.rounds === 1 ? 'round' : 'rounds'}`],
    ...CLASSES.flatMap(name => classLine(report, name)),
    ...fromDiskLine(report),
    ...deltaLine(report),
    ...diskLine(report),
    ['wire bytes', `${formatBytes(report.wireBytes)}${report.ratio === null ? '' : ` (ratio ${report.ratio.toFixed(2)})`}`],
    ['transport', `${report.transport}, ${report.streams} page ${report.streams === 1 ? 'stream' : 'streams'}`],
    ...lostLinks(report),
    ...expected(report),
    ['migration', report.migrationId],
  ]
  const notes = report.notes.map(note => `  note: ${clean(note)}\n`)
  const decisions = (report.decisions ?? []).slice(-DECISIONS_SHOWN)
  const decided = decisions.map(
    ({ atMs, what, value, reason }) => `  ${(atMs / 1000).toFixed(1).padStart(6)} s  ${clean(`${what}: ${value} (${reason})`)}\n`,
  )
  const heading = decided.length === 0 ? '' : '  last decisions:\n'
  return `${headline}${listing(rounds).replace(/^(?=.)/gm, '  ')}${notes.join('')}${heading}${decided.join('')}`
}

/** Pages that the target read from its own copy of the disks. */
function fromDiskLine({ pagesFromDisk = 0, bytesFromDisk = 0 }: Report): [string, string][] {
  if (pagesFromDisk === 0) return []
  return [['- from disk', `${formatBytes(bytesFromDisk)} in ${pagesFromDisk} pages`]]
}

const noDowntime = ({ outcome }: Report): string =>
  outcome === 'completed' ? 'none, the VM was stopped' : 'the VM did not run at the target'

/** Rewritten pages that were sent as deltas. */
function deltaLine({ pagesDelta = 0, deltaBytes = 0 }: Report): [string, string][] {
  if (pagesDelta === 0) return []
  return [['- delta', `${formatBytes(deltaBytes)} in ${pagesDelta} pages`]]
}

/** Chunks of local disks. */
function diskLine({ disks }: Report): [string, string][] {
  if (!disks) return []
  const { rounds, bytesSent, bytesZero, bytesHeld } = disks
  const rest = [bytesZero > 0 ? `${formatBytes(bytesZero)} of zeros` : '', bytesHeld > 0 ? `${formatBytes(bytesHeld)} there already` : '']
  const more = rest.filter(Boolean).join(', ')
  return [['disk bytes', `${formatBytes(bytesSent)} in ${rounds} ${rounds === 1 ? 'round' : 'rounds'}${more ? `; ${more}` : ''}`]]
}

/** The prediction at the start of the migration, for comparison. */
function expected({ prediction, etaError }: Report): [string, string][] {
  const lines: [string, string][] = []
  if (prediction) {
    const { totalMs, downtimeMs, wireBytes } = prediction
    lines.push([
      'predicted',
      `${formatDuration(totalMs)} in total, downtime ${formatDuration(downtimeMs)}, ${formatBytes(Math.round(wireBytes))}`,
    ])
  }
  if (etaError) lines.push(['ETA error', `${Math.round(etaError.medianRatio * 100)} % (median)`])
  return lines
}

function lostLinks({ reconnects = 0, awayMs = 0, changeOvers = 0 }: Report): [string, string][] {
  const lost = `lost ${times(reconnects)}, down for ${formatDuration(awayMs)}; the transfer resumed`
  const changed = `changed over ${times(changeOvers)} to other connections or new keys`
  return [
    ...(reconnects > 0 ? [['link', lost] as [string, string]] : []),
    ...(changeOvers > 0 ? [['link', changed] as [string, string]] : []),
  ]
}

const times = (count: number): string => (count === 1 ? 'once' : `${count} times`)

function parts({ downtimeParts }: Report): string {
  const known = PARTS.flatMap(([key, name]) => {
    const ms = downtimeParts[key]
    return typeof ms === 'number' ? [`${name} ${formatDuration(ms)}`] : []
  })
  return known.join(', ') || 'parts unknown'
}

function classLine(report: Report, name: (typeof CLASSES)[number]): [string, string][] {
  const pages = report[`pages${name}`]
  if (pages === 0) return []
  const bytes = report[`bytes${name}`]
  const became = bytes === pages * PAGE_BYTES ? '' : ` -> ${formatBytes(bytes)}`
  return [[`- ${name.toLowerCase()}`, `${formatBytes(pages * PAGE_BYTES)} in ${pages} pages${became}`]]
}
