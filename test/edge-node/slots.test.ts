// The table of a node's migrations: a VM is in one migration at a time, and a retry waits for the end of the one
// before.
import { createSlots, type SlotEntry } from '../../edge-node/slots.ts'
import type { MigrationResult, Plan } from '../../wire/control.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('edge-node/slots')

const planOf = (migrationId: string, vm = 'web') => ({ migrationId, vm }) as Plan

function running() {
  const { promise, resolve } = Promise.withResolvers<MigrationResult>()
  const entry: SlotEntry = { side: 'target', cancel() {}, stage: () => ({ state: 'STREAMING' }), stuck: () => 'report', result: promise }
  return { begin: async () => entry, end: () => resolve({ outcome: 'cancelled' } as MigrationResult) }
}

test('a retry waits until the migration before it has ended', async () => {
  const slots = createSlots(() => {})
  const [first, second] = [running(), running()]
  await slots.take(planOf('1'), 'target', first.begin)
  const order: string[] = []
  const retry = slots
    .take(planOf('2'), 'target', () => {
      order.push('begins')
      return second.begin()
    })
    .then(() => order.push('runs'))
  assert.equal(slots.ids().sort(), ['1', '2'], 'a migration that waits is reported to the gateway')
  assert.equal(order, [])
  first.end()
  await retry
  assert.equal(order, ['begins', 'runs'])
  assert.equal(slots.ids(), ['2'])
})

test('a migration that goes on refuses a second one of its VM with MIGRATION_BUSY, and no other VM waits for it', async () => {
  const slots = createSlots(() => {}, 5)
  await slots.take(planOf('1'), 'target', running().begin)
  await slots.take(planOf('2', 'other'), 'target', running().begin)
  assert.is(await codeOf(() => slots.take(planOf('3'), 'target', running().begin)), 'MIGRATION_BUSY')
  assert.equal(slots.ids(), ['1', '2'])
})

test('of two migrations of a VM that come together, the second is refused at once', async () => {
  const slots = createSlots(() => {})
  const first = slots.take(planOf('1'), 'target', running().begin)
  assert.is(await codeOf(() => slots.take(planOf('2'), 'target', running().begin)), 'MIGRATION_BUSY')
  await first
})

test.run()
