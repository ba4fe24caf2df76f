import { spawn } from 'node:child_process'
import { chmod, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { MEMORY_OVERHEAD_BYTES } from '../../../edge-node/vm/preflight.ts'
import { isAlive } from '../../../edge-node/vm/process.ts'
import { findQemu, qemuAbilities } from '../../../edge-node/vm/qemu.ts'
import { openRegistry, type Registry, type RegistryOptions, type VmState } from '../../../edge-node/vm/registry.ts'
import { killLeftover } from '../../../edge-node/vm/runtime-folder.ts'
import { parseSpec } from '../../../edge-node/vm/spec.ts'
import { eventually, within } from '../../../ops/deadline.ts'
import { openStore } from '../../../ops/store.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { echoSpec, heard, qemuMissing, type TestSite, testSite } from './echo-guest.ts'

const test = suite('edge-node/vm/registry', { ms: 60_000 })
const skip = qemuMissing()

type Opened = Registry & AsyncDisposable

// Measuring what QEMU can do takes seconds where /dev/kvm hangs, and has a test of its own: once for this file.
let measured: Promise<string> | undefined
async function measure(site: TestSite): Promise<string> {
  const cacheFile = join(site.dir, 'abilities.json')
  await qemuAbilities(await findQemu(), { cacheFile })
  return readFile(cacheFile, 'utf8')
}

async function open(site: TestSite, more: Partial<RegistryOptions> = {}): Promise<Opened> {
  if (!skip) {
    measured ??= measure(site)
    await writeFile(join(site.stateDir, 'qemu-abilities.json'), await measured)
  }
  const registry = await openRegistry({ stateDir: site.stateDir, imagesDir: site.imagesDir, ...more })
  const dispose = async () => {
    await registry.close()
    const vms = join(site.stateDir, 'vms')
    for (const name of await readdir(vms)) await killLeftover(join(vms, name))
  }
  return Object.assign(registry, { [Symbol.asyncDispose]: dispose })
}

const comesTo = (registry: Registry, name: string, state: VmState) =>
  eventually(() => (registry.get(name).state === state ? true : undefined), { ms: 10_000, what: `${name} ${state}`, everyMs: 20 })

/** A registry with a running VM named vm-1. */
async function running(site: TestSite): Promise<Opened> {
  const registry = await open(site)
  await registry.create(echoSpec('vm-1'))
  await registry.start('vm-1')
  await heard(registry.console('vm-1').follow(), 'G')
  return registry
}

test(
  'a VM is created, started, used, stopped and deleted',
  async () => {
    await using site = await testSite()
    await using registry = await open(site)
    let changes = 0
    registry.onChange(() => changes++)
    assert.equal(await registry.create(echoSpec('vm-1')), {
      ...{ name: 'vm-1', state: 'stopped', epoch: 1, memoryBytes: 32 * 1024 * 1024, vcpus: 1 },
      ...{ accelerator: undefined, pid: undefined, doubt: false, failure: undefined },
    })
    const started = await registry.start('vm-1')
    assert.equal([started.state, started.accelerator], ['running', 'tcg'])
    await heard(registry.console('vm-1').follow(), 'G')
    assert.is(await codeOf(() => registry.start('vm-1')), 'VM_STATE')
    assert.is(await codeOf(() => registry.delete('vm-1')), 'VM_STATE')
    assert.is((await registry.stop('vm-1', { force: true })).state, 'stopped')
    assert.is(await codeOf(() => registry.console('vm-1')), 'VM_STATE')
    assert.is((await registry.start('vm-1')).state, 'running')
    await registry.stop('vm-1', { graceMs: 200 }) // the guest knows no power button
    await registry.delete('vm-1')
    assert.equal(registry.list(), [])
    assert.equal(await readdir(join(site.stateDir, 'vms')), [])
    assert.is(await codeOf(() => registry.get('vm-1')), 'VM_UNKNOWN')
    assert.ok(changes >= 6)
  },
  { skip },
)

test('what cannot be created is refused and leaves nothing', async () => {
  await using site = await testSite()
  await using registry = await open(site)
  await registry.create(echoSpec('vm-1'))
  assert.is(await codeOf(() => registry.create(echoSpec('vm-1'))), 'VM_EXISTS')
  assert.is(await codeOf(() => registry.create('name: vm-2\nmemory: 32\nkernel: k')), 'VM_SPEC_INVALID')
  assert.is(await codeOf(() => registry.create('name: vm-2\nmemory: 32MiB\nkernel: none')), 'PREFLIGHT_FILE_MISSING')
  assert.equal(
    registry.list().map(vm => vm.name),
    ['vm-1'],
  )
})

test('without QEMU, or with one too old, a start is refused and the VM stays stopped', async () => {
  await using site = await testSite()
  const old = join(site.dir, 'old-qemu')
  await writeFile(old, '#!/bin/sh\necho "QEMU emulator version 5.2.0"\n')
  await chmod(old, 0o755)
  for (const [qemuBinary, code, version] of [
    ['qemu-system-that-nobody-has', 'PREFLIGHT_QEMU_MISSING', undefined],
    [old, 'PREFLIGHT_QEMU_OLD', '5.2.0'],
  ] as const) {
    await using registry = await open(site, { qemuBinary })
    const name = `vm-${code.toLowerCase().replaceAll('_', '-')}`
    await registry.create(echoSpec(name))
    assert.is(await codeOf(() => registry.start(name)), code)
    assert.is(registry.get(name).state, 'stopped')
    assert.is((await registry.hostInfo()).qemuVersion, version)
  }
})

test('a second agent is refused the state folder', async () => {
  await using site = await testSite()
  await using _registry = await open(site)
  assert.is(await codeOf(() => openRegistry(site)), 'STORE_LOCKED')
})

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
  'an agent that was killed is followed by one that adopts its VMs',
  async () => {
    await using site = await testSite()
    {
      await using registry = await open(site)
      await registry.create(echoSpec('vm-1'))
    }
    const script = join(import.meta.dirname, 'agent-process.ts')
    const agent = spawn(process.execPath, [script, site.stateDir, site.imagesDir, 'vm-1'], { stdio: ['ignore', 'pipe', 'inherit'] })
    const ended = new Promise(resolve => agent.once('exit', resolve))
    try {
      await within(new Promise(resolve => agent.stdout.once('data', resolve)), { ms: 30_000, what: 'READY' })
    } finally {
      agent.kill('SIGKILL')
      await ended
    }
    await using registry = await open(site)
    assert.is(registry.get('vm-1').state, 'running')
    assert.is(registry.machine('vm-1').adopted, true)
    await registry.console('vm-1').write(Buffer.from('again'))
    await heard(registry.console('vm-1').follow(), 'again')
    process.kill(registry.get('vm-1').pid!, 'SIGKILL')
    await comesTo(registry, 'vm-1', 'failed')
  },
  { skip },
)

