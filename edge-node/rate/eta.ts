// How long a migration will still take, and how wrong that was. Pure; time is passed in.
// Enters: what remains of QEMU's round, what has gone through so far. Leaves: ms, or null where no end is in sight.
// Afterwards: the error of all that was said. In the first round zero pages lie anywhere and cost nothing: where
// samples of memory say how much is not zero, only that counts, and what has gone through from the beginning tells more
// than the last seconds do. Later rounds are of what the guest rewrites, and the last seconds tell of that. Each round
// leaves what was rewritten while it went: a geometric series.
type EtaSample = {
  atMs: number
  /** QEMU's rounds; 1 is the first. */
  rounds: number
  remainingBytes: number
  /** Guest bytes that have gone through so far, zero pages included. */
  guestBytes: number
  /** Of these, zero pages and others that cost nothing. */
  freeBytes: number
  /** What of memory is not zero, by samples; undefined: not known. */
  contentBytes?: number | undefined
  dirtyBytesPerSecond: number
  rttMs: number
  isStopped: boolean
}

const RECENT_MS = 4_000
/** Speed is not known before. */
const FIRST_MS = 500
const SAID_MAX = 4_096

export class Eta {
  readonly #recent: { atMs: number; guestBytes: number }[] = []
  #first: { atMs: number; guestBytes: number } | undefined
  #wasSampled = false
  readonly #said: { atMs: number; endMs: number }[] = []

  /** ms from now; null: the guest rewrites faster than the path carries, or nothing is known yet. */
  step(now: EtaSample): number | null {
    const { atMs } = now
    const isSampled = now.rounds <= 1 && now.contentBytes !== undefined
    const guestBytes = isSampled ? now.guestBytes - now.freeBytes : now.guestBytes
    const remainingBytes = isSampled ? Math.min(now.remainingBytes, Math.max(0, now.contentBytes! - guestBytes)) : now.remainingBytes
    if (this.#wasSampled !== isSampled) this.#forget(isSampled)
    this.#first ??= { atMs, guestBytes }
    this.#recent.push({ atMs, guestBytes })
    while (this.#recent[1] && this.#recent[1].atMs <= atMs - RECENT_MS) this.#recent.shift()
    const since = now.rounds <= 1 ? this.#first : this.#recent[0]!
    const spanMs = atMs - since.atMs
    if (spanMs < FIRST_MS) return null
    const bytesPerMs = (guestBytes - since.guestBytes) / spanMs
    const dirtyPerMs = now.isStopped ? 0 : now.dirtyBytesPerSecond / 1000
    if (bytesPerMs <= dirtyPerMs) return null
    const etaMs = remainingBytes / (bytesPerMs - dirtyPerMs) + 1.5 * now.rttMs
    if (this.#said.length < SAID_MAX) this.#said.push({ atMs, endMs: atMs + etaMs })
    return etaMs
  }

  /** Other bytes are counted from now on. */
  #forget(isSampled: boolean): void {
    this.#wasSampled = isSampled
    this.#first = undefined
    this.#recent.length = 0
  }

  /**
   * How far what was said was from the end as it came, as a share of the whole: the median, and the worst; null when
   * nothing was said.
   */
  error(startMs: number, endMs: number): { medianRatio: number; worstRatio: number } | null {
    const wholeMs = Math.max(1, endMs - startMs)
    const errors = this.#said.map(({ endMs: said }) => Math.abs(said - endMs) / wholeMs).sort((a, b) => a - b)
    return errors.length === 0 ? null : { medianRatio: errors[errors.length >> 1]!, worstRatio: errors.at(-1)! }
  }
}
