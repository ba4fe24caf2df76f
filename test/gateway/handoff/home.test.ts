// Where a VM lives: the table of views that disagree, and each caller with the same answer.

import { carryOut } from '../../../gateway/fronts/mqtt/carry-out.ts'
import type { Handoffs } from '../../../gateway/fronts/mqtt/handoffs.ts'
import { checkRequest } from '../../../gateway/handoff/checks.ts'
import { type Home, homeOf, livingVms, vmAt, withOwner } from '../../../gateway/handoff/home.ts'
import type { FrontHost } from '../../../gateway/handoff/host.ts'
import { PolicyConfig } from '../../../gateway/policy/config.ts'
import { LivePolicy } from '../../../gateway/policy/live.ts'
import { siteForUser } from '../../../gateway/services/place.ts'
import type { Command } from '../../../mqtt/schemas.ts'
import { eventually } from '../../../ops/deadline.ts'
import type { ServiceView, VmView } from '../../../wire/admin.ts'
import type { Plan, VmFacts } from '../../../wire/control.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { silentLog } from '../../../wire/log.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { vm, type World, world } from '../fixture.ts'

const test = suite('gateway: where a VM lives')

const at = (site: string, epoch: number, state: VmFacts['state'], more: Partial<VmView> = {}): VmView => ({
  ...vm('vm-1', { epoch, state, services: ['http'] }),
  ...{ site, online: true, ...more },
})
const offline = { online: false }
const lives = ({ vm: found, why }: Home) => (found ? `${found.site} ${found.epoch} ${found.state}` : why.code)

/** Views of sites, the site that the name belongs to, and where the VM lives. */
const TABLE: [string, VmView[], string | undefined, string][] = [
  ['no site has it', [], undefined, 'VM_UNKNOWN'],
  ['one site has it', [at('a', 1, 'running')], undefined, 'a 1 running'],
  ['its site is offline', [at('a', 1, 'running', offline)], 'a', 'a 1 running'],
  ['stopped at 5, paused at 4 elsewhere', [at('a', 4, 'paused'), at('b', 5, 'stopped')], 'b', 'b 5 stopped'],
  ['the same, in the other order', [at('b', 5, 'stopped'), at('a', 4, 'paused')], 'b', 'b 5 stopped'],
  ['the same, its site offline', [at('a', 4, 'paused'), at('b', 5, 'stopped', offline)], 'b', 'b 5 stopped'],
  ['a claim at a higher epoch takes nothing', [at('a', 4, 'paused'), at('b', 5, 'running')], 'a', 'a 4 paused'],
  ['a claim takes nothing from a site that is offline', [at('a', 4, 'stopped', offline), at('b', 9, 'running')], 'a', 'a 4 stopped'],
  ['a claim is no VM of the owner', [at('b', 9, 'running')], 'a', 'VM_UNKNOWN'],
  ['two claim a free name', [at('a', 4, 'paused'), at('b', 5, 'stopped')], undefined, 'VM_STATE'],
  ['a dead QEMU is still at its site', [at('a', 4, 'failed'), at('b', 3, 'running')], 'a', 'a 4 failed'],
  ['half of a transfer, and the whole', [at('b', 4, 'incoming'), at('a', 4, 'migrating')], undefined, 'a 4 migrating'],
  ['half of a transfer alone', [at('b', 4, 'incoming')], undefined, 'MIGRATION_BUSY'],
  ['half of a transfer at the owner', [at('b', 4, 'incoming'), at('a', 3, 'running')], 'b', 'MIGRATION_BUSY'],
  ['a VM of another name', [at('a', 1, 'running', { name: 'vm-2' })], undefined, 'VM_UNKNOWN'],
]

test('views that disagree have one home, or a coded reason', () => {
  for (const [what, views, owner, expected] of TABLE) {
    const home = homeOf('vm-1', views, owner)
    assert.is(lives(home), expected, what)
    const [living, ...more] = livingVms(views, () => owner).filter(({ name }) => name === 'vm-1')
    assert.equal([living, more], [home.vm, []], what)
    const counted = withOwner(views, () => owner).filter(({ isHome, name }) => isHome && name === 'vm-1')
    if (home.vm) assert.equal(counted, [{ ...home.vm, isHome: true }], what)
    else
      assert.ok(
        counted.every(({ state }) => state === 'incoming'),
        what,
      )
  }
  assert.throws(() => vmAt(homeOf('vm-1', [], 'a')), /site a does not report VM 'vm-1' any more/)
})

// --- Each caller asks it
// --------------------------------------------------------------------------------------------------------------

/** A home that no rule about views would give. */
const ODD = at('far', 77, 'running')
const UNLIKE = new GodwitError('VM_STATE', 'only this answer counts')

test('migrations and pre-stagings are checked against it', async () => {
  const known = {
    ...{ vms: [at('a', 99, 'running')], knownSite: () => true, onlineSite: () => true, migrationOf: () => undefined, pinned: () => false },
  }
  const asked: string[] = []
  const find = (name: string): Home => {
    asked.push(name)
    return { vm: ODD }
  }
  assert.is(checkRequest({ vm: 'vm-1', to: 'b' }, { ...known, find }), ODD)
  assert.equal(asked, ['vm-1'])
  const none = (): Home => ({ vm: undefined, why: UNLIKE })
  assert.throws(() => checkRequest({ vm: 'vm-1', to: 'b' }, { ...known, find: none }), /only this answer/)
})

