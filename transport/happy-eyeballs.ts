// The order and the timing in which the addresses of one name are tried (RFC 8305): families alternate, and the next
// address starts when the last one has failed or has not answered for a while; earlier attempts continue. Enters:
// addresses in the resolver's order, failures, the time. Leaves: addresses to try now, and how long to wait. Pure.
// Always holds: each address is tried once; a failure starts the next address at once.
import { isIPv6 } from 'node:net'

/** RFC 8305, section 5: the recommended delay between attempts. */
const ATTEMPT_DELAY_MS = 250
/** Limit of addresses, because each attempt needs a socket. */
const ADDRESSES_MAX = 16

/**
 * Families alternate, beginning with that of the first address; the order within a family stays. Duplicates are
 * removed.
 */
export function interleave(addresses: readonly string[]): string[] {
  const each = [...new Set(addresses)]
  const first = each[0]
  if (first === undefined) return []
  const mine = each.filter(address => isIPv6(address) === isIPv6(first))
  const others = each.filter(address => isIPv6(address) !== isIPv6(first))
  const longer = Math.max(mine.length, others.length)
  return Array.from({ length: longer }, (_, i) => [mine[i], others[i]]).flatMap(pair => pair.filter(address => address !== undefined))
}

export class Attempts {
  readonly #waiting: string[]
  readonly #delayMs: number
  #nextAtMs = Number.NEGATIVE_INFINITY

  constructor(addresses: readonly string[], delayMs = ATTEMPT_DELAY_MS) {
    this.#waiting = interleave(addresses).slice(0, ADDRESSES_MAX)
    this.#delayMs = delayMs
  }

  /** The next address that is due, once. */
  due(nowMs: number): string | undefined {
    if (nowMs < this.#nextAtMs) return undefined
    const address = this.#waiting.shift()
    if (address !== undefined) this.#nextAtMs = nowMs + this.#delayMs
    return address
  }

  /** An attempt has failed: the next one may start. */
  failed(): void {
    this.#nextAtMs = Number.NEGATIVE_INFINITY
  }

  /** Time until the next attempt, ms; undefined: all addresses are tried. */
  waitMs(nowMs: number): number | undefined {
    return this.#waiting.length === 0 ? undefined : Math.max(0, this.#nextAtMs - nowMs)
  }
}
