import { isAlive } from '../../../edge-node/vm/process.ts'
import { eventually } from '../../../ops/deadline.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { heard, testSite } from '../vm/echo-guest.ts'
import { comesTo, open, running, skip, type } from './open-registry.ts'

const test = suite('edge-node/registry/guests', { ms: 60_000 })

test(
  'a guest that powers off is stopped',
  async () => {
    await using site = await testSite()
    await using registry = await running(site)
    const { identity } = registry.machine('vm-1')
    await registry.console('vm-1').write(Buffer.from('Q'))
    await comesTo(registry, 'vm-1', 'stopped')
    assert.is(isAlive(identity), false)
    assert.is(registry.get('vm-1').failure, undefined)
  },
  { skip },
)

test(
  'a QEMU that dies makes the VM failed, with its last words; it can be started again',
  async () => {
    await using site = await testSite()
    await using registry = await running(site)
    process.kill(registry.get('vm-1').pid!, 'SIGTERM')
    await comesTo(registry, 'vm-1', 'failed')
    const { failure } = registry.get('vm-1')
    assert.is(failure?.code, 'QEMU_EXITED')
    assert.match(failure!.message, 'terminating on signal 15')
    const again = await registry.start('vm-1')
    assert.equal([again.state, again.failure], ['running', undefined])
  },
  { skip },
)

test(
  'somebody who stops the guest at its monitor is seen, and start lets it run on',
  async () => {
    await using site = await testSite()
    await using registry = await running(site)
    await registry.machine('vm-1').commands.stop()
    await comesTo(registry, 'vm-1', 'paused')
    await registry.start('vm-1')
    assert.is((await registry.machine('vm-1').commands.queryStatus()).running, true)
    assert.is(registry.get('vm-1').state, 'running')
  },
  { skip },
)

test(
  'a guest that powers off by itself is stopped, one that panics has failed with GUEST_CRASHED; both start anew',
  async () => {
    await using site = await testSite()
    await using registry = await running(site)
    for (const [key, state, code] of [
      ['Q', 'stopped', undefined],
      ['P', 'failed', 'GUEST_CRASHED'],
    ] as const) {
      const { identity } = registry.machine('vm-1')
      await type(registry, key)
      await comesTo(registry, 'vm-1', state)
      assert.is(registry.get('vm-1').failure?.code, code)
      assert.is(isAlive(identity), false, 'its QEMU is gone')
      assert.is((await registry.start('vm-1')).state, 'running')
      await heard(registry.console('vm-1').follow(), 'G')
    }
  },
  { skip },
)

test(
  'a guest that sleeps is listed as suspended, also by the next agent, and is woken by wake and by start',
  async () => {
    await using site = await testSite()
    const first = await running(site)
    assert.is(await codeOf(() => first.wake('vm-1')), 'VM_STATE')
    await type(first, 'S')
    await comesTo(first, 'vm-1', 'suspended')
    assert.is(first.runs('vm-1'), false)
    await first.close()
    await using registry = await open(site)
    assert.is(registry.get('vm-1').state, 'suspended')
    assert.is((await registry.wake('vm-1')).state, 'running')
    await heard(registry.console('vm-1').follow({ replay: false }), 'G')
    await type(registry, 'S')
    await comesTo(registry, 'vm-1', 'suspended')
    assert.is((await registry.start('vm-1')).state, 'running')
    await heard(registry.console('vm-1').follow({ replay: false }), 'G')
  },
  { skip },
)

test(
  'a VM that migrates while its guest sleeps or has ended is what its guest is when the migration has failed',
  async () => {
    await using site = await testSite()
    await using registry = await running(site)
    await type(registry, 'S')
    await comesTo(registry, 'vm-1', 'suspended')
    const { commands } = await registry.beginMigration('vm-1')
    await registry.endMigration('vm-1', 'kept')
    assert.is(registry.get('vm-1').state, 'suspended')
    await registry.wake('vm-1')
    await heard(registry.console('vm-1').follow({ replay: false }), 'G')
    for (const [key, status, state] of [
      ['Q', 'shutdown', 'stopped'],
      ['P', 'guest-panicked', 'failed'],
    ] as const) {
      const vm = await registry.beginMigration('vm-1')
      await type(registry, key)
      await eventually(async () => ((await vm.commands.queryStatus()).status === status ? true : undefined), { ms: 10_000, what: status })
      assert.is(registry.get('vm-1').state, 'migrating')
      await registry.endMigration('vm-1', 'kept')
      assert.is(registry.get('vm-1').state, state)
      await registry.start('vm-1')
      await heard(registry.console('vm-1').follow(), 'G')
    }
    assert.ok(commands)
  },
  { skip },
)

test.run()
