// What is in doubt, and its end by a fencing statement: which statements fit, and in which order things happen.
import { createRoot } from '../../crypto/certificate.ts'
import { type Fencing, issueFencing } from '../../crypto/fencing.ts'
import { loadSodium } from '../../crypto/sodium.ts'
import { createDoubts } from '../../edge-node/doubts.ts'
import type { Journal, OwnershipRecord } from '../../edge-node/migration/journal.ts'
import type { LocalVmFacts, Registry } from '../../edge-node/registry/registry.ts'
import type { Plan } from '../../wire/control.ts'
import { silentLog } from '../../wire/log.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('edge-node/doubts')
await loadSodium()

const root = createRoot()
const fits: Fencing = { site: 'b', vm: 'web-1', epoch: 4, for: 'a', by: 'Ada pulled the plug', issuedAt: 1_800_000_000 }
const statement = (more: Partial<Fencing> = {}, by = root) => Buffer.from(issueFencing(by, { ...fits, ...more })).toString('base64')
const plan = { migrationId: 'c0ffee00'.repeat(4), vm: 'web-1', epoch: 3, source: 'a', target: 'b' } as Plan
const relinquished = {
  side: 'source',
  state: 'RELINQUISHED',
  epoch: 4,
  at: 1,
  vm: 'web-1',
  plan,
  migrationId: plan.migrationId,
  peerCertificate: '',
}

/** A site whose VM is in doubt at epoch 3, with or without a record of a hand-over to b. */
function stage({ doubt = true, hasRecord = true } = {}) {
  const did: string[] = []
  const vm = { name: 'web-1', state: 'paused', epoch: 3, doubt } as LocalVmFacts
  const registry = {
    list: () => [vm],
    get: () => vm,
    settle: async (_: string, outcome: string, epoch: number) => void did.push(`settle ${outcome} ${epoch}`),
  } as unknown as Registry
  const journal = {
    last: async () => (hasRecord ? [relinquished as OwnershipRecord] : []),
    recorder: () => async (state: string, epoch: number, facts?: { fencing?: string }) =>
      void did.push(`record ${state} ${epoch} ${facts?.fencing === statement() ? 'with the statement' : ''}`),
  } as unknown as Journal
  const stopAsking = async () => void did.push('no more asking')
  const asked = () => ({ times: 2, firstAt: 1, lastAt: 2, said: { code: 'STREAM_RESET', message: 'SITE_OFFLINE' } })
  const onFenced = (vm: string, text: string) => void did.push(`${vm} fenced ${text === statement()}`)
  const doubts = createDoubts({ site: 'a', rootPublic: root.signPublic, registry, journal, asked, stopAsking, onFenced, log: silentLog })
  return { doubts, did }
}

test('a doubt says what a statement must hold, who was asked, and what to do', async () => {
  const [doubt] = await stage().doubts.list()
  assert.equal(doubt?.fencing, { site: 'b', vm: 'web-1', epoch: 4, for: 'a' })
  assert.equal([doubt?.record?.state, doubt?.asked?.times], ['RELINQUISHED', 2])
  assert.ok(doubt?.next.some(line => line.includes('godwit root fence --site b --vm web-1 --epoch 4 --for a')))
  assert.equal(await stage({ doubt: false, hasRecord: false }).doubts.list(), [])
})

test('the right statement ends the asking, is written with RECLAIMED at e+2, and then the VM is taken back', async () => {
  const { doubts, did } = stage()
  await doubts.reclaim('web-1', statement())
  assert.equal(did, ['no more asking', 'web-1 fenced true', 'record RECLAIMED 5 with the statement', 'settle kept 5'])
})

test('a statement about another VM, site, epoch or for another site is refused, and nothing happens', async () => {
  const { doubts, did } = stage()
  for (const wrong of [{ vm: 'web-2' }, { site: 'c' }, { epoch: 3 }, { epoch: 5 }, { for: 'c' }])
    assert.is(await codeOf(() => doubts.reclaim('web-1', statement(wrong))), 'FENCING_INVALID', JSON.stringify(wrong))
  assert.is(await codeOf(() => doubts.reclaim('web-1', statement({}, createRoot()))), 'FENCING_INVALID')
  assert.is(await codeOf(() => doubts.reclaim('web-1', 'bm90IG9uZQ==')), 'FENCING_INVALID')
  assert.equal(did, [])
})

test('without a record of the hand-over any other site may be the fenced one; a VM that is not in doubt is not taken over', async () => {
  const { doubts, did } = stage({ hasRecord: false })
  await doubts.reclaim('web-1', statement({ site: 'c' }))
  assert.equal(did, ['no more asking', 'web-1 fenced false', 'settle kept 5'])
  assert.is(await codeOf(() => stage({ doubt: false }).doubts.reclaim('web-1', statement())), 'VM_STATE')
})

test.run()
