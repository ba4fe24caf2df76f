// Migrations as handoffs: status by phase, progress once a second, one result. No network here: `say` takes what is to be said.
// Enters: events of migrations. Leaves: payloads. Always holds: a handoff's phase never goes back; its status stays for a day after its end,
// then it is taken away; a result is said once, by the process that saw the end.
import type { MigrationRecord, PrestageRecord } from '../../../wire/admin.ts'
import type { MigrationProgress } from '../../../wire/control.ts'
import type { Log } from '../../../wire/log.ts'
import type { ControlHost } from '../host.ts'
import type { Say } from './announcer.ts'
import { prestageStatusOf, progressOf, type RoundTrips, resultOf, statusOf } from './facts.ts'
import { PHASES, phaseOf } from './phases.ts'

export const STATUS_KEPT_MS = 24 * 3_600_000
const PROGRESS_EVERY_MS = 1_000
/** A little less, or a node that reports once a second would be heard every other second. */
const SLACK_MS = 150

type Handoff = {
  seq: number
  progressAtMs: number
  overAtMs: number | undefined
  traceparent: string | undefined
  bytesMax: number | undefined
}

export type HandoffsOptions = { host: ControlHost; say: Say; source: string; rtts: (record: MigrationRecord) => RoundTrips; log: Log }

export class Handoffs {
  readonly #options: HandoffsOptions
  readonly #all = new Map<string, Handoff>()

  constructor(options: HandoffsOptions) {
    this.#options = options
  }

  /** What is known when the plane begins: statuses that may still stand at the broker. */
  begin(): void {
    const nowMs = this.#options.host.clock.now()
    for (const record of this.#options.host.migrations()) {
      if (record.outcome !== null && nowMs - record.updatedAt > STATUS_KEPT_MS)
        this.#options.say('status', { handoffId: record.migrationId }, null)
      else this.#status(record)
    }
  }

  /** What a command asked for, before its first event. */
  note(handoffId: string, { traceparent, bytesMax }: Partial<Pick<Handoff, 'traceparent' | 'bytesMax'>>): void {
    Object.assign(this.#of(handoffId), { traceparent, bytesMax })
  }

  changed(record: MigrationRecord): void {
    const { say, source, rtts } = this.#options
    const wasOver = this.#all.get(record.migrationId)?.overAtMs !== undefined
    this.#status(record)
    if (record.outcome === null || wasOver) return
    const { traceparent } = this.#of(record.migrationId)
    const event = resultOf(record, { source, rtt: rtts(record), notes: { traceparent } })
    say('result', { handoffId: record.migrationId }, event, { traceparent })
  }

  /** What is used goes on as a migration under the same id; its statuses are those of the handoff. */
  prestage(record: PrestageRecord): void {
    const { handoffId, outcome } = record
    if (outcome === 'used') return
    const handoff = this.#of(handoffId)
    const phase = outcome === null ? 'prestaging' : outcome === 'refused' ? 'failed' : 'cancelled'
    handoff.seq = PHASES[phase].seq
    if (outcome !== null) handoff.overAtMs = record.updatedAt
    this.#options.say('status', { handoffId }, prestageStatusOf(record, phase))
  }

  progress(record: MigrationRecord, progress: MigrationProgress): void {
    if (progress.side !== 'source') return
    this.#status(record)
    const { host, say } = this.#options
    const handoff = this.#of(record.migrationId)
    this.#holdToBudget(record, progress, handoff)
    const nowMs = host.clock.now()
    if (nowMs - handoff.progressAtMs < PROGRESS_EVERY_MS - SLACK_MS) return
    handoff.progressAtMs = nowMs
    say('progress', { handoffId: record.migrationId }, progressOf(progress, nowMs))
  }

  /** Its record is gone. */
  forget(handoffId: string): void {
    this.#all.delete(handoffId)
    this.#options.say('status', { handoffId }, null)
  }

  /** Takes away the statuses of what ended a day ago. */
  tidy(): void {
    const nowMs = this.#options.host.clock.now()
    for (const [handoffId, { overAtMs }] of this.#all)
      if (overAtMs !== undefined && nowMs - overAtMs > STATUS_KEPT_MS) this.forget(handoffId)
  }

  #of(handoffId: string): Handoff {
    let handoff = this.#all.get(handoffId)
    if (!handoff) {
      handoff = { seq: 0, progressAtMs: 0, overAtMs: undefined, traceparent: undefined, bytesMax: undefined }
      this.#all.set(handoffId, handoff)
    }
    return handoff
  }

  #status(record: MigrationRecord): void {
    const handoff = this.#of(record.migrationId)
    const phase = phaseOf(record)
    const { seq, over } = PHASES[phase]
    if (seq <= handoff.seq) return
    handoff.seq = seq
    if (over) handoff.overAtMs = record.updatedAt
    const { traceparent } = handoff
    this.#options.say('status', { handoffId: record.migrationId }, statusOf(record, phase, { traceparent }), { traceparent })
  }

  #holdToBudget(record: MigrationRecord, { wireBytes = 0 }: MigrationProgress, handoff: Handoff): void {
    const { bytesMax } = handoff
    if (bytesMax === undefined || wireBytes <= bytesMax || phaseOf(record) !== 'precopy') return
    handoff.bytesMax = undefined
    const { host, log } = this.#options
    log.info('a handoff is cancelled: it has used up its bytes', { handoffId: record.migrationId, bytesMax, wireBytes })
    host.cancel(record.migrationId).catch(error => log.warn('it could not be cancelled', { handoffId: record.migrationId, error }))
  }
}
