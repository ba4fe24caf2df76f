// At which site will this user be in a while? Enters: users' places and sites as they come. Leaves: the most likely
// site with its probability. Two models: a fan of headings and speeds about the filtered velocity, read off the learned
// coverage (motion.ts, coverage.ts), and the learned site-to-site model (markov.ts). They are mixed by how well each
// has foretold so far, and the outcome is calibrated (calibration.ts). Pure; deterministic. Always holds: each user has
// at most one prediction waiting for its outcome.
import { Calibration, type Score } from './calibration.ts'
import { Coverage } from './coverage.ts'
import { Markov } from './markov.ts'
import { Motion } from './motion.ts'

/** Deviations of heading, in standard deviations, and their weights (Gaussian). */
const FAN = [-1.8, -0.9, 0, 0.9, 1.8].map(at => ({ at, weight: Math.exp(-at * at * 0.5) }))
/** Shares of the straight way that a user really makes: roads bend, lights are red. */
const PROGRESS = [
  { share: 0.35, weight: 0.3 },
  { share: 0.75, weight: 0.4 },
  { share: 1.05, weight: 0.3 },
]
const FARTHEST = Math.max(...PROGRESS.map(({ share }) => share))
const HEADING_SPREAD = 0.35
const HEADING_SPREAD_PER_ROOT_SECOND = 0.06
const SLOW_METERS_PER_SECOND = 0.7
/** Each model keeps at least this share: the world may change. */
const MIX_MIN = 0.05
/** A user's predictions are scored and learned from no more often than this. */
const SAMPLE_MS = 10_000
/** How fast the mix follows experience. */
const MIX_RATE = 0.02
const UNKNOWN = -1

export class NextSitePredictor {
  readonly motion = new Motion()
  readonly coverage = new Coverage()
  readonly #markov = new Markov()
  readonly #calibration = new Calibration()
  #fanShare = 0.5
  #waiting = emptyWaiting(64)
  /** The last prediction's outcome, read at once: no allocation in the stepping of 10,000 users. */
  site = -1
  probability = 0
  #raw = 0
  #fanPart = 0
  #markovPart = 0
  /** Where the fan ends: as many as #ends, a site each, with their weights. */
  readonly #sites = new Int32Array(FAN.length * PROGRESS.length)
  readonly #weights = new Float64Array(FAN.length * PROGRESS.length)
  #ends = 0

