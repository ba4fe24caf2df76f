// The blind splice: two streams become one. This is all that the gateway ever does with a VM.
//
//        source site                    gateway                     target site
//   sealed records ->  source.read() -> one chunk -> target.write()  -> sealed records
//   sealed records <-  source.write() <- one chunk <- target.read()  <- sealed records
//
// Enters: two streams whose JOIN frames have been read. Leaves: the same bytes, in order, in both directions.
// Always holds:
// - Blind: nothing here looks at a byte; the gateway has no key with which looking would help.
// - Bounded: one chunk a direction. The next read waits for the last write, so a slow reader slows its writer, through the gateway, and the
//   gateway's memory does not depend on the size of the VM, the speed of either side or the distance between them.
// - Moving: a stream on which next to nothing moves is not kept open for ever, however it drips.
// - Faithful: one side's end() becomes the other's (each direction on its own); a reset or a lost connection on either side resets the other.

import type { Stream } from '../../transport/types.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'

export type Direction = 'source-to-target' | 'target-to-source'

export type SpliceOptions = {
  /** Ends the splice: both sides are reset. */
  signal: AbortSignal
  /** Told of every chunk after it was handed on; must not keep it. */
  onChunk: (direction: Direction, chunk: Uint8Array) => void
  /** Both directions together moved less than `minBytes` in so long: both are reset. */
  idleMs: number
  /** Default 1. */
  minBytes?: number
}

/** Resolves when both directions have ended; rejects, both sides reset, with what broke it (or with the signal's reason). */
export async function splice(source: Stream, target: Stream, { signal, onChunk, idleMs, minBytes = 1 }: SpliceOptions): Promise<void> {
  const broken = Promise.withResolvers<never>()
  /** Bytes of this quarter of the window, and of the three before it. */
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
      broken.reject(new GodwitError('TIMEOUT', `${moved} bytes moved in ${idleMs} ms, less than ${minBytes}`))
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
