// Users of VMs' QEMUs: each its own, the same after a restart, never one that somebody has.
import { join } from 'node:path'
import { confinementProblem } from '../../../edge-node/vm/confine.ts'
import { openUsers } from '../../../edge-node/vm/users.ts'
import { openStore } from '../../../ops/store.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { tempFolder } from '../../support/temp-folder.ts'

const test = suite('edge-node/vm/users')
const nobody = () => new Set<number>()

test('each VM has a user of its own, also when many ask at once, and the same one after a restart', async () => {
  await using folder = await tempFolder()
  const range = { from: 70_000, count: 40 }
  const names = Array.from({ length: 40 }, (_, i) => `vm-${i}`)
  const first = await openStore(join(folder.path, 'store'))
  const users = await openUsers({ store: first, range, busy: nobody })
  const given = await Promise.all(names.map(name => users.take(name)))
  assert.is(new Set(given).size, 40)
  assert.ok(given.every(uid => uid >= 70_000 && uid < 70_040))
  assert.is(await codeOf(() => users.take('one-more')), 'LIMIT_EXCEEDED')
  await first.close()

  const second = await openStore(join(folder.path, 'store'))
  const again = await openUsers({ store: second, range, busy: () => new Set(given) })
  assert.equal(await Promise.all(names.map(name => again.take(name))), given, 'its own process does not take it away')
  await again.release('vm-7')
  assert.is(await codeOf(() => again.take('one-more')), 'LIMIT_EXCEEDED', 'a user that has a process is not free, though its VM is gone')
  await second.close()
})

test('a user that has a process, or a name, is passed over; a VM whose user is out of the range gets another', async () => {
  await using folder = await tempFolder()
  const store = await openStore(join(folder.path, 'store'))
  const users = await openUsers({ store, range: { from: 70_000, count: 10 }, busy: () => new Set([70_000, 70_001]) })
  assert.is(await users.take('a'), 70_002)
  const elsewhere = await openUsers({ store, range: { from: 80_000, count: 10 }, busy: nobody })
  assert.is(await elsewhere.take('a'), 80_000)
  const real = await openUsers({ store, range: { from: 0, count: 2 } })
  assert.is(await codeOf(() => real.take('b')), 'LIMIT_EXCEEDED', 'root and daemon have names')
  await store.close()
})

test('what cannot be is said', () => {
  assert.match(confinementProblem({ from: 4_294_967_290, count: 100 }) ?? '', /root|container|CAP_/)
})

test.run()
