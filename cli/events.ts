// Follows the gateway's feed of events. Enters: the gateway, the id of the event that was read last. Leaves: events, in
// order, each once.
// Always holds: a gateway that goes away is asked again with the last id, as long as it was there before; where events
// are missing the gateway's `reset` comes through; an older gateway, which has no feed, is an error that names that.
import { sleep } from '../ops/deadline.ts'
import { type HttpTarget, requestEvents } from '../ops/http-client.ts'
import { type ErrorCode, GodwitError, toGodwitError } from '../wire/errors.ts'
import type { FeedEvent } from '../wire/events.ts'
import { parseJson } from '../wire/schema.ts'

type FollowEventsOptions = {
  target: HttpTarget
  after?: string | undefined
  signal: AbortSignal
  onNote(text: string): void
  /** How long the gateway may be away. Default 60 s. */
  patienceMs?: number
  retryMs?: number
}

const AWAY = new Set<ErrorCode>(['GATEWAY_UNREACHABLE', 'TIMEOUT', 'CONNECTION_LOST'])
/** The gateway sends a comment every 15 s. */
const SILENCE_MS = 45_000

/** Ends when the signal is aborted. VERSION_UNSUPPORTED, GATEWAY_UNREACHABLE. */
export async function* followEvents(options: FollowEventsOptions): AsyncGenerator<{ id: string; event: FeedEvent }> {
  const { target, signal, onNote, patienceMs = 60_000, retryMs = 1000 } = options
  let after = options.after
  let awaySinceMs: number | undefined
  let wasThere = false
  while (!signal.aborted) {
    try {
      const path = `/v1/events${after === undefined ? '' : `?after=${encodeURIComponent(after)}`}`
      for await (const { id, data } of requestEvents({ ...target, path, signal, silenceMs: SILENCE_MS })) {
        wasThere = true
        awaySinceMs = undefined
        after = id
        yield { id, event: parseJson(data, { what: 'event' }) as FeedEvent }
      }
      onNote('the gateway ended the stream of events; reconnecting')
    } catch (thrown) {
      if (signal.aborted) return
      const error = toGodwitError(thrown)
      if (error.code === 'VERSION_UNSUPPORTED') throw tooOld(target)
      if (!wasThere || !AWAY.has(error.code)) throw error
      awaySinceMs ??= performance.now()
      if (performance.now() - awaySinceMs > patienceMs)
        throw new GodwitError(
          'GATEWAY_UNREACHABLE',
          `the gateway has not answered for ${Math.round(patienceMs / 1000)} s: ${error.message}`,
        )
      onNote(`the gateway does not answer (${error.message}); retrying`)
    }
    await sleep(retryMs, signal).catch(() => {})
  }
}

/** It has no such route. */
const tooOld = ({ url }: HttpTarget) =>
  new GodwitError('VERSION_UNSUPPORTED', `the gateway at ${url} has no feed of events: its version is older than this command`, {
    hint: 'upgrade the gateway; godwit status without --watch works with this one',
  })

/** A signal that Ctrl-C aborts. */
export function untilCtrlC(io: { onInterrupt(handle: (count: number) => void): () => void }): { signal: AbortSignal; release(): void } {
  const stop = new AbortController()
  const release = io.onInterrupt(() => stop.abort(new GodwitError('MIGRATION_CANCELLED', 'stopped by the user')))
  return { signal: stop.signal, release }
}