const command = (more: object) => ({ action: 'pin', vmId: 'vm-1', pinned: true, reason: 'a test', sig: { key: 'k' }, ...more }) as Command

test("MQTT's fence is held against it", async () => {
  const pinned: string[] = []
  const pins = { set: async (name: string) => void pinned.push(name) }
  const host = { find: (): Home => ({ vm: ODD }), vms: () => [at('a', 1, 'running')], pins } as unknown as FrontHost
  const handoffs = {} as Handoffs
  await carryOut(command({ expectedEpoch: 77, fromSite: 'far' }), host, handoffs)
  assert.equal(pinned, ['vm-1'])
  assert.is(await codeOf(() => carryOut(command({ expectedEpoch: 1 }), host, handoffs)), 'EPOCH_STALE')
  const none = { ...host, find: (): Home => ({ vm: undefined, why: UNLIKE }) }
  assert.is(await codeOf(() => carryOut(command({ expectedEpoch: 1 }), none, handoffs)), 'VM_STATE')
})

test('a service is placed by it', () => {
  assert.equal(siteForUser('http', { vm: ODD }), { site: 'far' })
  assert.equal(siteForUser('http', { vm: undefined, why: UNLIKE }), { site: undefined, error: UNLIKE })
})

const SERVICE = { vm: 'vm-1', service: 'http', listen: { host: '127.0.0.1', port: 0 } }

/** Site a has handed the VM over to b at epoch 4, and still lists it; b has it at epoch 5. */
async function handedOver(w: World, state: VmFacts['state']) {
  const web = (epoch: number, more: VmFacts['state']) => [vm('vm-1', { epoch, state: more, services: ['http'] })]
  const a = await w.node('a', { vms: web(4, 'running') })
  const placed = (site: string) =>
    eventually(() => (w.gateway.control.find('vm-1').vm?.site === site ? true : undefined), { ms: 5_000, everyMs: 5, what: `at ${site}` })
  await placed('a')
  const plan: Plan = {
    ...{ version: 1, migrationId: 'a'.repeat(32), vm: 'vm-1', epoch: 4, source: 'a', target: 'b', method: 'live', downtimeMs: 300 },
    ...{ streams: 1, attempt: 1, compression: 'zstd', createdAt: Date.now() },
  }
  a.says = { handovers: [plan] }
  a.vms = web(4, 'paused')
  a.announce()
  const b = await w.node('b', { vms: web(5, state) })
  await placed('b')
  // The migration itself ends; only the views of both sites remain.
  for (const [node, side] of [[a, 'source'] as const, [b, 'target'] as const])
    node.link.report({ migrationId: plan.migrationId, side, outcome: 'completed' })
  await w.until(plan.migrationId, ({ state }) => state === 'DONE')
  await w.node('c')
  return { a, b }
}

test('a VM that is stopped at epoch 5 and paused elsewhere at epoch 4 lives at the site with epoch 5, whoever asks', async () => {
  await using w = await world({ services: [SERVICE] })
  const { b } = await handedOver(w, 'stopped')
  const { control } = w.gateway
  assert.equal(
    (await w.api<{ vms: VmView[] }>('GET', '/v1/vms')).vms.map(({ site, epoch, isHome }) => [site, epoch, isHome]),
    [
      ['a', 4, false],
      ['b', 5, true],
    ],
  )
  // MQTT's fence.
  await carryOut(command({ expectedEpoch: 5, fromSite: 'b', pinned: false }), control, {} as Handoffs)
  assert.is(await codeOf(() => carryOut(command({ expectedEpoch: 4 }), control, {} as Handoffs)), 'EPOCH_STALE')
  // Migrations and pre-stagings.
  for (const path of ['/v1/migrations', '/v1/prestages']) {
    assert.is(await codeOf(() => w.api('POST', path, { vm: 'vm-1', to: 'b' })), 'SITE_SAME', path)
    assert.is(await codeOf(() => w.api('POST', path, { vm: 'vm-1', to: 'c' })), 'VM_STATE', path)
  }
  // Admin: the plan is asked of b.
  const asked: string[] = []
  b.handlers.predict = async ({ vm: name, target }) => {
    asked.push(target)
    return { vm: name, target, methods: [], recommended: 'live', reason: 'a test' }
  }
  await w.api('POST', '/v1/plans', { vm: 'vm-1', to: 'a' })
  assert.equal([asked, await codeOf(() => w.api('POST', '/v1/plans', { vm: 'vm-1', to: 'b' }))], [['a'], 'SITE_SAME'])
  // Services: nobody serves a VM that is stopped.
  assert.is((await w.api<{ services: ServiceView[] }>('GET', '/v1/services')).services[0]?.site, null)
  assert.is(siteForUser('http', control.find('vm-1')).site, undefined)
  // The policy.
  const host = { ...control, isPinned: () => false }
  const live = new LivePolicy({ config: PolicyConfig.parse({}), host, log: silentLog })
  live.step(1_000)
  assert.is(live.explain('vm-1', 1_000)?.from, 'b')
})

test('the same VM, running at epoch 5, is served from there', async () => {
  await using w = await world({ services: [SERVICE] })
  await handedOver(w, 'running')
  assert.is((await w.api<{ services: ServiceView[] }>('GET', '/v1/services')).services[0]?.site, 'b')
})

test.run()
