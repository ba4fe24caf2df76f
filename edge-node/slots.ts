// The table of this node's migrations: one slot for each VM. Enters: plans, and what carries them out. Leaves: who runs, who has ended and may still be asked.
// Always holds: a migration in the table is one that runs; what ends leaves it before its result is reported; a VM is never in two.
import type { MigrationResult, Plan } from '../wire/control.ts'
import { GodwitError } from '../wire/errors.ts'
import type { Asked } from './doubts.ts'
import type { Answering } from './migration/recover.ts'
import type { TargetMigration } from './migration/target.ts'

const ACTIVE_MAX = 32
const ENDED_MAX = 256

export type Entry = {
  side: 'source' | 'target'
  target?: TargetMigration
  cancel(reason?: GodwitError): void
  /** Source only: it has handed the VM over, and is not answered yet. */
  isAsking?: () => boolean
  asked?: () => Asked | undefined
  /** Ends the asking of a hand-over that a person ends. */
  abandon?: () => void
  result: Promise<MigrationResult>
}

export type Running = Omit<Entry, 'result'> & { plan: Plan; done: Promise<void> }
export type Slots = ReturnType<typeof createSlots>

/** One slot for a VM. What runs is named from the first moment (in site.state, or the gateway would take it for lost) until its result is known. */
export function createSlots(onEnd: (running: Running, result: MigrationResult) => void) {
  const entering = new Map<string, Plan>()
  const table = new Map<string, Running>()
  /** Targets that have ended: a source that has not heard the answer asks again. */
  const ended = new Map<string, Running>()
  const earlierLives = new Map<string, Answering>()
  let isClosing = false

  const admit = (plan: Plan) => {
    if (isClosing) throw new GodwitError('SITE_OFFLINE', 'the node is shutting down')
    if (table.has(plan.migrationId) || entering.has(plan.migrationId))
      throw new GodwitError('MIGRATION_STATE', `migration ${plan.migrationId} is known already`)
    const plans = [...entering.values(), ...[...table.values()].map(running => running.plan)]
    if (plans.some(({ vm }) => vm === plan.vm)) throw new GodwitError('MIGRATION_BUSY', `${plan.vm} is migrating already`)
    if (plans.length >= ACTIVE_MAX) throw new GodwitError('LIMIT_EXCEEDED', `${ACTIVE_MAX} migrations run here already`)
  }
  const enter = (plan: Plan, { result, ...entry }: Entry) => {
    const running: Running = { plan, ...entry, done: Promise.resolve() }
    running.done = result.then(value => {
      table.delete(plan.migrationId)
      if (running.target) remember(ended, plan.migrationId, running)
      onEnd(running, value)
    })
    table.set(plan.migrationId, running)
  }
  return {
    /** MIGRATION_BUSY, LIMIT_EXCEEDED, MIGRATION_STATE; otherwise `begin` runs with the slot taken. */
    async take(plan: Plan, begin: () => Promise<Entry>): Promise<void> {
      admit(plan)
      entering.set(plan.migrationId, plan)
      try {
        enter(plan, await begin())
      } finally {
        entering.delete(plan.migrationId)
      }
    },
    running: (migrationId: string) => table.get(migrationId),
    target(migrationId: string): (Running & { target: TargetMigration }) | undefined {
      const running = table.get(migrationId) ?? ended.get(migrationId)
      return running?.target ? { ...running, target: running.target } : undefined
    },
    /** Targets of an earlier life of the agent. */
    answer(earlier: Answering) {
      earlierLives.set(earlier.plan.migrationId, earlier)
    },
    answering: (migrationId: string) => earlierLives.get(migrationId),
    ids: () => [...table.keys(), ...entering.keys()],
    handovers: () => [...table.values()].filter(({ isAsking }) => isAsking?.()).map(({ plan }) => plan),
    async abandon(vm: string): Promise<void> {
      const asking = [...table.values()].filter(({ plan, abandon }) => plan.vm === vm && abandon)
      for (const { abandon } of asking) abandon!()
      await Promise.all(asking.map(({ done }) => done))
    },
    /** Cancels what may still be cancelled and waits for the rest. */
    async close(reason: GodwitError): Promise<void> {
      isClosing = true
      for (const running of table.values()) {
        try {
          running.cancel(reason)
        } catch {
          // too late to cancel: it goes forward
        }
      }
      await Promise.all([...table.values()].map(({ done }) => done))
    },
  }
}

function remember(ended: Map<string, Running>, migrationId: string, running: Running): void {
  ended.set(migrationId, running)
  for (const oldest of ended.keys()) {
    if (ended.size <= ENDED_MAX) return
    ended.delete(oldest)
  }
}
