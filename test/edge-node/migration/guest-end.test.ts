// The guest's own end while its VM migrates, in every state of both sides: it powers off, panics, falls asleep,
// reboots. The stories are the real ones, with real handshakes and sealed records; the QEMUs are not. Each time the VM
// is at exactly one site, and nothing that is over runs again.
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { generateSiteKeys, loadSodium } from '../../../crypto/identity.ts'
import { type SourceMigration, startSource } from '../../../edge-node/migration/source.ts'
import { startTarget, type TargetMigration } from '../../../edge-node/migration/target.ts'
import { within } from '../../../ops/deadline.ts'
import type { Plan } from '../../../wire/control.ts'
import { silentLog } from '../../../wire/log.ts'
import { cuttableLink } from '../../support/cuttable-link.ts'
import { type FakeSource, fakeGuest, fakeSource, fakeTarget, type GuestAct } from '../../support/fake-qemus.ts'
import { outcomeOf } from '../../support/migration-pair.ts'
import { assert, suite } from '../../support/suite.ts'
import { tempFolder } from '../../support/temp-folder.ts'

await loadSodium()
const test = suite('the end of a guest that migrates', { ms: 120_000 })

const PLAN: Plan = {
  version: 1,
  migrationId: 'ef'.repeat(16),
  vm: 'till-7',
  epoch: 3,
  source: 'a',
  target: 'b',
  method: 'live',
  downtimeMs: 300,
  streams: 2,
  attempt: 1,
  compression: 'zstd',
  createdAt: 0,
}
const keys = { source: generateSiteKeys(), target: generateSiteKeys() }
const shared = {
  sourceCertificate: Buffer.from('a'),
  targetCertificate: Buffer.from('b'),
  log: silentLog,
  onProgress: () => {},
  workers: 0,
}
const GUEST = fakeGuest(5, { pages: 150, rounds: 2 })
/** A side and the record that it is about to write, or has written. */
type Place = `${'source' | 'target'} ${'before' | 'after'} ${string}`
type Wish = {
  at: Place
  method?: Plan['method']
  act: (source: FakeSource, migration: SourceMigration) => void
  major?: number
  loadsAs?: string
}

/** Runs a migration; `act` happens once, where `at` says. No step of it may take longer than the whole may. */
async function migrate({ at, act, method = 'live', major = 10, loadsAs }: Wish) {
  await using folder = await tempFolder()
  const dir = (name: string) => join(folder.path, name)
  await Promise.all(['s', 't'].map(name => mkdir(dir(name))))
  const acted = Promise.withResolvers<void>()
  const mayStop = WHILE_IT_RUNS.includes(at) ? acted.promise : undefined
  const [from, to] = [fakeSource(GUEST, dir('s'), 0, major, mayStop), fakeTarget(GUEST, dir('t/memory'), loadsAs)]
  const states: { source: string[]; target: string[] } = { source: [], target: [] }
  let isDone = false
  const reach = (place: string) => {
    if (place !== at || isDone) return
    isDone = true
    act(from, source)
    acted.resolve()
  }
  const recorder = (side: 'source' | 'target') => async (state: string) => {
    reach(`${side} before ${state}`)
    states[side].push(state)
    reach(`${side} after ${state}`)
  }
  const plan = { ...PLAN, method }
  let target: TargetMigration | undefined
  const link = cuttableLink(
    (index, attempt, stream) => target?.accept(index, attempt, stream),
    () => undefined,
  )
  target = startTarget({
    ...{ ...shared, plan, keys: keys.target, peerBoxPublic: keys.source.boxPublic },
    reserve: async () => to.vm,
    drop: async () => to.kill(),
    commit: async () => reach('target before commit'),
    record: recorder('target'),
  })
  const source: SourceMigration = startSource({
    ...{ ...shared, plan, keys: keys.source, peerBoxPublic: keys.target.boxPublic },
    ...{ offer: { type: 'OFFER', needs: {} }, qemu: { qmp: from.qmp, exited: new Promise(() => {}), dir: dir('s') }, transport: 'memory' },
    openStream: link.openStream,
    record: recorder('source'),
  })
  reach('source before the offer')
  const [sent, received] = await within(Promise.all([outcomeOf(source.done), outcomeOf(target.done)]), { ms: 20_000, what: 'both ends' })
  assert.ok(isDone, `${at} was reached`)
  return { sent, received, states, fate: source.fate(), from: from.status, to: to.status }
}

