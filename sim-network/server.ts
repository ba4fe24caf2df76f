// The send rate of a link: constant, by schedule, or by a recorded trace. Enters: (time, bytes), in order of time.
// Leaves: the time at which the last byte is sent. Blackouts of mode hold stop it. A server stores no packets; it only
// computes times.
import { GodwitError } from '../wire/errors.ts'
import { type Blackout, blackoutEnd, nextBlackout } from './blackout.ts'

type RateStep = { atMs: number; bitsPerSecond: number }

export type Rate =
  | { bitsPerSecond: number }
  /** Piecewise constant from 0 ms on; `repeatMs` repeats it with that period. */
  | { steps: RateStep[]; repeatMs?: number }
  | { trace: RateTrace }

/**
 * Delivery opportunities, one ms each, non-decreasing; each sends 1500 bytes; it repeats after its last (mahimahi's
 * format).
 */
type RateTrace = { opportunitiesMs: Uint32Array }

export type Server = {
  /**
   * Time at which `bytes` offered at `fromMs` are sent (Infinity: never). Calls are in order of time, each not before
   * the last result.
   */
  serve(fromMs: number, bytes: number): number
}

const OPPORTUNITY_BYTES = 1500
const TRACE_LINES_MAX = 10_000_000
/**
 * Maximum steps ahead for one packet before it counts as never sent (a schedule with blackouts at every sending
 * moment).
 */
const STEPS_MAX = 1_000_000
/** Minimum step of time: a boundary computed in floating point may equal the current moment. */
const TICK_MS = 1e-6

/**
 * Reads a mahimahi packet-delivery trace: one integer a line, the ms of an opportunity. CONFIG_INVALID names the line.
 */
export function parseRateTrace(text: string): RateTrace {
  const lines = text.split('\n')
  if (lines.length > TRACE_LINES_MAX) throw new GodwitError('CONFIG_INVALID', `trace: more than ${TRACE_LINES_MAX} lines`)
  const values: number[] = []
  lines.forEach((line, at) => {
    const content = line.trim()
    if (content === '') return
    const value = Number(content)
    if (!/^\d+$/.test(content) || value > 0xffff_ffff)
      throw new GodwitError('CONFIG_INVALID', `trace line ${at + 1}: '${content.slice(0, 40)}' is not a number of milliseconds`)
    if (value < (values.at(-1) ?? 0)) throw new GodwitError('CONFIG_INVALID', `trace line ${at + 1}: ${value} ms is before the line above`)
    values.push(value)
  })
  if ((values.at(-1) ?? 0) === 0) throw new GodwitError('CONFIG_INVALID', 'trace: its last opportunity must be after 0 ms')
  return { opportunitiesMs: Uint32Array.from(values) }
}

export function createServer(rate: Rate, blackouts: readonly Blackout[]): Server {
  return 'trace' in rate ? createTraceServer(rate.trace, blackouts) : createRateServer(rate, blackouts)
}

type Segment = { bitsPerSecond: number; untilMs: number }

function createRateServer(rate: Exclude<Rate, { trace: RateTrace }>, blackouts: readonly Blackout[]): Server {
  const segmentOf = scheduleOf(rate)
  const segmentAt = (ms: number): Segment => {
    const heldUntil = blackoutEnd(blackouts, 'hold', ms)
    if (heldUntil !== undefined) return { bitsPerSecond: 0, untilMs: heldUntil }
    const segment = segmentOf(ms)
    return { bitsPerSecond: segment.bitsPerSecond, untilMs: Math.min(segment.untilMs, nextBlackout(blackouts, 'hold', ms)) }
  }
  return {
    serve: (fromMs, bytes) => {
      let at = fromMs
      let bitsLeft = bytes * 8
      for (let step = 0; step < STEPS_MAX; step++) {
        const { bitsPerSecond, untilMs } = segmentAt(at)
        const doneMs = bitsPerSecond > 0 ? at + (bitsLeft / bitsPerSecond) * 1000 : Number.POSITIVE_INFINITY
        if (doneMs <= untilMs) return doneMs
        if (untilMs === Number.POSITIVE_INFINITY) return untilMs
        bitsLeft -= ((untilMs - at) * bitsPerSecond) / 1000
        at = Math.max(untilMs, at + TICK_MS)
      }
      return Number.POSITIVE_INFINITY
    },
  }
}

function scheduleOf(rate: Exclude<Rate, { trace: RateTrace }>): (ms: number) => Segment {
  if ('bitsPerSecond' in rate) {
    checkRate(rate.bitsPerSecond)
    return () => ({ bitsPerSecond: rate.bitsPerSecond, untilMs: Number.POSITIVE_INFINITY })
  }
  const { steps, repeatMs } = rate
  if (steps[0]?.atMs !== 0) throw new TypeError('the first step of a rate schedule must be at 0 ms')
  steps.forEach((step, at) => {
    checkRate(step.bitsPerSecond)
    if (at > 0 && !(step.atMs > steps[at - 1]!.atMs)) throw new TypeError('the steps of a rate schedule must be in order of time')
  })
  if (repeatMs !== undefined && !(repeatMs > steps.at(-1)!.atMs)) throw new TypeError('repeatMs must be after the last step')
  if (repeatMs !== undefined && !steps.some(step => step.bitsPerSecond > 0))
    throw new TypeError('a repeating schedule must send at some time')
  return ms => {
    const base = repeatMs === undefined ? 0 : Math.floor(ms / repeatMs) * repeatMs
    const inside = ms - base
    let at = 0
    while (at + 1 < steps.length && steps[at + 1]!.atMs <= inside) at++
    const untilMs = base + (steps[at + 1]?.atMs ?? repeatMs ?? Number.POSITIVE_INFINITY)
    return { bitsPerSecond: steps[at]!.bitsPerSecond, untilMs }
  }
}

function checkRate(bitsPerSecond: number): void {
  if (!(bitsPerSecond >= 0 && Number.isFinite(bitsPerSecond)))
    throw new TypeError(`a rate must be finite and not negative, not ${bitsPerSecond}`)
}

function createTraceServer({ opportunitiesMs }: RateTrace, blackouts: readonly Blackout[]): Server {
  const periodMs = opportunitiesMs.at(-1)
  if (!periodMs) throw new TypeError('a trace needs an opportunity after 0 ms')
  let base = 0
  let at = 0
  let bytesLeft = OPPORTUNITY_BYTES
  const nowMs = () => base + opportunitiesMs[at]!
  const step = () => {
    bytesLeft = OPPORTUNITY_BYTES
    if (++at < opportunitiesMs.length) return
    at = 0
    base += periodMs
  }
  /**
   * The first opportunity not before `ms` and not in a blackout; an earlier one that was not fully used is lost, as on
   * a radio link.
   */
  const reach = (ms: number): boolean => {
    if (ms > base + periodMs) {
      base = Math.floor(ms / periodMs) * periodMs
      at = 0
      bytesLeft = OPPORTUNITY_BYTES
    }
    while (nowMs() < ms) step()
    for (let tries = 0; tries < STEPS_MAX; tries++) {
      const end = blackoutEnd(blackouts, 'hold', nowMs())
      if (end === undefined) return true
      while (nowMs() < end) step()
    }
    return false
  }
  return {
    serve: (fromMs, bytes) => {
      let left = bytes
      let isOpen = reach(fromMs)
      while (isOpen && left > bytesLeft) {
        left -= bytesLeft
        step()
        isOpen = reach(nowMs())
      }
      bytesLeft -= left
      return isOpen ? nowMs() : Number.POSITIVE_INFINITY
    },
  }
}
