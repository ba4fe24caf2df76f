// Whether a path loses packets at random, from an engine's counters. Pure; time is passed in.
// Enters: packets sent and lost so far, round trips where they are known. Leaves: the share of late, and whether that counts as lossy; undefined while too few were sent to say.
// Always holds: it turns lossy at once and back only after a while without: a burst that overran a queue ends, random loss goes on; what is lost
// while a queue stands counts for that queue.
const SPAN_MS = 2_000
const PACKETS_MIN = 200
const LOSSY_RATIO = 0.0003
const CALM_MS = 6_000

/** A packet's round trip, of late and at the least: losses where it is this much longer are of a queue that is full, and more in flight would mean more of them. */
const QUEUE_RTT_SHARE = 1.3
const QUEUE_RTT_MS = 5

export type LossSample = {
  atMs: number
  sentPackets: number
  lostPackets: number
  rttMs?: number | undefined
  rttMinMs?: number | undefined
}

const isQueueing = ({ rttMs, rttMinMs }: LossSample): boolean =>
  rttMs !== undefined && rttMinMs !== undefined && rttMs > QUEUE_RTT_SHARE * rttMinMs + QUEUE_RTT_MS

export function createLossWatch(): (now: LossSample) => { ratio: number; isLossy: boolean } | undefined {
  const history: LossSample[] = []
  let lossyAtMs = Number.NEGATIVE_INFINITY
  let last: { ratio: number; isLossy: boolean } | undefined
  return now => {
    const previous = history.at(-1)
    // Another connection, or one that was made anew.
    if (previous && (now.sentPackets < previous.sentPackets || now.lostPackets < previous.lostPackets)) history.length = 0
    history.push({ atMs: now.atMs, sentPackets: now.sentPackets, lostPackets: now.lostPackets })
    while (history[1] && history[1].atMs <= now.atMs - SPAN_MS) history.shift()
    const [first] = history
    const sent = now.sentPackets - first!.sentPackets
    if (sent < PACKETS_MIN) return last && { ...last, isLossy: now.atMs - lossyAtMs < CALM_MS }
    const ratio = (now.lostPackets - first!.lostPackets) / sent
    if (ratio > LOSSY_RATIO && !isQueueing(now)) lossyAtMs = now.atMs
    last = { ratio, isLossy: now.atMs - lossyAtMs < CALM_MS }
    return last
  }
}
