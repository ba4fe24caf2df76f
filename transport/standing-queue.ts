// When a queue stands on a path: the one definition that all loops of rate control share. Pure. Enters: round trips as
// one loop measures them. Leaves: how much of them is time in queues, and whether that is more than a moment's. Always
// holds: an unknown path has no queue; the same round trips give the same answer to every loop.
//
// A queue stands when a round trip takes longer than the shortest one by more than noise, a fifth of the shortest, and
// 4 ms:
//
//   rttMs - rttMinMs - noiseMs  >  0.2 x rttMinMs + 4 ms
//
// - The excess over the shortest round trip is the delay of the queue (TCP Vegas, Brakmo and Peterson 1995).
// - A sender that probes for bandwidth makes a queue of a quarter of a round trip for one round trip in eight (BBR,
//   Cardwell et al. 2016). The smoothed round trip shows a part of it. A queue that the smoothed round trip shows at a
//   fifth was there before the probe.
// - 4 ms is the least excess by which HyStart++ ends slow start (MIN_RTT_THRESH, RFC 9406), and about what CoDel
//   accepts as a good queue (RFC 8289).
// - Noise is what the measurement itself adds. A kernel gives it for packets (the mean deviation, RFC 6298);
//   acknowledgements of the target wait for threads and timers of two hosts (ACK_NOISE_MS).
//
// Losses count for a queue that stands (rate/loss.ts), a connection is paced while one stands (pace.ts), and the
// flight's start-up ends when one stands (rate/flight.ts). What waits in our own buffers before the path is another
// matter: level.ts and rounds.ts count that in batches and bytes.

type RoundTrips = {
  /** Of the last while, ms. */
  rttMs: number
  /** The shortest of a longer while, ms. */
  rttMinMs: number
  /** What the measurement adds, ms: nothing of the path. */
  noiseMs?: number | undefined
}

const RTT_SHARE = 0.2
const LEAST_MS = 4

/**
 * Noise of round trips from a record's sending to the target's acknowledgement: up to 5 ms until it is sent, and turns
 * of two event loops.
 */
export const ACK_NOISE_MS = 11

/** Time in queues of a round trip, ms; never negative. */
export const queueMs = ({ rttMs, rttMinMs, noiseMs = 0 }: RoundTrips): number => Math.max(0, rttMs - rttMinMs - noiseMs)

/** Whether a queue stands on the path. */
export const queueStands = (roundTrips: RoundTrips): boolean => queueMs(roundTrips) > RTT_SHARE * roundTrips.rttMinMs + LEAST_MS
