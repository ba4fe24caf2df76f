// Ends what is stuck in any state of a migration at this node beyond that state's deadline (deadlines.ts). Enters: the
// migrations that run, time.
// Leaves: `stuck` to a migration, a line of the log with the code MIGRATION_STUCK, a count.
// Always holds: how a stuck migration ends is its own story's business (source.ts, target.ts), by the same rules as for
// any other failure: before the commit the VM stays at its source, after it nothing but going forward, and a record
// that is being written is waited for.
import { Watchdog } from '../../ops/watchdog.ts'
import type { Plan } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { deadlineMs, type StuckAction } from './deadlines.ts'

export type Watched = {
  plan: Plan
  side: 'source' | 'target'
  /** Where it is; `mark` differs once it has got on. */
  stage(): { state: string; mark?: string }
  /** Ends it as far as its state allows, and gives what was done. */
  stuck(error: GodwitError): StuckAction
}

export type StuckLabels = { side: 'source' | 'target'; state: string; action: StuckAction }

type WatchOptions = {
  /** limits.reconnectSeconds: how long a lost link is waited for. */
  reconnectMs: number
  count: (labels: StuckLabels) => void
  log: Log
}

/** step() is to be called every WATCH_EVERY_MS (ops/watchdog.ts), with a clock that never jumps, ms. */
export function createMigrationWatch({ reconnectMs, count, log }: WatchOptions): { step(nowMs: number, running: Iterable<Watched>): void } {
  const dog = new Watchdog<Watched>(({ side }, state) => deadlineMs(side, state, reconnectMs))
  return {
    step(nowMs, running) {
      const items = [...running].map(item => ({ id: `${item.plan.migrationId}/${item.side}`, item, stage: item.stage() }))
      for (const { item, state, forMs, times } of dog.step(nowMs, items)) {
        const { plan, side } = item
        const seconds = Math.round(forMs / 1000)
        const error = new GodwitError('MIGRATION_STUCK', `the migration made no progress in state ${state} at its ${side} for ${seconds} s`)
        const action = item.stuck(error)
        count({ side, state, action })
        log.error('migration stuck', {
          migrationId: plan.migrationId,
          vm: plan.vm,
          side,
          state,
          seconds,
          times,
          action,
          code: error.code,
          error,
        })
      }
    },
  }
}
