// The node's figures for Prometheus.
import { createMetrics, type Metrics } from '../ops/metrics.ts'
import type { MigrationResult } from '../wire/control.ts'
import type { AlertOptions } from './alerts.ts'
import type { StuckLabels } from './migration/watchdog.ts'
import type { Registry } from './registry/registry.ts'

export type NodeMetrics = {
  ended(side: 'source' | 'target', result: MigrationResult): void
  /** An alert has been raised (alerts.ts). */
  alert: AlertOptions['count']
  /** The watchdog has found a migration that stands still (migration/watchdog.ts). */
  stuck: (labels: StuckLabels) => void
  expose: Metrics['expose']
}

/** What `certificate_expires_in_seconds` and the list's age are read from. */
export type TrustFacts = { expiresInSeconds(): number; listAgeSeconds(): number | undefined }

export function createNodeMetrics(registry: Registry, trust: TrustFacts): NodeMetrics {
  const metrics = createMetrics('godwit_node')
  const ended = metrics.counter('migrations_total', 'Migrations that ended at this node, by side and outcome', ['side', 'outcome', 'code'])
  const downtime = metrics.histogram(
    'migration_downtime_seconds',
    'Downtime of completed migrations that left this node',
    [0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 30],
  )
  const wire = metrics.counter('migration_wire_bytes_total', 'Sealed bytes sent for completed migrations')
  const fromDisk = metrics.counter('migration_from_disk_bytes_total', 'Guest memory of completed migrations that targets read from disks')
  const alerts = metrics.counter('alerts_total', 'Possible attacks, by kind and error code', ['kind', 'code'])
  const stuck = metrics.counter('migration_stuck_total', 'Migrations that exceeded the deadline of their state, by action', [
    'side',
    'state',
    'action',
  ])
  const reconnects = metrics.counter('migration_reconnects_total', 'Lost links of completed migrations that left this node')
  const away = metrics.counter('migration_link_away_seconds_total', 'Time without a link of completed migrations that left this node')
  metrics.sampled('vms_running', 'VMs that run at this node', () => registry.list().filter(({ state }) => state === 'running').length)
  metrics.sampled(
    'certificate_expires_in_seconds',
    "Seconds until this site's certificate expires; negative: expired.",
    trust.expiresInSeconds,
  )
  metrics.sampled('revocation_list_age_seconds', 'Age of the current revocation list; -1: no list.', () => trust.listAgeSeconds() ?? -1)
  metrics.sampled('copies_bytes', 'Bytes on disk of warm copies of VMs', async () =>
    (await registry.copies.list()).reduce((sum, { bytes }) => sum + bytes, 0),
  )
  metrics.sampled('vms', 'VMs of this site', () => registry.list().length)
  return {
    ended(side, { outcome, error, report }) {
      ended.inc({ side, outcome, code: error?.code ?? 'none' })
      if (!report) return
      wire.inc({}, report.wireBytes)
      fromDisk.inc({}, report.bytesFromDisk ?? 0)
      reconnects.inc({}, report.reconnects ?? 0)
      away.inc({}, (report.awayMs ?? 0) / 1000)
      if (report.downtimeMs !== null) downtime.observe(report.downtimeMs / 1000)
    },
    alert: labels => alerts.inc(labels),
    stuck: labels => stuck.inc(labels),
    expose: () => metrics.expose(),
  }
}
