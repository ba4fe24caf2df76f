// What is on the way: counts wire bytes sent and acknowledged and estimates the path from them alone (delivery rate,
// RTT and its minimum), and from that how many bytes may be in flight. Pure: time is passed in, in ms. Bytes that wait
// in a queue of ours when the guest is stopped are downtime (measured: an unbounded buffer turned 300 ms into 3.45 s),
// so the window is the path's own content and little more. Method: delivery-rate sampling as in
// draft-cheng-iccrg-delivery-rate-estimation, with a windowed maximum and a windowed RTT minimum (BBR).

import { ACK_NOISE_MS, queueMs, queueStands } from '../../transport/standing-queue.ts'

type FlightOptions = {
  /** Extra time's worth of bytes above the path's content; hides jitter of our own threads. */
  queueBudgetMs?: number
  windowMinBytes?: number
  windowMaxBytes?: number
  windowInitialBytes?: number
}

export type PathEstimate = {
  /** 0 while nothing was measured. */
  rateBytesPerSecond: number
  /** What arrived of late, bytes a second: the rate is what the path can carry, this is what it did. */
  goodputBytesPerSecond: number
  rttMs: number
  rttMinMs: number
  /**
   * How much longer a round trip takes than the shortest: time in queues, ours and the path's, and behind lost packets.
   */
  queueMs: number
  inFlightBytes: number
  windowBytes: number
  /** The rate still rises from round trip to round trip: it says little of what the path carries. */
  isStarting: boolean
}

type Checkpoint = {
  total: number
  atMs: number
  /** What was acknowledged when this was sent, when that was, and when its last byte had been sent. */
  ackedTotal: number
  ackedAtMs: number
  ackedSentAtMs: number
  limited: boolean
}

const RTT_WINDOW_MS = 10_000
const RATE_WINDOW_MS = 2_000
const CHECKPOINTS_MAX = 4096
const GOODPUT_SPAN_MS = 2_000
const ARRIVALS_MAX = 1024
const GAIN_STARTUP = 3
const GAIN_CRUISE = 1.25
/**
 * Where packets are lost for no reason of ours, what comes behind a lost one waits for it: round trips grow though no
 * queue does, and a window of the path's content would hold the rate down, which would make the window smaller, and so
 * on (seen at 200 Mbit/s, 150 ms, 1 %: 8 Mbit/s were left).
 */
const GAIN_LOSSY = 2
/**
 * The same while the end is far: what waits is no downtime yet, and with less the rate took 6 s to come up (same path).
 */
const GAIN_LOSSY_FAR = 3
/**
 * Our own window may be what holds the rate down (then RTT is long for another reason than our queue): it is tried
 * larger now and then.
 */
const PROBE_UP_MS = 60
const PROBE_UP_EVERY_MS = 1_000
/**
 * Nothing has arrived for so long, and for so many round trips: an outage. What was on the way then says nothing of the
 * path's rate.
 */
const OUTAGE_MS = 400
const OUTAGE_ROUND_TRIPS = 4
/** Rounds without growth of the rate by this share end the start-up. */
const STARTUP_GROWTH = 1.15
const STARTUP_FLAT_ROUNDS = 2
/** From 10 packets to 4 MiB takes a window that doubles each round trip 9 of these (RFC 6928, RFC 9002). */
const STARTUP_ROUNDS = 9
const STARTUP_RTT_MAX_MS = 1_000
/**
 * A standing queue hides the true RTT minimum: when none as small was seen for this long, the window dips for a round
 * trip to see it again.
 */
const PROBE_DOWN_AFTER_MS = 5_000
const PROBE_DOWN_GAIN = 0.75

const THIN_BYTES_PER_SECOND = 4_000_000
const THIN_NO_MORE_BYTES_PER_SECOND = 6_000_000

const FIRST_MIN_BYTES = 256 * 1024
const FIRST_MAX_BYTES = 6 * 1024 * 1024
const FIRST_BYTES_PER_MS_SQUARED = 260

/**
 * `windowInitialBytes` for a path whose first hop has this round trip. Each round trip that is lost to starting low is
 * dear where it is long (20 Mbit/s, 600 ms: 7 s for the first 3 MB) and cheap where it is short, while more than the
 * path's content overflows its queue: so it grows with the square.
 */
export const firstWindowBytes = (rttMs = 0): number =>
  Math.min(FIRST_MAX_BYTES, Math.max(FIRST_MIN_BYTES, Math.round(FIRST_BYTES_PER_MS_SQUARED * rttMs * rttMs)))

/** Counts bytes in flight of one migration, over all its streams. */
export class Flight {
  #sent = 0
  #acked = 0
  #ackedAtMs = 0
  #ackedSentAtMs = 0
  #checkpoints: Checkpoint[] = []
  #rates = new Window(Math.max)
  #rtts = new Window(Math.min)
  #rttMs = 0
  /** Acknowledgements of late. */
  #arrivals: { atMs: number; total: number }[] = []
  #gain = GAIN_STARTUP
  #roundEnd = 0
  #roundBest = 0
  #flatRounds = 0
  #minSeenAtMs = 0
  #downUntilMs = 0
  #upUntilMs = 0
  #upAtMs = 0
  #nowMs = 0
  #isLossy = false
  #isFar = false
  #isThin = false
  #startedAtMs = 0
  #outageEndMs = 0
  #rttLeastMs = Number.POSITIVE_INFINITY
  readonly #options: Required<FlightOptions>

