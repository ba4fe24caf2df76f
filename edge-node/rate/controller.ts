// The controller of a migration's source. Pure: a sample in, a decision out, at most every 100 ms; time is passed in.
// It unites what the parts decide:
//
//   level.ts    how hard batches are compressed           control.ts  what QEMU is told of the path
//   rounds.ts   when to switch over, slowing the guest    batching()  how many pages a batch has, how many batches wait
//
// Always holds: each change has a reason, kept in a list of bounded length (the first and the last ones); nothing is
// told twice.
import { PAGE_BYTES } from '../../wire/types.ts'
import { type ControlSample, handOverMs, splitDowntime } from './control.ts'
import { type Level, LevelPolicy, type LevelSample } from './level.ts'
import { type RoundsDecision, RoundsPolicy, type RoundsSample } from './rounds.ts'

export type ControllerSample = {
  atMs: number
  isStopped: boolean
  path: Pick<ControlSample, 'rateBytesPerSecond' | 'rttMinMs' | 'inFlightBytes'> & { isStarting?: boolean }
  /** See ControlSample. */
  waitingBytes: number
  ratio: number
  compression: Omit<LevelSample, 'atMs'>
  /** QEMU's counters where they are known. */
  qemu?: Pick<RoundsSample, 'rounds' | 'remainingBytes' | 'dirtyBytesPerSecond' | 'throttlePercent'> | undefined
}

type Batching = { pages: number; batchesMax: number }

export type ControllerDecision = {
  level: Level
  batching: Batching
  /** The guest may stop soon: little may be on the way then. */
  isEnd: boolean
  downtimeLimitMs: number
  switchoverBytesPerSecond: number | undefined
  throttle: RoundsDecision['throttle']
  /** The downtime asked for cannot be kept. */
  refuse: { predictedMs: number; reason: string } | undefined
}

/** What was decided, and why. */
export type Change = { atMs: number; what: string; value: string; reason: string }

export type ControllerOptions = {
  downtimeMs: number
  /** The downtime is the operator's wish: it is kept or refused. */
  isAsked: boolean
  /** Live; else the guest stands still from the start and only speed counts. */
  isLive: boolean
  workers: number
  streams: number
  /** Fixed; undefined: the controller's. */
  level?: Level | undefined
}

const CHANGES_MAX = 64
/** The end is near when what remains takes no longer than this. */
const END_MS = 2_500
/**
 * A path is slow below the first, in guest bytes a second, until it is above the second. There time is plenty: batches
 * of 1 MiB and high levels (zstd 19 made 123 MB where level 1 in 256 KiB batches made 138 MB). On others a level
 * above 3 gives a few per cent and takes the processor from the guest.
 */
const SLOW_BYTES_PER_SECOND = 12_000_000
const SLOW_NO_MORE_BYTES_PER_SECOND = 24_000_000
/**
 * Nor is one slow, whatever its pages shrink to, that carries more than this on the wire: pages that do not shrink are
 * followed by others that do.
 */
const SLOW_WIRE_BYTES_PER_SECOND = 9_000_000
const FAST_LEVEL = 3
const BATCH_PAGES = 64
const BATCH_PAGES_SLOW = 256
const BATCH_PAGES_MIN = 8
/** What may wait in our queues at the end, as time: the guest may stop at any moment, and all of it is downtime. */
const END_WAIT_MS = 60
const END_LEVEL = 3
const STOPPED_LEVEL = 1
/** Time for final pages where nobody asked for a downtime. */
const FINAL_MS = 200
/** How long a round trip must have been too long. */
const TOO_FAR_MS = 1_000

export class Controller {
  readonly #options: ControllerOptions
  readonly #level: LevelPolicy
  readonly #rounds: RoundsPolicy
  readonly #changes: Change[] = []
  #dropped = 0
  #isSlow = false
  #tooFarSinceMs: number | undefined
  #startMs: number | undefined
  readonly #told = new Map<string, string>()

  constructor(options: ControllerOptions) {
    this.#options = options
    this.#level = new LevelPolicy(options.workers)
    this.#rounds = new RoundsPolicy(options.isAsked)
  }

