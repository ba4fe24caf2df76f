// Whether a path loses packets at random, from an engine's counters. Pure; time is passed in.
// Enters: packets sent and lost so far, round trips where they are known. Leaves: the share of late, and whether that
// counts as lossy; undefined while too few were sent to say.
// Always holds: it turns lossy at once and back only after a while without: a burst that overran a queue ends, random
// loss goes on; what is lost while a queue stands (transport/standing-queue.ts) counts for that queue: more in flight
// would mean more of it.
import { queueStands } from '../../transport/standing-queue.ts'

const SPAN_MS = 2_000
const PACKETS_MIN = 200
const LOSSY_RATIO = 0.0003
const CALM_MS = 6_000

type LossSample = {
  atMs: number
  sentPackets: number
  lostPackets: number
  /** A packet's round trip of the last while, the shortest, and the mean deviation, ms. */
  rttMs?: number | undefined
  rttMinMs?: number | undefined
  rttDeviationMs?: number | undefined
}

const hasQueue = ({ rttMs, rttMinMs, rttDeviationMs }: LossSample): boolean =>
  rttMs !== undefined && rttMinMs !== undefined && queueStands({ rttMs, rttMinMs, noiseMs: rttDeviationMs })

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
    if (ratio > LOSSY_RATIO && !hasQueue(now)) lossyAtMs = now.atMs
    last = { ratio, isLossy: now.atMs - lossyAtMs < CALM_MS }
    return last
  }
}
