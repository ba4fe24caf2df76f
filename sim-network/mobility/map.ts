// The map: sites and cells with their places, and the network distance between sites. Enters: a scenario (and traces,
// for sites along traces). Leaves: flat arrays in metres from an origin, and the RTT between sites. Pure; equal
// scenarios give equal maps.
import { createProjection, type Projection } from '../../planning/geo.ts'
import { GodwitError } from '../../wire/errors.ts'
import { createRandom } from '../random.ts'
import type { Scenario } from './scenario.ts'
import type { DriveTrace } from './trace.ts'

type MapSite = { name: string; zone: string; x: number; y: number; tokens: number | undefined; linkBytesPerSecond: number }
type MapCell = { name: string; site: number; x: number; y: number; dbm: number }

export type SiteMap = {
  projection: Projection
  sites: MapSite[]
  cells: MapCell[]
  /** RTT from site a to site b at [a * sites.length + b], without events. */
  rttMs: Float64Array
  box: { left: number; bottom: number; right: number; top: number }
}

const GRID_CELL_DBM = 43
const BOX_MARGIN_METERS = 600

export function createMap(scenario: Scenario, traces: readonly DriveTrace[] = []): SiteMap {
  const { zones, grid, alongTraces, network } = scenario
  const linkBytesPerSecond = (network.linkMbit * 1e6) / 8
  const drawn = zones
    ? fromZones(zones, linkBytesPerSecond)
    : grid
      ? fromGrid(grid, scenario.seed, linkBytesPerSecond)
      : fromTraces(alongTraces!, traces, linkBytesPerSecond)
  const { sites } = drawn
  const names = new Set(sites.map(site => site.name))
  if (names.size !== sites.length) throw new GodwitError('CONFIG_INVALID', 'two sites have the same name')
  const xs = [...sites, ...drawn.cells].map(({ x }) => x)
  const ys = [...sites, ...drawn.cells].map(({ y }) => y)
  const box = { left: least(xs), right: -least(xs.map(x => -x)), bottom: least(ys), top: -least(ys.map(y => -y)) }
  const [margin] = [BOX_MARGIN_METERS]
  return {
    ...drawn,
    rttMs: rttMatrix(sites, network),
    box: { left: box.left - margin, bottom: box.bottom - margin, right: box.right + margin, top: box.top + margin },
  }
}

const least = (values: number[]): number => values.reduce((a, b) => Math.min(a, b), Number.POSITIVE_INFINITY)

type Drawn = Pick<SiteMap, 'projection' | 'sites' | 'cells'>

function fromZones(zones: NonNullable<Scenario['zones']>, linkBytesPerSecond: number): Drawn {
  const projection = createProjection(zones[0]!.sites[0]!)
  const sites: MapSite[] = []
  const cells: MapCell[] = []
  for (const zone of zones) {
    for (const site of zone.sites) {
      const { tokens, linkMbit } = site
      sites.push({
        name: site.name,
        zone: zone.name,
        ...projection.toMap(site),
        tokens,
        linkBytesPerSecond: linkMbit === undefined ? linkBytesPerSecond : (linkMbit * 1e6) / 8,
      })
      const own = site.cells ?? [{ name: site.name, lat: site.lat, lon: site.lon, dbm: 46 }]
      for (const [at, cell] of own.entries()) {
        cells.push({ name: cell.name ?? `${site.name}-${at + 1}`, site: sites.length - 1, ...projection.toMap(cell), dbm: cell.dbm })
      }
    }
  }
  return { projection, sites, cells }
}

function fromGrid(grid: NonNullable<Scenario['grid']>, seed: number, linkBytesPerSecond: number): Drawn {
  const { columns, rows, pitchMeters, zoneSites, cellsPerSite } = grid
  const random = createRandom(seed).fork('map')
  const sites: MapSite[] = []
  const cells: MapCell[] = []
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const name = `s${String(row).padStart(2, '0')}${String(column).padStart(2, '0')}`
      const zone = `z${Math.floor(row / zoneSites)}-${Math.floor(column / zoneSites)}`
      const [x, y] = [column * pitchMeters, row * pitchMeters]
      sites.push({ name, zone, x, y, tokens: undefined, linkBytesPerSecond })
      for (let at = 0; at < cellsPerSite; at++) {
        const away = pitchMeters * 0.45
        const place = { x: x + random.between(-away, away), y: y + random.between(-away, away) }
        cells.push({ name: `${name}-${at + 1}`, site: sites.length - 1, ...place, dbm: GRID_CELL_DBM })
      }
    }
  }
  return { projection: createProjection(grid.origin), sites, cells }
}

function fromTraces(
  { spacingMeters, zoneMeters }: NonNullable<Scenario['alongTraces']>,
  traces: readonly DriveTrace[],
  linkBytesPerSecond: number,
): Drawn {
  const first = traces[0]
  if (!first) throw new GodwitError('CONFIG_INVALID', 'sites along traces need traces', { hint: 'give the folder of traces with --traces' })
  const projection = createProjection({ lat: first.lat[0]!, lon: first.lon[0]! })
  const places: { x: number; y: number }[] = []
  const served = new Map<string, { x: number; y: number; count: number }>()
  for (const trace of traces) {
    for (let at = 0; at < trace.lat.length; at++) {
      const place = projection.toMap({ lat: trace.lat[at]!, lon: trace.lon[at]! })
      if (places.every(other => distance(other, place) > spacingMeters)) places.push(place)
      const cell = trace.cells[at]!
      if (cell === '') continue
      const sum = served.get(cell) ?? { x: 0, y: 0, count: 0 }
      served.set(cell, { x: sum.x + place.x, y: sum.y + place.y, count: sum.count + 1 })
    }
  }
  const centres: { x: number; y: number }[] = []
  for (const place of places) if (centres.every(other => distance(other, place) > zoneMeters)) centres.push(place)
  const sites = places.map((place, at) => {
    const zone = `z${nearest(centres, place)}`
    return { name: `road-${String(at + 1).padStart(2, '0')}`, zone, ...place, tokens: undefined, linkBytesPerSecond }
  })
  const cells = [...served].map(([name, { x, y, count }]) => {
    const place = { x: x / count, y: y / count }
    return { name, site: nearest(places, place), ...place, dbm: 46 }
  })
  return { projection, sites, cells }
}

type Flat = { x: number; y: number }
const distance = (a: Flat, b: Flat): number => Math.hypot(a.x - b.x, a.y - b.y)

/** Index of the place nearest to a point. */
export function nearest(places: readonly Flat[], point: Flat): number {
  let best = 0
  for (let at = 1; at < places.length; at++) if (distance(places[at]!, point) < distance(places[best]!, point)) best = at
  return best
}

function rttMatrix(sites: readonly MapSite[], { fibreMsPerKm, sameZoneMs, otherZoneMs }: Scenario['network']): Float64Array {
  const rttMs = new Float64Array(sites.length * sites.length)
  for (const [a, from] of sites.entries()) {
    for (const [b, to] of sites.entries()) {
      if (a === b) continue
      rttMs[a * sites.length + b] = (from.zone === to.zone ? sameZoneMs : otherZoneMs) + (distance(from, to) / 1000) * fibreMsPerKm
    }
  }
  return rttMs
}
