// The serving cell of each user, as a phone chooses it. Enters: users' places over time. Leaves: serving cells, and A3
// events. Path loss 128.1 + 37.6 log10(km) dB (3GPP TR 36.942, urban macro) plus shadowing as a fixed, seeded function
// of cell and place, so it is correlated along a route as real shadowing is. A3 (TS 38.331): a neighbour enters when Mn
// - Hys > Mp + Off, leaves when Mn + Hys < Mp + Off, and becomes the serving cell if it has not left for the time to
// trigger (TTT). Pure; equal seeds and routes give equal cells.
import { createRandom } from '../random.ts'
import type { SiteMap } from './map.ts'
import type { Scenario } from './scenario.ts'

const TILE_METERS = 100
const CANDIDATES_MAX = 6
/** Beyond the map, the candidates are those of the nearest tile. */
const MARGIN_METERS = 1000
const GAUSSIANS = 4096
/** Blending four corners leaves 4/9 of the variance on average. */
const BLEND_GAIN = 1.5
const SUBSTEPS = 4
/** Half of a place's shadowing is common to all cells (correlation 0.5, 3GPP TR 36.942). */
const SHARED = Math.SQRT1_2

export class RadioModel {
  /** Serving cell of each user, -1 before the first update. */
  readonly serving: Int32Array
  /** When it began to serve. */
  readonly sinceMs: Float64Array
  handovers = 0
  readonly #cellX: Float64Array
  readonly #cellY: Float64Array
  readonly #cellDbm: Float64Array
  readonly #settings: Scenario['radio']
  readonly #gaussians = new Float32Array(GAUSSIANS)
  readonly #seed: number
  /** CANDIDATES_MAX cells for each tile, -1 after the last; -2 for a tile that no user has visited. */
  readonly #tiles: Int16Array
  readonly #columns: number
  readonly #rows: number
  readonly #left: number
  readonly #bottom: number
  readonly #candidate: Int32Array
  readonly #candidateMs: Float64Array
  readonly #x: Float64Array
  readonly #y: Float64Array
  readonly #atMs: Float64Array
  readonly #means: Float64Array
  /** Level of the cell that #strongest returned last, dBm. */
  #strongestDbm = Number.NEGATIVE_INFINITY

  constructor(map: SiteMap, settings: Scenario['radio'], seed: number, users: number) {
    this.#cellX = Float64Array.from(map.cells, ({ x }) => x)
    this.#cellY = Float64Array.from(map.cells, ({ y }) => y)
    this.#cellDbm = Float64Array.from(map.cells, ({ dbm }) => dbm)
    this.#settings = settings
    const random = createRandom(seed).fork('radio')
    this.#seed = random.uint32()
    for (let at = 0; at < GAUSSIANS; at++) {
      this.#gaussians[at] = Math.sqrt(-2 * Math.log(1 - random.next())) * Math.cos(2 * Math.PI * random.next())
    }
    this.#left = map.box.left - MARGIN_METERS
    this.#bottom = map.box.bottom - MARGIN_METERS
    this.#columns = Math.ceil((map.box.right + MARGIN_METERS - this.#left) / TILE_METERS)
    this.#rows = Math.ceil((map.box.top + MARGIN_METERS - this.#bottom) / TILE_METERS)
    this.#tiles = new Int16Array(this.#columns * this.#rows * CANDIDATES_MAX).fill(-2)
    this.serving = new Int32Array(users).fill(-1)
    this.#candidate = new Int32Array(users).fill(-1)
    this.sinceMs = new Float64Array(users)
    this.#candidateMs = new Float64Array(users)
    this.#x = new Float64Array(users)
    this.#y = new Float64Array(users)
    this.#atMs = new Float64Array(users)
    this.#means = new Float64Array(map.cells.length)
  }

