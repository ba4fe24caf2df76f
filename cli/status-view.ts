// The gateway's status as a person reads it. Enters: a status, the time. Leaves: tables. Pure.
import { formatBytes, formatDuration, formatEta } from '../ops/units.ts'
import type { GatewayStatus, MigrationRecord } from '../wire/admin.ts'
import type { MigrationProgress } from '../wire/control.ts'
import { table } from './output.ts'

/** `nowMs`: Unix ms. */
export function renderStatus({ gateway, sites, vms, migrations }: GatewayStatus, nowMs: number): string {
  const listeners = gateway.listeners.map(({ engine, host, port }) => `${engine} ${host}:${port}`).join(', ')
  const head = `gateway ${gateway.id} ${gateway.version}, up ${formatDuration(nowMs - gateway.startedAt)}, listening on ${listeners || 'nothing'}\n`
  const siteRows = sites.map(site => [
    site.site,
    site.online ? 'online' : 'offline',
    formatDuration(Math.max(0, nowMs - site.since)),
    site.transport ?? '-',
    site.rttMs === null ? '-' : site.rttMs < 1 ? '<1 ms' : formatDuration(site.rttMs),
    site.host?.qemuVersion ?? '-',
    site.host?.accelerators.join(',') || '-',
    site.host ? formatBytes(site.host.memoryFreeBytes) : '-',
    site.certificateNotAfter === null ? '-' : formatCertificate(site.certificateNotAfter, nowMs),
  ])
  const vmRows = vms.map(vm => [
    vm.name,
    vm.site,
    `${vm.online ? vm.state : 'unknown (site offline)'}${vm.isHome === false ? ' (claimed, owned by another site)' : ''}`,
    formatBytes(vm.memoryBytes),
    vm.vcpus,
    vm.epoch,
  ])
  return [
    head,
    table(
      ['SITE', 'STATE', 'SINCE', 'TRANSPORT', 'RTT', 'QEMU', 'ACCEL', 'MEMORY FREE', 'CERTIFICATE'],
      siteRows,
      'no site has connected yet',
    ),
    table(['VM', 'SITE', 'STATE', 'MEMORY', 'VCPUS', 'EPOCH'], vmRows, 'no VMs'),
    migrationTable(migrations, nowMs),
  ].join('\n')
}

export const migrationTable = (migrations: readonly MigrationRecord[], nowMs: number): string =>
  table(['MIGRATION', 'VM', 'FROM', 'TO', 'METHOD', 'STATE', 'OUTCOME', 'AGE'], migrations.map(row(nowMs)), 'no migrations')

const row =
  (nowMs: number) =>
  ({ migrationId, vm, source, target, method, state, outcome, error, createdAt, progress }: MigrationRecord): string[] => [
    migrationId,
    vm,
    source,
    target,
    method,
    progress && outcome === null ? `${state}: ${renderStep(progress)}` : state,
    error ? `${outcome ?? '-'} (${error.code})` : (outcome ?? '-'),
    formatDuration(Math.max(0, nowMs - createdAt)),
  ]

/** 'hashing 12 %, ETA 3 min'. */
function renderStep({ phase, bytesTotal = 0, bytesSent = 0, etaMs }: MigrationProgress): string {
  const share = bytesTotal > 0 ? ` ${Math.floor(Math.min(1, bytesSent / bytesTotal) * 100)} %` : ''
  return `${phase}${share}${etaMs == null ? '' : `, ETA ${formatEta(etaMs)}`}`
}

/** `notAfter`: Unix seconds. */
const formatCertificate = (notAfter: number, nowMs: number): string => {
  const leftMs = notAfter * 1000 - nowMs
  return leftMs > 0 ? `${formatDuration(leftMs)} left` : 'EXPIRED'
}
