// Blackouts of a link: times at which it holds or drops packets (radio handovers, cable cuts). Pure functions of time.

export type Blackout = {
  startMs: number
  durationMs: number
  /** Repeats with this period; absent: once. */
  everyMs?: number
  /**
   * hold: nothing leaves the queue (a radio that buffers). drop: packets that leave the queue are lost (a cut). Default
   * hold.
   */
  mode?: 'hold' | 'drop'
}

/** The end of the blackout that covers `ms`, or undefined if no blackout of this mode covers it. */
export function blackoutEnd(blackouts: readonly Blackout[], mode: 'hold' | 'drop', ms: number): number | undefined {
  let end: number | undefined
  for (const blackout of blackouts) {
    if ((blackout.mode ?? 'hold') !== mode) continue
    const start = lastStart(blackout, ms)
    if (start !== undefined && ms < start + blackout.durationMs) end = Math.max(end ?? 0, start + blackout.durationMs)
  }
  return end
}

/** The first start after `ms` of any blackout of this mode, or Infinity. */
export function nextBlackout(blackouts: readonly Blackout[], mode: 'hold' | 'drop', ms: number): number {
  let next = Number.POSITIVE_INFINITY
  for (const blackout of blackouts) {
    if ((blackout.mode ?? 'hold') !== mode) continue
    if (blackout.startMs > ms) next = Math.min(next, blackout.startMs)
    else if (blackout.everyMs !== undefined) next = Math.min(next, lastStart(blackout, ms)! + blackout.everyMs)
  }
  return next
}

export function checkBlackouts(blackouts: readonly Blackout[]): void {
  for (const { startMs, durationMs, everyMs } of blackouts) {
    if (!(startMs >= 0) || !(durationMs > 0)) throw new TypeError('a blackout needs startMs >= 0 and durationMs > 0')
    if (everyMs !== undefined && !(everyMs > durationMs)) throw new TypeError('blackout.everyMs must be longer than its durationMs')
  }
}

const lastStart = ({ startMs, everyMs }: Blackout, ms: number): number | undefined => {
  if (ms < startMs) return undefined
  return everyMs === undefined ? startMs : startMs + Math.floor((ms - startMs) / everyMs) * everyMs
}
