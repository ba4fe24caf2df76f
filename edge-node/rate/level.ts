// Which zstd level fits: as much compression as the link gives time for, as little as keeps it full. Pure; time is
// passed in. throughput = min(pipeline, link / ratio): while batches wait for the link, a higher level makes them
// smaller and costs nothing as long as the workers have time left; where the link waits for the workers, a lower one is
// faster.
// Always holds: a step up is taken only where the workers' measured load, times what the higher level costs more,
// leaves them a reserve; a level from which the workers' slowness has driven us is left alone for a while, longer each
// time, so it never swings to and fro.
export type Level = number | 'off'

/**
 * Levels that differ in what they give, with the time of each for a byte relative to level 1 (measured on program code
 * in batches of 256 KiB and 1 MiB, node:zlib's zstd 1.5.7: 432 MB/s at 1, 3.1 at 19). -1 is as slow as 3 and no
 * smaller.
 */
export const LEVELS: readonly { level: Level; cost: number }[] = [
  { level: 'off', cost: 0.05 },
  { level: -5, cost: 0.9 },
  { level: 1, cost: 1 },
  { level: 3, cost: 2 },
  { level: 6, cost: 5 },
  { level: 9, cost: 8 },
  { level: 12, cost: 20 },
  { level: 15, cost: 50 },
  { level: 17, cost: 85 },
  { level: 19, cost: 130 },
]

export type LevelSample = {
  atMs: number
  /** Batches compressed so far, and of these how many then waited for the link, how many found the link waiting. */
  batches: number
  linkWaits: number
  workerWaits: number
  /** Time that workers have compressed so far, ms over all of them. */
  busyMs: number
}

type LevelChange = { level: Level; reason: string }

const START = LEVELS.findIndex(({ level }) => level === 1)
const SPAN_MS = 400
const SPAN_MAX_MS = 3_000
const BATCHES_MIN = 6
/** Load of the workers up to which a higher level is taken, and from which on a lower one must go. */
const LOAD_MAX = 0.75
/** All of their time, or nearly so. */
const LOAD_FULL = 0.9
/** Load that is worth taking off. */
const LOAD_WORTH = 0.3
const STEPS_UP_MAX = 2
/** What a batch may take a worker, ms, as far as the last ones tell: the next may be harder, and all behind it wait. */
const BATCH_MAX_MS = 200
const REST_FIRST_MS = 4_000
const REST_MAX_MS = 60_000

export class LevelPolicy {
  readonly #workers: number
  #step = START
  #from: LevelSample = { atMs: 0, batches: 0, linkWaits: 0, workerWaits: 0, busyMs: 0 }
  /** Steps from here on are left alone until then. */
  #restStep = LEVELS.length
  #restUntilMs = 0
  #restMs = REST_FIRST_MS

  constructor(workers: number) {
    this.#workers = Math.max(1, workers)
  }

  get level(): Level {
    return LEVELS[this.#step]!.level
  }

  /** A change, or undefined. `cap`: no higher than this. */
  step(now: LevelSample, cap: Level = 19): LevelChange | undefined {
    const most = capStep(cap)
    if (this.#step > most) return this.#move(most, now, `capped at ${cap}`)
    const spanMs = now.atMs - this.#from.atMs
    const batches = now.batches - this.#from.batches
    if (spanMs < SPAN_MS) return undefined
    const linkShare = (now.linkWaits - this.#from.linkWaits) / Math.max(1, batches)
    const workerShare = (now.workerWaits - this.#from.workerWaits) / Math.max(1, batches)
    const load = (now.busyMs - this.#from.busyMs) / (spanMs * this.#workers)
    const batchMs = (now.busyMs - this.#from.busyMs) / Math.max(1, batches)
    // Few batches say little, unless they are few because each takes so long.
    if (batches < BATCHES_MIN && spanMs < SPAN_MAX_MS && load < LOAD_FULL) return undefined
    this.#from = now
    if (batches === 0) return undefined
    if (workerShare > 0.5 && linkShare < 0.25) return this.#down(load, now)
    // Only the link's waiting pays for more than level 1: where nobody waits for it, this is time taken from the guest
    // and from our own threads.
    if (linkShare < 0.25 && load > LOAD_WORTH && LEVELS[this.#step]!.cost > 1) return this.#down(load, now, 'the link has no queue')
    // Workers without a reserve, and a link that is not always busy: it may be theirs to keep it so.
    if (linkShare < 0.5 && load > LOAD_MAX && LEVELS[this.#step]!.cost > 1) return this.#down(load, now)
    if (linkShare > 0.5 && workerShare < 0.25) return this.#up(load, batchMs, most, now)
    return undefined
  }

  #up(load: number, batchMs: number, most: number, now: LevelSample): LevelChange | undefined {
    const cost = LEVELS[this.#step]!.cost
    const rests = now.atMs < this.#restUntilMs
    let step = this.#step
    while (step < Math.min(most, this.#step + STEPS_UP_MAX)) {
      const next = step + 1
      // What raw batches cost tells nothing of compression: one step, then it is measured.
      const expected = cost < LEVELS[1]!.cost ? 0 : (load * LEVELS[next]!.cost) / cost
      const isLong = (batchMs * LEVELS[next]!.cost) / cost > BATCH_MAX_MS
      if (expected > LOAD_MAX || isLong || (rests && next >= this.#restStep)) break
      step = next
      if (cost < LEVELS[1]!.cost) break
    }
    return step === this.#step ? undefined : this.#move(step, now, `the link is the limit, workers ${percent(load)} busy`)
  }

  #down(load: number, now: LevelSample, why = 'the workers are the limit'): LevelChange | undefined {
    if (this.#step === 0) return undefined
    const cost = LEVELS[this.#step]!.cost
    let step = this.#step - 1
    // Workers that are full do not tell how much too much it is.
    const most = load >= LOAD_FULL ? LOAD_MAX / 2 : LOAD_MAX
    while (step > 1 && (load * LEVELS[step]!.cost) / cost > most) step--
    if (this.#restStep === step + 1 && now.atMs < this.#restUntilMs + this.#restMs) this.#restMs = Math.min(REST_MAX_MS, 2 * this.#restMs)
    else this.#restMs = REST_FIRST_MS
    this.#restStep = step + 1
    this.#restUntilMs = now.atMs + this.#restMs
    return this.#move(step, now, `${why}, workers ${percent(load)} busy`)
  }

  #move(step: number, now: LevelSample, reason: string): LevelChange {
    this.#step = step
    this.#from = now
    return { level: this.level, reason }
  }
}

const capStep = (cap: Level): number => {
  const step = LEVELS.findLastIndex(({ level }) => level === 'off' || (cap !== 'off' && level <= cap))
  return cap === 'off' ? 0 : step
}

const percent = (share: number): string => `${Math.round(share * 100)} %`
