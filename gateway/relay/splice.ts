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
// - Faithful: one side's end() becomes the other's (each direction on its own); a reset or a lost connection on either side resets the other.

import type { Stream } from '../../transport/types.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'

export type Direction = 'source-to-target' | 'target-to-source'

export type SpliceOptions = {
  /** Ends the splice: both sides are reset. */
  signal: AbortSignal
  /** Told of every chunk after it was handed on; must not keep it. */
  onChunk: (direction: Direction, chunk: Uint8Array) => void
  /** Neither direction moved a byte for so long: both are reset. */
  idleMs: number
}

/** Resolves when both directions have ended; rejects, both sides reset, with what broke it (or with the signal's reason). */
export async function splice(source: Stream, target: Stream, { signal, onChunk, idleMs }: SpliceOptions): Promise<void> {
  const broken = Promise.withResolvers<never>()
  let movedAt = performance.now()

  async function pump(from: Stream, to: Stream, direction: Direction): Promise<void> {
    for (;;) {
      const chunk = await from.read()
      if (chunk === null) return to.end()
      await to.write(chunk)
      movedAt = performance.now()
      onChunk(direction, chunk)
    }
  }

  const onAbort = () => broken.reject(signal.reason)
  signal.addEventListener('abort', onAbort, { once: true })
  if (signal.aborted) onAbort()
  const watch = setInterval(() => {
    if (performance.now() - movedAt >= idleMs) broken.reject(new GodwitError('TIMEOUT', `no byte moved for ${idleMs} ms`))
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
