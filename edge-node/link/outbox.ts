// Results for the gateway: each is sent until it is acknowledged, across reconnects. Enters: results of migrations.
// Leaves: the same, at least once (the gateway handles them idempotently). Always holds: at most one delivery of a
// result at a time; waiting results are bounded, and the oldest is dropped; only the newest result of a (migration,
// side) is sent.
import { sleep } from '../../ops/deadline.ts'
import type { MigrationResult } from '../../wire/control.ts'
import { type ErrorCode, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'

/** Together with running migrations fewer than a site.state may list. */
export const RESULTS_WAITING_MAX = 512
const RETRY_MS = 2_000
/** The next flush follows with the link. */
const OFFLINE = new Set<ErrorCode>(['CONNECTION_LOST', 'GATEWAY_UNREACHABLE', 'STREAM_RESET'])

export type ResultOutbox = {
  add(result: MigrationResult): void
  /** Migrations with an unacknowledged result: the gateway still treats them as running at this node. */
  migrationIds(): string[]
  /** Sends all waiting results; call it whenever the link is established. */
  flush(): Promise<void>
}

export function createResultOutbox(send: (result: MigrationResult) => Promise<unknown>, log: Log, signal: AbortSignal): ResultOutbox {
  const waiting = new Map<string, MigrationResult>()
  let flushing: Promise<void> | undefined
  let isFull = false

  function dropOldest(): void {
    if (!isFull) log.warn('gateway does not acknowledge results: dropping the oldest', { waiting: waiting.size })
    isFull = true
    waiting.delete(waiting.keys().next().value!)
  }

  /** The outcome is more important than the report: if the report is rejected, send the outcome alone. */
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
      log.warn('gateway rejected a result', { migrationId: result.migrationId, error })
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
      const key = `${result.migrationId}/${result.side}`
      // A gateway without acknowledgements must not end this process or fill its memory. It can conclude lost results
      // from the sites of the VMs.
      if (waiting.size >= RESULTS_WAITING_MAX && !waiting.has(key)) dropOldest()
      else isFull = false
      waiting.set(key, result)
      flush().catch(error => log.warn('sending results failed', { error }))
    },
    migrationIds: () => [...new Set([...waiting.values()].map(result => result.migrationId))],
    flush,
  }
}
