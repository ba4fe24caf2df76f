// The budget of an unauthenticated peer, for all lanes and streams of its connection together. Enters: its actions.
// Leaves: whether each is allowed. Pure. Always holds: after trust() everything is allowed; before it, nothing above
// the limits.

export type StrangerLimits = {
  /** Streams that it may open. */
  streams: number
  /** Bytes that it may send in total. */
  bytes: number
}

export class Stranger {
  readonly #limits: StrangerLimits | undefined
  #isTrusted: boolean
  #streams = 0
  #bytes = 0

  /** No limits: authenticated from the start. */
  constructor(limits: StrangerLimits | undefined) {
    this.#limits = limits
    this.#isTrusted = limits === undefined
  }

  get isTrusted(): boolean {
    return this.#isTrusted
  }

  /** It opens one more stream. */
  mayOpen(): boolean {
    this.#streams += 1
    return this.#isTrusted || this.#streams <= this.#limits!.streams
  }

  /** It has sent `bytes` more. */
  maySend(bytes: number): boolean {
    this.#bytes += bytes
    return this.#isTrusted || this.#bytes <= this.#limits!.bytes
  }

  trust(): void {
    this.#isTrusted = true
  }
}

/** The reason for ending the connection of an unauthenticated peer. */
export const TOO_MUCH = 'the peer sent too much data before authentication'
