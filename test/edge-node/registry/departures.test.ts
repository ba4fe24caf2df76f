import { join } from 'node:path'
import { createCostPredictor } from '../../../edge-node/predict.ts'
import { isAlive } from '../../../edge-node/vm/process.ts'
import { measureMemory } from '../../../edge-node/vm/sample.ts'
import { parseSpec } from '../../../edge-node/vm/spec.ts'
import { eventually } from '../../../ops/deadline.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { echoSpec, heard, testSite } from '../vm/echo-guest.ts'
import { open, running, skip } from './open-registry.ts'

const test = suite('edge-node/registry/departures', { ms: 60_000 })

test(
  'two who ask at once what a migration would take both get an answer',
  async () => {
    await using site = await testSite()
    await using registry = await running(site)
    const predictor = createCostPredictor({
      running: name => registry.machine(name),
      measure: measureMemory,
      linkStats: () => null,
      now: Date.now,
    })
    const ask = () => predictor.predict({ vm: 'vm-1', target: 'b', downtimeMs: 300 })
    const [one, two] = await Promise.all([ask(), ask()])
    assert.equal(one, two)
    assert.is(typeof (await ask()).recommended, 'string')
    // A measurement of an earlier life of the agent is no reason to give none.
    await registry.machine('vm-1').qmp.execute('calc-dirty-rate', { 'calc-time': 1, mode: 'page-sampling' })
    assert.is(typeof (await ask()).recommended, 'string')
  },
  { skip },
)

test(
  'a VM that moved away leaves only its epoch, and comes back with a higher one',
  async () => {
    await using site = await testSite()
    await using registry = await running(site)
    const vm = await registry.beginMigration('vm-1')
    assert.is(registry.get('vm-1').state, 'migrating')
    assert.is(await codeOf(() => registry.beginMigration('vm-1')), 'MIGRATION_BUSY')
    assert.is(await codeOf(() => registry.stop('vm-1')), 'VM_STATE')
    assert.is(await codeOf(() => registry.delete('vm-1')), 'VM_STATE')
    await registry.endMigration('vm-1', 'moved', 2)
    assert.is(isAlive(vm.identity), false)
    assert.equal(registry.list(), [])
    const spec = parseSpec(echoSpec('vm-1'))
    assert.is(await codeOf(() => registry.reserveIncoming(spec, 2, 'tcg')), 'EPOCH_STALE')
    await registry.reserveIncoming(spec, 3, 'tcg')
    await registry.commitIncoming('vm-1', 3)
    assert.is(registry.get('vm-1').epoch, 3)
  },
  { skip },
)

test(
  'a VM whose migration failed is kept',
  async () => {
    await using site = await testSite()
    await using registry = await running(site)
    await registry.beginMigration('vm-1')
    await registry.endMigration('vm-1', 'kept')
    assert.equal([registry.get('vm-1').state, registry.get('vm-1').epoch], ['running', 1])
    assert.is(await codeOf(() => registry.endMigration('vm-1', 'kept')), 'VM_STATE')
  },
  { skip },
)

test(
  'a real migration between two sites with these machines: the guest goes on where it was',
  async () => {
    await using here = await testSite()
    await using there = await testSite()
    await using source = await running(here)
    await using target = await open(there)
    await source.console('vm-1').write(Buffer.from('abc'))
    await heard(source.console('vm-1').follow(), 'abc')
    const needs = await source.needs('vm-1', 'live')
    await target.checkIncoming(needs)
    const from = await source.beginMigration('vm-1')
    const to = await target.reserveIncoming(needs.spec, 2, needs.accelerator)
    for (const vm of [from, to]) await vm.commands.setCapabilities({ events: true, 'return-path': true })
    const uri = `unix:${join(to.dir, 'in.sock')}`
    await to.commands.migrateIncoming(uri)
    await from.commands.migrate(uri)
    await from.qmp.waitFor(({ event, data }) => event === 'MIGRATION' && data.status === 'completed', { ms: 30_000 })
    // The event comes a moment before the state.
    await eventually(async () => ((await from.commands.queryStatus()).status === 'postmigrate' ? true : undefined), {
      ms: 10_000,
      what: 'postmigrate',
    })
    await target.commitIncoming('vm-1', 2)
    await to.commands.cont()
    await source.endMigration('vm-1', 'moved', 2)
    await target.console('vm-1').write(Buffer.from('def'))
    await heard(target.console('vm-1').follow(), 'def')
    assert.equal([target.get('vm-1').state, target.get('vm-1').epoch, source.list()], ['running', 2, []])
    assert.is(await codeOf(() => source.checkIncoming({ ...needs, method: 'live', qemuVersion: '99.0.0' })), 'PREFLIGHT_QEMU_DOWNGRADE')
    assert.is(await codeOf(() => target.checkIncoming(needs)), 'VM_EXISTS')
  },
  { skip },
)

test.run()
