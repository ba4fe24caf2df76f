// A Stream that says what a script says and keeps what is written to it. Enters: chunks to be read. Leaves: what was written, ended, reset.

import type { Stream } from '../transport/types.ts'
import { GodwitError } from '../wire/errors.ts'

export type ScriptedStream = Stream & { readonly written: Uint8Array[]; readonly resets: string[]; readonly ended: boolean }

/** Reads give these chunks, then the end. */
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
