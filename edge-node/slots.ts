// The table of this node's migrations: one slot for each VM. Enters: plans, and what carries them out. Leaves: who
// runs, who has ended and may still be asked.
// Always holds: a migration in the table is one that runs; what ends leaves it before its result is reported; a VM is
// never in two.

import { sleep } from '../ops/deadline.ts'
import type { MigrationResult, Plan } from '../wire/control.ts'
import { GodwitError } from '../wire/errors.ts'
import type { AskProgress } from './doubts.ts'
import type { StuckAction } from './migration/deadlines.ts'
import type { Answering } from './migration/recover.ts'
import type { TargetMigration } from './migration/target.ts'
import type { Watched } from './migration/watchdog.ts'

const ACTIVE_MAX = 32
const ENDED_MAX = 256
/**
 * How long a new migration waits for the end of an earlier one of the same VM. The gateway reports a migration as ended
 * when one side has reported it; the other side may still be ending it (a reading of files stops, a QEMU is killed),
 * and a retry must not be refused for that.
 */
const ENDING_MS = 3_000

export type SlotEntry = {
  side: 'source' | 'target'
  target?: TargetMigration
  /** The other site, while it must stay one that we trust. */
  peer?: { bytes: Uint8Array }
  cancel(reason?: GodwitError): void
  /** Source only: it has handed the VM over, and is not answered yet. */
  isAsking?: () => boolean
  asked?: () => AskProgress | undefined
  /** Ends the asking of a hand-over that a person ends. */
  abandon?: (error?: GodwitError) => void
  /** For the watchdog (migration/watchdog.ts). */
  stage(): { state: string; mark?: string }
  stuck(error: GodwitError): StuckAction
  result: Promise<MigrationResult>
}

export type RunningMigration = Omit<SlotEntry, 'result'> & { plan: Plan; done: Promise<void> }
export type Slots = ReturnType<typeof createSlots>

/**
 * One slot for a VM. What runs is named from the first moment (in site.state, or the gateway would take it for lost)
 * until its result is known.
 */
export function createSlots(onEnd: (running: RunningMigration, result: MigrationResult) => void, endingMs = ENDING_MS) {
  /** What begins, and when it has begun or has been refused. */
  const entering = new Map<string, { plan: Plan; side: 'source' | 'target'; begun: Promise<void> }>()
  const table = new Map<string, RunningMigration>()
  /** Targets that have ended: a source that has not heard the answer asks again. */
  const ended = new Map<string, RunningMigration>()
  const earlierLives = new Map<string, Answering>()
  let isClosing = false

  const admit = (plan: Plan) => {
    if (isClosing) throw new GodwitError('SITE_OFFLINE', 'the node is shutting down')
    if (table.has(plan.migrationId) || entering.has(plan.migrationId))
      throw new GodwitError('MIGRATION_STATE', `migration ${plan.migrationId} is already known`)
    if (entering.size + table.size >= ACTIVE_MAX)
      throw new GodwitError('LIMIT_EXCEEDED', `${ACTIVE_MAX} migrations already run at this site`)
    if ([...entering.values()].some(other => other.plan.vm === plan.vm)) throw busy(plan)
  }
  const sameVm = ({ vm }: Plan) => [...table.values()].find(({ plan }) => plan.vm === vm)
  const waitForEarlier = async (plan: Plan) => {
    const earlier = sameVm(plan)
    if (!earlier) return
    const waited = new AbortController()
    await Promise.race([earlier.done, sleep(endingMs, waited.signal).catch(() => {})])
    waited.abort()
    if (sameVm(plan)) throw busy(plan)
  }
  const enter = (plan: Plan, { result, ...entry }: SlotEntry) => {
    const running: RunningMigration = { plan, ...entry, done: Promise.resolve() }
    running.done = result.then(value => {
      table.delete(plan.migrationId)
      if (running.target) remember(ended, plan.migrationId, running)
      onEnd(running, value)
    })
    table.set(plan.migrationId, running)
  }
  return {
    /** MIGRATION_BUSY, LIMIT_EXCEEDED, MIGRATION_STATE; otherwise `begin` runs with the slot taken. */
    async take(plan: Plan, side: 'source' | 'target', begin: () => Promise<SlotEntry>): Promise<void> {
      admit(plan)
      const begun = Promise.withResolvers<void>()
      entering.set(plan.migrationId, { plan, side, begun: begun.promise })
      try {
        await waitForEarlier(plan)
        enter(plan, await begin())
      } finally {
        entering.delete(plan.migrationId)
        begun.resolve()
      }
    },
    /** All that the watchdog looks at. */
    watched: (): Watched[] => [
      ...table.values(),
      ...[...entering.values()].map(each => ({ ...each, stage: () => ({ state: 'ENTERING' }), stuck: () => 'report' as const })),
    ],
    running: (migrationId: string) => table.get(migrationId),
    /** The same, once it has begun: whoever ends a migration may come while it is still taken up. */
    async begun(migrationId: string): Promise<RunningMigration | undefined> {
      await entering.get(migrationId)?.begun
      return table.get(migrationId)
    },
    all: (): RunningMigration[] => [...table.values()],
    target(migrationId: string): (RunningMigration & { target: TargetMigration }) | undefined {
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
      await Promise.all([...entering.values()].map(({ begun }) => begun))
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

const busy = ({ vm }: Plan) => new GodwitError('MIGRATION_BUSY', `${vm} is already migrating`)

function remember(ended: Map<string, RunningMigration>, migrationId: string, running: RunningMigration): void {
  ended.set(migrationId, running)
  for (const oldest of ended.keys()) {
    if (ended.size <= ENDED_MAX) return
    ended.delete(oldest)
  }
}
