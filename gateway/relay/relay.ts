// From a JOIN to a splice: admits a source site's new stream, opens a stream to the target site, and joins both.
// Enters: a stream of an authenticated site, positioned after its JOIN frame. Leaves: nothing; it ends with the stream.
// Always holds: a rejected stream is reset and counted, and the target gets no message about it; the target receives
// the same JOIN.
import { within } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import type { Join } from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import { encodeFrame } from '../../wire/frame.ts'
import type { Log } from '../../wire/log.ts'
import type { Direction } from '../../wire/roles.ts'
import { type Placing, placingOf } from '../../wire/roles.ts'
import { toJson } from '../../wire/schema.ts'
import { FRAME } from '../../wire/types.ts'
import type { Sessions } from './sessions.ts'
import { splice } from './splice.ts'

const OPEN_MS = 10_000
/**
 * The minimum rate: a stream with less than MIN_BYTES (four of the smallest records) in this time is not part of a
 * migration. The longest pauses of an honest stream are the target's load (2 min) and its answer to an offer (1 min);
 * heartbeats detect dead connections much sooner.
 */
const IDLE_MS = 5 * 60_000
const MIN_BYTES = 4096

export type RelayOptions = {
  sessions: Sessions
  /** Opens a stream to a site. SITE_OFFLINE. */
  openTo(site: string, placing: Placing): Promise<Stream>
  onBytes(direction: Direction, bytes: number, sites: { source: string; target: string }): void
  onRefused(code: string): void
  /** Tests only: receives every relayed byte, to prove that the gateway cannot read it. */
  tap?: ((sessionId: string, index: number, direction: Direction, bytes: Uint8Array) => void) | undefined
  idleMs?: number | undefined
  log: Log
}

/** Serves one joined stream to its end. Never throws: an error resets the stream. */
export async function relayStream(join: Join, site: string, stream: Stream, options: RelayOptions): Promise<void> {
  const { sessions, onBytes, onRefused, tap, idleMs = IDLE_MS, log } = options
  let permit: ReturnType<Sessions['admit']>
  try {
    permit = sessions.admit(join, site)
  } catch (thrown) {
    const error = toGodwitError(thrown)
    log.warn('JOIN rejected', { site, ...join, error })
    onRefused(error.code)
    return stream.reset(error.code)
  }
  const sites = { source: site, target: permit.target }
  try {
    const target = await openTarget(permit.target, join, options)
    await splice(stream, target, {
      signal: permit.signal,
      idleMs,
      minBytes: MIN_BYTES,
      onChunk(direction, chunk) {
        permit.count(direction, chunk.length)
        onBytes(direction, chunk.length, sites)
        tap?.(join.sessionId, join.index, direction, chunk)
      },
    })
  } catch (thrown) {
    const error = toGodwitError(thrown)
    log.debug('relay stream failed', { ...join, error })
    stream.reset(error.code)
  } finally {
    permit.release()
  }
}

async function openTarget(site: string, join: Join, { openTo }: RelayOptions): Promise<Stream> {
  const opening = openTo(site, placingOf(join.index))
  const stream = await within(opening, { ms: OPEN_MS, what: `a stream to site ${site}` }).catch(error => {
    opening.then(late => late.reset('too late')).catch(() => {})
    throw error
  })
  try {
    await within(stream.write(encodeFrame(FRAME.JOIN, toJson(join))), { ms: OPEN_MS, what: `JOIN to site ${site}` })
    return stream
  } catch (error) {
    stream.reset('JOIN failed')
    throw error instanceof GodwitError ? error : new GodwitError('STREAM_RESET', 'JOIN could not be written', { cause: error })
  }
}
