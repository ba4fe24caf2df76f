// Results until they are answered, and the wait between attempts to connect.
import { backoffMs } from '../../../edge-node/link/backoff.ts'
import { createResultOutbox, RESULTS_WAITING_MAX } from '../../../edge-node/link/outbox.ts'
import { eventually } from '../../../ops/deadline.ts'
import type { MigrationResult } from '../../../wire/control.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { silentLog } from '../../../wire/log.ts'
import { emptyReport } from '../../gateway/fixture.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('edge-node: link', { ms: 10_000 })
const result = (digit: string, outcome: MigrationResult['outcome'] = 'completed'): MigrationResult => ({
  migrationId: digit.repeat(32),
  side: 'source',
  outcome,
})
const never = new AbortController().signal

test('waits longer after each failure, up to a ceiling, spread over half of it', () => {
  const wait = (failures: number, chance: number) => backoffMs(failures, chance, { firstMs: 100, maxMs: 1000 })
  assert.equal(
    [1, 2, 3, 4, 5, 60].map(failures => wait(failures, 1)),
    [100, 200, 400, 800, 1000, 1000],
  )
  assert.equal([wait(1, 0), wait(60, 0)], [50, 500])
})

test('an offline gateway gets its results when it is back, the newest of each', async () => {
  let online = false
  const taken: MigrationResult[] = []
  const outbox = createResultOutbox(
    async one => {
      if (!online) throw new GodwitError('CONNECTION_LOST')
      taken.push(one)
    },
    silentLog,
    never,
  )
  outbox.add(result('a', 'failed'))
  outbox.add(result('b'))
  outbox.add(result('a', 'cancelled'))
  await outbox.flush()
  assert.equal(outbox.migrationIds().length, 2, 'both are still this node’s business')
  online = true
  await outbox.flush()
  assert.equal(taken, [result('a', 'cancelled'), result('b')])
  assert.equal(outbox.migrationIds(), [])
})

test('a gateway that answers no result ends nothing here and fills nothing: the oldest are dropped, with one line', async () => {
  const ends = new AbortController()
  const warnings: string[] = []
  const log = { ...silentLog, warn: (event: string) => void warnings.push(event) }
  const outbox = createResultOutbox(() => new Promise(() => {}), log, ends.signal)
  for (let at = 0; at < 3 * RESULTS_WAITING_MAX; at++) outbox.add({ ...result('a'), migrationId: at.toString(16).padStart(32, '0') })
  const ids = outbox.migrationIds()
  assert.equal([ids.length, ids.at(-1)], [RESULTS_WAITING_MAX, (3 * RESULTS_WAITING_MAX - 1).toString(16).padStart(32, '0')])
  assert.is(warnings.length, 1)
  ends.abort()
})

test('a result added while another is being sent is sent too', async () => {
  const gate = Promise.withResolvers<void>()
  const taken: string[] = []
  const outbox = createResultOutbox(
    async ({ migrationId }) => {
      await gate.promise
      taken.push(migrationId)
    },
    silentLog,
    never,
  )
  outbox.add(result('a'))
  outbox.add(result('b'))
  gate.resolve()
  await eventually(() => (taken.length === 2 ? true : undefined), { ms: 2_000, what: 'both' })
})

test('a report that the gateway cannot take does not keep the outcome from it', async () => {
  const taken: MigrationResult[] = []
  const outbox = createResultOutbox(
    async one => {
      if (one.report) throw new GodwitError('FRAME_MALFORMED', 'report.rounds: expected number')
      taken.push(one)
    },
    silentLog,
    never,
  )
  outbox.add({ ...result('c'), report: emptyReport('c'.repeat(32)) })
  await eventually(() => (taken.length === 1 ? true : undefined), { ms: 5_000, what: 'the outcome' })
  assert.equal(taken, [result('c')])
})

test.run()
