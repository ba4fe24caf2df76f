import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { MEMORY_OVERHEAD_BYTES } from '../../../edge-node/vm/preflight.ts'
import { isAlive } from '../../../edge-node/vm/process.ts'
import { parseSpec, type VmSpec } from '../../../edge-node/vm/spec.ts'
import { eventually } from '../../../ops/deadline.ts'
import { MIB } from '../../../wire/units.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { echoSpec, type TestSite, testSite } from '../vm/echo-guest.ts'
import { type Opened, open, running, skip } from './open-registry.ts'

const test = suite('edge-node/registry/arrivals', { ms: 60_000 })

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

/** Registries of a site with room for one VM of 2 GiB and a half, and the specs of two. */
async function tight(site: TestSite): Promise<{ registry: Opened; specs: [string, string] }> {
  await using measured = await open(site)
  const { memoryFreeBytes } = await measured.hostInfo()
  const oneBytes = 2 * 1024 * MIB + MEMORY_OVERHEAD_BYTES
  // Opened a second time, with what is free known.
  const place = { ...site, stateDir: join(site.dir, 'tight') }
  await mkdir(place.stateDir)
  const registry = await open(place, { memoryReserveBytes: memoryFreeBytes - Math.round(1.6 * oneBytes) })
  const specs = ['vm-1', 'vm-2'].map(name => echoSpec(name).replace('32MiB', '2GiB')) as [string, string]
  return { registry, specs }
}

test(
  'of two VMs that fit only alone and start at once, one starts and the other is refused; so of two that come, and of two that may come',
  async () => {
    await using site = await testSite()
    const { registry, specs } = await tight(site)
    await using _registry = registry
    const codes = async (tries: Promise<unknown>[]) =>
      (await Promise.allSettled(tries)).map(each => (each.status === 'fulfilled' ? 'ok' : each.reason.code)).sort()
    const oneOfTwo = ['PREFLIGHT_MEMORY', 'ok']
    for (const spec of specs) await registry.create(spec)
    assert.equal(await codes([registry.start('vm-1'), registry.start('vm-2')]), oneOfTwo)
    for (const name of ['vm-1', 'vm-2']) {
      await registry.stop(name, { force: true })
      await registry.delete(name)
    }
    const [one, two] = specs.map(parseSpec) as [VmSpec, VmSpec]
    assert.equal(await codes([registry.reserveIncoming(one, 5, 'tcg'), registry.reserveIncoming(two, 5, 'tcg')]), oneOfTwo)
    for (const { name } of registry.list()) await registry.dropIncoming(name)
    await using elsewhere = await testSite()
    await using source = await running(elsewhere)
    const needs = await source.needs('vm-1', 'live')
    const hold = (spec: VmSpec, id: string) => registry.holdIncoming({ ...needs, spec }, 9, { id: id.repeat(32), ms: 60_000 })
    assert.equal(await codes([hold(one, 'e'), hold(two, 'f')]), oneOfTwo)
  },
  { skip },
)

test.run()
