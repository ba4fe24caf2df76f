// At which site will this user be in a while? Enters: users' places and sites as they come. Leaves: the most likely site with its probability.
// Two models: a fan of headings and speeds about the filtered velocity, read off the learned coverage (motion.ts, coverage.ts), and the
// learned site-to-site model (markov.ts). They are mixed by how well each has foretold so far, and the outcome is calibrated (calibration.ts).
// Pure; deterministic. Always holds: each user has at most one prediction waiting for its outcome.
import { Calibration, type Score } from './calibration.ts'
import { Coverage } from './coverage.ts'
import { Markov, type Outlook, outlookAt, outlookWeight } from './markov.ts'
import { Motion } from './motion.ts'

/** Deviations of heading, in standard deviations, and their weights (Gaussian). */
const FAN = [-1.8, -0.9, 0, 0.9, 1.8].map(at => ({ at, weight: Math.exp(-at * at * 0.5) }))
const STRAIGHT = FAN.filter(({ at }) => at === 0)
/** Shares of the straight way that a user really makes: roads bend, lights are red. */
const PROGRESS = [
  { share: 0.35, weight: 0.3 },
  { share: 0.75, weight: 0.4 },
  { share: 1.05, weight: 0.3 },
]
const HEADING_SPREAD = 0.35
const HEADING_SPREAD_PER_ROOT_SECOND = 0.06
const SLOW_METERS_PER_SECOND = 0.7
/** Each model keeps at least this share: the world may change. */
const MIX_MIN = 0.05
/** A user's predictions are scored and learned from no more often than this. */
const SAMPLE_MS = 10_000
/** How fast the mix follows experience. */
const MIX_RATE = 0.02

export class Predictor {
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
  readonly #sites: number[] = []
  readonly #weights: number[] = []