test(
  'a VM whose QEMU ended while no agent was there is failed, one whose guest powered off is stopped',
  async () => {
    await using site = await testSite()
    const registry = await running(site)
    await registry.create(echoSpec('vm-2'))
    await registry.start('vm-2')
    await heard(registry.console('vm-2').follow(), 'G')
    const [first, second] = [registry.machine('vm-1'), registry.machine('vm-2')]
    await second.console!.write(Buffer.from('Q'))
    await registry.close() // perhaps before the power-off was seen: the next agent must see it then
    process.kill(first.pid, 'SIGKILL')
    await eventually(() => !isAlive(first.identity) || undefined, { ms: 5_000, what: 'the end' })
    await using again = await open(site)
    await comesTo(again, 'vm-1', 'failed')
    await comesTo(again, 'vm-2', 'stopped')
    assert.is(isAlive(second.identity), false)
  },
  { skip },
)

test(
  'an incoming VM is reserved once, only with a new epoch, and leaves nothing when dropped',
  async () => {
    await using site = await testSite()
    await using registry = await open(site)
    const spec = parseSpec(echoSpec('vm-1'))
    const vm = await registry.reserveIncoming(spec, 5, 'tcg')
    assert.equal(await vm.commands.queryStatus(), { status: 'inmigrate', running: false })
    assert.equal([registry.get('vm-1').state, registry.get('vm-1').epoch], ['incoming', 0])
    assert.is(await codeOf(() => registry.reserveIncoming(spec, 6, 'tcg')), 'VM_EXISTS')
    assert.is(await codeOf(() => registry.start('vm-1')), 'VM_STATE')
    assert.is(await codeOf(() => registry.stop('vm-1')), 'VM_STATE')
    assert.is(await codeOf(() => registry.delete('vm-1')), 'VM_STATE')
    await registry.dropIncoming('vm-1')
    await registry.dropIncoming('vm-1')
    assert.is(isAlive(vm.identity), false)
    assert.equal(registry.list(), [])
    assert.is((await registry.create(echoSpec('vm-1'))).epoch, 1)
  },
  { skip },
)