const placesOf = (states: readonly string[]) => states.flatMap((state): Place[] => [`source before ${state}`, `source after ${state}`])
/** The guest of a live migration is held in pre-copy until the act, however slow the machine is. */
const WHILE_IT_RUNS: Place[] = ['source before the offer', ...placesOf(['OFFERED', 'STREAMING'])]
const BEFORE_COMMIT: Place[] = [
  ...WHILE_IT_RUNS,
  ...placesOf(['QUIESCED']),
  ...(['RESERVED', 'RECEIVING', 'LOADED'] as const).flatMap((state): Place[] => [`target before ${state}`, `target after ${state}`]),
]
/** From the source's record on, the guest is the target's. */
const AFTER_COMMIT: Place[] = ['source before RELINQUISHED', 'source after RELINQUISHED', 'target before GRANTED', 'target before commit']

for (const method of ['live', 'cold'] as const)
  for (const [act, code] of [
    ['powers off', 'GUEST_STOPPED'],
    ['panics', 'GUEST_CRASHED'],
  ] as const)
    test(`a guest that ${act} before the commit of a ${method} migration ends it at once: it is over at the source, and nothing is left at the target`, async () => {
      for (const at of BEFORE_COMMIT) {
        const result = await migrate({ at, method, act: source => source.guest(act) })
        assert.equal([result.sent.code, result.fate, result.states.source.at(-1)], [code, 'here', 'ABORTED'], at)
        assert.ok(result.from !== 'running' && result.to !== 'running', `${at}: nothing runs: ${result.from}, ${result.to}`)
        assert.not(result.states.source.includes('RELINQUISHED'), at)
        assert.ok(['REFUSED', undefined].includes(result.states.target.at(-1)), `${at}: ${result.states.target}`)
      }
    })

for (const act of ['powers off', 'panics', 'falls asleep', 'reboots'] as GuestAct[])
  test(`what an old QEMU says from the commit on counts no more: a guest that ${act} there is the target's`, async () => {
    for (const at of AFTER_COMMIT) {
      const result = await migrate({ at, act: source => source.guest(act) })
      assert.equal(
        [result.sent.report?.outcome, result.received.code, result.fate, result.to],
        ['completed', undefined, 'moved', 'running'],
        at,
      )
    }
  })

test('a guest that reboots goes on migrating, wherever it does', async () => {
  for (const at of BEFORE_COMMIT) {
    const result = await migrate({ at, act: source => source.guest('reboots') })
    assert.equal([result.sent.report?.outcome, result.fate, result.to], ['completed', 'moved', 'running'], at)
  }
})

test('a guest that falls asleep goes on migrating and sleeps at the target', async () => {
  for (const method of ['live', 'cold'] as const)
    for (const at of BEFORE_COMMIT.slice(0, 4)) {
      const result = await migrate({ at, method, act: source => source.guest('falls asleep'), loadsAs: 'suspended' })
      assert.equal([result.sent.report?.outcome, result.fate, result.to], ['completed', 'moved', 'suspended'], `${method} ${at}`)
    }
})

test('a QEMU that would wake it does not get it: the migration ends, and the guest sleeps on at the source', async () => {
  for (const at of BEFORE_COMMIT.slice(0, 4)) {
    const result = await migrate({ at, act: source => source.guest('falls asleep'), major: 8 })
    assert.equal([result.sent.code, result.fate, result.from], ['GUEST_SUSPENDED', 'here', 'suspended'], at)
  }
})

test('a migration that fails for another reason leaves a guest that sleeps or is over as it is', async () => {
  for (const [act, status] of [
    ['falls asleep', 'suspended'],
    ['reboots', 'running'],
  ] as const) {
    const cancel = (source: FakeSource, migration: SourceMigration) => {
      source.guest(act)
      migration.cancel()
    }
    const result = await migrate({ at: 'source after STREAMING', act: cancel })
    assert.equal([result.sent.code, result.fate, result.from], ['MIGRATION_CANCELLED', 'here', status])
  }
  const late = await migrate({
    at: 'source after STREAMING',
    act(source, migration) {
      migration.cancel()
      source.guest('powers off')
    },
  })
  assert.equal([late.sent.code, late.fate, late.from], ['MIGRATION_CANCELLED', 'here', 'shutdown'])
})

test("a guest that comes over already is the target's: it is never let run", async () => {
  for (const loadsAs of ['shutdown', 'guest-panicked']) {
    const result = await migrate({ at: 'target after LOADED', act: () => {}, loadsAs })
    assert.equal([result.sent.report?.outcome, result.received.code, result.fate, result.to], ['completed', undefined, 'moved', loadsAs])
    assert.equal(result.states.target.at(-1), 'RUNNING', 'its record says whose it is; the registry, what it does')
  }
})

test('a cancel before the commit ends the migration in each state of both sides, with the VM running at the source', async () => {
  for (const method of ['live', 'cold'] as const)
    for (const at of BEFORE_COMMIT) {
      const result = await migrate({ at, method, act: (_, migration) => migration.cancel() })
      assert.equal([result.sent.code, result.fate, result.from], ['MIGRATION_CANCELLED', 'here', 'running'], `${method} ${at}`)
      assert.not.equal(result.to, 'running', at)
    }
})

test.run()
