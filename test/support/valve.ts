// A valve in the gateway of a test: holds what it relays towards a target, so that a test has a migration stand still
// at a known place.
// Enters: an engine to listen with. Leaves: the same engine; relay streams that the gateway opens (with a JOIN first)
// pass the valve; service streams are let by.
// Always holds: nothing is lost or reordered; a stream that is reset while it waits is let go.
import type { Connection, Engine, Stream } from '../../transport/types.ts'
import { FRAME_HEADER_BYTES } from '../../wire/frame.ts'
import { FRAME } from '../../wire/types.ts'
import { wrapEngine } from './wrap-engine.ts'

export type Valve = {
  wrap(engine: Engine): Engine
  /** From now on streams of these indexes wait, once `afterBytes` more have passed on them together. */
  hold(indexes: (index: number) => boolean, options?: { afterBytes?: number }): void
  /** Resolves when something has come to wait at the valve. */
  reached(): Promise<void>
  open(): void
}

type Held = { indexes: (index: number) => boolean; bytesLeft: number; opened: Promise<void>; open: () => void }

/** The index in a JOIN frame; -1 for any other. */
const indexOf = (frame: Uint8Array): number =>
  frame[4] === FRAME.JOIN ? JSON.parse(Buffer.from(frame.subarray(FRAME_HEADER_BYTES)).toString('utf8')).index : -1

export function createValve(): Valve {
  let held: Held | undefined
  let arrival = Promise.withResolvers<void>()

  const pass = async (index: number, bytes: number, reset: Promise<void>): Promise<void> => {
    if (!held?.indexes(index)) return
    held.bytesLeft -= bytes
    if (held.bytesLeft >= 0) return
    arrival.resolve()
    await Promise.race([held.opened, reset])
  }
  const wrapStream = (stream: Stream): Stream => {
    let index: number | undefined
    const reset = Promise.withResolvers<void>()
    return {
      id: stream.id,
      async write(bytes) {
        if (index === undefined) index = indexOf(bytes)
        else await pass(index, bytes.length, reset.promise)
        await stream.write(bytes)
      },
      end: () => stream.end(),
      read: () => stream.read(),
      reset(reason) {
        stream.reset(reason)
        reset.resolve()
      },
    }
  }
  const wrapConnection = (connection: Connection): Connection => ({
    engine: connection.engine,
    remoteAddress: connection.remoteAddress,
    binding: connection.binding,
    closed: connection.closed,
    openStream: async () => wrapStream(await connection.openStream()),
    acceptStream: () => connection.acceptStream(),
    stats: () => connection.stats(),
    trust: () => connection.trust?.(),
    close: reason => connection.close(reason),
  })
  return {
    wrap: engine => wrapEngine(engine, wrapConnection),
    hold(indexes, { afterBytes = 0 } = {}) {
      const { promise, resolve } = Promise.withResolvers<void>()
      arrival = Promise.withResolvers<void>()
      held = { indexes, bytesLeft: afterBytes, opened: promise, open: resolve }
    },
    reached: () => arrival.promise,
    open() {
      held?.open()
      held = undefined
    },
  }
}
