// Handoffs as messages: status by phase, progress once a second, one result. No network here: `say` takes the payloads.
// Enters: new phases of handoffs and progress (handoff/handoff.ts reports each phase once, and none goes back). Leaves:
// payloads.
// Always holds: the status of a handoff stays for a day after its end, then it is removed; a result is sent once, by
// the process that saw the end.
import type { MigrationRecord } from '../../../wire/admin.ts'
import type { MigrationProgress } from '../../../wire/control.ts'
import type { HandoffView } from '../../handoff/events.ts'
import type { FrontHost } from '../../handoff/host.ts'
import { PHASES } from '../../handoff/phases.ts'
import type { Say } from './announcer.ts'
import { progressMessage, type RoundTrips, resultMessage, statusMessage } from './facts.ts'

const STATUS_KEPT_MS = 24 * 3_600_000
const PROGRESS_EVERY_MS = 1_000
/** A little less: of a node that reports once a second every report counts. */
const SLACK_MS = 150

type Notes = { progressAtMs: number; traceparent: string | undefined }

type HandoffsOptions = { host: FrontHost; say: Say; source: string; rtts: (record: MigrationRecord) => RoundTrips }

export class Handoffs {
  readonly #options: HandoffsOptions
  readonly #notes = new Map<string, Notes>()
  /** When those ended whose status still stands. */
  readonly #ended = new Map<string, number>()

  constructor(options: HandoffsOptions) {
    this.#options = options
  }

  /** What is known when the plane begins: statuses that may still stand at the broker. */
  begin(): void {
    const { host, say } = this.#options
    const nowMs = host.clock.now()
    for (const handoff of host.handoffs()) {
      const { id, phase, updatedAt } = handoff
      if (PHASES[phase].over && nowMs - updatedAt > STATUS_KEPT_MS) say('status', { handoffId: id }, null)
      else this.#status(handoff)
    }
  }

  /** What the command of this handoff brought, before its first event. */
  note(handoffId: string, traceparent: string | undefined): void {
    this.#of(handoffId).traceparent = traceparent
  }

  /** A handoff has come to a new phase. */
  changed(handoff: HandoffView): void {
    this.#status(handoff)
    const { id, phase, migration } = handoff
    if (!migration || !PHASES[phase].over) return
    const { say, source, rtts } = this.#options
    const { traceparent } = this.#of(id)
    say('result', { handoffId: id }, resultMessage(migration, { source, rtt: rtts(migration), notes: { traceparent } }), { traceparent })
  }

  progress(record: MigrationRecord, progress: MigrationProgress): void {
    if (progress.side !== 'source') return
    const { host, say } = this.#options
    const notes = this.#of(record.migrationId)
    const nowMs = host.clock.now()
    if (nowMs - notes.progressAtMs < PROGRESS_EVERY_MS - SLACK_MS) return
    notes.progressAtMs = nowMs
    say('progress', { handoffId: record.migrationId }, progressMessage(progress, nowMs))
  }

  /** Its record is gone. */
  forget(handoffId: string): void {
    this.#notes.delete(handoffId)
    this.#ended.delete(handoffId)
    this.#options.say('status', { handoffId }, null)
  }

  /** Removes the statuses of handoffs that ended a day ago. */
  tidy(): void {
    const nowMs = this.#options.host.clock.now()
    for (const [handoffId, atMs] of this.#ended) if (nowMs - atMs > STATUS_KEPT_MS) this.forget(handoffId)
  }

  #of(handoffId: string): Notes {
    let notes = this.#notes.get(handoffId)
    if (!notes) {
      notes = { progressAtMs: 0, traceparent: undefined }
      this.#notes.set(handoffId, notes)
    }
    return notes
  }

  #status(handoff: HandoffView): void {
    const { id, phase, updatedAt } = handoff
    if (PHASES[phase].over) this.#ended.set(id, updatedAt)
    const traceparent = this.#notes.get(id)?.traceparent
    this.#options.say('status', { handoffId: id }, statusMessage(handoff, { traceparent }), { traceparent })
  }
}
