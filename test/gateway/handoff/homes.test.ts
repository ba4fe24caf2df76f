// A VM's name belongs to one site: real gateways and node links over the memory transport. A claim never takes a name;
// a migration, the owner's own word, the root's statement and an operator do.
import { randomBytes } from 'node:crypto'
import { createRoot } from '../../../crypto/certificate.ts'
import { issueFencing } from '../../../crypto/fencing.ts'
import { createHomes, NAMES_MAX } from '../../../gateway/handoff/homes.ts'
import type { StoredHome } from '../../../gateway/store/records.ts'
import { systemClock } from '../../../ops/clock.ts'
import { eventually } from '../../../ops/deadline.ts'
import { requestText } from '../../../ops/http-client.ts'
import type { VmView } from '../../../wire/admin.ts'
import { type MovedVm, PHASE_COMMITTED, type Plan, type SiteState, type VmFacts } from '../../../wire/control.ts'
import { silentLog } from '../../../wire/log.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { NOW_SECONDS, type TestNode, TOKEN, vm, type World, world } from '../fixture.ts'

const test = suite('gateway/homes')

const HUGE = 2 ** 40
const web = (epoch: number, more: Partial<VmFacts> = {}) => vm('vm-1', { epoch, services: ['http'], ...more })

async function homeIn(w: World, name = 'vm-1'): Promise<string | undefined> {
  const { vms } = await w.api<{ vms: VmView[] }>('GET', '/v1/vms')
  return vms.find(view => view.name === name && view.isHome)?.site
}
const seen = async (w: World, site: string, fits: (view: VmView) => boolean = () => true) => {
  const { vms } = await w.api<{ vms: VmView[] }>('GET', '/v1/vms')
  return vms.some(view => view.site === site && fits(view)) || undefined
}
const untilHome = (w: World, site: string | undefined) =>
  eventually(async () => ((await homeIn(w)) === site ? true : undefined), { ms: 5_000, everyMs: 10, what: `vm-1 at ${site}` })
const untilSeen = (w: World, site: string, fits?: (view: VmView) => boolean) =>
  eventually(() => seen(w, site, fits), { ms: 5_000, everyMs: 10, what: `a VM of ${site}` })
const untilOffline = (w: World, site: string) => untilSeen(w, site, view => !view.online)
const say = async (w: World, node: TestNode, site: string, vms: VmFacts[]) => {
  node.vms = vms
  node.announce()
  const [first] = vms
  await eventually(
    async () =>
      (await w.api<{ vms: VmView[] }>('GET', '/v1/vms')).vms.every(view => view.site !== site || view.epoch === first?.epoch) || undefined,
    { ms: 5_000, everyMs: 10, what: `the word of ${site}` },
  )
}
const alarms = async (w: World): Promise<string[]> =>
  (await requestText({ url: w.gateway.adminUrl, token: TOKEN, path: '/metrics' })).match(/gateway_alerts_total\{kind="\w+"\} \d+/g) ?? []
const planOf = (source: string, target: string, epoch: number, name = 'vm-1'): Plan => ({
  ...{ version: 1, migrationId: randomBytes(16).toString('hex'), vm: name, epoch, source, target, method: 'live', downtimeMs: 300 },
  ...{ streams: 1, attempt: 1, compression: 'zstd', createdAt: Date.now() },
})

test('a site that claims another VM at a huge epoch gets neither its users nor its moves, and is alarmed once', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [web(1)] })
  await untilHome(w, 'a')
  const evil = await w.node('evil', { vms: [web(HUGE)] })
  await w.node('b')
  await untilSeen(w, 'evil')
  for (let i = 0; i < 3; i++) await say(w, evil, 'evil', [web(HUGE + i)])
  assert.is(await homeIn(w), 'a')
  assert.equal(
    w.gateway.control.vms().map(({ site, epoch }) => [site, epoch]),
    [['a', 1]],
    'what MQTT, MEC 021 and the policy see',
  )
  assert.equal(await alarms(w), ['gateway_alerts_total{kind="vm_claim"} 1'])
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  await eventually(() => a.started.length || undefined, { ms: 5_000, what: 'start at the owner' })
  assert.equal([a.started[0]?.plan.migrationId, a.started[0]?.plan.epoch, evil.started.length], [migrationId, 1, 0])
})

test('a claimant that is gone shadows nothing, also after a restart of the gateway', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [web(1)] })
  await untilHome(w, 'a')
  const evil = await w.node('evil', { vms: [web(HUGE)] })
  await untilSeen(w, 'evil')
  await evil.link.close()
  await untilOffline(w, 'evil')
  await w.restart()
  await a.link.whenOnline()
  await untilSeen(w, 'a', view => view.online)
  assert.equal(
    w.gateway.control.vms().map(({ site, online }) => [site, online]),
    [['a', true]],
  )
})

