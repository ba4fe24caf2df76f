// Writes simulated routes as replay files, one CSV for each user (sim-network/mobility/trace.ts reads them). Enters:
// steps. Leaves: texts. Pure.
import { type DriveTrace, writeTrace } from '../../sim-network/mobility/trace.ts'
import type { World } from '../../sim-network/mobility/world.ts'

/** Users beyond this number are not recorded. */
const USERS_MAX = 200
const ROWS_MAX = 100_000

export class Recorder {
  readonly #rows: number[][] = []
  readonly #cells: string[][] = []

  /** Call after each step of the world. */
  step({ users, map, radio, accessMs, nowMs }: World): void {
    for (let user = 0; user < Math.min(USERS_MAX, users.count); user++) {
      if (this.#rows.length <= user) {
        this.#rows.push([])
        this.#cells.push([])
      }
      const rows = this.#rows[user]!
      if (rows.length >= ROWS_MAX * 4) continue
      const { lat, lon } = map.projection.toGeo({ x: users.x[user]!, y: users.y[user]! })
      rows.push(nowMs / 1000, lat, lon, accessMs[user]!)
      this.#cells[user]!.push(map.cells[radio.serving[user]!]?.name ?? '')
    }
  }

  /** Name and text of each file. */
  files(): { name: string; text: string }[] {
    return this.#rows.map((rows, user) => {
      const column = (at: number) => Float64Array.from({ length: rows.length / 4 }, (_, row) => rows[row * 4 + at]!)
      const rounded = (values: Float64Array, digits: number) => values.map(value => Number(value.toFixed(digits)))
      const trace: DriveTrace = {
        name: `user-${String(user + 1).padStart(3, '0')}.csv`,
        seconds: column(0),
        lat: rounded(column(1), 6),
        lon: rounded(column(2), 6),
        cells: this.#cells[user]!,
        rttMs: rounded(column(3), 2),
      }
      return { name: trace.name, text: writeTrace(trace) }
    })
  }
}
