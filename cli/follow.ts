// Follows a migration to its end through the gateway's event stream. Enters: the gateway and an id. Leaves: progress, then the final record.
// Always holds: a gateway that goes away for a while (restart, link) is asked again; the migration's own end is never guessed.

import { sleep } from '../ops/deadline.ts'
import { type HttpTarget, requestJson, requestLines } from '../ops/http-client.ts'
import type { MigrationEvent, MigrationRecord } from '../wire/admin.ts'
import type { MigrationProgress } from '../wire/control.ts'
import { type ErrorCode, GodwitError, toGodwitError } from '../wire/errors.ts'

export type FollowOptions = {
  target: HttpTarget
  migrationId: string
  signal: AbortSignal
  onProgress(progress: MigrationProgress): void
  onNote(text: string): void
  /** How long the gateway may be away. Default 60 s. */
  patienceMs?: number
  retryMs?: number
}

const AWAY = new Set<ErrorCode>(['GATEWAY_UNREACHABLE', 'TIMEOUT', 'CONNECTION_LOST'])

/** The final record. GATEWAY_UNREACHABLE when the gateway stays away; the signal's reason when it is aborted. */
export async function followMigration(options: FollowOptions): Promise<MigrationRecord> {
  const { target, migrationId, signal, onNote, patienceMs = 60_000, retryMs = 1000 } = options
  let awaySinceMs: number | undefined
  for (;;) {
    try {
      const record = await readEvents(options)
      if (record) return record
      // The stream ended without an end: the gateway may have just restarted.
      const now = await requestJson<MigrationRecord>({ ...target, path: `/v1/migrations/${migrationId}`, signal })
      if (now.outcome !== null) return now
      awaySinceMs = undefined
    } catch (thrown) {
      const error = toGodwitError(thrown)
      if (signal.aborted || !AWAY.has(error.code)) throw signal.aborted ? signal.reason : error
      awaySinceMs ??= performance.now()
      if (performance.now() - awaySinceMs > patienceMs) {
        const message = `the gateway went away while migration ${migrationId} was under way; the sites may finish it without it`
        throw new GodwitError('GATEWAY_UNREACHABLE', message, { cause: error, hint: 'see godwit status once the gateway is back' })
      }
      onNote(`the gateway does not answer (${error.message}); trying again`)
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

/** The target repeats what the source says, but for the end. */
const isShown = ({ side, phase }: MigrationProgress): boolean => side === 'source' || phase === 'resuming'
