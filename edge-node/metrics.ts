// The node's figures for Prometheus.
import { createMetrics, type Metrics } from '../ops/metrics.ts'
import type { MigrationResult } from '../wire/control.ts'
import type { AlertOptions } from './alerts.ts'
import type { Registry } from './vm/registry.ts'

export type NodeMetrics = {
  ended(side: 'source' | 'target', result: MigrationResult): void
  /** An alert has been raised (alerts.ts). */
  alert: AlertOptions['count']
  expose: Metrics['expose']
}

export function createNodeMetrics(registry: Registry): NodeMetrics {
  const metrics = createMetrics('godwit_node')
  const ended = metrics.counter('migrations_total', 'Migrations that ended at this node', ['side', 'outcome', 'code'])
  const downtime = metrics.histogram(
    'migration_downtime_seconds',
    'Downtime of completed migrations that left this node',
    [0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 30],
  )
  const wire = metrics.counter('migration_wire_bytes_total', 'Sealed bytes sent for completed migrations')
  const alerts = metrics.counter('alerts_total', 'What looked like an attack, by kind and code', ['kind', 'code'])
  const reconnects = metrics.counter(
    'migration_reconnects_total',
    'Lost links after which a migration that left this node went on and completed',
  )
  const away = metrics.counter('migration_link_away_seconds_total', 'Time that these migrations were without a link')
  metrics.sampled('vms_running', 'VMs that run here', () => registry.list().filter(({ state }) => state === 'running').length)
  metrics.sampled('vms', 'VMs of this site', () => registry.list().length)
  return {
    ended(side, { outcome, error, report }) {
      ended.inc({ side, outcome, code: error?.code ?? 'none' })
      if (!report) return
      wire.inc({}, report.wireBytes)
      reconnects.inc({}, report.reconnects ?? 0)
      away.inc({}, (report.awayMs ?? 0) / 1000)
      if (report.downtimeMs !== null) downtime.observe(report.downtimeMs / 1000)
    },
    alert: labels => alerts.inc(labels),
    expose: () => metrics.expose(),
  }
}
