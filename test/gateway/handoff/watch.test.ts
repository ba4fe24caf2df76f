// The gateway's watchdog with time passed in: what stands still in any state is ended, or asked to end, and never
// decided.

import { HANDOVER_SESSIONS_MAX } from '../../../gateway/relay/sessions.ts'
import { eventually } from '../../../ops/deadline.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { MINUTE_MS } from '../../../wire/units.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { stage } from './stage.ts'

const test = suite('gateway: watchdog')
const until = (probe: () => unknown, what: string) => eventually(() => probe() || undefined, { ms: 10_000, everyMs: 5, what })

test('a target that never answers the preparing: ABORTED with MIGRATION_STUCK, the source was never told', async () => {
  await using s = await stage([])
  const id = await s.migrations.start({ vm: 'vm-1', to: 'b' })
  await until(() => s.asked.includes('b migration.prepare'), 'the preparing')
  s.pass(4 * MINUTE_MS)
  assert.is(s.migrations.record(id).state, 'PREPARING')
  s.pass(2 * MINUTE_MS)
  await until(() => s.migrations.record(id).state === 'ABORTED', 'the end')
  assert.is(s.migrations.record(id).error?.code, 'MIGRATION_STUCK')
  assert.equal(s.stuck, ['PREPARING abort'])
  const alerts = s.events.flatMap(event => (event.event === 'alert' ? [event.alert] : []))
  assert.match(alerts[0]!.message, /^the migration made no progress in state PREPARING for \d+ s$/)
  assert.equal(alerts, [{ kind: 'stuck', vm: 'vm-1', site: 'a', migrationId: id, message: alerts[0]!.message }])
  await until(() => s.asked.includes('b migration.cancel'), 'the cancel')
  assert.ok(!s.asked.includes('a migration.start'), s.asked.join())
})

test('a transfer without progress: both sites are asked to end it, and the gateway decides nothing; one with progress is left alone', async () => {
  await using s = await stage(['migration.prepare', 'migration.start'])
  const id = await s.migrations.start({ vm: 'vm-1', to: 'b' })
  await until(() => s.asked.includes('a migration.start'), 'the start')
  const link = s.sites.online('a')!
  for (let hour = 0; hour < 12; hour++) {
    s.pass(60 * MINUTE_MS)
    s.migrations.progress(link, { migrationId: id, side: 'source', phase: 'precopy', wireBytes: hour + 1 })
  }
  assert.equal(s.stuck, [])
  s.pass(121 * MINUTE_MS)
  assert.equal(s.stuck, ['STREAMING cancel'])
  assert.is(s.migrations.record(id).state, 'STREAMING')
  assert.equal(s.asked.filter(what => what.endsWith('migration.cancel')).sort(), ['a migration.cancel', 'b migration.cancel'])
})

test('after the hand-over nothing is cancelled or ended', async () => {
  await using s = await stage(['migration.prepare', 'migration.start'])
  const id = await s.migrations.start({ vm: 'vm-1', to: 'b' })
  await until(() => s.asked.includes('a migration.start'), 'the start')
  s.migrations.progress(s.sites.online('a')!, { migrationId: id, side: 'source', phase: 'committed' })
  await until(() => s.migrations.record(id).state === 'COMMIT_SEEN', 'the commit')
  s.pass(65 * MINUTE_MS)
  assert.equal(s.stuck, ['COMMIT_SEEN forward', 'COMMIT_SEEN forward'])
  assert.is(s.migrations.record(id).state, 'COMMIT_SEEN')
  assert.not.ok(s.asked.some(what => what.endsWith('migration.cancel')))
})

test('a site that has taken all its sessions does not end the gateway with a hand-over that stands still', async () => {
  await using s = await stage(['migration.prepare', 'migration.start'])
  const id = await s.migrations.start({ vm: 'vm-1', to: 'b' })
  await until(() => s.asked.includes('a migration.start'), 'the start')
  s.migrations.progress(s.sites.online('a')!, { migrationId: id, side: 'source', phase: 'committed' })
  await until(() => s.migrations.record(id).state === 'COMMIT_SEEN', 'the commit')
  const { plan } = s.migrations.record(id)
  s.sessions.closeAll(new GodwitError('TIMEOUT'))
  for (let at = 0; at < HANDOVER_SESSIONS_MAX; at++) {
    const sessionId = at.toString(16).padStart(32, '0')
    s.sessions.open({ ...plan, migrationId: sessionId }, { isHandover: true })
    s.sessions.admit({ sessionId, index: 0, attempt: 1 }, 'a')
  }
  s.pass(35 * MINUTE_MS)
  assert.equal(s.stuck, ['COMMIT_SEEN forward'])
  assert.is(s.migrations.record(id).state, 'COMMIT_SEEN')
})

test('a pre-staging whose source never answers ends refused with MIGRATION_STUCK, and the VM is free', async () => {
  await using s = await stage([])
  const asking = codeOf(() => s.prestages.start({ vm: 'vm-1', to: 'b' }))
  await until(() => s.asked.includes('a prestage.needs'), 'the question')
  s.pass(4 * MINUTE_MS)
  assert.is(await asking, 'MIGRATION_STUCK')
  assert.equal(s.prestages.list(), [])
  assert.equal(s.stuck, ['PRESTAGING abort'])
})

test.run()
