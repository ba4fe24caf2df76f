// How fast a connection's sockets may send. Pure; time is passed in. Enters: what the kernel says of them, from time to time. Leaves: a limit, or none.
// BBR finds the path's rate by trying more than that; several of its connections on one path each do so, and what they try in all overflows a queue of one
// bandwidth-delay product (seen at 100 Mbit/s, 20 ms: 8 % of packets sent twice, and a queue that was always full, which is downtime). So while a queue stands, what
// comes through is what the path carries, and from then on the sockets together are held to that; now and then a little more is tried.
// Always holds: a queue that stays although less is sent is not ours (other traffic fills it, or the peer is slow): then there is no limit for a while, as giving way
// to it would never end.
export type PaceSample = {
  atMs: number
  /** Of all sockets together, since they were opened. */
  deliveredBytes: number
  /** What the kernel has seen the path deliver, bytes a second, of all sockets together. */
  deliveryBytesPerSecond: number
  /** A packet's round trip, of late and at the least. */
  rttMs: number
  rttMinMs: number
  /** How far round trips are from their mean, on average. */
  rttDeviationMs: number
  /** All sockets are in use: none of them stands still to look for the shortest round trip. */
  isWhole: boolean
}

/** What is measured, and what follows from a change, takes so long to see. */
const SPAN_MS = 200
const SPAN_RTTS = 1.5
/** A queue this much longer than jitter is one. */
const QUEUE_RTT_SHARE = 0.2
const QUEUE_MS = 4
/** One measurement says so much less of the path's rate at most: it may have been of a moment in which little was sent. */
const LESS = 0.8
/** Below these there is nothing to gain. */
const RTT_MIN_MS = 2
const BYTES_PER_SECOND_MIN = 250_000
/** Who sends less than this share of what the path has delivered does not fill its queue. */
const FILLS_SHARE = 0.4
const DRAIN = 0.95
const DRAINS_MAX = 8
const REST_MS = 10_000
/** After so long without a sample the path may be another. */
const FORGET_MS = 30_000
/** More is tried so often while the limit is what holds the rate down, by so much, and by more each time as long as that makes no queue. */
const TRY_EVERY_MS = 1_500
const TRY_FIRST = 0.03
const TRY_GROWTH = 1.6
const TRY_MAX = 0.32
const USED = 0.85

export class Pace {
  /** Samples of the last while, all of them with a queue or all without. */
  readonly #history: PaceSample[] = []
  #hadQueue = false
  #limit: number | undefined
  /** What came through while a queue stood. */
  #capacity = 0
  #more = TRY_FIRST
  #drains = 0
  #changedAtMs = Number.NEGATIVE_INFINITY
  #triedAtMs = Number.NEGATIVE_INFINITY
  #restUntilMs = Number.NEGATIVE_INFINITY

  /** Bytes a second; undefined: no limit. */
  step(now: PaceSample): number | undefined {
    const { atMs, rttMs, rttMinMs } = now
    const queueMs = rttMs - rttMinMs - now.rttDeviationMs
    const hasQueue = rttMinMs >= RTT_MIN_MS && queueMs > QUEUE_RTT_SHARE * rttMinMs + QUEUE_MS
    const last = this.#history.at(-1)
    if (last && atMs - last.atMs >= FORGET_MS) this.#forget()
    // What came through before the queue stood, or while nothing came at all, says nothing of the path.
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
