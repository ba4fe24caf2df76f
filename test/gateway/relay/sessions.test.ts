// Who may be joined with whom. The clock is moved by hand.
import { createSessions, SESSION_IDLE_MS } from '../../../gateway/relay/sessions.ts'
import type { Plan } from '../../../wire/control.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const test = suite('gateway: sessions')
const sessionId = '0123456789abcdef0123456789abcdef'
const plan: Plan = {
  version: 1,
  migrationId: sessionId,
  vm: 'vm-1',
  epoch: 1,
  source: 'a',
  target: 'b',
  method: 'live',
  downtimeMs: 300,
  streams: 2,
  attempt: 1,
  compression: 'zstd',
  createdAt: 0,
}
const join = (index: number, attempt = 1) => ({ sessionId, index, attempt })

test('admits the source once per stream and attempt, and nobody else', async () => {
  const sessions = createSessions({ now: () => 0 })
  assert.is(await codeOf(() => sessions.admit(join(0), 'a')), 'MIGRATION_UNKNOWN')
  sessions.open(plan)
  assert.is(await codeOf(() => sessions.admit(join(0), 'b')), 'AUTH_FAILED', 'not even the target')
  assert.is(sessions.admit(join(0), 'a').target, 'b')
  assert.is(await codeOf(() => sessions.admit(join(0), 'a')), 'MIGRATION_STATE', 'replayed')
  assert.is(await codeOf(() => sessions.admit(join(4), 'a')), 'MIGRATION_STATE', 'two page streams: 0..3')
  sessions.admit(join(0, 3), 'a')
  assert.is(await codeOf(() => sessions.admit(join(0, 2), 'a')), 'MIGRATION_STATE', 'an earlier attempt')
  assert.is(sessions.streams(), 2)
})

test('bounds the streams of a session, and gives a place back once', async () => {
  const sessions = createSessions({ now: () => 0 })
  sessions.open(plan)
  const permits = Array.from({ length: 8 }, (_, i) => sessions.admit(join(i % 4, 1 + Math.floor(i / 4)), 'a'))
  assert.is(await codeOf(() => sessions.admit(join(0, 9), 'a')), 'LIMIT_EXCEEDED')
  permits[0]?.release()
  permits[0]?.release()
  sessions.admit(join(0, 9), 'a')
  assert.is(await codeOf(() => sessions.admit(join(0, 10), 'a')), 'LIMIT_EXCEEDED')
})

test('closing tells the streams; an unused session expires, a used one does not', async () => {
  let now = 0
  const sessions = createSessions({ now: () => now })
  sessions.open(plan)
  const permit = sessions.admit(join(0), 'a')
  permit.count('source-to-target', 10)
  assert.equal(sessions.bytes(sessionId), { 'source-to-target': 10, 'target-to-source': 0 })
  now = SESSION_IDLE_MS * 2
  sessions.expire()
  assert.is(permit.signal.aborted, false, 'a stream is open')
  permit.release()
  now += SESSION_IDLE_MS
  sessions.expire()
  assert.is(permit.signal.aborted, true)
  assert.is(await codeOf(() => sessions.admit(join(1), 'a')), 'MIGRATION_UNKNOWN')

  sessions.open(plan)
  const other = sessions.admit(join(0), 'a')
  sessions.close(sessionId, new GodwitError('MIGRATION_CANCELLED'))
  assert.is((other.signal.reason as GodwitError).code, 'MIGRATION_CANCELLED')
})

test.run()