test(
  'room that is held is there for its VM and for no other, until it comes, is released, or the time is over',
  async () => {
    await using site = await testSite()
    await using elsewhere = await testSite()
    await using source = await running(elsewhere)
    // Large, so that what others on this host take and give back meanwhile does not count.
    const spec = parseSpec(echoSpec('vm-1').replace('32MiB', '2GiB'))
    const needs = { ...(await source.needs('vm-1', 'live')), spec }
    // Of all that is free, room for one such VM and a half.
    const { memoryFreeBytes } = await source.hostInfo()
    const oneBytes = needs.spec.memoryBytes + MEMORY_OVERHEAD_BYTES
    await using target = await open(site, { memoryReserveBytes: memoryFreeBytes - Math.round(1.5 * oneBytes) })
    let changes = 0
    target.onChange(() => changes++)
    const hold = { id: 'f'.repeat(32), ms: 60_000 }
    assert.is(await target.holdIncoming(needs, 2, hold), oneBytes)
    assert.is(changes, 1)
    const other = { ...needs, spec: parseSpec(echoSpec('vm-2').replace('32MiB', '2GiB')) }
    assert.is(await codeOf(() => target.checkIncoming(other)), 'PREFLIGHT_MEMORY')
    assert.is(await codeOf(() => target.reserveIncoming(other.spec, 1, 'tcg')), 'PREFLIGHT_MEMORY')
    await target.checkIncoming(needs)
    assert.is(target.releaseHold(hold.id), true)
    assert.is(target.releaseHold(hold.id), false)
    await target.checkIncoming(other)
    await target.holdIncoming(needs, 2, { ...hold, ms: 300 })
    const told = changes
    assert.is(await codeOf(() => target.checkIncoming(other)), 'PREFLIGHT_MEMORY')
    await eventually(async () => (changes > told ? true : undefined), { ms: 5_000, what: 'the end of the lease told' })
    await target.checkIncoming(other)
    await target.holdIncoming(needs, 2, hold)
    await target.reserveIncoming(needs.spec, 2, 'tcg')
    assert.is(target.releaseHold(hold.id), false, 'it is the reservation now')
    assert.is(await codeOf(() => target.holdIncoming(needs, 2, hold)), 'VM_EXISTS')
  },
  { skip },
)

test(
  'a reservation does not survive its agent; a committed VM does, and runs',
  async () => {
    await using site = await testSite()
    const registry = await open(site)
    const vm = await registry.reserveIncoming(parseSpec(echoSpec('vm-1')), 5, 'tcg')
    await registry.close()
    {
      await using again = await open(site)
      assert.equal(again.list(), [])
      assert.is(isAlive(vm.identity), false)
      await again.reserveIncoming(parseSpec(echoSpec('vm-1')), 5, 'tcg')
      assert.is(await codeOf(() => again.commitIncoming('vm-1', 0)), 'EPOCH_STALE')
      await again.commitIncoming('vm-1', 5)
      assert.equal([again.get('vm-1').state, again.get('vm-1').epoch], ['running', 5])
      assert.is(await codeOf(() => again.commitIncoming('vm-1', 6)), 'VM_STATE')
    }
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
  'an agent killed while a VM migrated: a running guest runs on, a paused one stays paused until a person decides',
  async () => {
    await using site = await testSite()
    const registry = await running(site)
    await registry.beginMigration('vm-1')
    await registry.close()
    const second = await open(site)
    assert.is(second.get('vm-1').state, 'running')
    await second.beginMigration('vm-1')
    await second.machine('vm-1').commands.stop()
    await second.close()
    await using third = await open(site)
    assert.is(third.get('vm-1').state, 'paused')
    assert.is(await codeOf(() => third.start('vm-1')), 'MIGRATION_DOUBT')
    assert.is((await third.machine('vm-1').commands.queryStatus()).running, false)
    assert.is(await codeOf(() => third.start('vm-1', { force: true })), 'FENCING_REQUIRED')
    assert.is((await third.machine('vm-1').commands.queryStatus()).running, false)
    await third.machine('vm-1').commands.cont()
    await third.settle('vm-1', 'kept', 3)
    await third.beginMigration('vm-1')
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

test(
  'when the records are lost, nothing is started by itself',
  async () => {
    await using site = await testSite()
    const registry = await running(site)
    await registry.create(echoSpec('vm-2'))
    await registry.close()
    await rm(join(site.stateDir, 'store'), { recursive: true })
    await using again = await open(site)
    assert.is(again.get('vm-1').state, 'running')
    assert.is(again.get('vm-2').failure?.code, 'MIGRATION_DOUBT')
    assert.is(await codeOf(() => again.start('vm-2')), 'MIGRATION_DOUBT')
    assert.is(await codeOf(() => again.beginMigration('vm-1')), 'MIGRATION_DOUBT')
  },
  { skip },
)

test(
  'the store may be given, and then stays open',
  async () => {
    await using site = await testSite()
    const store = await openStore(join(site.dir, 'store'))
    try {
      const registry = await openRegistry({ ...site, store })
      await registry.create(echoSpec('vm-1'))
      await registry.close()
      assert.ok(await store.get('vms', 'vm-1'))
    } finally {
      await store.close()
    }
  },
  { skip },
)

test.run()
