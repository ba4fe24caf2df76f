// The gate before the transport: a record waits here until the flight has room and it is its class's turn (shares.ts).
// Within a class the first to come is the first to go, so streams share the path evenly.
// Enters: permission requests and acknowledgements. Always holds: bytes in flight <= the flight's window (one record
// apart), and the urgent share.
import { GodwitError } from '../../wire/errors.ts'
import type { TrafficClass } from '../../wire/roles.ts'
import type { Flight } from './flight.ts'
import { Shares, type SharesOf } from './shares.ts'

export type Gate = {
  /**
   * Resolves when `bytes` of a class may be handed to the transport; they count as in flight from then on. Rejects once
   * the gate is closed.
   */
  pass(bytes: number, name?: TrafficClass): Promise<void>
  /** The target has received `total` bytes in all. */
  acked(total: number): void
  readonly flight: Flight
  /** ms since the last acknowledgement while something is in flight, else 0. */
  stalledMs(): number
  close(error: unknown): void
}

/** Guest memory is alone on its path: it has the whole window. */
const PAGES_ONLY: SharesOf = { pages: 1 }

export function createGate(flight: Flight, now: () => number, sharesOf = PAGES_ONLY): Gate {
  const shares = new Shares<{ open: () => void; fail: (error: unknown) => void }>(sharesOf)
  let closed: { error: unknown } | undefined
  let progressAtMs = now()

  const admit = (bytes: number) => {
    if (flight.inFlightBytes === 0) progressAtMs = now()
    flight.sent(bytes, now())
  }
  const drain = () => {
    for (let next = shares.next(flight); next; next = shares.next(flight)) {
      admit(next.bytes)
      next.item.open()
    }
  }
  return {
    flight,
    async pass(bytes, name = 'pages') {
      if (closed) throw closed.error
      await new Promise<void>((open, fail) => {
        shares.add(name, bytes, { open, fail })
        drain()
      })
    },
    acked(total) {
      if (total > flight.sentBytes) throw new GodwitError('FRAME_MALFORMED', 'acknowledgement of bytes that were never sent')
      if (total > flight.ackedBytes) progressAtMs = now()
      flight.acked(total, now())
      shares.acked(total)
      drain()
    },
    stalledMs: () => (flight.inFlightBytes > 0 ? now() - progressAtMs : 0),
    close(error) {
      closed ??= { error }
      for (const { fail } of shares.clear()) fail(closed.error)
    },
  }
}
