// The number of pending accept calls at a QUIC server. quinn finishes a handshake inside accept, so a client that stops
// responding during its handshake occupies its call until the idle timeout; the binding shows neither the client nor a
// way to cancel the call, only how many handshakes have begun. Enters: that count, calls made, calls ended. Leaves: how
// many calls to make. Pure. Always holds: `idle` calls wait for the next client while at most `handshakesMax`
// handshakes are open, and there are never more calls than both together. A call counts as open for ever if it is
// unknown whether its handshake had begun: this makes more calls, never fewer.

type AcceptLimits = {
  /**
   * Calls that wait for a client, enough for a burst. Each one that settles wakes the event loop, so there are no more.
   */
  idle: number
  /** Limit of open handshakes; each needs about 120 KiB (measured, quinn 0.11). */
  handshakesMax: number
}

export class AcceptSlots {
  readonly #limits: AcceptLimits
  #calls = 0
  #ended = 0

  constructor(limits: AcceptLimits) {
    this.#limits = limits
  }

  /** Handshakes in progress. `begun`: the count since the start of the server. */
  handshakes(begun: number): number {
    return Math.max(0, begun - this.#ended)
  }

  /** How many calls to make now; they count as pending. */
  more(begun: number): number {
    const { idle, handshakesMax } = this.#limits
    const open = this.handshakes(begun)
    const wanted = Math.min(open + idle, handshakesMax + idle)
    const more = Math.max(0, wanted - this.#calls)
    this.#calls += more
    return more
  }

  /**
   * One call has settled. `hadBegun` false: the error may be that of a client whose first packet was rejected, which
   * the server does not count as begun.
   */
  end(hadBegun: boolean): void {
    this.#calls -= 1
    if (hadBegun) this.#ended += 1
  }
}
