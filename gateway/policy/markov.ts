// Where users of a site are some time later, learned as it happens: counts of (came from, is at, how much later) -> is
// at then, backed by (is at, how much later) alone. Pure; bounded: contexts beyond the limit are not learned, old
// counts fade. How many were still where they had been is kept apart, in flat columns: that is what 10,000 users ask
// every few seconds.

const CONTEXTS_MAX = 50_000
/** How many observations the coarser model counts for in the finer one. */
const BACKING = 4
const FADE_AT = 2000
const NONE = -1

type Elsewhere = { sites: number[]; counts: number[] }

/** Contexts of one grain, by number. */
class Contexts {
  readonly #numbers = new Map<number, number>()
  readonly #elsewhere: Elsewhere[] = []
  total = new Float64Array(64)
  stayed = new Float64Array(64)

  /** NONE for one that nothing is known of. */
  find(key: number): number {
    return this.#numbers.get(key) ?? NONE
  }

  /** NONE when there is no room for another. */
  add(key: number): number {
    const known = this.find(key)
    if (known !== NONE || this.#numbers.size >= CONTEXTS_MAX) return known
    const at = this.#numbers.size
    this.#numbers.set(key, at)
    this.#elsewhere.push({ sites: [], counts: [] })
    if (at === this.total.length) {
      this.total = widened(this.total)
      this.stayed = widened(this.stayed)
    }
    return at
  }

  count(at: number, site: number, then: number): void {
    const { sites, counts } = this.#elsewhere[at]!
    const other = then === site ? NONE : sites.indexOf(then)
    if (then === site) this.stayed[at]!++
    else if (other >= 0) counts[other]!++
    else {
      sites.push(then)
      counts.push(1)
    }
    if (++this.total[at]! < FADE_AT) return
    this.total[at]! /= 2
    this.stayed[at]! /= 2
    for (const index of counts.keys()) counts[index]! /= 2
  }

  /** P(at `then`), with what is expected where little is known. */
  share(at: number, site: number, then: number, backing: number): number {
    if (at === NONE) return backing
    const seen = then === site ? this.stayed[at]! : this.#countOf(at, then)
    return (seen + BACKING * backing) / (this.total[at]! + BACKING)
  }

  elsewhere(at: number): readonly number[] {
    return at === NONE ? [] : this.#elsewhere[at]!.sites
  }

  #countOf(at: number, then: number): number {
    const { sites, counts } = this.#elsewhere[at]!
    return counts[sites.indexOf(then)] ?? 0
  }
}

export class Markov {
  readonly #fine = new Contexts()
  readonly #coarse = new Contexts()

  /** Numbers of the two contexts of such users, -1 where there is none yet: good for as long as they are such users. */
  find(previous: number, site: number, tauMs: number): { fine: number; coarse: number } {
    return { fine: this.#fine.find(fineKey(previous, site, tauMs)), coarse: this.#coarse.find(coarseKey(site, tauMs)) }
  }

  learn(previous: number, site: number, tauMs: number, then: number, known = this.find(previous, site, tauMs)): void {
    const fine = known.fine === NONE ? this.#fine.add(fineKey(previous, site, tauMs)) : known.fine
    const coarse = known.coarse === NONE ? this.#coarse.add(coarseKey(site, tauMs)) : known.coarse
    if (fine !== NONE) this.#fine.count(fine, site, then)
    if (coarse !== NONE) this.#coarse.count(coarse, site, then)
  }

  /** How much experience is behind it, in [0, 1): nothing is worth nothing. */
  weight(coarse: number): number {
    return coarse === NONE ? 0 : this.#coarse.total[coarse]! / (this.#coarse.total[coarse]! + BACKING)
  }

  /** P(at `then`) of those who are at `site`; staying is certain where nothing is known. */
  share(fine: number, coarse: number, site: number, then: number): number {
    return this.#fine.share(fine, site, then, this.#coarse.share(coarse, site, then, then === site ? 1 : 0))
  }

  /** Sites, other than their own, at which such users have been. */
  elsewhere(coarse: number): readonly number[] {
    return this.#coarse.elsewhere(coarse)
  }
}

/** Half-octaves of time: predictions for 10 and 11 s share their experience, those for 10 and 20 s do not. */
const step = (tauMs: number): number => Math.max(0, Math.min(63, Math.round(2 * Math.log2(Math.max(1, tauMs / 1000)))))
const coarseKey = (site: number, tauMs: number): number => site * 64 + step(tauMs)
const fineKey = (previous: number, site: number, tauMs: number): number => ((previous + 1) * 65_536 + site) * 64 + step(tauMs)

function widened(column: Float64Array): Float64Array<ArrayBuffer> {
  const wider = new Float64Array(2 * column.length)
  wider.set(column)
  return wider
}
