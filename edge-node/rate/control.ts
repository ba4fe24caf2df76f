// What QEMU is told while a live migration runs. Pure: a sample in, a decision out. QEMU measures only the local socket, so the agent tells it
// the path's true rate in guest bytes (avail-switchover-bandwidth, QEMU >= 8.2) and how much of the downtime asked for is left for final pages.

export type ControlSample = {
  /** What the operator asked for, in ms. */
  downtimeMs: number
  /** Wire bytes a second that the path delivers; 0 while unknown. */
  rateBytesPerSecond: number
  rttMinMs: number
  inFlightBytes: number
  /** Guest bytes taken from QEMU and wire bytes they became, lately. */
  guestBytes: number
  wireBytes: number
}

export type ControlDecision = {
  /** QEMU `downtime-limit`, ms. */
  downtimeLimitMs: number
  /** QEMU `avail-switchover-bandwidth`, guest bytes a second; undefined while the path is unknown: QEMU must not switch over yet. */
  switchoverBytesPerSecond: number | undefined
}

/** What loading device state and resuming take on a slow host (TCG, QEMU 10.0: 30-60 ms); it is not known beforehand. */
const LOAD_MS = 60
const DOWNTIME_LIMIT_MIN_MS = 1

/** Splits the downtime asked for: what the commit's round trips, the load and bytes already on the way take is not there for final pages. */
export function decide(sample: ControlSample): ControlDecision {
  if (sample.rateBytesPerSecond === 0 || sample.wireBytes === 0) {
    return { downtimeLimitMs: DOWNTIME_LIMIT_MIN_MS, switchoverBytesPerSecond: undefined }
  }
  const ratio = Math.max(1, sample.guestBytes / sample.wireBytes)
  const drainMs = (sample.inFlightBytes * 1000) / sample.rateBytesPerSecond
  // Final pages and state travel half a round trip, LOADED and GRANT one more.
  const fixedMs = 1.5 * sample.rttMinMs + LOAD_MS + Math.max(0, drainMs - sample.rttMinMs)
  return {
    downtimeLimitMs: Math.max(DOWNTIME_LIMIT_MIN_MS, Math.round(sample.downtimeMs - fixedMs)),
    switchoverBytesPerSecond: Math.max(1, Math.round(sample.rateBytesPerSecond * ratio)),
  }
}
