// What a person sees: the progress line, the report, status. All pure, so golden texts.

import { createProgress, renderBar, renderProgress } from '../../cli/progress.ts'
import { renderReport } from '../../cli/report.ts'
import { renderStatus } from '../../cli/status-view.ts'
import type { GatewayStatus, MigrationRecord } from '../../wire/admin.ts'
import { type MigrationProgress, type Plan, Report } from '../../wire/control.ts'
import { check } from '../../wire/schema.ts'
import { MIB } from '../../wire/units.ts'
import { assert, suite } from '../support/suite.ts'
import { recordingIo } from './recording-io.ts'

const test = suite('cli: progress and report')

const ID = '0123456789abcdef0123456789abcdef'
const progress: MigrationProgress = {
  migrationId: ID,
  side: 'source',
  phase: 'precopy',
  round: 3,
  bytesTotal: 400 * MIB,
  bytesSent: 250 * MIB,
  rateBytesPerSecond: 11_775_000,
  dirtyBytesPerSecond: 4_000_000,
  etaMs: 4100,
}

test('the progress line, from wide to narrow', () => {
  assert.is(
    renderProgress(progress, 130),
    'precopy    round 3  [##################------------]  62 %  250 MiB of 400 MiB  94.2 Mbit/s  dirty 32.0 Mbit/s  ETA 4.1 s',
  )
  assert.is(
    renderProgress(progress, 100),
    'precopy    round 3  [#####----]  62 %  250 MiB of 400 MiB  94.2 Mbit/s  dirty 32.0 Mbit/s  ETA 4.1 s',
  )
  assert.is(renderProgress(progress, 40), 'precopy    round 3   62 %  250 MiB of 40')
  assert.is(renderProgress({ migrationId: ID, side: 'source', phase: 'handshake' }, 80), 'handshake')
  assert.is(renderProgress({ ...progress, bytesSent: 500 * MIB, etaMs: null, dirtyBytesPerSecond: undefined }, 100).includes('100 %'), true)
})

test('a figure is left out until there is one, and an ETA below a second is not exact', () => {
  const first = { migrationId: ID, side: 'source', bytesTotal: 4 * MIB, bytesSent: 0 } as const
  const hashing = renderProgress({ ...first, phase: 'hashing', rateBytesPerSecond: 0, etaMs: null }, 80)
  assert.match(hashing, /^hashing +\[-+\] +0 % {2}0 B of 4 MiB$/)
  const still = { ...progress, dirtyBytesPerSecond: 0 }
  assert.not.ok(renderProgress({ ...still, round: 1 }, 130).includes('dirty'))
  assert.ok(renderProgress(still, 130).includes('dirty 0 bit/s'))
  assert.ok(renderProgress({ ...progress, etaMs: 0 }, 130).endsWith('  ETA < 1 s'))
})

test('a line is never wider than the terminal, and a bar never wider than it is', () => {
  for (let columns = 1; columns <= 200; columns++) assert.ok(renderProgress(progress, columns).length <= columns)
  assert.equal([renderBar(0, 4), renderBar(0.5, 4), renderBar(1, 4), renderBar(7, 4)], ['[----]', '[##--]', '[####]', '[####]'])
})

test('on a terminal one line is rewritten, at most ten times a second', () => {
  const io = recordingIo({ isTty: true, columns: 60 })
  let now = 0
  const bar = createProgress(io, () => now)
  for (now = 0; now < 1000; now += 10) bar.update(progress)
  bar.note('cancelling')
  bar.finish()
  assert.is(io.stderr.split('\r\u001b[K').length - 1, 10)
  assert.ok(io.stderr.endsWith('\r\u001b[Kcancelling\n'))
})

test('elsewhere there is a line at each change of phase or round, and every five seconds', () => {
  const io = recordingIo()
  let now = 0
  const lines = createProgress(io, () => now)
  for (now = 0; now < 12_000; now += 100) lines.update({ ...progress, round: now < 6000 ? 1 : 2 })
  lines.finish()
  assert.is(io.stderr.split('\n').length - 1, 4)
  assert.not.ok(io.stderr.includes('\u001b'))
})

test('with --json nothing is drawn', () => {
  const io = recordingIo({ isTty: true })
  const quiet = createProgress(io, () => 0, true)
  quiet.update(progress)
  quiet.note('x')
  quiet.finish()
  assert.is(io.stderr, '')
})

const report = check(
  Report,
  {
    migrationId: ID,
    vm: 'web-1',
    source: 'berlin-1',
    target: 'hamburg-1',
    method: 'live',
    outcome: 'completed',
    startedAt: 1_800_000_000_000,
    totalMs: 14_230,
    downtimeMs: 312.4,
    downtimeParts: { finalPagesMs: 96, deviceStateMs: 41, loadMs: 88, commitMs: 42, resumeMs: 45.4 },
    guestBytes: 400 * MIB,
    pagesZero: 40_000,
    pagesDuplicate: 100,
    pagesUnchanged: 0,
    pagesCompressed: 60_000,
    pagesRaw: 2300,
    bytesZero: 12_000,
    bytesDuplicate: 900,
    bytesUnchanged: 0,
    bytesCompressed: 130 * MIB,
    bytesRaw: 9 * MIB,
    wireBytes: 140 * MIB,
    ratio: 2.857,
    rounds: 4,
    transport: 'quic',
    streams: 4,
    notes: ['zstd level 1'],
  },
  { what: 'report' },
)

