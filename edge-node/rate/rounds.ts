// When a live migration switches over: at the minimum of what remains, not at the first value that is small enough.
// Pure; time is passed in.
// Enters: what remains after each of QEMU's rounds, what the path carries. Leaves: the time that QEMU may take for
// final pages (its downtime-limit), how hard the guest is slowed down, or that the downtime asked for cannot be kept,
// with a prediction. Why wait: each round takes as long as what remained before it, and what remains after it is what
// the guest rewrote meanwhile. While that still falls, one more round costs less time than the downtime it saves. When
// it has stopped falling (within 4 %), waiting only costs.
// Always holds: QEMU is never given more time than was asked for and is left of it, unless nobody asked for that
// downtime (it is the default): then a guest that cannot be slowed down enough is switched over at its minimum, and the
// reason says what that will take.

export type RoundsSample = {
  atMs: number
  /** Rounds that QEMU has begun (dirty-sync-count). */
  rounds: number
  remainingBytes: number
  /** Guest bytes a second that the path and the pipeline carry. */
  guestBytesPerSecond: number
  dirtyBytesPerSecond: number
  /** What the downtime asked for leaves for final pages, ms; below 0 where even none would take too long. */
  allowedMs: number
  /** How much the guest is slowed down now, per cent. */
  throttlePercent: number
}

export type RoundsDecision = {
  /** For QEMU's downtime-limit. */
  limitMs: number
  reason: string
  throttle?: { initialPercent: number; incrementPercent: number; reason: string }
  /** The downtime asked for cannot be kept: by how much it would be longer, ms. */
  refuse?: { overMs: number; reason: string }
}

/** What remains counts as falling while each round leaves this share less. */
const MARGIN = 0.04
/** Below this, a further round saves nothing that an observer would see. */
const GOOD_MS = 30
/** Rounds, and time, that are spent on going lower once it is low enough. */
const LOWER_ROUNDS_MAX = 6
const LOWER_MS_MAX = 2_000
/** Device state and what QEMU counts beside pages. */
const SLACK_BYTES = 256 * 1024
const HOLD_MS = 1
/** QEMU's auto-converge ends at 99 %. */
const THROTTLED_FULLY = 95
const STALLED_ROUNDS = 4
const STALLED_MS = 8_000

export class RoundsPolicy {
  readonly #isAsked: boolean
  #rounds = -1
  #previous = Number.POSITIVE_INFINITY
  #least = Number.POSITIVE_INFINITY
  #stalled = 0
  #stalledSinceMs = 0
  #fitsSince: { atMs: number; rounds: number } | undefined
  #settledAtMs: number | undefined
  #throttle: RoundsDecision['throttle']

  /** `isAsked`: the downtime is the operator's wish, not the default. */
  constructor(isAsked: boolean) {
    this.#isAsked = isAsked
  }

  step(now: RoundsSample): RoundsDecision {
    const isNew = now.rounds > this.#rounds
    if (isNew) this.#note(now)
    const throttle = this.#slowDown(now)
    const more = throttle ? { throttle } : {}
    if (now.rounds <= 1) return { limitMs: HOLD_MS, reason: 'the first round', ...more }
    const leftMs = millis(this.#previous, now)
    if (leftMs <= now.allowedMs) return { ...this.#whenItFits(now, leftMs), ...more }
    this.#fitsSince = undefined
    this.#settledAtMs = undefined
    return { ...this.#whenTooMuch(now), ...more }
  }

  /** A new round: what is left of the guest's rewriting. */
  #note(now: RoundsSample): void {
    this.#rounds = now.rounds
    if (now.rounds <= 1) return
    const isFalling = now.remainingBytes < this.#previous * (1 - MARGIN)
    if (isFalling) this.#stalled = 0
    else if (this.#stalled++ === 0) this.#stalledSinceMs = now.atMs
    this.#previous = now.remainingBytes
    this.#least = Math.min(this.#least, now.remainingBytes)
  }

  #whenItFits(now: RoundsSample, leftMs: number): RoundsDecision {
    this.#fitsSince ??= { atMs: now.atMs, rounds: now.rounds }
    const since = this.#fitsSince
    const isOver = now.rounds - since.rounds >= LOWER_ROUNDS_MAX || now.atMs - since.atMs >= LOWER_MS_MAX
    const why =
      leftMs <= GOOD_MS
        ? 'little memory remains'
        : this.#stalled > 0
          ? 'the remaining memory stopped falling'
          : isOver
            ? 'the limit of rounds is reached'
            : undefined
    if (why === undefined && this.#settledAtMs === undefined) return { limitMs: HOLD_MS, reason: 'the remaining memory still falls' }
    this.#settledAtMs ??= now.atMs
    // At the minimum at first, then wherever it fits: a guest seldom comes twice to its best.
    const atLeastMs = Math.max(GOOD_MS, millis(this.#least * (1 + MARGIN) + SLACK_BYTES, now))
    const isPatient = now.atMs - this.#settledAtMs < LOWER_MS_MAX / 4
    return { limitMs: Math.max(HOLD_MS, Math.min(now.allowedMs, isPatient ? atLeastMs : now.allowedMs)), reason: why ?? 'settled' }
  }

  #whenTooMuch(now: RoundsSample): RoundsDecision {
    const limitMs = Math.max(HOLD_MS, now.allowedMs)
    const isStuck = this.#stalled >= STALLED_ROUNDS && now.atMs - this.#stalledSinceMs >= STALLED_MS
    if (!isStuck || (now.throttlePercent > 0 && now.throttlePercent < THROTTLED_FULLY))
      return { limitMs, reason: 'too much memory remains' }
    const neededMs = millis(this.#least * (1 + MARGIN) + SLACK_BYTES, now)
    const reason = `the remaining memory stopped falling at ${megabytes(this.#least)} MB${now.throttlePercent > 0 ? ` with the guest throttled by ${now.throttlePercent} %` : ''}`
    if (!this.#isAsked) return { limitMs: neededMs, reason: `${reason}; no downtime was requested, so the limit is raised` }
    return { limitMs, reason, refuse: { overMs: neededMs - now.allowedMs, reason } }
  }

  /**
   * How hard QEMU begins when it slows the guest down (its auto-converge decides whether): so that the next round
   * leaves a third.
   */
  #slowDown(now: RoundsSample): RoundsDecision['throttle'] {
    const { dirtyBytesPerSecond, guestBytesPerSecond, throttlePercent } = now
    if (this.#throttle || throttlePercent > 0 || guestBytesPerSecond <= 0 || dirtyBytesPerSecond <= guestBytesPerSecond / 2)
      return undefined
    const initialPercent = Math.round(Math.min(80, Math.max(20, 100 * (1 - guestBytesPerSecond / (3 * dirtyBytesPerSecond)))))
    const reason = `the guest rewrites ${megabytes(dirtyBytesPerSecond)} MB/s, the path carries ${megabytes(guestBytesPerSecond)} MB/s of guest memory`
    this.#throttle = { initialPercent, incrementPercent: 20, reason }
    return this.#throttle
  }
}

const millis = (bytes: number, { guestBytesPerSecond }: RoundsSample): number =>
  guestBytesPerSecond > 0 ? (bytes * 1000) / guestBytesPerSecond : Number.POSITIVE_INFINITY
const megabytes = (bytes: number): string => (bytes / 1e6).toFixed(1)
