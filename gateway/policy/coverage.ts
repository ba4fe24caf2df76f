// Which site serves users at a place, learned from where users were served: a raster of tiles, each with the site that
// most of its users had (Boyer-Moore vote), and the nearest site until somebody was seen there. Enters: places and
// sites. Leaves: a site index. Pure, bounded memory.

const TILES_MAX = 1 << 20
const TILE_METERS = 100
const MARGIN_METERS = 4000
const VOTES_MAX = 250
const UNSEEN = -2

export class Coverage {
  readonly #sites: { x: number; y: number; site: number }[] = []
  #left = 0
  #bottom = 0
  #tileMeters = TILE_METERS
  #columns = 0
  #rows = 0
  #site = new Int16Array(0)
  #votes = new Uint8Array(0)

  /** A site's own place. Sites that come later than users make the raster begin anew when they lie outside of it. */
  addSite(site: number, x: number, y: number): void {
    const known = this.#sites.find(other => other.site === site)
    if (known && known.x === x && known.y === y) return
    if (known) Object.assign(known, { x, y })
    else this.#sites.push({ x, y, site })
    this.#layOut()
  }

  /** How finely it tells places apart. */
  get tileMeters(): number {
    return this.#tileMeters
  }

  get isEmpty(): boolean {
    return this.#sites.length === 0
  }

  learn(x: number, y: number, site: number): void {
    this.#learn(this.#tileOf(x, y), site)
  }

  /**
   * learn(), and the site for the whole straight way from there to (aheadX, aheadY) where that is surely one tile; -2
   * where it is not. What is asked of most users at most times.
   */
  learnAlong(x: number, y: number, aheadX: number, aheadY: number, site: number): number {
    const tile = this.#tileOf(x, y)
    this.#learn(tile, site)
    return tile >= 0 && tile === this.#tileOf(aheadX, aheadY) ? this.#siteOf(tile, x, y) : UNSEEN
  }

  #learn(tile: number, site: number): void {
    if (tile < 0) return
    if (this.#site[tile] === site) this.#votes[tile] = Math.min(VOTES_MAX, this.#votes[tile]! + 1)
    else if (this.#votes[tile]! > 0) this.#votes[tile]!--
    else {
      this.#site[tile] = site
      this.#votes[tile] = 1
    }
  }

  /** -1 when no site has a place. */
  siteAt(x: number, y: number): number {
    const tile = this.#tileOf(x, y)
    return tile < 0 ? this.#nearest(x, y) : this.#siteOf(tile, x, y)
  }

  #siteOf(tile: number, x: number, y: number): number {
    const site = this.#site[tile]!
    if (site !== UNSEEN) return site
    const nearest = this.#nearest(x, y)
    this.#site[tile] = nearest
    return nearest
  }

  #tileOf(x: number, y: number): number {
    const column = Math.floor((x - this.#left) / this.#tileMeters)
    const row = Math.floor((y - this.#bottom) / this.#tileMeters)
    return column < 0 || row < 0 || column >= this.#columns || row >= this.#rows ? -1 : row * this.#columns + column
  }

  #nearest(x: number, y: number): number {
    let nearest = -1
    let nearestSquare = Number.POSITIVE_INFINITY
    for (const place of this.#sites) {
      const square = (place.x - x) ** 2 + (place.y - y) ** 2
      if (square >= nearestSquare) continue
      nearest = place.site
      nearestSquare = square
    }
    return nearest
  }

  #layOut(): void {
    const xs = this.#sites.map(({ x }) => x)
    const ys = this.#sites.map(({ y }) => y)
    this.#left = Math.min(...xs) - MARGIN_METERS
    this.#bottom = Math.min(...ys) - MARGIN_METERS
    const width = Math.max(...xs) + MARGIN_METERS - this.#left
    const height = Math.max(...ys) + MARGIN_METERS - this.#bottom
    this.#tileMeters = Math.max(TILE_METERS, Math.ceil(Math.sqrt((width * height) / TILES_MAX)) + 1)
    this.#columns = Math.ceil(width / this.#tileMeters)
    this.#rows = Math.ceil(height / this.#tileMeters)
    this.#site = new Int16Array(this.#columns * this.#rows).fill(UNSEEN)
    this.#votes = new Uint8Array(this.#columns * this.#rows)
  }
}
