// Where users of a site are some time later, learned as it happens: counts of (came from, is at, how much later) -> is at then, backed by
// (is at, how much later) alone. Pure; bounded: contexts beyond the limit are not learned, old counts fade.

const CONTEXTS_MAX = 50_000
/** How many observations the coarser model counts for in the finer one. */
const BACKING = 4
const FADE_AT = 2000

type Counts = { total: number; sites: number[]; counts: number[] }

export class Markov {
  readonly #fine = new Map<number, Counts>()
  readonly #coarse = new Map<number, Counts>()

  learn(previous: number, site: number, tauMs: number, then: number): void {
    count(this.#fine, fineKey(previous, site, tauMs), then)
    count(this.#coarse, coarseKey(site, tauMs), then)
  }

  /** What has become of users like this one: looked up once, asked for several sites. */
  outlook(previous: number, site: number, tauMs: number): Outlook {
    return { site, fine: this.#fine.get(fineKey(previous, site, tauMs)), coarse: this.#coarse.get(coarseKey(site, tauMs)) }
  }
}

export type Outlook = { site: number; fine: Counts | undefined; coarse: Counts | undefined }

/** How much experience is behind it, in [0, 1): nothing is worth nothing. */
export const outlookWeight = ({ coarse }: Outlook): number => (coarse ? coarse.total / (coarse.total + BACKING) : 0)

/** P(at `then`); staying is certain where nothing is known. */
export function outlookAt({ site, fine, coarse }: Outlook, then: number): number {
  return smoothed(fine, then, smoothed(coarse, then, then === site ? 1 : 0))
}

const smoothed = (counts: Counts | undefined, then: number, backing: number): number => {
  if (!counts) return backing
  const at = counts.sites.indexOf(then)
  return ((at < 0 ? 0 : counts.counts[at]!) + BACKING * backing) / (counts.total + BACKING)
}

/** Half-octaves of time: predictions for 10 and 11 s share their experience, those for 10 and 20 s do not. */
const step = (tauMs: number): number => Math.max(0, Math.min(63, Math.round(2 * Math.log2(Math.max(1, tauMs / 1000)))))
const coarseKey = (site: number, tauMs: number): number => site * 64 + step(tauMs)
const fineKey = (previous: number, site: number, tauMs: number): number => ((previous + 1) * 65_536 + site) * 64 + step(tauMs)

function count(counts: Map<number, Counts>, key: number, then: number): void {
  let entry = counts.get(key)
  if (!entry) {
    if (counts.size >= CONTEXTS_MAX) return
    entry = { total: 0, sites: [], counts: [] }
    counts.set(key, entry)
  }
  const at = entry.sites.indexOf(then)
  if (at < 0) {
    entry.sites.push(then)
    entry.counts.push(1)
  } else entry.counts[at]!++
  entry.total++
  if (entry.total < FADE_AT) return
  entry.counts = entry.counts.map(value => value / 2)
  entry.total /= 2
}