  step(sample: ControllerSample): ControllerDecision {
    const { atMs, path, qemu, isStopped } = sample
    this.#startMs ??= atMs
    const { isLive } = this.#options
    const downtimeMs = this.#downtimeMs(sample)
    const told = splitDowntime({ downtimeMs, ...path, waitingBytes: sample.waitingBytes, ratio: sample.ratio })
    const guestBytesPerSecond = told.switchoverBytesPerSecond ?? 0
    const remainingMs = qemu && guestBytesPerSecond > 0 ? (qemu.remainingBytes * 1000) / guestBytesPerSecond : Number.POSITIVE_INFINITY
    const isEnd = isLive && (isStopped || (qemu !== undefined && remainingMs <= END_MS))
    if (guestBytesPerSecond > 0 && !path.isStarting)
      this.#isSlow =
        path.rateBytesPerSecond < SLOW_WIRE_BYTES_PER_SECOND &&
        guestBytesPerSecond < (this.#isSlow ? SLOW_NO_MORE_BYTES_PER_SECOND : SLOW_BYTES_PER_SECOND)
    const batching = batchingFor(guestBytesPerSecond, isEnd, this.#isSlow, this.#options)
    const why = isEnd ? 'near the end: keep queues short' : this.#isSlow ? 'the path is slow' : 'the path is fast'
    this.#tell(atMs, 'batch', `${batching.pages} pages`, why)
    const rounds =
      isLive && !isStopped && qemu && told.switchoverBytesPerSecond
        ? this.#rounds.step({ atMs, ...qemu, guestBytesPerSecond, allowedMs: told.allowedMs })
        : undefined
    if (rounds) this.#tell(atMs, 'switchover', nameOf(rounds.limitMs, told.allowedMs), rounds.reason)
    // Pre-copy does not converge: what is left is copied while the guest stands still.
    if (rounds && rounds.limitMs > Math.max(1, told.allowedMs + 1)) this.#tell(atMs, 'method', 'stop and copy the rest', rounds.reason)
    if (rounds?.throttle) this.#tell(atMs, 'throttle', `from ${rounds.throttle.initialPercent} %`, rounds.throttle.reason)
    if (qemu && qemu.throttlePercent > 0) this.#tell(atMs, 'throttled', `${qemu.throttlePercent} %`, 'QEMU throttles the guest')
    return {
      level: this.#levelFor(sample, isEnd),
      batching,
      isEnd,
      downtimeLimitMs: Math.round(rounds?.limitMs ?? told.downtimeLimitMs),
      switchoverBytesPerSecond: told.switchoverBytesPerSecond,
      throttle: rounds?.throttle,
      refuse:
        this.#tooFar(sample) ??
        (rounds?.refuse && { ...rounds.refuse, predictedMs: Math.round(Math.max(downtimeMs, downtimeMs + rounds.refuse.overMs)) }),
    }
  }

  /** The first half of CHANGES_MAX and the last. */
  get changes(): readonly Change[] {
    return this.#changes
  }

  /** Changes that are not in the list any more. */
  get changesDropped(): number {
    return this.#dropped
  }

  /** Writes down a decision that was made elsewhere. */
  note(atMs: number, what: string, value: string, reason: string): void {
    this.#startMs ??= atMs
    this.#tell(atMs, what, value, reason)
  }

  /**
   * The downtime to aim for. Keeping a default that the path's round trips alone take up would only make rounds without
   * end (seen at 150 ms and 1 % of loss: 49 rounds).
   */
  #downtimeMs({ atMs, path }: ControllerSample): number {
    const { downtimeMs, isAsked } = this.#options
    if (isAsked || path.rateBytesPerSecond === 0) return downtimeMs
    const leastMs = Math.ceil(handOverMs(path.rttMinMs)) + FINAL_MS
    if (leastMs <= downtimeMs) return downtimeMs
    this.#tell(
      atMs,
      'downtime',
      'longer',
      `${leastMs} ms instead of ${downtimeMs} ms: the default is too short for round trips of ${Math.round(path.rttMinMs)} ms`,
    )
    return leastMs
  }

  /** Whether the hand-over alone takes longer than was asked for: known as soon as the path is. */
  #tooFar({ atMs, path }: ControllerSample): ControllerDecision['refuse'] {
    const { downtimeMs, isAsked, isLive } = this.#options
    const leastMs = handOverMs(path.rttMinMs)
    if (!isLive || !isAsked || path.rateBytesPerSecond === 0 || leastMs <= downtimeMs) {
      this.#tooFarSinceMs = undefined
      return undefined
    }
    this.#tooFarSinceMs ??= atMs
    if (atMs - this.#tooFarSinceMs < TOO_FAR_MS) return undefined
    const reason = `the hand-over takes one and a half round trips of ${Math.round(path.rttMinMs)} ms`
    return { predictedMs: Math.ceil(leastMs), reason }
  }

  #levelFor({ atMs, compression, isStopped }: ControllerSample, isEnd: boolean): Level {
    if (this.#options.level !== undefined) return this.#options.level
    const isHurry = isStopped && this.#options.isLive
    const change = this.#level.step(
      { atMs, ...compression },
      isHurry ? STOPPED_LEVEL : isEnd ? END_LEVEL : this.#isSlow ? undefined : FAST_LEVEL,
    )
    if (change) this.#tell(atMs, 'level', String(change.level), change.reason)
    return this.#level.level
  }

  #tell(atMs: number, what: string, value: string, reason: string): void {
    if (this.#told.get(what) === value) return
    this.#told.set(what, value)
    if (this.#changes.length === CHANGES_MAX) {
      this.#changes.splice(CHANGES_MAX / 2, 1)
      this.#dropped++
    }
    this.#changes.push({ atMs: Math.round(atMs - this.#startMs!), what, value, reason })
  }
}

const nameOf = (limitMs: number, allowedMs: number): string =>
  limitMs <= 1 ? 'not yet' : limitMs > allowedMs + 1 ? 'above the downtime' : 'when the rest fits'

/**
 * Large batches compress better and cost latency: large while there is much to send over a slow path, small when the
 * guest may stop at any moment.
 */
function batchingFor(guestBytesPerSecond: number, isEnd: boolean, isSlow: boolean, { workers, streams }: ControllerOptions): Batching {
  const batchesMax = 2 * Math.max(1, workers) + streams + 1
  if (guestBytesPerSecond === 0) return { pages: BATCH_PAGES, batchesMax }
  if (!isEnd) return { pages: isSlow ? BATCH_PAGES_SLOW : BATCH_PAGES, batchesMax }
  const least = Math.max(1, workers) + 2
  const pagesInAll = (guestBytesPerSecond * END_WAIT_MS) / 1000 / PAGE_BYTES
  const most = Math.max(least, Math.min(batchesMax, Math.floor(pagesInAll / BATCH_PAGES_MIN)))
  return { pages: powerOfTwo(Math.min(BATCH_PAGES, Math.max(BATCH_PAGES_MIN, pagesInAll / most))), batchesMax: most }
}

/** At most `value`: fewer sizes, fewer changes. */
const powerOfTwo = (value: number): number => 2 ** Math.floor(Math.log2(value))
