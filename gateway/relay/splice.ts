// The blind splice: joins two streams. The gateway does nothing else with the data of a VM.
//
//        source site                    gateway                     target site
//   sealed records ->  source.read() -> one chunk -> target.write()  -> sealed records
//   sealed records <-  source.write() <- one chunk <- target.read()  <- sealed records
//
// Enters: two streams whose JOIN frames have been read. Leaves: the same bytes, in order, in both directions. Always
// holds:
// - Blind: no byte is interpreted; the gateway has no key to decrypt them.
// - Bounded: one chunk for each direction. The next read waits for the last write, so a slow reader slows its writer
//   through the gateway, and the gateway's memory does not depend on the size of the VM, the speed of the sites or the
//   distance between them.
// - Minimum rate: a stream with nearly no data is closed.
// - Faithful: one side's end() becomes the other's (each direction on its own); a reset or a lost connection on either
//   side resets the other.

import type { Stream } from '../../transport/types.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Direction } from '../../wire/roles.ts'

type SpliceOptions = {
  /** Ends the splice: both sides are reset. */
  signal: AbortSignal
  /** Called with every chunk after it was forwarded; must not keep it. */
  onChunk: (direction: Direction, chunk: Uint8Array) => void
  /** Both sides are reset if both directions together moved less than `minBytes` in this time. */
  idleMs: number
  /** Default 1. */
  minBytes?: number
}

/**
 * Resolves when both directions have ended; rejects with the error (or the signal's reason) after resetting both sides.
 */
export async function splice(source: Stream, target: Stream, { signal, onChunk, idleMs, minBytes = 1 }: SpliceOptions): Promise<void> {
  const broken = Promise.withResolvers<never>()
  /** Bytes of the current quarter of the window, and of the three before it. */
  const quarters = [0, 0, 0, 0]
  const startedAt = performance.now()

  async function pump(from: Stream, to: Stream, direction: Direction): Promise<void> {
    for (;;) {
      const chunk = await from.read()
      if (chunk === null) return to.end()
      await to.write(chunk)
      quarters[0]! += chunk.length
      onChunk(direction, chunk)
    }
  }

  const onAbort = () => broken.reject(signal.reason)
  signal.addEventListener('abort', onAbort, { once: true })
  if (signal.aborted) onAbort()
  const watch = setInterval(() => {
    const moved = quarters.reduce((sum, bytes) => sum + bytes, 0)
    quarters.pop()
    quarters.unshift(0)
    if (performance.now() - startedAt >= idleMs * 0.9 && moved < minBytes)
      broken.reject(new GodwitError('TIMEOUT', `the stream moved ${moved} bytes in ${idleMs} ms, the minimum is ${minBytes}`))
  }, idleMs / 4)

  try {
    const forth = pump(source, target, 'source-to-target')
    const back = pump(target, source, 'target-to-source')
    await Promise.race([Promise.all([forth, back]), broken.promise])
  } catch (thrown) {
    const error = toGodwitError(thrown, 'STREAM_RESET')
    source.reset(error.code)
    target.reset(error.code)
    throw error
  } finally {
    clearInterval(watch)
    signal.removeEventListener('abort', onAbort)
  }
}
