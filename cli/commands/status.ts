// godwit status: what the gateway knows of sites, VMs and migrations.
import { formatBytes, formatDuration } from '../../ops/units.ts'
import type { GatewayStatus, MigrationRecord } from '../../wire/admin.ts'
import { askGateway } from '../client.ts'
import { command, shared } from '../command.ts'
import { json, table } from '../output.ts'

export const status = command({
  name: 'status',
  summary: 'show sites, VMs and migrations as the gateway knows them',
  options: {
    json: shared.json,
    gateway: shared.gateway,
    'token-file': shared.tokenFile,
  },
  examples: ['godwit status', 'godwit status --json'],
  run: async ({ options, io }) => {
    const answer = await askGateway<GatewayStatus>(io, options, { path: '/v1/status' })
    io.out(options.json ? json(answer) : renderStatus(answer, Date.now()))
    return 0
  },
})

/** Pure: `nowMs` is Unix ms. */
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
    vm.online ? vm.state : 'unknown (site offline)',
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
    table(['MIGRATION', 'VM', 'FROM', 'TO', 'METHOD', 'STATE', 'OUTCOME', 'AGE'], migrations.map(row(nowMs)), 'no migrations'),
  ].join('\n')
}

const row =
  (nowMs: number) =>
  ({ migrationId, vm, source, target, method, state, outcome, error, createdAt }: MigrationRecord): string[] => [
    migrationId,
    vm,
    source,
    target,
    method,
    state,
    error ? `${outcome ?? '-'} (${error.code})` : (outcome ?? '-'),
    formatDuration(Math.max(0, nowMs - createdAt)),
  ]

/** `notAfter`: Unix seconds. */
const formatCertificate = (notAfter: number, nowMs: number): string => {
  const leftMs = notAfter * 1000 - nowMs
  return leftMs > 0 ? `${formatDuration(leftMs)} left` : 'EXPIRED'
}
