import { Capacity } from '../../../edge-node/registry/capacity.ts'
import { MEMORY_OVERHEAD_BYTES } from '../../../edge-node/vm/preflight.ts'
import { sleep } from '../../../ops/deadline.ts'
import { MIB } from '../../../wire/units.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const test = suite('edge-node/registry/capacity')

const GIB = 1024 * MIB
const vm = (name: string, bytes: number) => ({ name, memoryBytes: bytes - MEMORY_OVERHEAD_BYTES })
/** 10 GiB, of which 1 is the host's; asking what running VMs were promised takes a moment. */
function host(promised = { bytes: 0 }) {
  const promisedBytes = async () => {
    await sleep(5)
    return promised.bytes
  }
  return new Capacity({ availableBytes: () => 10 * GIB, reserveBytes: GIB, promisedBytes })
}

test('of claims and holds at once, those get room that fit', async () => {
  const capacity = host()
  const tries = [
    capacity.claim(vm('a', 4 * GIB)),
    capacity.hold(vm('b', 4 * GIB), { id: 'b', untilMs: performance.now() + 60_000 }),
    capacity.claim(vm('c', 4 * GIB)),
    capacity.hold(vm('d', 4 * GIB), { id: 'd', untilMs: performance.now() + 60_000 }),
    capacity.claim(vm('e', GIB)),
  ]
  const codes = (await Promise.allSettled(tries)).map(each => (each.status === 'fulfilled' ? 'ok' : each.reason.code))
  assert.equal(codes, ['ok', 'ok', 'PREFLIGHT_MEMORY', 'PREFLIGHT_MEMORY', 'ok'])
  assert.is(await capacity.freeBytes(), 0)
  assert.is(await capacity.freeBytes('b'), 4 * GIB, 'what is held for it is there for it')
})

test('a claim counts until it is released, and then its QEMU does', async () => {
  const promised = { bytes: 0 }
  const capacity = host(promised)
  const claim = await capacity.claim(vm('a', 6 * GIB))
  assert.is(await codeOf(() => capacity.claim(vm('b', 4 * GIB))), 'PREFLIGHT_MEMORY')
  promised.bytes = 6 * GIB
  claim.release()
  claim.release()
  assert.is(await capacity.freeBytes(), 3 * GIB)
  assert.is(await codeOf(() => capacity.claim(vm('b', 4 * GIB))), 'PREFLIGHT_MEMORY')
  promised.bytes = 0
  await capacity.claim(vm('b', 4 * GIB))
})

test.run()