  /** A user seen at a place and a site; also settles a prediction whose time has come. */
  observe(user: number, nowMs: number, x: number, y: number, site: number): void {
    this.motion.update(user, nowMs, x, y)
    if (user >= this.#waiting.dueMs.length) this.#waiting = emptyWaiting(Math.max(user + 1, 2 * user), this.#waiting)
    const { current, previous, dueMs } = this.#waiting
    if (current[user] !== site) {
      previous[user] = current[user]!
      current[user] = site
    }
    if (nowMs >= dueMs[user]!) this.#settle(user, nowMs, site)
  }

  forget(user: number): void {
    if (user >= this.#waiting.dueMs.length) return
    this.motion.forget(user)
    this.#waiting.dueMs[user] = Number.POSITIVE_INFINITY
    this.#waiting.madeMs[user] = Number.NEGATIVE_INFINITY
    this.#waiting.current[user] = -1
    this.#waiting.previous[user] = -1
  }

  /** Sets `site` and `probability` for `tauMs` from now; false for a user who is not known or stands still (nothing is to be foretold). */
  predict(user: number, nowMs: number, tauMs: number): boolean {
    const { current, previous, dueMs } = this.#waiting
    const here = current[user] ?? -1
    if (here < 0 || !this.motion.isKnown(user, nowMs) || this.motion.speed(user) < SLOW_METERS_PER_SECOND) return false
    if (!this.coverage.isEmpty) this.coverage.learn(this.motion.x[user]!, this.motion.y[user]!, here)
    this.#spread(user, here, tauMs)
    this.#mix(previous[user]!, here, tauMs)
    if (dueMs[user] === Number.POSITIVE_INFINITY && nowMs - this.#waiting.madeMs[user]! >= SAMPLE_MS) this.#await(user, nowMs, tauMs, here)
    return true
  }

  score(): Score & { fanShare: number } {
    return { ...this.#calibration.score(), fanShare: this.#fanShare }
  }

  /** Collects where the fan ends, with weights that sum to 1, in #sites and #weights. */
  #spread(user: number, here: number, tauMs: number): void {
    const { motion, coverage } = this
    this.#sites.length = 0
    this.#weights.length = 0
    if (coverage.isEmpty) {
      this.#add(here, 1)
      return
    }
    const seconds = tauMs / 1000
    const spread = HEADING_SPREAD + HEADING_SPREAD_PER_ROOT_SECOND * Math.sqrt(seconds)
    const x = motion.x[user]!
    const y = motion.y[user]!
    const aheadX = motion.vx[user]! * seconds
    const aheadY = motion.vy[user]! * seconds
    // A way that is short beside a tile of the coverage needs no fan.
    const fan = aheadX * aheadX + aheadY * aheadY < coverage.tileMeters ** 2 / 4 ? STRAIGHT : FAN
    for (const { at, weight } of fan) {
      const sin = Math.sin(at * spread)
      const cos = Math.cos(at * spread)
      const wayX = aheadX * cos - aheadY * sin
      const wayY = aheadX * sin + aheadY * cos
      for (const part of PROGRESS) this.#add(coverage.siteAt(x + wayX * part.share, y + wayY * part.share), weight * part.weight)
    }
    const total = this.#weights.reduce((sum, weight) => sum + weight, 0)
    for (let at = 0; at < this.#weights.length; at++) this.#weights[at]! /= total
  }

  #add(site: number, weight: number): void {
    const at = this.#sites.indexOf(site)
    if (at >= 0) this.#weights[at]! += weight
    else {
      this.#sites.push(site)
      this.#weights.push(weight)
    }
  }

  #mix(previous: number, here: number, tauMs: number): void {
    const outlook = this.#markov.outlook(previous, here, tauMs)
    const markovShare = (1 - this.#fanShare) * outlookWeight(outlook)
    this.#raw = -1
    const known = this.#sites.length
    for (let at = 0; at < known; at++) this.#weigh(outlook, markovShare, this.#sites[at]!, this.#weights[at]!)
    // More than half for one leaves less for any other.
    if (this.#raw <= 0.5 && outlook.coarse) {
      for (const site of outlook.coarse.sites) if (this.#sites.indexOf(site) < 0) this.#weigh(outlook, markovShare, site, 0)
    }
    this.probability = this.#calibration.correct(this.#raw)
  }

  #weigh(outlook: Outlook, markovShare: number, site: number, byFan: number): void {
    const byMarkov = outlookAt(outlook, site)
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
    this.#markov.learn(waiting.before[user]!, from, tauMs, site)
    this.#calibration.learn(waiting.raw[user]!, waiting.stated[user]!, isHit, waiting.site[user] !== from)
    const likelihood = (probability: number) => Math.max(0.02, isHit ? probability : 1 - probability)
    const [fan, markov] = [likelihood(waiting.byFan[user]!), likelihood(waiting.byMarkov[user]!)]
    const share = this.#fanShare
    const posterior = (share * fan) / (share * fan + (1 - share) * markov)
    this.#fanShare = Math.min(1 - MIX_MIN, Math.max(MIX_MIN, share + MIX_RATE * (posterior - share)))
  }
}

type Waiting = Record<'dueMs' | 'madeMs' | 'raw' | 'stated' | 'byFan' | 'byMarkov', Float64Array> &
  Record<'site' | 'from' | 'before' | 'current' | 'previous', Int32Array>

function emptyWaiting(capacity: number, old?: Waiting): Waiting {
  const floats = (name: 'dueMs' | 'madeMs' | 'raw' | 'stated' | 'byFan' | 'byMarkov', empty = 0) => {
    const column = new Float64Array(capacity).fill(empty)
    if (old) column.set(old[name])
    return column
  }
  const sites = (name: 'site' | 'from' | 'before' | 'current' | 'previous') => {
    const column = new Int32Array(capacity).fill(-1)
    if (old) column.set(old[name])
    return column
  }
  return {
    dueMs: floats('dueMs', Number.POSITIVE_INFINITY),
    madeMs: floats('madeMs', Number.NEGATIVE_INFINITY),
    raw: floats('raw'),
    stated: floats('stated'),
    byFan: floats('byFan'),
    byMarkov: floats('byMarkov'),
    site: sites('site'),
    from: sites('from'),
    before: sites('before'),
    current: sites('current'),
    previous: sites('previous'),
  }
}
