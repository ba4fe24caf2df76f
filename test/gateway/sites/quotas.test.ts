// What one enrolled site can take of the gateway: real gateways and node links over the memory transport. And how a
// site is given up.
import { randomBytes } from 'node:crypto'
import { LEARNED_PER_SITE_MAX } from '../../../gateway/handoff/ended.ts'
import { HANDOVER_SESSIONS_MAX } from '../../../gateway/relay/sessions.ts'
import { rememberSites } from '../../../gateway/sites/remember.ts'
import type { StoredSite } from '../../../gateway/store/records.ts'
import { eventually } from '../../../ops/deadline.ts'
import { createLog } from '../../../ops/log.ts'
import type { MigrationRecord, ServiceView, SiteView, VmView } from '../../../wire/admin.ts'
import type { Plan } from '../../../wire/control.ts'
import { silentLog } from '../../../wire/log.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { emptyReport, type TestNode, vm, type World, world } from '../fixture.ts'

const test = suite('gateway/quotas')

const plan = (name: string, source = 'evil', target = 'b'): Plan => ({
  ...{ version: 1, migrationId: randomBytes(16).toString('hex'), vm: name, epoch: 1, source, target, method: 'live', downtimeMs: 300 },
  ...{ streams: 1, attempt: 1, compression: 'zstd', createdAt: 1 },
})
const listed = async (w: World, site: string): Promise<string[]> =>
  (await w.api<{ vms: VmView[] }>('GET', '/v1/vms')).vms.flatMap(view => (view.site === site ? [view.name] : []))
const unfinished = async (w: World): Promise<MigrationRecord[]> =>
  (await w.api<{ migrations: MigrationRecord[] }>('GET', '/v1/migrations')).migrations.filter(({ outcome }) => outcome === null)
/** Waits until what a node says now has been taken. */
async function said(w: World, node: TestNode, site: string): Promise<void> {
  const marker = `marker-${randomBytes(4).toString('hex')}`
  node.vms = [...node.vms, vm(marker)]
  node.announce()
  await eventually(async () => (await listed(w, site)).includes(marker) || undefined, {
    ms: 10_000,
    everyMs: 20,
    what: `the word of ${site}`,
  })
}

test('hand-overs that a site makes up hold up no VM of others, and fill neither migrations nor sessions', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [vm('vm-1')] })
  await w.node('b')
  const own = Array.from({ length: 40 }, (_, i) => `own-${i}`)
  const evil = await w.node('evil', { vms: [vm('vm-1', { epoch: 2 ** 40 }), ...own.map(name => vm(name))] })
  // Unanswered hand-overs, as a node names them while it is busy with them.
  const made = [plan('vm-1'), plan('vm-1', 'evil', 'a'), ...own.map(name => plan(name)), ...Array.from({ length: 200 }, () => plan('vm-1'))]
  evil.says = { handovers: made.slice(0, 242) }
  evil.migrations = made.map(({ migrationId }) => migrationId)
  await said(w, evil, 'evil')
  const learned = await unfinished(w)
  assert.is(learned.length, LEARNED_PER_SITE_MAX)
  assert.ok(learned.every(record => record.vm.startsWith('own-')))

  for (const { migrationId } of made.slice(0, HANDOVER_SESSIONS_MAX + 60)) {
    const stream = await evil.link.openRelayStream({ sessionId: migrationId, index: 0, attempt: 1 }).catch(() => undefined)
    stream?.reset('next')
  }
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  await eventually(() => a.started.length || undefined, { ms: 5_000, what: 'the migration of the VM that was spoken of' })
  const stream = await a.link.openRelayStream({ sessionId: migrationId, index: 0, attempt: 1 })
  await stream.write(new Uint8Array([1]))
})

test('hand-overs that a site makes up and ends at once take the place of no history', async () => {
  await using w = await world()
  await w.node('b')
  const evil = await w.node('evil', { vms: [vm('own')] })
  await said(w, evil, 'evil')
  for (let i = 0; i < 2 * LEARNED_PER_SITE_MAX; i++) {
    const made = plan('own')
    evil.says = { handovers: [made] }
    evil.migrations = [made.migrationId]
    evil.announce()
    const learned = async () => (await unfinished(w)).some(({ migrationId }) => migrationId === made.migrationId) || undefined
    await eventually(learned, { ms: 5_000, everyMs: 5, what: 'the hand-over' })
    const error = { code: 'MIGRATION_REFUSED', message: 'given back' }
    await evil.link.request('migration.result', { migrationId: made.migrationId, side: 'source', outcome: 'failed', error })
  }
  const { migrations } = await w.api<{ migrations: MigrationRecord[] }>('GET', '/v1/migrations')
  assert.ok(migrations.length <= LEARNED_PER_SITE_MAX + 1, `${migrations.length} are kept`)
})

