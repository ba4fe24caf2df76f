// The cost of the best possible placement with knowledge of the future: the Viterbi algorithm over sites, for each
// user, during the simulation. Enters: the sites of a user, and for how long. Leaves: the lowest sum of regret (ms x s)
// and of migrations at a price each. Pure. It is a lower bound, because its migrations take no time. While the user's
// site does not change, waiting gains nothing, so one step of the recursion is one stay at a site, not one second.

export class Optimum {
  readonly #sites: number
  readonly #regretMs: (userSite: number, site: number) => number
  readonly #price: (user: number) => number
  readonly #prices: Float64Array
  readonly #cost: Float64Array
  readonly #moves: Float64Array
  /** The current end of each user's cheapest path. */
  readonly #cheapest: Int32Array
  readonly #at: Int32Array
  readonly #seconds: Float64Array
  total = { costMsSeconds: 0, moves: 0 }

  constructor(options: {
    users: number
    sites: number
    regretMs: (userSite: number, site: number) => number
    price: (user: number) => number
  }) {
    const { users, sites, regretMs, price } = options
    this.#sites = sites
    this.#regretMs = regretMs
    this.#price = price
    this.#prices = new Float64Array(users)
    this.#cheapest = new Int32Array(users)
    this.#cost = new Float64Array(users * sites)
    this.#moves = new Float64Array(users * sites)
    this.#at = new Int32Array(users).fill(-1)
    this.#seconds = new Float64Array(users)
  }

  /** A user's VM begins at a site. */
  begin(user: number, site: number): void {
    this.#cost.fill(Number.POSITIVE_INFINITY, user * this.#sites, (user + 1) * this.#sites)
    this.#cost[user * this.#sites + site] = 0
    this.#moves.fill(0, user * this.#sites, (user + 1) * this.#sites)
    this.#cheapest[user] = site
    this.#prices[user] = this.#price(user)
    this.#at[user] = -1
    this.#seconds[user] = 0
  }

  /** The user was at a site for some seconds. */
  stay(user: number, userSite: number, seconds: number): void {
    if (this.#at[user] !== userSite) this.#go(user, userSite)
    this.#seconds[user]! += seconds
  }

  /** The same for all users, each at its index. */
  stayAll(userSites: Int32Array, seconds: number): void {
    const [at, spent] = [this.#at, this.#seconds]
    for (let user = 0; user < userSites.length; user++) {
      if (at[user] !== userSites[user]) this.#go(user, userSites[user]!)
      spent[user]! += seconds
    }
  }

  /** The user's VM ends; the cost of its best path is added to the total. */
  end(user: number): void {
    this.#close(user)
    this.#at[user] = -1
    const best = user * this.#sites + this.#cheapest[user]!
    this.total.costMsSeconds += this.#cost[best]!
    this.total.moves += this.#moves[best]!
  }

  #go(user: number, userSite: number): void {
    this.#close(user)
    this.#at[user] = userSite
    this.#seconds[user] = 0
  }

  #close(user: number): void {
    const userSite = this.#at[user]!
    if (userSite < 0) return
    const [cost, moves] = [this.#cost, this.#moves]
    const first = user * this.#sites
    const cheapest = first + this.#cheapest[user]!
    const moved = cost[cheapest]! + this.#prices[user]!
    const count = moves[cheapest]! + 1
    const seconds = this.#seconds[user]!
    let least = 0
    for (let site = 0; site < this.#sites; site++) {
      const at = first + site
      if (moved < cost[at]!) {
        cost[at] = moved
        moves[at] = count
      }
      cost[at]! += this.#regretMs(userSite, site) * seconds
      if (cost[at]! < cost[first + least]!) least = site
    }
    this.#cheapest[user] = least
  }
}
