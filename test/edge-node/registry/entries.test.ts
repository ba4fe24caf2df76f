import { Entries } from '../../../edge-node/registry/entries.ts'
import { highestEpoch, readRecord } from '../../../edge-node/registry/records.ts'
import type { Resources } from '../../../edge-node/registry/resources.ts'
import { parseSpec } from '../../../edge-node/vm/spec.ts'
import { sleep } from '../../../ops/deadline.ts'
import { openStore, type Store } from '../../../ops/store.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { silentLog } from '../../../wire/log.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { echoSpec, testSite } from '../vm/echo-guest.ts'

const test = suite('edge-node/registry/entries')

type Stage = AsyncDisposable & { entries: Entries; store: Store; did: string[]; closing: AbortController }

/** VMs whose resources are only noted. */
async function stage({ held = 0, refuses = false } = {}): Promise<Stage> {
  const site = await testSite()
  const store = await openStore(`${site.stateDir}/store`)
  const did: string[] = []
  const note = (what: string) => async (of: string | { name: string }) => {
    did.push(`${what} ${typeof of === 'string' ? of : of.name}`)
    if (refuses) throw new Error('no space left')
  }
  const resources = {
    ...{ create: note('create'), reserve: note('reserve'), endQemu: note('end QEMU of') },
    ...{ remove: note('remove'), leave: note('leave') },
  } as unknown as Resources
  const closing = new AbortController()
  const entries = new Entries({ store, resources, heldBesides: () => held, closing: closing.signal, log: silentLog })
  const dispose = async () => {
    await store.close()
    await site[Symbol.asyncDispose]()
  }
  return { entries, store, did, closing, [Symbol.asyncDispose]: dispose }
}

const spec = (name: string) => parseSpec(echoSpec(name))

test('a VM is inserted once, its resources are created or reserved by its state, and what is forgotten leaves its epoch', async () => {
  await using one = await stage()
  const { entries, store, did } = one
  const [first, second] = await Promise.allSettled([1, 2].map(epoch => entries.insert(spec('vm-1'), { state: 'stopped', epoch })))
  assert.equal([first?.status, second?.status], ['fulfilled', 'rejected'])
  await entries.insert(spec('vm-2'), { state: 'incoming', epoch: 4 })
  assert.equal(did, ['create vm-1', 'reserve vm-2'])
  await entries.update(entries.get('vm-2'), { state: 'running', epoch: 5 })
  assert.is((await readRecord(store, 'vm-2'))?.epoch, 5)
  await entries.forget(entries.get('vm-2'), 6, 'nothing')
  assert.equal(did.slice(2), ['end QEMU of vm-2', 'remove vm-2'])
  assert.equal([await readRecord(store, 'vm-2'), await highestEpoch(store, 'vm-2')], [undefined, 6])
  assert.is(await codeOf(async () => entries.get('vm-2')), 'VM_UNKNOWN')
})

test('places that are held count as VMs, and a VM whose resources fail is not listed', async () => {
  await using full = await stage({ held: 256 })
  assert.is(await codeOf(() => full.entries.insert(spec('vm-1'), { state: 'stopped', epoch: 1 })), 'LIMIT_EXCEEDED')
  await using broken = await stage({ refuses: true })
  assert.is(await codeOf(() => broken.entries.insert(spec('vm-1'), { state: 'stopped', epoch: 1 })), 'CONFIG_UNREADABLE')
  assert.equal(broken.entries.all(), [])
})

test('orders of one VM run one after the other, those of others beside them; none begins after the end', async () => {
  await using one = await stage()
  const { entries, closing } = one
  for (const name of ['vm-1', 'vm-2']) await entries.insert(spec(name), { state: 'stopped', epoch: 1 })
  const order: string[] = []
  const take = (name: string, what: string, ms: number) =>
    entries.inTurn(name, async () => {
      await sleep(ms)
      order.push(what)
    })
  const fails = entries.inTurn('vm-1', async () => {
    throw new GodwitError('VM_STATE', 'refused')
  })
  await Promise.all([codeOf(() => fails), take('vm-1', 'slow', 50), take('vm-1', 'quick', 0), take('vm-2', 'other', 0)])
  assert.equal(order, ['other', 'slow', 'quick'])
  const gone = [entries.inTurn('vm-1', entry => entries.forget(entry, 1, 'copy')), codeOf(() => take('vm-1', 'late', 0))] as const
  assert.is((await Promise.all(gone))[1], 'VM_UNKNOWN')
  closing.abort()
  assert.is(await codeOf(() => take('vm-2', 'late', 0)), 'VM_STATE')
  await entries.idle()
})

test('each change calls each listener until it is taken off', async () => {
  await using one = await stage()
  const { entries } = one
  let [kept, taken] = [0, 0]
  entries.onChange(() => kept++)
  const off = entries.onChange(() => taken++)
  const entry = await entries.insert(spec('vm-1'), { state: 'stopped', epoch: 1 })
  off()
  await entries.update(entry, { doubt: true })
  assert.equal([kept, taken], [2, 1])
  entries.unlisten()
  entries.changed()
  assert.is(kept, 2)
})

test.run()
