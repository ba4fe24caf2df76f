// Results that the gateway must hear: each is sent until it is answered, across reconnects.
// Enters: results of migrations. Leaves: the same, at least once (the gateway takes them idempotently).
// Always holds: at most one delivery of a result runs at a time; what waits is bounded by the number of migrations a node can have had
// while the gateway was away; the newest result of a (migration, side) is the one that is sent.
import { sleep } from '../../ops/deadline.ts'
import type { MigrationResult } from '../../wire/control.ts'
import { type ErrorCode, GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'

const WAITING_MAX = 1024
const RETRY_MS = 2_000
/** The next flush comes with the link. */
const OFFLINE = new Set<ErrorCode>(['CONNECTION_LOST', 'GATEWAY_UNREACHABLE', 'STREAM_RESET'])

export type Outbox = {
  add(result: MigrationResult): void
  /** Migrations with an unanswered result: to the gateway these are still this node's business. */
  migrationIds(): string[]
  /** Sends all that waits; call it whenever the link has come up. */
  flush(): Promise<void>
}

export function createOutbox(send: (result: MigrationResult) => Promise<unknown>, log: Log, signal: AbortSignal): Outbox {
  const waiting = new Map<string, MigrationResult>()
  let flushing: Promise<void> | undefined

  /** The outcome matters more than the report: if it is the report that cannot pass, the outcome still must. */
  function strip(key: string, result: MigrationResult): void {
    if (waiting.get(key) !== result) return
    const { report, ...bare } = result
    if (report) waiting.set(key, bare)
    else waiting.delete(key)
  }
  async function deliver(key: string, result: MigrationResult): Promise<'next' | 'offline'> {
    try {
      await send(result)
      if (waiting.get(key) === result) waiting.delete(key)
    } catch (thrown) {
      const error = toGodwitError(thrown)
      if (OFFLINE.has(error.code)) return 'offline'
      log.warn('a result was not taken', { migrationId: result.migrationId, error })
      if (error.code === 'FRAME_MALFORMED' || error.code === 'LIMIT_EXCEEDED') {
        strip(key, result)
        return 'next'
      }
      await sleep(RETRY_MS, signal).catch(() => {})
    }
    return 'next'
  }
  async function drain(): Promise<void> {
    while (waiting.size > 0) {
      for (const [key, result] of waiting) {
        if (signal.aborted || (await deliver(key, result)) === 'offline') return
      }
    }
  }
  const flush = async (): Promise<void> => {
    flushing ??= drain().finally(() => {
      flushing = undefined
    })
    await flushing
  }
  return {
    add(result) {
      if (waiting.size >= WAITING_MAX) throw new GodwitError('LIMIT_EXCEEDED', `more than ${WAITING_MAX} results wait for the gateway`)
      waiting.set(`${result.migrationId}/${result.side}`, result)
      flush()
    },
    migrationIds: () => [...new Set([...waiting.values()].map(result => result.migrationId))],
    flush,
  }
}
