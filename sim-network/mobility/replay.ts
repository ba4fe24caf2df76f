// Users who replay recorded drives, one after the other; places between rows are interpolated. Pure and seeded.
import { GodwitError } from '../../wire/errors.ts'
import type { Random } from '../random.ts'
import type { Mover, Places } from './legs.ts'
import type { SiteMap } from './map.ts'
import type { DriveTrace } from './trace.ts'

export class ReplayMover implements Mover {
  readonly #users: Places
  readonly #first: number
  readonly #map: SiteMap
  readonly #traces: readonly DriveTrace[]
  readonly #order: Int32Array
  readonly #startMs: Float64Array
  readonly #row: Int32Array

  constructor(users: Places, count: number, first: number, map: SiteMap, random: Random, traces: readonly DriveTrace[]) {
    if (traces.length === 0)
      throw new GodwitError('CONFIG_INVALID', 'users of kind replay need traces', { hint: 'give the folder of traces with --traces' })
    this.#users = users
    this.#first = first
    this.#map = map
    this.#traces = traces
    // Users begin with different traces, anywhere in the list, so that a short simulation does not replay only the
    // first ones.
    const offset = Math.floor(random.next() * traces.length)
    this.#order = Int32Array.from({ length: count }, (_, at) => (at + offset) % traces.length)
    this.#startMs = new Float64Array(count)
    this.#row = new Int32Array(count)
    for (let at = 0; at < count; at++) this.#put(at, 0)
  }

  step(nowMs: number): void {
    for (let at = 0; at < this.#order.length; at++) {
      let seconds = (nowMs - this.#startMs[at]!) / 1000
      if (seconds > this.#traceAt(at).seconds.at(-1)!) {
        this.#order[at] = (this.#order[at]! + this.#order.length) % this.#traces.length
        this.#startMs[at] = nowMs
        this.#row[at] = 0
        this.#users.session[this.#first + at]!++
        seconds = 0
      }
      this.#put(at, seconds)
    }
  }

  traceOf(user: number): { trace: DriveTrace; seconds: number } {
    const at = user - this.#first
    return { trace: this.#traceAt(at), seconds: this.#traceAt(at).seconds[this.#row[at]!]! }
  }

  #traceAt(at: number): DriveTrace {
    return this.#traces[this.#order[at]!]!
  }

  #put(at: number, seconds: number): void {
    const trace = this.#traceAt(at)
    let row = this.#row[at]!
    while (row + 1 < trace.seconds.length && trace.seconds[row + 1]! <= seconds) row++
    this.#row[at] = row
    const next = Math.min(row + 1, trace.seconds.length - 1)
    const span = trace.seconds[next]! - trace.seconds[row]!
    const part = span > 0 ? Math.min(1, Math.max(0, (seconds - trace.seconds[row]!) / span)) : 0
    const lat = trace.lat[row]! + (trace.lat[next]! - trace.lat[row]!) * part
    const lon = trace.lon[row]! + (trace.lon[next]! - trace.lon[row]!) * part
    const { x, y } = this.#map.projection.toMap({ lat, lon })
    this.#users.x[this.#first + at] = x
    this.#users.y[this.#first + at] = y
  }
}