  /** A user seen at a place and a site; also settles a prediction whose time has come. */
  observe(user: number, nowMs: number, x: number, y: number, site: number): void {
    this.motion.update(user, nowMs, x, y)
    this.#reserve(user)
    if (this.#waiting.current[user] !== site) this.#come(user, site)
    if (nowMs >= this.#waiting.dueMs[user]!) this.#settle(user, nowMs, site)
  }

  /** Many at once, each at its index in `users` (-1: nobody). */
  observeAll(users: Int32Array, nowMs: number, xs: Float64Array, ys: Float64Array, sites: Int32Array): void {
    this.motion.updateAll(users, nowMs, xs, ys)
    let last = 0
    for (const user of users) last = Math.max(last, user)
    this.#reserve(last)
    const { current, dueMs } = this.#waiting
    for (let at = 0; at < users.length; at++) {
      const user = users[at]!
      if (user < 0) continue
      if (current[user] !== sites[at]) this.#come(user, sites[at]!)
      if (nowMs >= dueMs[user]!) this.#settle(user, nowMs, sites[at]!)
    }
  }

  /** Whether there is anything to foretell of a user: one who is known, and does not stand still. */
  isMoving(user: number, nowMs: number): boolean {
    const { vx, vy } = this.motion
    const square = vx[user]! * vx[user]! + vy[user]! * vy[user]!
    return square > SLOW_METERS_PER_SECOND * SLOW_METERS_PER_SECOND * 0.99 && this.motion.isKnown(user, nowMs)
  }

  forget(user: number): void {
    if (user >= this.#waiting.dueMs.length) return
    this.motion.forget(user)
    this.#waiting.dueMs[user] = Number.POSITIVE_INFINITY
    this.#waiting.madeMs[user] = Number.NEGATIVE_INFINITY
    this.#waiting.current[user] = -1
    this.#waiting.previous[user] = -1
    this.#waiting.knownMs[user] = UNKNOWN
  }

  #reserve(user: number): void {
    if (user >= this.#waiting.dueMs.length) this.#waiting = emptyWaiting(Math.max(user + 1, 2 * user), this.#waiting)
  }

  #come(user: number, site: number): void {
    const { current, previous, knownMs } = this.#waiting
    previous[user] = current[user]!
    current[user] = site
    knownMs[user] = UNKNOWN
  }

  /**
   * Sets `site` and `probability` for `tauMs` from now; false for a user who is not known or stands still (nothing is
   * to be foretold).
   */
  predict(user: number, nowMs: number, tauMs: number): boolean {
    const { current, previous, dueMs } = this.#waiting
    const here = current[user] ?? -1
    if (here < 0 || !this.motion.isKnown(user, nowMs) || this.motion.speed(user) < SLOW_METERS_PER_SECOND) return false
    this.#spread(user, here, tauMs)
    this.#findContexts(user, here, previous[user]!, tauMs)
    this.#mix(user, here)
    if (dueMs[user] === Number.POSITIVE_INFINITY && nowMs - this.#waiting.madeMs[user]! >= SAMPLE_MS) this.#await(user, nowMs, tauMs, here)
    return true
  }

  score(): Score & { fanShare: number } {
    return { ...this.#calibration.score(), fanShare: this.#fanShare }
  }

  /** Collects where the fan ends, with weights that sum to 1. */
  #spread(user: number, here: number, tauMs: number): void {
    const { motion, coverage } = this
    this.#ends = 0
    if (coverage.isEmpty) {
      this.#add(here, 1)
      return
    }
    const seconds = tauMs / 1000
    const x = motion.x[user]!
    const y = motion.y[user]!
    const aheadX = motion.vx[user]! * seconds
    const aheadY = motion.vy[user]! * seconds
    // A way that is short beside a tile of the coverage needs no fan.
    const all = coverage.learnAlong(x, y, x + aheadX * FARTHEST, y + aheadY * FARTHEST, here)
    if (aheadX * aheadX + aheadY * aheadY < coverage.tileMeters ** 2 / 4) {
      if (all >= -1) this.#add(all, 1)
      else this.#along(x, y, aheadX, aheadY, 1)
    } else {
      const spread = HEADING_SPREAD + HEADING_SPREAD_PER_ROOT_SECOND * Math.sqrt(seconds)
      for (const { at, weight } of FAN) {
        const sin = Math.sin(at * spread)
        const cos = Math.cos(at * spread)
        this.#along(x, y, aheadX * cos - aheadY * sin, aheadX * sin + aheadY * cos, weight)
      }
    }
    if (this.#ends === 1) {
      this.#weights[0] = 1
      return
    }
    let total = 0
    for (let at = 0; at < this.#ends; at++) total += this.#weights[at]!
    for (let at = 0; at < this.#ends; at++) this.#weights[at]! /= total
  }

  #along(x: number, y: number, wayX: number, wayY: number, weight: number): void {
    for (const part of PROGRESS) this.#add(this.coverage.siteAt(x + wayX * part.share, y + wayY * part.share), weight * part.weight)
  }

  #add(site: number, weight: number): void {
    for (let at = 0; at < this.#ends; at++) {
      if (this.#sites[at] !== site) continue
      this.#weights[at]! += weight
      return
    }
    this.#sites[this.#ends] = site
    this.#weights[this.#ends++] = weight
  }

  /** The learned contexts of a user, looked up anew when it has come to another site, or nothing was known of one. */
  #findContexts(user: number, here: number, previous: number, tauMs: number): void {
    const { knownMs, fine, coarse } = this.#waiting
    if (knownMs[user] === tauMs && fine[user]! >= 0 && coarse[user]! >= 0) return
    const found = this.#markov.find(previous, here, tauMs)
    knownMs[user] = tauMs
    fine[user] = found.fine
    coarse[user] = found.coarse
  }

  #mix(user: number, here: number): void {
    const fine = this.#waiting.fine[user]!
    const coarse = this.#waiting.coarse[user]!
    const markovShare = (1 - this.#fanShare) * this.#markov.weight(coarse)
    this.#raw = -1
    for (let at = 0; at < this.#ends; at++) {
      const site = this.#sites[at]!
      this.#weigh(markovShare, site, this.#weights[at]!, this.#markov.share(fine, coarse, here, site))
    }
    // More than half for one leaves less for any other.
    if (this.#raw <= 0.5) {
      const others = coarse < 0 || this.#isAnEnd(here) ? this.#markov.elsewhere(coarse) : [here, ...this.#markov.elsewhere(coarse)]
      for (const site of others) if (!this.#isAnEnd(site)) this.#weigh(markovShare, site, 0, this.#markov.share(fine, coarse, here, site))
    }
    this.probability = this.#calibration.correct(this.#raw)
  }

  #isAnEnd(site: number): boolean {
    for (let at = 0; at < this.#ends; at++) if (this.#sites[at] === site) return true
    return false
  }

  #weigh(markovShare: number, site: number, byFan: number, byMarkov: number): void {
    const raw = byFan + markovShare * (byMarkov - byFan)
    if (raw <= this.#raw) return
    this.#raw = raw
    this.site = site
    this.#fanPart = byFan
    this.#markovPart = byMarkov
  }

  #await(user: number, nowMs: number, tauMs: number, here: number): void {
    const waiting = this.#waiting
    waiting.dueMs[user] = nowMs + tauMs
    waiting.madeMs[user] = nowMs
    waiting.from[user] = here
    waiting.before[user] = waiting.previous[user]!
    waiting.fineThen[user] = waiting.fine[user]!
    waiting.coarseThen[user] = waiting.coarse[user]!
    waiting.site[user] = this.site
    waiting.raw[user] = this.#raw
    waiting.stated[user] = this.probability
    waiting.byFan[user] = this.#fanPart
    waiting.byMarkov[user] = this.#markovPart
  }

  #settle(user: number, nowMs: number, site: number): void {
    const waiting = this.#waiting
    const tauMs = waiting.dueMs[user]! - waiting.madeMs[user]!
    const isLate = nowMs - waiting.dueMs[user]! > Math.max(2000, tauMs / 4)
    waiting.dueMs[user] = Number.POSITIVE_INFINITY
    if (isLate) return
    const from = waiting.from[user]!
    const isHit = waiting.site[user] === site
    this.#markov.learn(waiting.before[user]!, from, tauMs, site, { fine: waiting.fineThen[user]!, coarse: waiting.coarseThen[user]! })
    this.#calibration.learn(waiting.raw[user]!, waiting.stated[user]!, isHit, waiting.site[user] !== from)
    const likelihood = (probability: number) => Math.max(0.02, isHit ? probability : 1 - probability)
    const [fan, markov] = [likelihood(waiting.byFan[user]!), likelihood(waiting.byMarkov[user]!)]
    const share = this.#fanShare
    const posterior = (share * fan) / (share * fan + (1 - share) * markov)
    this.#fanShare = Math.min(1 - MIX_MIN, Math.max(MIX_MIN, share + MIX_RATE * (posterior - share)))
  }
}

/** One column for each field, as in vm-table.ts. */
const columns = (capacity: number) => ({
  /** When the prediction that waits for its outcome is due, and when it was made. */
  dueMs: new Float64Array(capacity).fill(Number.POSITIVE_INFINITY),
  madeMs: new Float64Array(capacity).fill(Number.NEGATIVE_INFINITY),
  raw: new Float64Array(capacity),
  stated: new Float64Array(capacity),
  byFan: new Float64Array(capacity),
  byMarkov: new Float64Array(capacity),
  site: new Int32Array(capacity).fill(-1),
  from: new Int32Array(capacity).fill(-1),
  before: new Int32Array(capacity).fill(-1),
  fineThen: new Int32Array(capacity).fill(-1),
  coarseThen: new Int32Array(capacity).fill(-1),
  /** Where the user is, and was before. */
  current: new Int32Array(capacity).fill(-1),
  previous: new Int32Array(capacity).fill(-1),
  /** The time ahead for which `fine` and `coarse` were looked up. */
  knownMs: new Float64Array(capacity).fill(UNKNOWN),
  fine: new Int32Array(capacity).fill(-1),
  coarse: new Int32Array(capacity).fill(-1),
})
type Waiting = ReturnType<typeof columns>

function emptyWaiting(capacity: number, old?: Waiting): Waiting {
  const waiting = columns(capacity)
  if (old) for (const name of Object.keys(waiting) as (keyof Waiting)[]) waiting[name].set(old[name])
  return waiting
}
