// Follows a migration to its end through the gateway's event stream. Enters: the gateway and an id. Leaves: progress,
// then the final record. Always holds: a gateway that does not answer for a while (restart, link) is asked again; the
// end of the migration is never guessed.

import { sleep } from '../ops/deadline.ts'
import { type HttpTarget, requestJson, requestLines } from '../ops/http-client.ts'
import type { MigrationEvent, MigrationRecord } from '../wire/admin.ts'
import type { MigrationProgress } from '../wire/control.ts'
import { type ErrorCode, GodwitError, toGodwitError } from '../wire/errors.ts'

type FollowOptions = {
  target: HttpTarget
  migrationId: string
  signal: AbortSignal
  onProgress(progress: MigrationProgress): void
  onNote(text: string): void
  /** How long the gateway may be unreachable. Default 60 s. */
  patienceMs?: number
  retryMs?: number
}

const AWAY = new Set<ErrorCode>(['GATEWAY_UNREACHABLE', 'TIMEOUT', 'CONNECTION_LOST'])

/** The final record. GATEWAY_UNREACHABLE if the gateway stays unreachable; the signal's reason if it is aborted. */
export async function followMigration(options: FollowOptions): Promise<MigrationRecord> {
  const { target, migrationId, signal, onNote, patienceMs = 60_000, retryMs = 1000 } = options
  let awaySinceMs: number | undefined
  for (;;) {
    try {
      const record = await readEvents(options)
      if (record) return record
      // The stream ended without a final event: the gateway may have restarted.
      const now = await requestJson<MigrationRecord>({ ...target, path: `/v1/migrations/${migrationId}`, signal })
      if (now.outcome !== null) return now
      awaySinceMs = undefined
    } catch (thrown) {
      const error = toGodwitError(thrown)
      if (signal.aborted || !AWAY.has(error.code)) throw signal.aborted ? signal.reason : error
      awaySinceMs ??= performance.now()
      if (performance.now() - awaySinceMs > patienceMs) {
        const message = `lost the gateway during migration ${migrationId}; the sites may complete it without the gateway`
        throw new GodwitError('GATEWAY_UNREACHABLE', message, { cause: error, hint: 'run godwit status when the gateway answers again' })
      }
      onNote(`the gateway does not answer (${error.message}); retrying`)
    }
    await sleep(retryMs, signal)
  }
}

async function readEvents({ target, migrationId, signal, onProgress }: FollowOptions): Promise<MigrationRecord | undefined> {
  const path = `/v1/migrations/${migrationId}/events`
  for await (const event of requestLines<MigrationEvent>({ ...target, path, signal })) {
    if (event.event === 'end') return event.migration
    if (event.event === 'progress' && isShown(event.progress)) onProgress(event.progress)
  }
  return undefined
}

/** The target repeats the progress of the source, except for the end and for the files that it reads itself. */
const isShown = ({ side, phase }: MigrationProgress): boolean => side === 'source' || phase === 'resuming' || phase === 'hashing'
