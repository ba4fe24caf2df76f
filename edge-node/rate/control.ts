// What QEMU is told while a live migration runs. Pure: a sample in, a decision out. QEMU measures only the local
// socket, so the agent tells it the path's true rate in guest bytes (avail-switchover-bandwidth, QEMU >= 8.2) and how
// much of the downtime asked for is left for final pages.

export type ControlSample = {
  /** What the operator asked for, in ms. */
  downtimeMs: number
  /** Wire bytes a second that the path delivers; 0 while unknown. */
  rateBytesPerSecond: number
  rttMinMs: number
  inFlightBytes: number
  /** Guest bytes that QEMU believes sent and that still wait in our pipeline. */
  waitingBytes: number
  /**
   * Guest bytes for a wire byte, of pages like those that the guest rewrites now (see recentRatio); 0 while unknown.
   */
  ratio: number
}

type ControlDecision = {
  /** QEMU `downtime-limit`, ms. */
  downtimeLimitMs: number
  /**
   * QEMU `avail-switchover-bandwidth`, guest bytes a second; undefined while the path is unknown: QEMU must not switch
   * over yet.
   */
  switchoverBytesPerSecond: number | undefined
  /**
   * What the downtime asked for leaves for final pages, ms; negative where round trips and what is on the way take more
   * than all of it.
   */
  allowedMs: number
}

/** What reading and loading device state and resuming take (TCG, QEMU 10.0: 5-30 ms); it is not known beforehand. */
const LOAD_MS = 30
const DOWNTIME_LIMIT_MIN_MS = 1

/**
 * What a switchover takes beside pages: final pages and state travel half a round trip, LOADED and GRANT one more; and
 * the load.
 */
export const handOverMs = (rttMs: number): number => 1.5 * rttMs + LOAD_MS

/**
 * Splits the downtime asked for: what the commit's round trips, the load and bytes already on the way take is not there
 * for final pages.
 */
export function splitDowntime(sample: ControlSample): ControlDecision {
  if (sample.rateBytesPerSecond === 0 || sample.ratio === 0) {
    return { downtimeLimitMs: DOWNTIME_LIMIT_MIN_MS, switchoverBytesPerSecond: undefined, allowedMs: 0 }
  }
  const guestBytesPerSecond = sample.rateBytesPerSecond * sample.ratio
  const drainMs = (sample.inFlightBytes * 1000) / sample.rateBytesPerSecond + (sample.waitingBytes * 1000) / guestBytesPerSecond
  const fixedMs = handOverMs(sample.rttMinMs) + Math.max(0, drainMs - sample.rttMinMs)
  return {
    allowedMs: sample.downtimeMs - fixedMs,
    downtimeLimitMs: Math.max(DOWNTIME_LIMIT_MIN_MS, Math.round(sample.downtimeMs - fixedMs)),
    switchoverBytesPerSecond: Math.max(1, Math.round(guestBytesPerSecond)),
  }
}

type Traffic = {
  atMs: number
  guestBytes: number
  wireBytes: number /** Of the guest bytes, those that cost next to nothing: zero and unchanged pages. */
  freeBytes: number
}

const RECENT_MS = 2_000
const RECENT_WIRE_BYTES_MIN = 256 * 1024

/**
 * What a wire byte carries, judged by the last two seconds. Zero pages do not count: they make the first round look
 * easy, and what is left for the end is what the guest writes (counting them made QEMU switch over with twice the pages
 * that the downtime allowed).
 */
export function createRatio(): (traffic: Traffic) => number {
  const history: Traffic[] = []
  return now => {
    history.push(now)
    while (history[1] && history[1].atMs <= now.atMs - RECENT_MS) history.shift()
    const since = (from: Traffic) => {
      const wire = now.wireBytes - from.wireBytes
      return wire < RECENT_WIRE_BYTES_MIN ? 0 : Math.max(1, (now.guestBytes - from.guestBytes - (now.freeBytes - from.freeBytes)) / wire)
    }
    return since(history[0]!) || since({ atMs: 0, guestBytes: 0, wireBytes: 0, freeBytes: 0 })
  }
}
