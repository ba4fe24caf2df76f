// Which record goes next where several classes of traffic share one window. Pure, and without a clock: its order counts
// bytes.
// Enters: records that wait, each of a class; the window and what is in flight (flight.ts); acknowledged bytes. Leaves:
// the record that may go now.
// Always holds:
// - Classes that wait get bytes in proportion to their shares, within one record each. The share of an idle class goes
//   to the others; a class that was idle has saved nothing up for later.
// - Within a class the first record to come is the first to go.
// - `urgent` goes before all others, and even into a full window, as long as its own bytes in flight are within its
//   share of the window (one record always is). Bytes in flight are at most the window and that share.
// - No class starves: `urgent` beyond its share waits in proportion like the others.
//
// Method: start-time fair queueing (Goyal, Vin and Cheng 1996). Each record has a start tag: the later of the virtual
// time at its arrival and the end of its class's record before. The lowest tag goes next, and the virtual time is its
// tag. A record of b bytes ends b / share after its start. Acknowledgements count bytes of all classes; they are
// attributed in the order of sending. Streams may arrive in another order, so the bytes in flight of one class are an
// estimate. They decide only whether an urgent record may pass a full window.

import type { TrafficClass } from '../../wire/roles.ts'
import type { Flight } from './flight.ts'

/** Shares in proportion to each other; a class without a share does not exist here. */
export type SharesOf = Partial<Record<TrafficClass, number>>

/** The one window. */
type Window = Pick<Flight, 'windowBytes' | 'maySend'>

type Line<T> = {
  share: number
  waiting: { bytes: number; item: T }[]
  /** Virtual time at which its first waiting record starts, or its last record ended. */
  tag: number
  inFlightBytes: number
}

export class Shares<T> {
  readonly #lines: Map<TrafficClass, Line<T>>
  readonly #total: number
  #virtualTime = 0
  #sent = 0
  #acked = 0
  /**
   * Bytes in flight in the order of sending: neighbours of one class are one entry. `end`: all bytes sent up to its
   * last one.
   */
  readonly #ledger: { line: Line<T>; end: number }[] = []

  constructor(shares: SharesOf) {
    const entries = Object.entries(shares) as [TrafficClass, number][]
    if (entries.length === 0 || entries.some(([, share]) => !(share > 0))) throw new TypeError('each class needs a share above 0')
    this.#lines = new Map(entries.map(([name, share]) => [name, { share, waiting: [], tag: 0, inFlightBytes: 0 }]))
    this.#total = entries.reduce((sum, [, share]) => sum + share, 0)
  }

  /** A record waits for its turn. */
  add(name: TrafficClass, bytes: number, item: T): void {
    const line = this.#line(name)
    if (line.waiting.length === 0) line.tag = Math.max(line.tag, this.#virtualTime)
    line.waiting.push({ bytes, item })
  }

  /** The record that goes now, counted as sent; undefined: none waits, or the window has no room for the next one. */
  next(window: Window): { bytes: number; item: T } | undefined {
    const urgent = this.#lines.get('urgent')
    if (urgent?.waiting[0] && this.#isWithinShare(urgent, urgent.waiting[0].bytes, window)) return this.#take(urgent)
    const line = this.#first()
    if (!line || !window.maySend(line.waiting[0]!.bytes)) return undefined
    this.#virtualTime = line.tag
    return this.#take(line)
  }

  /** Nothing waits any more. Leaves: what has waited. */
  clear(): T[] {
    return [...this.#lines.values()].flatMap(({ waiting }) => waiting.splice(0).map(({ item }) => item))
  }

  /** The other side has received `total` bytes in all. */
  acked(total: number): void {
    while (this.#ledger[0] && this.#acked < total) {
      const { line, end } = this.#ledger[0]
      const upTo = Math.min(total, end)
      line.inFlightBytes -= upTo - this.#acked
      this.#acked = upTo
      if (upTo === end) this.#ledger.shift()
    }
  }

  #line(name: TrafficClass): Line<T> {
    const line = this.#lines.get(name)
    if (!line) throw new TypeError(`class ${name} has no share of this window`)
    return line
  }

  #isWithinShare(line: Line<T>, bytes: number, window: Window): boolean {
    return line.inFlightBytes === 0 || line.inFlightBytes + bytes <= (line.share / this.#total) * window.windowBytes()
  }

  /** The line whose first record has the lowest tag. */
  #first(): Line<T> | undefined {
    let first: Line<T> | undefined
    for (const line of this.#lines.values()) if (line.waiting.length > 0 && (!first || line.tag < first.tag)) first = line
    return first
  }

  #take(line: Line<T>): { bytes: number; item: T } {
    const record = line.waiting.shift()!
    line.tag += record.bytes / line.share
    line.inFlightBytes += record.bytes
    this.#sent += record.bytes
    const last = this.#ledger.at(-1)
    if (last?.line === line) last.end = this.#sent
    else this.#ledger.push({ line, end: this.#sent })
    return record
  }
}
