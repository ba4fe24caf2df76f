// The gate before the transport: a record waits here until the flight has room. First come, first served, so streams share the path evenly.
// Enters: permission requests and acknowledgements. Always holds: bytes in flight <= the flight's window (one record apart).
import { GodwitError } from '../../wire/errors.ts'
import type { Flight } from './flight.ts'

export type Gate = {
  /** Resolves when `bytes` may be handed to the transport; they count as in flight from then on. Rejects once the gate is closed. */
  pass(bytes: number): Promise<void>
  /** The target has received `total` bytes in all. */
  acked(total: number): void
  readonly flight: Flight
  /** ms since the last acknowledgement while something is in flight, else 0. */
  stalledMs(): number
  close(error: unknown): void
}

export function createGate(flight: Flight, now: () => number): Gate {
  const waiting: { bytes: number; open: () => void; fail: (error: unknown) => void }[] = []
  let closed: { error: unknown } | undefined
  let progressAtMs = now()

  const admit = (bytes: number) => {
    if (flight.inFlightBytes === 0) progressAtMs = now()
    flight.sent(bytes, now())
  }
  const drain = () => {
    while (waiting[0] && flight.maySend(waiting[0].bytes)) {
      const next = waiting.shift()!
      admit(next.bytes)
      next.open()
    }
  }
  return {
    flight,
    async pass(bytes) {
      if (closed) throw closed.error
      if (waiting.length === 0 && flight.maySend(bytes)) return admit(bytes)
      await new Promise<void>((open, fail) => waiting.push({ bytes, open, fail }))
    },
    acked(total) {
      if (total > flight.sentBytes) throw new GodwitError('FRAME_MALFORMED', 'acknowledgement of bytes that were never sent')
      if (total > flight.ackedBytes) progressAtMs = now()
      flight.acked(total, now())
      drain()
    },
    stalledMs: () => (flight.inFlightBytes > 0 ? now() - progressAtMs : 0),
    close(error) {
      closed ??= { error }
      for (const { fail } of waiting.splice(0)) fail(closed.error)
    },
  }
}