  /** A user has moved in a straight line to (x, y). True if its serving cell changed. */
  update(user: number, nowMs: number, x: number, y: number): boolean {
    const tile = this.#tileAt(x, y)
    if (this.serving[user]! < 0) {
      this.#serve(user, this.#strongest(tile, x, y), nowMs)
      this.#place(user, nowMs, x, y)
      return true
    }
    const { hysteresisDb, offsetDb, triggerMs } = this.#settings
    const serving = this.serving[user]!
    const isAlone = this.#tiles[tile] === serving && this.#tiles[tile + 1]! < 0
    if (isAlone && this.#candidate[user]! < 0) {
      this.#place(user, nowMs, x, y)
      return false
    }
    const servingDbm = this.#level(serving, x, y)
    const limitDb = servingDbm + offsetDb
    const best = isAlone ? serving : this.#strongest(tile, x, y, serving, servingDbm)
    const bestDb = best === serving ? Number.NEGATIVE_INFINITY : this.#strongestDbm
    let isChanged = false
    if (bestDb - hysteresisDb > limitDb || this.#candidate[user]! >= 0) isChanged = this.#walk(user, nowMs, x, y, best, triggerMs)
    this.#place(user, nowMs, x, y)
    return isChanged
  }

  /** Received power of a cell at a place, dBm. */
  rsrp(cell: number, x: number, y: number): number {
    return this.#level(cell, x, y) + SHARED * this.#settings.shadowingDb * this.#shadow(-1, x, y)
  }

  /** The same without the shadowing that is common to all cells: enough to compare them. */
  #level(cell: number, x: number, y: number): number {
    const square = Math.max(400, (x - this.#cellX[cell]!) ** 2 + (y - this.#cellY[cell]!) ** 2)
    // 37.6 log10(sqrt(square) / 1000) = 18.8 log10(square) - 112.8, and log10(v) = ln(v) * 0.43429.
    const lossDb = 8.164_736 * Math.log(square) - 112.8
    return this.#cellDbm[cell]! - 128.1 - lossDb + SHARED * this.#settings.shadowingDb * this.#shadow(cell, x, y)
  }

  /** The strongest cells there, best first: as a phone reports neighbours. */
  neighbours(user: number, count = 3): { cell: number; dbm: number }[] {
    const [x, y] = [this.#x[user]!, this.#y[user]!]
    const tile = this.#tileAt(x, y)
    return [...this.#tiles.subarray(tile, tile + CANDIDATES_MAX)]
      .filter(cell => cell >= 0 && cell !== this.serving[user])
      .map(cell => ({ cell, dbm: this.rsrp(cell, x, y) }))
      .sort((a, b) => b.dbm - a.dbm)
      .slice(0, count)
  }

  forget(user: number): void {
    this.serving[user] = -1
    this.#candidate[user] = -1
  }

  /** Moves from the last place to this one in small steps, so that TTT may be shorter than a step of the simulation. */
  #walk(user: number, nowMs: number, x: number, y: number, best: number, triggerMs: number): boolean {
    const { hysteresisDb, offsetDb } = this.#settings
    const [fromX, fromY, fromMs] = [this.#x[user]!, this.#y[user]!, this.#atMs[user]!]
    for (let at = 1; at <= SUBSTEPS; at++) {
      const part = at / SUBSTEPS
      const [wayX, wayY, wayMs] = [fromX + (x - fromX) * part, fromY + (y - fromY) * part, fromMs + (nowMs - fromMs) * part]
      const servingDb = this.#level(this.serving[user]!, wayX, wayY) + offsetDb
      const waiting = this.#candidate[user]!
      if (waiting >= 0 && this.#level(waiting, wayX, wayY) + hysteresisDb < servingDb) this.#candidate[user] = -1
      if (this.#candidate[user]! < 0 && best !== this.serving[user] && this.#level(best, wayX, wayY) - hysteresisDb > servingDb) {
        this.#candidate[user] = best
        this.#candidateMs[user] = wayMs
      }
      if (this.#candidate[user]! < 0 || wayMs - this.#candidateMs[user]! < triggerMs) continue
      this.#serve(user, this.#candidate[user]!, wayMs)
      this.handovers++
      return true
    }
    return false
  }

  #serve(user: number, cell: number, atMs: number): void {
    this.serving[user] = cell
    this.sinceMs[user] = atMs
    this.#candidate[user] = -1
  }

  #place(user: number, nowMs: number, x: number, y: number): void {
    this.#x[user] = x
    this.#y[user] = y
    this.#atMs[user] = nowMs
  }

  /** The strongest of a tile's candidates; the level of `known` may be computed already. */
  #strongest(tile: number, x: number, y: number, known = -1, knownDbm = 0): number {
    let best = this.#tiles[tile]!
    let bestDbm = Number.NEGATIVE_INFINITY
    for (let at = tile; at < tile + CANDIDATES_MAX; at++) {
      const cell = this.#tiles[at]!
      if (cell < 0) break
      const dbm = cell === known ? knownDbm : this.#level(cell, x, y)
      if (dbm <= bestDbm) continue
      best = cell
      bestDbm = dbm
    }
    this.#strongestDbm = bestDbm
    return best
  }

  /** Index of a place's candidates in #tiles. */
  #tileAt(x: number, y: number): number {
    const column = Math.min(this.#columns - 1, Math.max(0, Math.floor((x - this.#left) / TILE_METERS)))
    const row = Math.min(this.#rows - 1, Math.max(0, Math.floor((y - this.#bottom) / TILE_METERS)))
    const tile = (row * this.#columns + column) * CANDIDATES_MAX
    if (this.#tiles[tile] === -2) this.#fill(tile, column, row)
    return tile
  }

  /** The cells that can be the strongest somewhere in a tile: those within three deviations of the best. */
  #fill(tile: number, column: number, row: number): void {
    const middle = { x: this.#left + (column + 0.5) * TILE_METERS, y: this.#bottom + (row + 0.5) * TILE_METERS }
    const means = this.#means
    let best = Number.NEGATIVE_INFINITY
    for (let cell = 0; cell < means.length; cell++) {
      const square = Math.max(2500, (middle.x - this.#cellX[cell]!) ** 2 + (middle.y - this.#cellY[cell]!) ** 2)
      means[cell] = this.#cellDbm[cell]! - 8.164_736 * Math.log(square)
      best = Math.max(best, means[cell]!)
    }
    const least = best - 3 * this.#settings.shadowingDb - this.#settings.hysteresisDb
    const chosen: number[] = []
    for (let cell = 0; cell < means.length; cell++) if (means[cell]! >= least) chosen.push(cell)
    chosen.sort((a, b) => means[b]! - means[a]! || a - b)
    for (let at = 0; at < CANDIDATES_MAX; at++) this.#tiles[tile + at] = chosen[at] ?? -1
  }

  /**
   * Standard normal noise of a cell, smooth over the decorrelation distance: blended from a lattice of fixed values.
   */
  #shadow(cell: number, x: number, y: number): number {
    if (this.#settings.shadowingDb === 0) return 0
    const u = x / this.#settings.decorrelationMeters
    const v = y / this.#settings.decorrelationMeters
    const column = Math.floor(u)
    const row = Math.floor(v)
    const a = u - column
    const b = v - row
    const low = this.#lattice(cell, column, row) * (1 - a) + this.#lattice(cell, column + 1, row) * a
    const high = this.#lattice(cell, column, row + 1) * (1 - a) + this.#lattice(cell, column + 1, row + 1) * a
    return BLEND_GAIN * (low * (1 - b) + high * b)
  }

  #lattice(cell: number, column: number, row: number): number {
    let x = this.#seed ^ Math.imul(cell, 0x9e3779b1) ^ Math.imul(column, 0x85ebca6b) ^ Math.imul(row, 0xc2b2ae35)
    x = Math.imul(x ^ (x >>> 15), 0x2c1b3c6d)
    return this.#gaussians[(x ^ (x >>> 12)) & (GAUSSIANS - 1)]!
  }
}
