// Cell and RTT of a recorded drive. Pure.
import type { DriveTrace } from './trace.ts'

/** A measured RTT is valid for about this time. */
const MEASURED_S = 5

type Player = { traceOf(user: number): { trace: DriveTrace; seconds: number } | undefined }

/**
 * A user whose cell and latency come from the recording: only the variation of its RTT is used, not its level (a
 * distant server).
 */
export class Recorded {
  cell = -1
  extraMs = 0
  readonly #users: Player
  readonly #user: number
  readonly #cells: Map<string, number>
  readonly #floors = new Map<DriveTrace, number>()
  #row = 0
  #trace: DriveTrace | undefined
  #measuredAtS = Number.NEGATIVE_INFINITY

  constructor(users: Player, user: number, cells: Map<string, number>) {
    this.#users = users
    this.#user = user
    this.#cells = cells
    this.step()
  }

  /** Advances to the user's position. True if its serving cell changed. */
  step(): boolean {
    const { trace, seconds } = this.#users.traceOf(this.#user)!
    const before = this.cell
    if (trace !== this.#trace || (this.#row > 0 && trace.seconds[this.#row - 1]! > seconds)) this.#begin(trace)
    for (; this.#row < trace.seconds.length && trace.seconds[this.#row]! <= seconds; this.#row++) {
      this.cell = this.#cells.get(trace.cells[this.#row]!) ?? this.cell
      const rtt = trace.rttMs[this.#row]!
      if (Number.isNaN(rtt)) continue
      this.#measuredAtS = trace.seconds[this.#row]!
      this.extraMs = Math.max(0, rtt - this.#floorOf(trace))
    }
    if (seconds - this.#measuredAtS > MEASURED_S) this.extraMs = 0
    return this.cell !== before
  }

  #begin(trace: DriveTrace): void {
    this.#trace = trace
    this.#row = 0
    this.#measuredAtS = Number.NEGATIVE_INFINITY
    this.cell = this.#cells.get(trace.cells.find(cell => cell !== '') ?? '') ?? -1
  }

  /** The fifth percentile: the RTT of this route under good conditions. */
  #floorOf(trace: DriveTrace): number {
    const known = this.#floors.get(trace)
    if (known !== undefined) return known
    const sorted = trace.rttMs.filter(rtt => !Number.isNaN(rtt)).sort()
    const floor = sorted[Math.floor(sorted.length * 0.05)] ?? 0
    this.#floors.set(trace, floor)
    return floor
  }
}
