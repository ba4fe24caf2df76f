// The last stage of the source: compressed batches, finished in any order, onto the page streams, with barriers between
// the intervals.
// Enters: intervals opened and closed, batches of them. Leaves: sends on each stream, each awaited before the stream's
// next.
// Always holds: on every stream, each batch of interval n comes after BARRIER(n-1) and before BARRIER(n). Within an
// interval any batch goes to any free stream. No stream begins an interval before all of them have sent the barrier
// before it, and elsewhere (on the skeleton) it comes last. A target that waits at a barrier does not read on, so what
// a fast stream sent beyond it would stay unacknowledged; enough of that, and the flight (rate/gate.ts) has no room
// left for the slow stream's barrier, which everybody waits for: the migration would stand still for ever (seen with a
// window that shrank while four streams ran).
import { FRAME } from '../../wire/types.ts'
import { encodeBarrier } from './batch.ts'

/**
 * Where frames go. `send` resolves when there is room for more on that stream; the payload must not be used after that
 * (its buffer is used again).
 */
export type FrameSink = { readonly streams: number; send(stream: number, type: number, payload: Uint8Array): Promise<void> }

type QueuedFrame = { payload: Uint8Array; sent(): void }

type Lane = { readonly stream: number; busy: boolean /** Last barrier put on this stream. */; at: number }
type Interval = { expected: number; given: number; closed: boolean; early: QueuedFrame[] }
type Barrier = { n: number; missing: number; resolve(): void; reject(error: unknown): void }

type LanesOptions = { sink: FrameSink; onBarrier: (n: number) => void | Promise<void>; onError: (error: unknown) => void }

export class Lanes {
  readonly #options: LanesOptions
  readonly #lanes: Lane[]
  /** Intervals not yet wholly given to streams, by number. */
  readonly #intervals = new Map<number, Interval>()
  readonly #barriers = new Map<number, Barrier>()
  /** The last interval of which every batch has been given to a stream: its barrier may follow. */
  #given = 0
  readonly #ready: QueuedFrame[] = []
  #nextLane = 0
  #stopped = false

  constructor(options: LanesOptions) {
    if (!Number.isInteger(options.sink.streams) || options.sink.streams < 1) throw new TypeError(`${options.sink.streams} page streams`)
    this.#options = options
    this.#lanes = Array.from({ length: options.sink.streams }, (_, stream) => ({ stream, busy: false, at: 0 }))
  }

  /** A batch of interval `n` is under way: the interval cannot end without it. */
  expect(n: number): void {
    this.#interval(n).expected++
  }

  /** The batch is here. */
  add(n: number, batch: QueuedFrame): void {
    if (n === this.#given + 1) this.#ready.push(batch)
    else this.#interval(n).early.push(batch)
    this.#pump()
  }

  /**
   * Interval `n` has no more batches than those expected. Resolves when BARRIER(n) is on every stream and
   * `onBarrier(n)` is done.
   */
  close(n: number): Promise<void> {
    this.#interval(n).closed = true
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.#barriers.set(n, { n, missing: this.#lanes.length, resolve, reject })
    this.#pump()
    return promise
  }

  /** Batches that wait for a stream, those kept back by a barrier included. */
  get waiting(): number {
    let count = this.#ready.length
    for (const { early } of this.#intervals.values()) count += early.length
    return count
  }

  get idle(): boolean {
    return this.#lanes.every(({ busy }) => !busy)
  }

  /** Nothing more is sent; barriers under way fail with `error`. */
  stop(error: unknown): void {
    this.#stopped = true
    this.#ready.length = 0
    this.#intervals.clear()
    for (const { reject } of this.#barriers.values()) reject(error)
    this.#barriers.clear()
  }

  #interval(n: number): Interval {
    let interval = this.#intervals.get(n)
    if (!interval) {
      interval = { expected: 0, given: 0, closed: false, early: [] }
      this.#intervals.set(n, interval)
    }
    return interval
  }

  /**
   * Gives every free stream something to send, as long as there is something. Streams take turns, so that none starves
   * while others are always free.
   */
  #pump(): void {
    if (this.#stopped) return
    this.#advance()
    for (let tried = 0; tried < this.#lanes.length; tried++) {
      const lane = this.#lanes[this.#nextLane]!
      this.#nextLane = (this.#nextLane + 1) % this.#lanes.length
      if (!lane.busy) this.#feed(lane)
    }
  }

  #feed(lane: Lane): void {
    if (lane.at < this.#given) {
      lane.at++
      const barrier = this.#barriers.get(lane.at)!
      void this.#send(lane, FRAME.BARRIER, encodeBarrier(lane.at), () => void this.#reached(barrier))
      return
    }
    if (this.#barriers.has(this.#given)) return
    const batch = this.#ready.shift()
    if (!batch) return
    this.#interval(this.#given + 1).given++
    void this.#send(lane, FRAME.BATCH, batch.payload, batch.sent)
    this.#advance()
  }

  /** Moves on to the next interval when this one is closed and given away whole. */
  #advance(): void {
    for (;;) {
      const n = this.#given + 1
      const interval = this.#intervals.get(n)
      if (!interval?.closed || interval.given < interval.expected || this.#barriers.has(this.#given)) return
      this.#intervals.delete(n)
      this.#given = n
      this.#ready.push(...(this.#intervals.get(n + 1)?.early.splice(0) ?? []))
    }
  }

  async #reached(barrier: Barrier): Promise<void> {
    if (--barrier.missing > 0) return
    try {
      await this.#options.onBarrier(barrier.n)
    } catch (error) {
      this.#options.onError(error)
      return
    }
    this.#barriers.delete(barrier.n)
    barrier.resolve()
    this.#pump()
  }

  async #send(lane: Lane, type: number, payload: Uint8Array, sent: () => void): Promise<void> {
    lane.busy = true
    try {
      await this.#options.sink.send(lane.stream, type, payload)
    } catch (error) {
      this.#options.onError(error)
      return
    }
    if (this.#stopped) return
    lane.busy = false
    sent()
    this.#pump()
  }
}
