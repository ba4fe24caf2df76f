// The two ownership tables: what leads where, and what never may.
import { next, SOURCE, type SourceState, sourceMayResume, TARGET, type TargetState } from '../../../edge-node/migration/states.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const test = suite('ownership tables')
const walk = <S extends string>(table: Record<string, Record<string, string>>, from: S, events: string[]): S =>
  events.reduce<S>((state, event) => next<S>(table, state, event), from)

test('a migration that goes well ends RETIRED at the source and RUNNING at the target', () => {
  assert.is(walk<SourceState>(SOURCE, 'RUNNING', ['offer', 'accepted', 'quiesced', 'loaded', 'running']), 'RETIRED')
  assert.is(walk<TargetState>(TARGET, 'IDLE', ['offer', 'pages', 'loaded', 'grant', 'resume', 'running']), 'RUNNING')
})

test('every source state before the commit can abort, none after it', async () => {
  for (const [state, events] of Object.entries(SOURCE)) {
    const before = ['RUNNING', 'OFFERED', 'STREAMING', 'QUIESCED'].includes(state)
    assert.is('abort' in events, before, state)
    assert.is(sourceMayResume(state as SourceState), state !== 'RELINQUISHED' && state !== 'RETIRED', state)
  }
  assert.is(await codeOf(() => next<SourceState>(SOURCE, 'RELINQUISHED', 'abort')), 'MIGRATION_STATE')
})

test('the target cannot reach RESUMING without a grant, and cannot refuse from RESUMING on', async () => {
  const leading = Object.entries(TARGET).filter(([, events]) => Object.values(events).includes('RESUMING'))
  assert.equal(
    leading.map(([state]) => state),
    ['GRANTED'],
  )
  assert.equal(
    Object.entries(TARGET)
      .filter(([, events]) => Object.values(events).includes('GRANTED'))
      .map(([state]) => state),
    ['LOADED'],
  )
  assert.is(await codeOf(() => next<TargetState>(TARGET, 'RESUMING', 'abort')), 'MIGRATION_STATE')
})

test('every state that a table names is a row of it', () => {
  for (const table of [SOURCE, TARGET] as Record<string, Record<string, string>>[]) {
    for (const events of Object.values(table)) for (const to of Object.values(events)) assert.ok(to in table, to)
  }
})

test.run()