  constructor(options: FlightOptions = {}) {
    this.#options = {
      queueBudgetMs: 50,
      windowMinBytes: 128 * 1024,
      windowMaxBytes: 64 * 1024 * 1024,
      windowInitialBytes: FIRST_MIN_BYTES,
      ...options,
    }
  }

  get inFlightBytes(): number {
    return this.#sent - this.#acked
  }

  get sentBytes(): number {
    return this.#sent
  }

  get ackedBytes(): number {
    return this.#acked
  }

  /** Whether the engine sees packets lost at random, as it says from time to time. */
  setLossy(isLossy: boolean): void {
    this.#isLossy = isLossy
  }

  /** Whether the guest will run on for a while yet, whatever is on the way. */
  setFar(isFar: boolean): void {
    this.#isFar = isFar
  }

  /**
   * A record of 64 KiB on each stream takes longer than a round trip: smaller ones keep the path full with less on the
   * way.
   */
  get isThin(): boolean {
    const rate = this.#rates.best()
    if (rate > 0) this.#isThin = rate < (this.#isThin ? THIN_NO_MORE_BYTES_PER_SECOND : THIN_BYTES_PER_SECOND)
    return this.#isThin
  }

  /** May `bytes` more be sent now? One record is always let through on an empty path. */
  maySend(bytes: number): boolean {
    return this.inFlightBytes === 0 || this.inFlightBytes + bytes <= this.windowBytes()
  }

  sent(bytes: number, nowMs: number): void {
    if (this.inFlightBytes === 0) {
      this.#ackedAtMs = nowMs
      this.#ackedSentAtMs = nowMs
    }
    if (this.#arrivals.length === 0) {
      this.#arrivals.push({ atMs: nowMs, total: this.#acked })
      this.#startedAtMs = nowMs
    }
    this.#sent += bytes
    if (this.#checkpoints.length >= CHECKPOINTS_MAX) return
    this.#checkpoints.push({
      total: this.#sent,
      atMs: nowMs,
      ackedTotal: this.#acked,
      ackedAtMs: this.#ackedAtMs,
      ackedSentAtMs: this.#ackedSentAtMs,
      limited: this.inFlightBytes + bytes >= this.windowBytes(),
    })
  }

  /** The target has received `total` bytes in all (cumulative: a lost or late acknowledgement does no harm). */
  acked(total: number, nowMs: number): void {
    if (total <= this.#acked || total > this.#sent) return
    this.#endOutage(nowMs)
    this.#acked = total
    this.#ackedAtMs = nowMs
    this.#arrived(total, nowMs)
    let last: Checkpoint | undefined
    while (this.#checkpoints[0] && this.#checkpoints[0].total <= total) last = this.#checkpoints.shift()
    if (!last) return
    this.#rttMs = nowMs - last.atMs
    this.#ackedSentAtMs = last.atMs
    this.#rtts.add(this.#rttMs, nowMs, RTT_WINDOW_MS)
    this.#rttLeastMs = Math.min(this.#rttLeastMs, this.#rttMs)
    this.#probe(nowMs)
    // Acknowledgements may come in bursts (a lost packet holds back all behind it): bytes never count faster than they
    // were sent.
    const elapsedMs = Math.max(nowMs - last.ackedAtMs, last.atMs - last.ackedSentAtMs)
    if (elapsedMs > 0 && last.atMs >= this.#outageEndMs) {
      const rate = ((total - last.ackedTotal) * 1000) / elapsedMs
      // A sample taken while we had nothing to send says what we offered, not what the path can carry: it may only
      // raise the estimate.
      if (last.limited || rate > this.#rates.best()) this.#rates.add(rate, nowMs, Math.max(RATE_WINDOW_MS, 10 * this.#rtts.best()))
    }
    this.#endRound(total)
  }

  /**
   * What was known before it is known after it: a window of what came through meanwhile would keep the path empty
   * (seen: 4 s, after 1 s of blackout).
   */
  #endOutage(nowMs: number): void {
    const gapMs = nowMs - this.#ackedAtMs
    if (gapMs < Math.max(OUTAGE_MS, OUTAGE_ROUND_TRIPS * Math.min(this.#rttLeastMs, STARTUP_RTT_MAX_MS))) return
    this.#outageEndMs = nowMs
    this.#rates.delay(gapMs)
    this.#minSeenAtMs += gapMs
  }

  #arrived(total: number, atMs: number): void {
    const arrivals = this.#arrivals
    arrivals.push({ atMs, total })
    while (arrivals.length > ARRIVALS_MAX || (arrivals[2] && arrivals[1]!.atMs <= atMs - GOODPUT_SPAN_MS)) arrivals.shift()
  }

  #goodput(): number {
    const first = this.#arrivals[0]
    const last = this.#arrivals.at(-1)
    return first && last && last.atMs > first.atMs ? ((last.total - first.total) * 1000) / (last.atMs - first.atMs) : 0
  }

  /**
   * Begins a dip when the minimum is old (two round trips, so that the queue is gone when it is measured), or else, now
   * and then, a rise.
   */
  #probe(nowMs: number): void {
    this.#nowMs = nowMs
    const best = this.#rtts.best()
    if (this.#rttMs <= 1.05 * best) this.#minSeenAtMs = nowMs
    if (nowMs < this.#downUntilMs || nowMs < this.#upUntilMs) return
    if (nowMs - this.#minSeenAtMs >= PROBE_DOWN_AFTER_MS) {
      this.#downUntilMs = nowMs + 2 * this.#rttMs
      this.#minSeenAtMs = nowMs
    } else if (nowMs - this.#upAtMs >= Math.max(PROBE_UP_EVERY_MS, 6 * this.#rttMs)) {
      this.#upUntilMs = nowMs + this.#rttMs
      this.#upAtMs = nowMs
    }
  }

  #endRound(total: number): void {
    if (this.#gain === GAIN_CRUISE || total < this.#roundEnd) return
    this.#roundEnd = this.#sent
    const rate = this.#rates.best()
    // A queue that builds up says the same as a rate that stays, and sooner: before the path's own congestion control
    // overshoots and loses.
    const hasQueue = queueStands({ rttMs: this.#rttMs, rttMinMs: this.#rtts.best(), noiseMs: ACK_NOISE_MS })
    if (hasQueue && !this.#isLossy) this.#flatRounds = STARTUP_FLAT_ROUNDS
    else if (rate > this.#roundBest * STARTUP_GROWTH) this.#flatRounds = 0
    else this.#flatRounds += 1
    this.#roundBest = Math.max(this.#roundBest, rate)
    if (this.#flatRounds >= STARTUP_FLAT_ROUNDS) this.#gain = GAIN_CRUISE
  }

  /** The window is no smaller than at first until the engine's own slow start must be over. */
  get isStarting(): boolean {
    return this.#gain === GAIN_STARTUP || this.#nowMs - this.#startedAtMs < STARTUP_ROUNDS * Math.min(this.#rttLeastMs, STARTUP_RTT_MAX_MS)
  }

  /** How many bytes may be on the way: rate x (gain x RTT minimum + queue budget), within bounds. */
  windowBytes(): number {
    const { queueBudgetMs, windowMinBytes, windowMaxBytes, windowInitialBytes } = this.#options
    const rate = this.#rates.best()
    if (rate === 0) return windowInitialBytes
    const best = this.#rttMinMs
    const gain = this.#isLossy ? Math.max(this.#gain, this.#isFar ? GAIN_LOSSY_FAR : GAIN_LOSSY) : this.#gain
    const cruiseMs = gain * best + queueBudgetMs
    const isDown = this.#nowMs < this.#downUntilMs && !this.#isLossy
    const contentMs = isDown ? PROBE_DOWN_GAIN * best : this.#nowMs < this.#upUntilMs ? cruiseMs + PROBE_UP_MS : cruiseMs
    const wanted = (rate * contentMs) / 1000
    // The first samples are of a few bytes, or of bytes that waited while the engine's own window was small: they say
    // little. At least four records: one that a hostile relay keeps must not keep back the next, which gives it away.
    const leastBytes = this.isStarting ? windowInitialBytes : this.isThin ? windowMinBytes : 2 * windowMinBytes
    return Math.min(windowMaxBytes, Math.max(leastBytes, Math.round(wanted)))
  }

  /** A larger window makes a queue, and then the minimum of late is no minimum: the one of all time bounds it. */
  get #rttMinMs(): number {
    return this.#isLossy ? this.#rttLeastMs : this.#rtts.best()
  }

  estimate(): PathEstimate {
    return {
      rateBytesPerSecond: this.#rates.best(),
      goodputBytesPerSecond: this.#goodput(),
      queueMs: queueMs({ rttMs: this.#rttMs, rttMinMs: this.#rtts.best() }),
      rttMs: this.#rttMs,
      rttMinMs: Number.isFinite(this.#rttMinMs) ? this.#rttMinMs : 0,
      inFlightBytes: this.inFlightBytes,
      windowBytes: this.windowBytes(),
      isStarting: this.isStarting,
    }
  }
}

/** The extreme value of the last while, kept as a monotonic queue. */
class Window {
  readonly #better: (a: number, b: number) => number
  #samples: { value: number; atMs: number }[] = []

  constructor(better: (a: number, b: number) => number) {
    this.#better = better
  }

  add(value: number, nowMs: number, spanMs: number): void {
    while (this.#samples.length > 0 && this.#better(this.#samples.at(-1)!.value, value) === value) this.#samples.pop()
    this.#samples.push({ value, atMs: nowMs })
    while (this.#samples.length > 1 && this.#samples[0]!.atMs < nowMs - spanMs) this.#samples.shift()
  }

  /** Time that does not count. */
  delay(ms: number): void {
    for (const sample of this.#samples) sample.atMs += ms
  }

  best(): number {
    return this.#samples[0]?.value ?? 0
  }
}