test('the owner keeps the name while it is away and over a restart; who claims it meanwhile gets nothing', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [web(1)] })
  await untilHome(w, 'a')
  await a.link.close()
  await untilOffline(w, 'a')
  await w.restart()
  await w.node('evil', { vms: [web(HUGE)] })
  await untilSeen(w, 'evil', view => view.online)
  assert.is(await homeIn(w), 'a')
  assert.is(await codeOf(() => w.api('POST', '/v1/migrations', { vm: 'vm-1', to: 'evil' })), 'SITE_OFFLINE')
})

test('a name goes to the target with the migration, on the word of the source, whatever the target says before', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [web(1)] })
  const b = await w.node('b')
  await untilHome(w, 'a')
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  await eventually(() => a.started.length || undefined, { ms: 5_000, what: 'start' })
  await say(w, a, 'a', [web(1, { state: 'migrating' })])
  await say(w, b, 'b', [web(2)])
  assert.is(await homeIn(w), 'a', 'the target alone says so')
  assert.equal(await alarms(w), [], 'its word may come first')
  a.link.progress({ migrationId, side: 'source', phase: PHASE_COMMITTED })
  await untilHome(w, 'b')
  a.vms = []
  a.announce()
  a.link.report({ migrationId, side: 'source', outcome: 'completed' })
  b.link.report({ migrationId, side: 'target', outcome: 'completed' })
  await w.until(migrationId, ({ state }) => state === 'DONE')
  await w.restart()
  await Promise.all([a.link.whenOnline(), b.link.whenOnline()])
  assert.equal([await homeIn(w), await alarms(w)], ['b', []])
})

test('a target that gave the VM back loses the name again; the source that takes it back at e+2 has it', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [web(1)] })
  const b = await w.node('b')
  await untilHome(w, 'a')
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  await eventually(() => a.started.length || undefined, { ms: 5_000, what: 'start' })
  a.link.progress({ migrationId, side: 'source', phase: PHASE_COMMITTED })
  await say(w, b, 'b', [web(2)])
  await untilHome(w, 'b')
  b.vms = []
  b.announce()
  await say(w, a, 'a', [web(3)])
  a.link.report({ migrationId, side: 'source', outcome: 'failed', error: { code: 'MIGRATION_REFUSED', message: 'given back' } })
  await w.until(migrationId, ({ state }) => state === 'ABORTED')
  await untilHome(w, 'a')
})

test('a source that is lost after its hand-over does not hold the name: the target of the migration has it', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [web(1)] })
  const b = await w.node('b')
  await untilHome(w, 'a')
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  await eventually(() => a.started.length || undefined, { ms: 5_000, what: 'start' })
  b.vms = [web(2)]
  b.announce()
  b.link.report({ migrationId, side: 'target', outcome: 'completed' })
  await w.until(migrationId, ({ state }) => state === 'COMMIT_SEEN')
  assert.is(await homeIn(w), 'a', 'the source is there, and has not said so')
  await a.link.close()
  await untilHome(w, 'b')
})

test('a gateway without records learns from the owner where its VM went, not from who claims it', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [web(1)] })
  await untilHome(w, 'a')
  await w.node('evil', { vms: [web(HUGE)] })
  await untilSeen(w, 'evil')
  a.says = { handovers: [planOf('a', 'b', 1)] }
  await say(w, a, 'a', [web(1, { state: 'paused' })])
  const b = await w.node('b')
  await say(w, b, 'b', [web(7)])
  assert.is(await homeIn(w), 'a', 'not the epoch of the hand-over')
  await say(w, b, 'b', [web(2)])
  await untilHome(w, 'b')
  b.says = { moved: [{ vm: 'vm-1', target: 'c', epoch: 3 }] }
  b.vms = []
  b.announce()
  await eventually(() => (w.gateway.control.vms().length === 0 ? true : undefined), { ms: 5_000, what: 'the VM to be between sites' })
  const c = await w.node('c', { vms: [web(3)] })
  await untilHome(w, 'c')
  assert.is(c.link.state, 'online')
})

