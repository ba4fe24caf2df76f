// Ends migrations that may not go on. Enters: the table of migrations, changes of trust, the time. Leaves:
// cancellations, alerts, metrics.
// Always holds: a peer that is not trusted any more ends its migrations while that is allowed: before the commit the VM
// stays at its source, after it the migration goes on; a migration without progress is ended by the watchdog's
// deadlines (migration/deadlines.ts).
import { WATCH_EVERY_MS } from '../ops/watchdog.ts'
import { toGodwitError } from '../wire/errors.ts'
import type { NodeMetrics } from './metrics.ts'
import { createMigrationWatch } from './migration/watchdog.ts'
import type { RunOptions } from './runs.ts'
import type { Slots } from './slots.ts'

type WatchOptions = Pick<RunOptions, 'config' | 'trust' | 'alerts' | 'log'> & { metrics: NodeMetrics }

/** Gives what ends the watching. */
export function watchSlots(options: WatchOptions, slots: Slots): () => void {
  const { config, metrics, log, trust } = options
  const unwatch = trust.watch(() => endUntrusted(options, slots))
  const watch = createMigrationWatch({ reconnectMs: 1000 * config.limits.reconnectSeconds, count: metrics.stuck, log })
  const timer = setInterval(() => watch.step(performance.now(), slots.watched()), WATCH_EVERY_MS).unref()
  return () => {
    clearInterval(timer)
    unwatch()
  }
}

function endUntrusted({ trust, alerts, log }: WatchOptions, slots: Slots): void {
  for (const { plan, side, peer, cancel } of slots.all()) {
    if (!peer) continue
    const { migrationId, vm } = plan
    try {
      trust.verify(peer.bytes, { role: 'site', id: side === 'source' ? plan.target : plan.source })
    } catch (thrown) {
      const error = toGodwitError(thrown)
      alerts.raise(error, { migrationId, vm, side })
      try {
        cancel(error)
      } catch (late) {
        log.debug('too late to end a migration with an untrusted site', { migrationId, error: late })
      }
    }
  }
}
