// Limits the send rate of a connection's sockets. Pure; time is passed in. Enters: kernel statistics of the sockets,
// periodically. Leaves: a limit, or none. BBR finds the rate of a path by exceeding it; several connections on one path
// each do so, and together they overflow a queue of one bandwidth-delay product (seen at 100 Mbit/s, 20 ms: 8 % of
// packets sent twice, and a queue that was always full, which adds to the downtime). So while a queue stands, the
// delivery rate is the rate of the path, and all sockets together are limited to it; from time to time a slightly
// higher rate is probed. Always holds: a queue that stays although less is sent has another cause (other traffic, or a
// slow peer): then there is no limit for a while, because reducing the rate would never end it.
import { queueStands } from './standing-queue.ts'

export type PaceSample = {
  atMs: number
  /** Totals of all sockets since they were opened. */
  deliveredBytes: number
  /** Delivery rate that the kernel measured, bytes a second, of all sockets together. */
  deliveryBytesPerSecond: number
  /** Round trip of a packet: recent and minimum. */
  rttMs: number
  rttMinMs: number
  /** Mean deviation of round trips. */
  rttDeviationMs: number
  /** All sockets send: none pauses to measure the minimum round trip. */
  isWhole: boolean
}

/** Duration of a measurement, and delay before a change becomes visible. */
const SPAN_MS = 200
const SPAN_RTTS = 1.5
/** Maximum decrease of the rate by one measurement, which may cover a moment with little traffic. */
const LESS = 0.8
/** Below these values a limit has no benefit. */
const RTT_MIN_MS = 2
const BYTES_PER_SECOND_MIN = 250_000
/** A sender below this share of the delivery rate does not fill the queue. */
const FILLS_SHARE = 0.4
const DRAIN = 0.95
const DRAINS_MAX = 8
const REST_MS = 10_000
/** After this time without a sample the path may have changed. */
const FORGET_MS = 30_000
/**
 * Interval and step of probes for a higher rate while the limit is the bottleneck; the step grows as long as no queue
 * builds up.
 */
const TRY_EVERY_MS = 1_500
const TRY_FIRST = 0.03
const TRY_GROWTH = 1.6
const TRY_MAX = 0.32
const USED = 0.85

export class Pace {
  /** Recent samples, all with a queue or all without. */
  readonly #history: PaceSample[] = []
  #hadQueue = false
  #limit: number | undefined
  /** Delivery rate while a queue stood. */
  #capacity = 0
  #more = TRY_FIRST
  #drains = 0
  #changedAtMs = Number.NEGATIVE_INFINITY
  #triedAtMs = Number.NEGATIVE_INFINITY
  #restUntilMs = Number.NEGATIVE_INFINITY

  /** Bytes a second; undefined: no limit. */
  step(now: PaceSample): number | undefined {
    const { atMs, rttMs, rttMinMs } = now
    const hasQueue = rttMinMs >= RTT_MIN_MS && queueStands({ rttMs, rttMinMs, noiseMs: now.rttDeviationMs })
    const last = this.#history.at(-1)
    if (last && atMs - last.atMs >= FORGET_MS) this.#forget()
    // Delivery before the queue stood, or without traffic, does not show the rate of the path.
    if (hasQueue !== this.#hadQueue || now.deliveredBytes === last?.deliveredBytes || !now.isWhole) this.#history.length = 0
    this.#hadQueue = hasQueue
    this.#history.push(now)
    const spanMs = Math.max(SPAN_MS, SPAN_RTTS * rttMs)
    while (this.#history[1] && this.#history[1].atMs <= atMs - spanMs) this.#history.shift()
    const first = this.#history[0]!
    if (atMs - first.atMs < spanMs || atMs - this.#changedAtMs < spanMs || atMs < this.#restUntilMs) return this.#limit
    const rate = ((now.deliveredBytes - first.deliveredBytes) * 1000) / (atMs - first.atMs)
    if (!hasQueue) this.#onFree(rate, atMs)
    else if (rate > Math.max(BYTES_PER_SECOND_MIN, FILLS_SHARE * now.deliveryBytesPerSecond)) this.#onQueue(rate, atMs)
    return this.#limit
  }

  #forget(): void {
    this.#limit = undefined
    this.#capacity = 0
    this.#drains = 0
    this.#more = TRY_FIRST
    this.#history.length = 0
  }

  #onQueue(rate: number, atMs: number): void {
    this.#more = TRY_FIRST
    this.#triedAtMs = atMs
    if (++this.#drains > DRAINS_MAX) {
      this.#drains = 0
      this.#restUntilMs = atMs + REST_MS
      this.#set(undefined, atMs)
      return
    }
    this.#capacity = Math.max(rate, LESS * this.#capacity)
    this.#set(Math.max(BYTES_PER_SECOND_MIN, Math.min(this.#limit ?? rate, rate) * DRAIN), atMs)
  }

  #onFree(rate: number, atMs: number): void {
    this.#drains = 0
    if (this.#limit === undefined) return
    if (this.#limit < this.#capacity) {
      this.#set(this.#capacity, atMs)
      return
    }
    const isDue = this.#more > TRY_FIRST || atMs - this.#triedAtMs >= TRY_EVERY_MS
    if (!isDue || rate < USED * this.#limit) return
    this.#triedAtMs = atMs
    this.#set(this.#limit * (1 + this.#more), atMs)
    this.#more = Math.min(TRY_MAX, TRY_GROWTH * this.#more)
  }

  #set(limit: number | undefined, atMs: number): void {
    this.#limit = limit
    this.#changedAtMs = atMs
  }
}
