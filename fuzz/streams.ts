// A scripted Stream that records writes. Enters: chunks to be read. Leaves: writes, end, reset.

import type { Stream } from '../transport/types.ts'
import { GodwitError } from '../wire/errors.ts'

type ScriptedStream = Stream & { readonly written: Uint8Array[]; readonly resets: string[]; readonly ended: boolean }

/** Reads return these chunks, then the end. */
export function scriptedStream(chunks: readonly Uint8Array[]): ScriptedStream {
  const waiting = [...chunks]
  const written: Uint8Array[] = []
  const resets: string[] = []
  let ended = false
  return {
    id: 1,
    written,
    resets,
    get ended() {
      return ended
    },
    async write(bytes) {
      if (resets.length > 0) throw new GodwitError('STREAM_RESET', 'reset')
      written.push(bytes.slice())
    },
    async end() {
      ended = true
    },
    async read() {
      if (resets.length > 0) throw new GodwitError('STREAM_RESET', 'reset')
      return waiting.shift() ?? null
    },
    reset(reason = 'reset') {
      resets.push(reason)
    },
  }
}