test('a site that repeats itself fills neither the log nor the disk', async () => {
  const lines: string[] = []
  const log = createLog({ format: 'text', write: line => void lines.push(line) })
  await using w = await world({ log })
  const a = await w.node('a', { vms: [vm('vm-1')] })
  const b = await w.node('b')
  const report = (more: object) => a.link.request('migration.result', { side: 'source', outcome: 'failed', ...more })
  const notes = Array.from({ length: 64 }, () => 'x'.repeat(1000))
  for (let i = 0; i < 200; i++)
    await report({ migrationId: randomBytes(16).toString('hex'), report: { ...emptyReport('0'.repeat(32)), notes } })
  const unknown = lines.filter(line => line.includes('result for an unknown migration'))
  assert.equal([unknown.length, unknown.some(line => line.length > 400)], [30, false])

  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  await eventually(() => a.started.length || undefined, { ms: 5_000, what: 'start' })
  const told = (i: number) =>
    b.link.request('migration.result', { migrationId, side: 'target', outcome: 'failed', error: { code: 'QEMU_LOAD', message: `${i}` } })
  for (let i = 0; i < 16; i++) await told(i)
  assert.is(await codeOf(() => told(16)), 'LIMIT_EXCEEDED')
  await report({ migrationId, report: { ...emptyReport(migrationId), extra: 'x'.repeat(200_000) } })
  const record = await w.until(migrationId, ({ outcome }) => outcome !== null)
  assert.ok(JSON.stringify(record).length < 10_000, 'a report of any length is not kept')
})

test('what a site says of itself is written once a second, and what it said last is on the disk in the end', async () => {
  const saved: string[] = []
  let nowAt = 'first'
  const memory = () => ({ site: nowAt, version: '', host: {}, vms: [], lastSeenAt: 1, certificateNotAfter: 1 }) as unknown as StoredSite
  const records = { saveSite: async ({ site }: StoredSite) => void saved.push(site) }
  const remember = rememberSites({ sites: { memory }, records, log: silentLog, everyMs: 20 })
  for (let i = 0; i < 1000; i++) remember.changed('a')
  await eventually(() => (saved.length > 0 ? true : undefined), { ms: 5_000, what: 'the first write' })
  nowAt = 'last'
  for (let i = 0; i < 1000; i++) remember.changed('a')
  await remember.close()
  assert.equal(saved, ['first', 'last'])
})

test("a VM's wishes that are too long are dropped, and cost the site nothing", async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [vm('vm-1', { policy: { x: 'x'.repeat(5000) } }), vm('vm-2', { policy: { sloMs: 40 } })] })
  await said(w, a, 'a')
  const { vms } = await w.api<{ vms: VmView[] }>('GET', '/v1/vms')
  assert.equal(vms.map(({ name, policy }) => [name, policy]).slice(0, 2), [
    ['vm-1', undefined],
    ['vm-2', { sloMs: 40 }],
  ])
})

test('a site that is gone is forgotten on request: its names are free, its migrations end, its record is off the disk', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [vm('vm-1'), vm('vm-2')] })
  const gone = await w.node('gone', { vms: [vm('vm-3', { epoch: 2 ** 40 })] })
  await eventually(async () => ((await listed(w, 'gone')).length > 0 ? true : undefined), { ms: 5_000, what: 'the VM of gone' })
  a.vms = [...a.vms, vm('vm-3')]
  await said(w, a, 'a')
  assert.is(await codeOf(() => w.api('DELETE', '/v1/sites/gone')), 'SITE_ONLINE')
  assert.is(await codeOf(() => w.api('DELETE', '/v1/sites/nobody')), 'SITE_UNKNOWN')
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-2', to: 'gone' })
  await eventually(() => a.started.length || undefined, { ms: 5_000, what: 'start' })
  await gone.link.close()
  const sites = async () => (await w.api<{ sites: SiteView[] }>('GET', '/v1/sites')).sites.map(({ site, online }) => `${site} ${online}`)
  await eventually(async () => ((await sites()).includes('gone false') ? true : undefined), { ms: 5_000, what: 'gone offline' })
  assert.equal(await codeOf(() => w.api('POST', '/v1/migrations', { vm: 'vm-3', to: 'a' })), 'SITE_OFFLINE', 'it shadows the VM of a')

  const forgotten = await w.api('DELETE', '/v1/sites/gone')
  assert.equal(forgotten, { site: 'gone', vms: ['vm-3'], migrations: [migrationId] })
  assert.is((await w.until(migrationId, ({ outcome }) => outcome !== null)).error?.code, 'MIGRATION_DOUBT')
  const placed = () => w.gateway.control.vms().flatMap(({ name, site }) => (name === 'vm-3' ? [site] : []))
  assert.equal(placed(), ['a'])
  await w.restart()
  await a.link.whenOnline()
  await eventually(() => (placed()[0] === 'a' ? true : undefined), { ms: 5_000, what: 'the VM at a after a restart' })
  assert.equal(await sites(), ['a true'])
})

test('a service is alive again when the site that held its name is forgotten', async () => {
  const service = { vm: 'vm-1', service: 'http', listen: { host: '127.0.0.1', port: 0 } }
  await using w = await world({ services: [service] })
  const old = await w.node('old', { vms: [vm('vm-1', { epoch: 2 ** 40, services: ['http'] })] })
  await eventually(async () => ((await listed(w, 'old')).length > 0 ? true : undefined), { ms: 5_000, what: 'the old VM' })
  await old.link.close()
  const a = await w.node('a', { vms: [vm('vm-1', { services: ['http'] })] })
  await said(w, a, 'a')
  const at = async () => (await w.api<{ services: ServiceView[] }>('GET', '/v1/services')).services[0]?.site ?? null
  assert.is(await at(), null)
  const forget = () => w.api('DELETE', '/v1/sites/old').catch(() => undefined)
  await eventually(forget, { ms: 5_000, what: 'old to be forgotten' })
  assert.is(await at(), 'a')
})

test.run()
