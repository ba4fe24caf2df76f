// The way between each two sites as this gateway knows it, without a probe of its own: nodes reach each other through
// the gateway, so the round trip is that of both links, and what the way carries is what the last migration got through
// it. Enters: sites with their links' RTT, migrations. Leaves: estimates. Pure. Always holds: these are of the relayed
// way, never below it; a figure that is not known is null, not a guess.
import type { MigrationRecord, SiteView } from '../../wire/admin.ts'

export type SitePath = { from: string; to: string; rttMs: number | null; availableBps: number | null }

/** A migration says what the way carries for this long. */
export const GOODPUT_MS = 3_600_000
/** Shorter ones say more of their beginning and end than of the way. */
const GOODPUT_BYTES_MIN = 1_000_000
/** Nodes report bytes and times: what comes of them is not more than this, bit/s. */
const BPS_MAX = 1e13
/** Ordered pairs in one answer: 32 sites, each to each. Of more sites the first ones. */
export const PATHS_MAX = 1024

export function estimatePaths(sites: readonly SiteView[], migrations: readonly MigrationRecord[], nowMs: number): SitePath[] {
  const goodput = new Map<string, number>()
  // Newest first: the first of a pair counts.
  for (const { source, target, outcome, report, updatedAt } of migrations) {
    if (outcome !== 'completed' || !report || nowMs - updatedAt > GOODPUT_MS) continue
    const pair = `${source} ${target}`
    if (!goodput.has(pair) && report.wireBytes >= GOODPUT_BYTES_MIN && report.totalMs > 0)
      goodput.set(pair, Math.min(BPS_MAX, (report.wireBytes * 8000) / report.totalMs))
  }
  const online = sites.filter(site => site.online)
  const paths: SitePath[] = []
  for (const from of online) {
    for (const to of online) {
      if (from === to || paths.length >= PATHS_MAX) continue
      const rttMs = from.rttMs === null || to.rttMs === null ? null : from.rttMs + to.rttMs
      const availableBps = goodput.get(`${from.site} ${to.site}`) ?? null
      if (rttMs !== null || availableBps !== null) paths.push({ from: from.site, to: to.site, rttMs, availableBps })
    }
  }
  return paths
}
