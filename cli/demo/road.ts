// The road of the demo and the emulated 5G network along it. Pure and seeded.
//
// Three sites stand along a road; a user drives past them at constant speed on seeded waypoints around the straight
// line. The model assumes that the user enters the network at the gateway's stable address (as with an anycast address
// or a local user plane function), so the user's path to a VM is the emulated link between the gateway and the VM's
// site. Its round-trip time depends on the user's distance to that site:
//
//   RTT(user, site) = RADIO_RTT_MS + MS_PER_KM * distance + jitter of +-JITTER_MS in each direction
//
// Radio: 8 ms, a good 5G cell. Per kilometre: fibre alone would be 0.01 ms; here it is 5, because distance and time are
// compressed by the same factor: the twenty kilometres stand for the regions of a country (aggregation levels,
// peering), and a drive of an hour takes one minute. Bandwidth is 100 Mbit/s at every site, in both directions, without
// loss: users' requests and migrations share it. Between two sites: RTT(a, b) = MS_PER_KM * distance, as their probes
// see it.
//
// Not modelled: cells and handovers within a site's reach, fading, load (sim-network/mobility has them, in virtual
// time).
import { createProjection, type GeoPoint, type MapPoint } from '../../planning/geo.ts'
import type { LinkModelOptions } from '../../sim-network/link.ts'
import { profiles } from '../../sim-network/profiles.ts'
import { createRandom } from '../../sim-network/random.ts'

export const ROAD_SITES = ['a', 'b', 'c'] as const
type RoadSite = (typeof ROAD_SITES)[number]

const RADIO_RTT_MS = 8
const MS_PER_KM = 5
const JITTER_MS = 0.5
const SITE_EVERY_KM = 10
/** How far before the first site and beyond the last one the road goes. */
const MARGIN_KM = 1
const WAYPOINTS = 8
const SWERVE_KM = 1.5
const ORIGIN: GeoPoint = { lat: 52.5, lon: 13.2 }

type RoadOptions = { seed: number; driveMs: number }
export type Road = {
  readonly lengthKm: number
  placeOf(site: RoadSite): GeoPoint
  /**
   * Location of the user, who stands still before the start and after the end. Kilometres east and north of the first
   * site.
   */
  userAt(ms: number): MapPoint
  /** The user's location in degrees. */
  geoOf(user: MapPoint): GeoPoint
  /** Round-trip time from this location to a site, without jitter. */
  rttMs(user: MapPoint, site: RoadSite): number
  siteRttMs(from: RoadSite, to: RoadSite): number
  nearest(user: MapPoint): RoadSite
}

export function createRoad({ seed, driveMs }: RoadOptions): Road {
  const random = createRandom(seed).fork('road')
  const projection = createProjection(ORIGIN)
  const lengthKm = SITE_EVERY_KM * (ROAD_SITES.length - 1) + 2 * MARGIN_KM
  const path = Array.from({ length: WAYPOINTS }, (_, at) => ({
    x: -MARGIN_KM + (lengthKm * at) / (WAYPOINTS - 1),
    y: random.between(-SWERVE_KM, SWERVE_KM),
  }))
  const site = (name: RoadSite): MapPoint => ({ x: ROAD_SITES.indexOf(name) * SITE_EVERY_KM, y: 0 })
  const geoOf = ({ x, y }: MapPoint) => projection.toGeo({ x: x * 1000, y: y * 1000 })
  const rttMs = (user: MapPoint, name: RoadSite) => RADIO_RTT_MS + MS_PER_KM * between(user, site(name))
  return {
    lengthKm,
    rttMs,
    geoOf,
    placeOf: name => geoOf(site(name)),
    userAt: ms => along(path, Math.max(0, Math.min(1, ms / driveMs))),
    siteRttMs: (from, to) => MS_PER_KM * between(site(from), site(to)),
    nearest: user => ROAD_SITES.reduce((best, name) => (rttMs(user, name) < rttMs(user, best) ? name : best)),
  }
}

const between = (a: MapPoint, b: MapPoint): number => Math.hypot(a.x - b.x, a.y - b.y)

/** The point after this share of the path's length. */
function along(path: readonly MapPoint[], share: number): MapPoint {
  const lengths = path.slice(1).map((to, at) => between(path[at]!, to))
  let left = share * lengths.reduce((sum, length) => sum + length, 0)
  for (const [at, length] of lengths.entries()) {
    if (left <= length || at === lengths.length - 1) {
      const [from, to] = [path[at]!, path[at + 1]!]
      const part = Math.min(1, left / length)
      return { x: from.x + (to.x - from.x) * part, y: from.y + (to.y - from.y) * part }
    }
    left -= length
  }
  return path.at(-1)!
}

/** One direction of a site's link when the round trip is this. */
export const linkAt = (rttMs: number): LinkModelOptions => ({ ...profiles.demo.up, delayMs: rttMs / 2, jitterMs: JITTER_MS })
