// What a node waits for when it is told to end, and what a cancel waits for: never for the other site, and never in
// vain.
import { handOver } from '../../edge-node/migration/hand-over.ts'
import type { Peer } from '../../edge-node/migration/peer.ts'
import { createSlots, type SlotEntry } from '../../edge-node/slots.ts'
import { within } from '../../ops/deadline.ts'
import type { MigrationResult, Plan } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('edge-node: shutting down', { ms: 20_000 })

const PLAN = { migrationId: 'aa'.repeat(16), vm: 'till-7', epoch: 3, source: 'a', target: 'b', attempt: 1 } as Plan
const never = () => new Promise<never>(() => {})

/** A migration that begins when told, and ends when cancelled. */
function slow() {
  const begin = Promise.withResolvers<void>()
  const result = Promise.withResolvers<MigrationResult>()
  const cancelled: string[] = []
  const entry = {
    side: 'source',
    peer: undefined,
    cancel(reason = new GodwitError('MIGRATION_CANCELLED')) {
      cancelled.push(reason.code)
      result.resolve({ migrationId: PLAN.migrationId, side: 'source', outcome: 'cancelled', error: reason.toJSON() })
    },
    result: result.promise,
  } as unknown as SlotEntry
  return { begin, cancelled, enter: () => begin.promise.then(() => entry) }
}

test('a cancel that comes while a migration is still taken up ends it, and does not find it unknown', async () => {
  const slots = createSlots(() => {})
  const { begin, cancelled, enter } = slow()
  const taken = slots.take(PLAN, 'source', enter)
  const found = slots.begun(PLAN.migrationId)
  begin.resolve()
  await taken
  const running = await found
  running?.cancel()
  assert.equal(cancelled, ['MIGRATION_CANCELLED'])
  await running?.done
  assert.is(await slots.begun(PLAN.migrationId), undefined)
})

test('one that is refused while it is taken up is unknown to the cancel', async () => {
  const slots = createSlots(() => {})
  const { begin, enter } = slow()
  const taken = codeOf(() => slots.take(PLAN, 'source', enter))
  const found = slots.begun(PLAN.migrationId)
  begin.reject(new GodwitError('VM_STATE'))
  assert.equal([await taken, await found], ['VM_STATE', undefined])
})

test('a node that shuts down ends what is still taken up as well', async () => {
  const slots = createSlots(() => {})
  const { begin, cancelled, enter } = slow()
  const taken = slots.take(PLAN, 'source', enter)
  const closed = slots.close(new GodwitError('SITE_OFFLINE'))
  begin.resolve()
  await within(Promise.all([taken, closed]), { ms: 5_000, what: 'closing' })
  assert.equal(cancelled, ['SITE_OFFLINE'])
})

const handOverOptions = (stop: AbortSignal, openStream: () => Promise<never>) =>
  ({ plan: PLAN, stop, openStream, log: silentLog }) as unknown as Parameters<typeof handOver>[0]
const GRANT = { type: 'GRANT', vm: 'till-7', epoch: 4, migrationId: PLAN.migrationId, manifestHash: '' } as const

test('a source that asks for an answer stops asking at once when its node shuts down, wherever it waits', async () => {
  const silent = { send: async () => {}, expect: never } as unknown as Peer
  const stuck = { send: never, expect: never } as unknown as Peer
  for (const first of [silent, stuck, undefined]) {
    const stop = new AbortController()
    const asked = codeOf(() => handOver(handOverOptions(stop.signal, never), first, GRANT))
    await new Promise(resolve => setImmediate(resolve))
    stop.abort(new GodwitError('SITE_OFFLINE'))
    // Each of these waits alone has 15 s or more.
    assert.is(await within(asked, { ms: 5_000, what: 'the end of the asking' }), 'SITE_OFFLINE')
  }
})

test.run()
