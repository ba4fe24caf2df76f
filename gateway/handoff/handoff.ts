// A handoff: one id from the proposal over pre-staging and migration to the end; and the set of all handoffs.
// Enters: handoffs that pre-staging (prestages.ts) and migrations (migrations.ts) begin, and events. Leaves: effects to
// perform, in order; an event for each new phase; views for the fronts.
// Always holds: a state changes only by the table (transitions.ts); a VM has at most one handoff before its migration;
// a phase never goes back, and each is reported once.
import type { MigrationRecord, MigrationState, PrestageRecord } from '../../wire/admin.ts'
import type { MigrationProgress, Side, SignedCommand } from '../../wire/control.ts'
import type { NodeLink } from '../sites/sites.ts'
import type { StoredMigration } from '../store/records.ts'
import type { GatewayEvent, HandoffView } from './events.ts'
import { PHASES, type Phase, phaseOf } from './phases.ts'
import type { RoomWish } from './room.ts'
import { type Effect, type HandoffEventName, type HandoffState, isOver, isPrestaged, stepHandoff } from './transitions.ts'
import type { Watchers } from './watchers.ts'

/** What pre-staging knows: the record that the admin API shows, and the question that is open. */
export type Room = {
  record: PrestageRecord
  wish: RoomWish
  lease: NodeJS.Timeout | undefined
  /** Resolves when the target holds room. */
  asking: Promise<void>
  stuck: AbortController
}

/** What the migration knows. */
export type MigrationRun = {
  /** As it is on the disk, but for the state. */
  record: Omit<StoredMigration, 'state'>
  /** The signed command behind it, for the source; not on the disk: after a restart no source is told any more. */
  command: SignedCommand | undefined
  /** Beyond so many bytes on the wire it is cancelled, before its switchover. */
  maxBytes: number | undefined
  /** How many results of each side were new. */
  words: Record<Side, number>
  watchers: Watchers
  progress: MigrationProgress | undefined
  /** The link over which each side was told: as long as it lives, the side's own result is what counts. */
  told: { source?: NodeLink; target?: NodeLink }
  cancelling: Promise<void>
  queue: Promise<unknown>
  grace: NodeJS.Timeout | undefined
}

export type Handoff = {
  readonly id: string
  readonly vm: string
  readonly epoch: number
  readonly source: string
  readonly target: string
  state: HandoffState
  /** The phase that was reported last. */
  phase: Phase | undefined
  room: Room | undefined
  run: MigrationRun | undefined
}
export type Prestaged = Handoff & { room: Room }
export type Migrating = Handoff & { run: MigrationRun }

const hasRoom = (handoff: Handoff): handoff is Prestaged => handoff.room !== undefined
const hasRun = (handoff: Handoff): handoff is Migrating => handoff.run !== undefined

export class HandoffSet {
  readonly #all = new Map<string, Handoff>()
  readonly #onEvent: (event: GatewayEvent) => void

  constructor(onEvent: (event: GatewayEvent) => void) {
    this.#onEvent = onEvent
  }

  /** Adds one in state PROPOSED, or in the state that the disk or a site says it has. */
  add(facts: Pick<Handoff, 'id' | 'vm' | 'epoch' | 'source' | 'target'> & { state?: MigrationState }): Handoff {
    const handoff: Handoff = { state: 'PROPOSED', ...facts, phase: undefined, room: undefined, run: undefined }
    this.#all.set(handoff.id, handoff)
    return handoff
  }

  /** An earlier process reported the phase that it has now. */
  restored(handoff: Handoff): void {
    handoff.phase = handoffPhase(handoff)
  }

  has(id: string): boolean {
    return this.#all.has(id)
  }

  remove({ id }: Handoff): void {
    this.#all.delete(id)
  }

  /** Those without a migration yet. */
  prestaged(): Prestaged[] {
    return [...this.#all.values()].filter(hasRoom).filter(({ state }) => isPrestaged(state))
  }

  prestagedOf(vm: string): Prestaged | undefined {
    return this.prestaged().find(handoff => handoff.vm === vm)
  }

  /** Those with a migration, the ended ones among them. */
  migrations(): Migrating[] {
    return [...this.#all.values()].filter(hasRun)
  }

  migration(id: string): Migrating | undefined {
    const found = this.#all.get(id)
    return found && hasRun(found) ? found : undefined
  }

  unfinished(): Migrating[] {
    return this.migrations().filter(({ state }) => !isOver(state))
  }

  /**
   * The id of the migration that the VM is in. A hand-over that only its source reported counts while the VM's name
   * belongs to one of its two sites.
   */
  underWay(vm: string, owner: string | undefined): string | undefined {
    const isOfOwner = ({ run, source, target }: Migrating) => run.record.isLearned !== true || source === owner || target === owner
    return this.unfinished().find(handoff => handoff.vm === vm && isOfOwner(handoff))?.id
  }

  /** Takes the handoff to its next state. Gives what is to be done now, in order. MIGRATION_LATE, MIGRATION_STATE. */
  step(handoff: Handoff, event: HandoffEventName): Effect[] {
    const { state, effects } = stepHandoff(handoff.state, event)
    handoff.state = state
    return effects
  }

  /** Reports the phase, if it is a new one. */
  report(handoff: Handoff): void {
    const { phase: before } = handoff
    const phase = handoffPhase(handoff)
    if (before !== undefined && PHASES[phase].seq <= PHASES[before].seq) return
    handoff.phase = phase
    this.#onEvent({ event: 'handoff', handoff: viewOf(handoff), before })
  }

  /** Those that are pre-staged, then the newest first. */
  views(): HandoffView[] {
    const newest = this.migrations().sort((a, b) => b.run.record.plan.createdAt - a.run.record.plan.createdAt)
    return [...this.prestaged(), ...newest].map(viewOf)
  }
}

function handoffPhase({ state, run }: Handoff): Phase {
  return phaseOf({ state, outcome: run?.record.outcome ?? null, ...(run?.progress ? { progress: run.progress } : {}) })
}

function viewOf(handoff: Handoff): HandoffView {
  const { id, vm, epoch, source, target, room, run } = handoff
  const phase = handoffPhase(handoff)
  const { updatedAt, error } = run?.record ?? room!.record
  const untilMs = phase === 'prestaging' ? room?.record.untilMs : undefined
  return { id, vm, epoch, source, target, phase, updatedAt, untilMs, error, migration: hasRun(handoff) ? recordOf(handoff) : undefined }
}

/** As the admin API shows a migration. */
export function recordOf({ state, run: { record, progress } }: Migrating): MigrationRecord {
  const { plan, outcome, error, report, updatedAt } = record
  const { migrationId, vm, source, target, method, createdAt } = plan
  const optional = { ...(error ? { error } : {}), ...(report ? { report } : {}), ...(progress ? { progress } : {}) }
  return { migrationId, vm, source, target, method, state: state as MigrationState, outcome, plan, createdAt, updatedAt, ...optional }
}

/** As the disk has it. */
export const storedOf = ({ state, run }: Migrating): StoredMigration => ({ ...run.record, state: state as MigrationState })