test('the report as a person reads it', () => {
  assert.is(
    renderReport(report),
    `web-1: berlin-1 -> hamburg-1, live, completed in 14.2 s
  downtime:     312 ms (final pages 96 ms, device state 41 ms, load 88 ms, commit 42 ms, resume 45 ms)
  guest bytes:  400 MiB in 4 rounds
  - zero:       156 MiB in 40000 pages -> 11.7 KiB
  - duplicate:  400 KiB in 100 pages -> 900 B
  - compressed: 234 MiB in 60000 pages -> 130 MiB
  - raw:        9.0 MiB in 2300 pages -> 9 MiB
  wire bytes:   140 MiB (ratio 2.86)
  transport:    quic, 4 page streams
  migration:    ${ID}
  note: zstd level 1
`,
  )
})

test('the report tells what was expected, what was decided, what deltas saved, and what disks cost', () => {
  const text = renderReport({
    ...report,
    ...{ pagesDelta: 12, bytesDelta: 12 * 4096, deltaBytes: 2048, etaError: { medianRatio: 0.08, worstRatio: 0.4 } },
    prediction: { totalMs: 9000, downtimeMs: 210, wireBytes: 100 * MIB },
    disks: { rounds: 3, bytesSent: 40 * MIB, bytesZero: 2 * MIB, bytesHeld: 8 * MIB },
    decisions: [{ atMs: 1234, what: 'level', value: '9', reason: 'the link is the limit, workers 20 % busy' }],
  })
  assert.match(text, /- delta: +2(\.0)? KiB in 12 pages/)
  assert.match(text, /disk bytes: +40 MiB in 3 rounds; 2(\.0)? MiB of zeros, 8(\.0)? MiB there already\n/)
  assert.match(text, /predicted: +9(\.0)? s in total, downtime 210 ms, 100(\.0)? MiB/)
  assert.match(text, /ETA error: +8 % \(median\)\n/)
  assert.match(text, /last decisions:\n +1\.2 s {2}level: 9 \(the link is the limit, workers 20 % busy\)/)
})

test('a report without a downtime says so', () => {
  const none = { finalPagesMs: null, deviceStateMs: null, loadMs: null, commitMs: null, resumeMs: null }
  const text = renderReport({ ...report, outcome: 'failed', downtimeMs: null, downtimeParts: none, ratio: null, rounds: 1, notes: [] })
  assert.match(text, /downtime: +the VM did not run at the target/)
  assert.match(text, /in 1 round\n/)
  assert.match(renderReport({ ...report, downtimeMs: null, downtimeParts: none }), /downtime: +none, the VM was stopped\n/)
})

test('status', () => {
  const status: GatewayStatus = {
    gateway: {
      id: 'gateway',
      version: '0.1.0',
      startedAt: 0,
      listeners: [{ engine: 'quic', host: '0.0.0.0', port: 7443 }],
      relay: { streams: 0, bytes: 0 },
    },
    sites: [
      {
        site: 'berlin-1',
        online: true,
        transport: 'quic',
        dataConnections: 0,
        rttMs: 12.4,
        version: '0.1.0',
        since: 30_000,
        certificateNotAfter: 86_400 * 3 + 90,
        host: { qemuVersion: '10.0.2', accelerators: ['tcg'], memoryFreeBytes: 2 * 1024 * MIB, diskFreeBytes: 0, vcpus: 2 },
        vms: ['web-1'],
      },
    ],
    vms: [{ name: 'web-1', state: 'running', epoch: 3, memoryBytes: 384 * MIB, vcpus: 1, site: 'berlin-1', online: true }],
    migrations: [],
  }
  assert.is(
    renderStatus(status, 90_000),
    `gateway gateway 0.1.0, up 1 min 30 s, listening on quic 0.0.0.0:7443

SITE      STATE   SINCE        TRANSPORT  RTT    QEMU    ACCEL  MEMORY FREE  CERTIFICATE
berlin-1  online  1 min 00 s   quic       12 ms  10.0.2  tcg    2 GiB        3 d left
`
      .replace('1 min 00 s   ', '1 min 00 s  ')
      .replace('SINCE        ', 'SINCE       ') +
      `
VM     SITE      STATE    MEMORY   VCPUS  EPOCH
web-1  berlin-1  running  384 MiB  1      3

no migrations
`,
  )
  const migrationId = 'f'.repeat(32)
  const plan: Plan = {
    ...{ version: 1, migrationId, vm: 'web-1', epoch: 3, source: 'berlin-1', target: 'hamburg-1', method: 'live', createdAt: 60_000 },
    ...{ downtimeMs: 300, streams: 4, attempt: 1, compression: 'zstd' },
  }
  const progress: MigrationProgress = { migrationId, side: 'target', phase: 'hashing', bytesTotal: 300e9, bytesSent: 36e9, etaMs: 240_000 }
  const migration: MigrationRecord = { ...plan, plan, progress, state: 'STREAMING', outcome: null, updatedAt: 60_000 }
  assert.match(renderStatus({ ...status, migrations: [migration] }, 90_000), /STREAMING: hashing 12 %, ETA 4 min 00 s/)
})

test.run()
