// The progress of a migration on a terminal (one line that is redrawn) or in a log (a line at each change, and every
// few seconds). The renderer is pure; createProgress writes.
import { formatBytes, formatEta, formatRate } from '../ops/units.ts'
import type { MigrationProgress } from '../wire/control.ts'
import type { Io } from './io.ts'

const PLAIN_EVERY_MS = 5000
const REDRAW_EVERY_MS = 100
const BAR_MAX = 30

/**
 * One line of at most `columns` characters: phase, round, bar, bytes, rates, ETA; parts that do not fit are dropped
 * from the right. A rate of 0 has not been measured yet; QEMU measures the dirty rate from round 2 on.
 */
export function renderProgress(progress: MigrationProgress, columns: number): string {
  const { phase, round, bytesTotal = 0, bytesSent = 0 } = progress
  const share = bytesTotal > 0 ? Math.min(1, bytesSent / bytesTotal) : undefined
  const head = `${phase.padEnd(10)}${round === undefined ? '' : ` round ${String(round).padEnd(2)}`}`
  const isDirtyKnown = progress.dirtyBytesPerSecond !== undefined && (progress.dirtyBytesPerSecond > 0 || (round ?? 0) > 1)
  const figures = [
    share === undefined ? undefined : `${String(Math.floor(share * 100)).padStart(3)} %`,
    bytesTotal > 0 ? `${formatBytes(bytesSent)} of ${formatBytes(bytesTotal)}` : undefined,
    progress.rateBytesPerSecond ? formatRate(progress.rateBytesPerSecond) : undefined,
    isDirtyKnown ? `dirty ${formatRate(progress.dirtyBytesPerSecond ?? 0)}` : undefined,
    progress.etaMs == null ? undefined : `ETA ${formatEta(progress.etaMs)}`,
  ].filter(figure => figure !== undefined)
  const tail = figures.join('  ')
  const room = columns - head.length - tail.length - 4
  const bar = share === undefined || room < 8 ? '' : ` ${renderBar(share, Math.min(BAR_MAX, room))}`
  return `${head}${bar} ${tail}`.trimEnd().slice(0, columns)
}

/** `[#####-----]`, `width` characters between the brackets. */
export function renderBar(share: number, width: number): string {
  const full = Math.floor(Math.max(0, Math.min(1, share)) * width)
  return `[${'#'.repeat(full)}${'-'.repeat(width - full)}]`
}

type Progress = {
  update(progress: MigrationProgress): void
  /** A separate line above the bar. */
  note(text: string): void
  /** Ends with the cursor on a new line. */
  finish(): void
}

/** `isQuiet` (with --json): nothing is printed. */
export function createProgress(io: Pick<Io, 'err' | 'isTty' | 'columns'>, now: () => number, isQuiet = false): Progress {
  let shown = ''
  let drawnMs = Number.NEGATIVE_INFINITY
  let isBarThere = false
  const wipe = () => {
    if (isBarThere) io.err('\r\u001b[K')
    isBarThere = false
  }
  return {
    update: progress => {
      if (isQuiet) return
      const step = `${progress.phase} ${progress.round ?? ''}`
      const isDue = now() - drawnMs >= (io.isTty ? REDRAW_EVERY_MS : PLAIN_EVERY_MS)
      if (step === shown && !isDue) return
      shown = step
      drawnMs = now()
      const columns = io.isTty ? io.columns() - 1 : 120
      if (!io.isTty) return io.err(`${renderProgress(progress, columns)}\n`)
      wipe()
      io.err(renderProgress(progress, columns))
      isBarThere = true
    },
    note: text => {
      if (isQuiet) return
      wipe()
      io.err(`${text}\n`)
    },
    finish: wipe,
  }
}
