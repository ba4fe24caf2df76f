// A hand-over without an answer: how the asking ends, and what a person and the watchdog see of it.
import { type Asking, createAsked, createAsking } from '../../edge-node/asking.ts'
import type { Unanswered } from '../../edge-node/migration/recover.ts'
import type { RunOptions } from '../../edge-node/runs.ts'
import { createSlots, type RunningMigration, type Slots } from '../../edge-node/slots.ts'
import { eventually } from '../../ops/deadline.ts'
import type { MigrationResult, Plan } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('edge-node/asking')

const plan = { migrationId: 'c0ffee00'.repeat(4), vm: 'web-1', epoch: 3, source: 'a', target: 'b' } as Plan

type Stage = { asking: Asking; slots: Slots; results: MigrationResult[]; stop: AbortController; running(): RunningMigration }

function stage(): Stage {
  const results: MigrationResult[] = []
  const stop = new AbortController()
  const slots = createSlots((_, result) => void results.push(result))
  const options = { alerts: { raise() {} }, log: silentLog, link: () => ({}), stop: stop.signal } as unknown as RunOptions
  return { asking: createAsking(options, slots), slots, results, stop, running: () => slots.running(plan.migrationId)! }
}

const endOf = ({ results }: Stage) => eventually(() => results[0], { ms: 1_000, what: 'the result' })

/** Asks until it is stopped. */
const unanswered = (onStart?: (onUnanswered: (error: GodwitError) => void) => void): Unanswered => ({
  plan,
  ask: (_, stop, onUnanswered = () => {}) => {
    onStart?.(onUnanswered)
    return new Promise((_, reject) => stop.addEventListener('abort', () => reject(stop.reason), { once: true }))
  },
})

test('an answer ends the asking: moved completes the migration, given back fails it with MIGRATION_REFUSED', async () => {
  for (const [fate, outcome, code] of [
    ['moved', 'completed', undefined],
    ['kept', 'failed', 'MIGRATION_REFUSED'],
  ] as const) {
    const one = stage()
    await one.asking.take({ plan, ask: async () => fate })
    const result = await endOf(one)
    assert.equal([result.side, result.outcome, result.error?.code], ['source', outcome, code])
    assert.equal(one.slots.ids(), [])
  }
})

test('while it asks, the hand-over is listed with its vain meetings and cannot be cancelled', async () => {
  const one = stage()
  await one.asking.take(unanswered(onUnanswered => onUnanswered(new GodwitError('STREAM_RESET', 'no such migration here'))))
  assert.equal(one.slots.handovers(), [plan])
  const { times, said } = one.running().asked!()!
  assert.equal([times, said.code], [1, 'STREAM_RESET'])
  assert.equal(one.running().stage(), { state: 'ASKING', mark: '1' })
  assert.is(await codeOf(async () => one.running().cancel()), 'MIGRATION_LATE')
  await one.slots.abandon('web-1')
  assert.equal([one.results[0]?.outcome, one.results[0]?.error?.code], ['failed', 'MIGRATION_DOUBT'])
})

test('the watchdog and the end of the node end the asking in doubt, never otherwise', async () => {
  const [stuck, stopped] = [stage(), stage()]
  await stuck.asking.take(unanswered())
  assert.is(stuck.running().stuck(new GodwitError('MIGRATION_STUCK', 'no progress')), 'forward')
  await stopped.asking.take(unanswered())
  stopped.stop.abort(new GodwitError('SITE_OFFLINE', 'the node of a is shutting down'))
  for (const one of [stuck, stopped]) assert.is((await endOf(one)).error?.code, 'MIGRATION_DOUBT')
  await stopped.asking.clearUp(plan)
})

test('the count of vain meetings keeps the first time and the last error', () => {
  const asked = createAsked()
  assert.is(asked.facts(), undefined)
  for (const code of ['STREAM_RESET', 'SITE_OFFLINE'] as const) asked.unanswered(new GodwitError(code, code))
  const { times, firstAt, lastAt, said } = asked.facts()!
  assert.equal([times, said.code, firstAt <= lastAt], [2, 'SITE_OFFLINE', true])
})

test.run()
