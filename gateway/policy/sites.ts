// The sites as the policy sees them: inter-site RTT and bandwidth, who may take VMs, how many migrations each takes
// part in.
// Always holds: at most SITES_MAX sites, so that the two tables have at most 8 MiB each; tokens in use never go below
// zero; best(u) is the eligible site nearest to users of u (u itself when it is as near as any).

import { GodwitError } from '../../wire/errors.ts'

/** Sites that the policy weighs. */
const SITES_MAX = 1024
const NO_SITE = -1
const UNKNOWN_RTT = Number.POSITIVE_INFINITY

export class SiteTable {
  readonly names: string[] = []
  readonly #indexes = new Map<string, number>()
  readonly #defaults: { bandwidthBytesPerSecond: number; tokens: number; stagingTokens: number }
  #capacity = 16
  #rtt = new Float64Array(16 * 16).fill(UNKNOWN_RTT)
  #bandwidth = new Float64Array(16 * 16)
  #best = new Int32Array(16)
  #isBestKnown = false
  readonly #isEligible: boolean[] = []
  readonly #tokens: (number | undefined)[] = []
  readonly #inUse: number[] = []
  readonly #slowest: (number | undefined)[] = []
  readonly #staging: number[] = []

  constructor(defaults: { bandwidthBytesPerSecond: number; tokens: number; stagingTokens: number }) {
    this.#defaults = defaults
  }

  get count(): number {
    return this.names.length
  }

  /**
   * The site's index; a new name is added, eligible, its distance to others unknown. LIMIT_EXCEEDED beyond SITES_MAX.
   */
  indexOf(name: string): number {
    const known = this.#indexes.get(name)
    if (known !== undefined) return known
    const index = this.names.length
    if (index >= SITES_MAX) throw new GodwitError('LIMIT_EXCEEDED', `the policy supports ${SITES_MAX} sites; '${name}' exceeds this`)
    if (index === this.#capacity) this.#grow()
    this.names.push(name)
    this.#indexes.set(name, index)
    this.#rtt[index * this.#capacity + index] = 0
    this.#isEligible.push(true)
    this.#tokens.push(undefined)
    this.#inUse.push(0)
    this.#slowest.push(undefined)
    this.#staging.push(0)
    this.#isBestKnown = false
    return index
  }

  nameOf(index: number): string | undefined {
    return this.names[index]
  }

  /** Round trip between two sites' networks, the same both ways. */
  setRtt(a: number, b: number, rttMs: number): void {
    if (!(rttMs >= 0)) throw new TypeError(`rttMs must not be negative, not ${rttMs}`)
    this.#rtt[a * this.#capacity + b] = rttMs
    this.#rtt[b * this.#capacity + a] = rttMs
    this.#isBestKnown = false
  }

  /** Infinity when it has not been measured. */
  rtt(a: number, b: number): number {
    return this.#rtt[a * this.#capacity + b]!
  }

  setBandwidth(from: number, to: number, bytesPerSecond: number): void {
    if (!(bytesPerSecond > 0 && bytesPerSecond < Number.POSITIVE_INFINITY))
      throw new TypeError(`a bandwidth must be above 0, not ${bytesPerSecond}`)
    this.#bandwidth[from * this.#capacity + to] = bytesPerSecond
    const known = this.#bandwidth.subarray(from * this.#capacity, from * this.#capacity + this.count).filter(value => value > 0)
    this.#slowest[from] = known.reduce((least, value) => Math.min(least, value))
  }

  /** The slowest measured way out of a site: what a transfer to anywhere may take. */
  slowestFrom(from: number): number {
    return this.#slowest[from] ?? this.#defaults.bandwidthBytesPerSecond
  }

  bandwidth(from: number, to: number): number {
    return this.#bandwidth[from * this.#capacity + to] || this.#defaults.bandwidthBytesPerSecond
  }

  /** Whether VMs may be moved there (online, not full, not draining). VMs that are there stay. */
  setEligible(site: number, isEligible: boolean): void {
    if (this.#isEligible[site] === isEligible) return
    this.#isEligible[site] = isEligible
    this.#isBestKnown = false
  }

  isEligible(site: number): boolean {
    return this.#isEligible[site] === true
  }

  /** The eligible site nearest to users of `userSite`, or -1. */
  best(userSite: number): number {
    if (!this.#isBestKnown) this.#findBest()
    return this.#best[userSite]!
  }

  /** The same of sites that are not among `refused`. */
  bestBut(userSite: number, refused: readonly number[]): number {
    let best = NO_SITE
    for (let site = 0; site < this.count; site++) {
      if (!this.#isEligible[site] || refused.includes(site)) continue
      if (best === NO_SITE || this.rtt(userSite, site) < this.rtt(userSite, best)) best = site
    }
    return best !== NO_SITE && this.rtt(userSite, best) < UNKNOWN_RTT ? best : NO_SITE
  }

  /**
   * The whole table for a loop over many VMs: RTT from a to b at [a * stride + b], the best site for users of u at [u].
   * Good until the next change.
   */
  tables(): { rttMs: Float64Array; stride: number; best: Int32Array } {
    if (!this.#isBestKnown) this.#findBest()
    return { rttMs: this.#rtt, stride: this.#capacity, best: this.#best }
  }

  setTokens(site: number, tokens: number | undefined): void {
    this.#tokens[site] = tokens
  }

  tokensFree(site: number): number {
    return (this.#tokens[site] ?? this.#defaults.tokens) - this.#inUse[site]!
  }

  tokensInUse(site: number): number {
    return this.#inUse[site]!
  }

  take(from: number, to: number): void {
    this.#inUse[from]!++
    this.#inUse[to]!++
  }

  giveBack(from: number, to: number): void {
    for (const site of [from, to]) {
      if (this.#inUse[site] === 0) throw new Error(`site ${this.names[site]} has no token to return`)
      this.#inUse[site]!--
    }
  }

  canStage(from: number, to: number): boolean {
    const { stagingTokens } = this.#defaults
    return this.#staging[from]! < stagingTokens && this.#staging[to]! < stagingTokens
  }

  countStaging(from: number, to: number, change: 1 | -1): void {
    for (const site of [from, to]) this.#staging[site] = Math.max(0, this.#staging[site]! + change)
  }

  #findBest(): void {
    const count = this.count
    for (let user = 0; user < count; user++) {
      let best = this.#isEligible[user] ? user : NO_SITE
      let bestMs = best < 0 ? UNKNOWN_RTT : this.rtt(user, user)
      for (let site = 0; site < count; site++) {
        if (!this.#isEligible[site] || !(this.rtt(user, site) < bestMs)) continue
        best = site
        bestMs = this.rtt(user, site)
      }
      this.#best[user] = best
    }
    this.#isBestKnown = true
  }

  #grow(): void {
    const [old, wider] = [this.#capacity, this.#capacity * 2]
    const widen = (from: Float64Array<ArrayBuffer>, empty: number) => {
      const to = new Float64Array(wider * wider).fill(empty)
      for (let row = 0; row < old; row++) to.set(from.subarray(row * old, (row + 1) * old), row * wider)
      return to
    }
    this.#rtt = widen(this.#rtt, UNKNOWN_RTT)
    this.#bandwidth = widen(this.#bandwidth, 0)
    this.#best = new Int32Array(wider)
    this.#capacity = wider
    this.#isBestKnown = false
  }
}