test('a VM that is deleted at one site may be made at another; where two claim the free name, an operator says who has it', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [web(5)] })
  await untilHome(w, 'a')
  a.vms = []
  a.announce()
  await untilHome(w, undefined)
  const b = await w.node('b', { vms: [web(1)] })
  await untilHome(w, 'b')
  await w.node('c', { vms: [web(1, { state: 'stopped' })] })
  await w.node('d', { vms: [web(9)] })
  await untilSeen(w, 'd')
  b.vms = []
  b.announce()
  await untilHome(w, undefined)
  assert.ok((await alarms(w)).some(line => line.includes('vm_contested')))
  assert.equal(w.gateway.control.vms(), [])
  assert.is(await codeOf(() => w.api('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })), 'VM_STATE')
  assert.is(await codeOf(() => w.api('PUT', '/v1/vms/vm-1/home', { site: 'b' })), 'VM_UNKNOWN')
  assert.is(await codeOf(() => w.api('PUT', '/v1/vms/vm-1/home', { site: 'nowhere' })), 'SITE_UNKNOWN')
  await w.api('PUT', '/v1/vms/vm-1/home', { site: 'c' })
  await untilHome(w, 'c')
  await w.restart()
  await untilHome(w, 'c')
})

test("the root's statement gives the name of a fenced site to the one that took its VM over, and to no other", async () => {
  await using w = await world()
  const b = await w.node('b', { vms: [web(2)] })
  await untilHome(w, 'b')
  await b.link.close()
  await untilOffline(w, 'b')
  const statement = (fields: object = {}) => {
    const fencing = { site: 'b', vm: 'vm-1', epoch: 2, for: 'a', by: 'a test', issuedAt: NOW_SECONDS, ...fields }
    return Buffer.from(issueFencing(w.root, fencing)).toString('base64')
  }
  const evil = await w.node('evil', { vms: [web(3)] })
  evil.says = { fencings: [statement(), statement({ vm: 'vm-2', for: 'evil' }), 'bm9uZQ=='] }
  await say(w, evil, 'evil', [web(3, { vcpus: 2 })])
  assert.is(await homeIn(w), 'b')
  const a = await w.node('a')
  a.says = { fencings: [statement()] }
  await say(w, a, 'a', [web(3)])
  await untilHome(w, 'a')
})

test('names that a site gives away to sites that are not there do not grow without bound', async () => {
  const stored = new Map<string, StoredHome>()
  let vms: VmView[] = []
  let moved: MovedVm[] = []
  const homes = await createHomes({
    sites: {
      vms: () => vms,
      known: site => site === 'evil' || site === 'honest',
      state: site => (site === 'evil' ? ({ moved } as SiteState) : undefined),
    },
    records: {
      async *homes() {},
      async saveHomes({ put = [], drop = [] }) {
        for (const home of put) stored.set(home.vm, home)
        for (const name of drop) stored.delete(name)
      },
    },
    ...{ rootPublic: createRoot().signPublic, moves: () => new Map(), clock: systemClock, onChange() {}, onAlarm() {}, log: silentLog },
  })
  const give = (round: number, to: string) => {
    const names = Array.from({ length: 512 }, (_, i) => `junk-${round}-${i}`)
    vms = names.map(name => ({ ...vm(name), site: 'evil', online: true }))
    moved = []
    homes.look('evil')
    vms = []
    moved = names.map(name => ({ vm: name, target: to, epoch: 2 }))
    homes.look('evil')
  }
  for (let round = 0; round < 10; round++) give(round, `ghost-${round}`)
  for (let round = 10; round < 20; round++) give(round, 'honest')
  await homes.saved()
  assert.ok(stored.size <= 3 * NAMES_MAX, `${stored.size} names`)
  assert.equal(await homes.release('ghost-0').then(names => names.length), 512, 'an operator may free them')
})

test('the names of a site that never came can be freed by an operator', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [web(1)] })
  await untilHome(w, 'a')
  a.says = { moved: [{ vm: 'vm-1', target: 'ghost', epoch: 2 }] }
  a.vms = []
  a.announce()
  await eventually(() => (w.gateway.control.vms().length === 0 ? true : undefined), { ms: 5_000, what: 'the VM to be away' })
  assert.is(await codeOf(() => w.api('DELETE', '/v1/sites/nobody')), 'SITE_UNKNOWN')
  assert.equal(await w.api('DELETE', '/v1/sites/ghost'), { site: 'ghost', vms: ['vm-1'], migrations: [] })
})

test('a target that says it has the VM while its source was away loses the name when the source denies the hand-over', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [web(1)] })
  const b = await w.node('b')
  await untilHome(w, 'a')
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  await eventually(() => a.started.length || undefined, { ms: 5_000, what: 'start' })
  await a.link.close()
  await untilOffline(w, 'a')
  b.vms = [web(2)]
  b.announce()
  b.link.report({ migrationId, side: 'target', outcome: 'completed' })
  await untilHome(w, 'b')
  const back = await w.node('a', { vms: [web(1)], migrations: [migrationId] })
  back.link.report({ migrationId, side: 'source', outcome: 'failed', error: { code: 'CONNECTION_LOST', message: 'gone' } })
  await w.until(migrationId, ({ state }) => state === 'ABORTED')
  await untilHome(w, 'a')
  await say(w, b, 'b', [web(2, { vcpus: 2 })])
  assert.is(await homeIn(w), 'a', 'and keeps it')
})

test("a jump of the owner's own epoch is alarmed", async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [web(1)] })
  await untilHome(w, 'a')
  await say(w, a, 'a', [web(3)])
  assert.equal(await alarms(w), [])
  await say(w, a, 'a', [web(HUGE)])
  assert.equal(await alarms(w), ['gateway_alerts_total{kind="epoch_jump"} 1'])
})

test.run()
