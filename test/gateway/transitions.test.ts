// The table and the verdict: every pair of state and event, every pair of words.
import { type MigrationEventName, step, transitions } from '../../gateway/control/transitions.ts'
import { judge, type Word } from '../../gateway/control/verdict.ts'
import { MigrationState } from '../../wire/admin.ts'
import type { VmFacts } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { assert, suite } from '../support/suite.ts'
import { vm } from './fixture.ts'

const test = suite('gateway: transitions')
const states = MigrationState.options
const events = [...new Set(states.flatMap(state => Object.keys(transitions[state])))] as MigrationEventName[]

test('every pair of state and event gives a step or a coded refusal, and an end is never left', () => {
  for (const state of states)
    for (const event of events) {
      try {
        const next = step(state, event)
        if (state === 'DONE' || state === 'ABORTED') {
          assert.is(next.state, state, `${state} ${event}`)
          assert.equal(
            next.effects.filter(effect => effect !== 'alarm'),
            [],
            'a late word has no effects',
          )
        }
      } catch (error) {
        assert.ok(error instanceof GodwitError && ['MIGRATION_STATE', 'MIGRATION_LATE'].includes(error.code), `${state} ${event}`)
      }
    }
})

test('what changes the state is written down before anyone is told', () => {
  for (const state of states)
    for (const [event, found] of Object.entries(transitions[state])) {
      if ('refuse' in found || found.to === state) continue
      assert.is(found.effects[0], 'save', `${state} ${event}`)
    }
})

test('after the commit nothing cancels', () => {
  assert.throws(() => step('COMMIT_SEEN', 'cancel'), /handed over/)
  assert.throws(() => step('DONE', 'cancel'), /handed over/)
})

const words: Word[] = ['busy', 'silent', 'gone', 'completed', 'failed', 'doubt']
const places: [VmFacts | undefined, VmFacts | undefined][] = [
  [vm('x'), undefined],
  [undefined, vm('x', { epoch: 2 })],
  [undefined, undefined],
  [vm('x'), vm('x', { epoch: 2 })],
  [vm('x'), vm('x')],
]

test('every verdict is an event that a running migration knows; done only when the target has the VM or says so', () => {
  for (const source of words)
    for (const target of words)
      for (const [sourceVm, targetVm] of places) {
        const verdict = judge({ source, target, sourceVm, targetVm })
        if (verdict === null) continue
        for (const state of ['STREAMING', 'COMMIT_SEEN'] as const) step(state, verdict)
        const what = `${source}/${target} ${sourceVm ? 'S' : '-'}${targetVm ? 'T' : '-'}: ${verdict}`
        if (verdict === 'bothCompleted') assert.ok(target === 'completed' || targetVm, what)
        if (verdict === 'sourceFailed') assert.ok(target !== 'completed', what)
      }
})

test('two running copies are a contradiction, never an outcome', () => {
  assert.is(judge({ source: 'failed', target: 'completed', sourceVm: vm('x'), targetVm: vm('x') }), 'contradiction')
  assert.is(judge({ source: 'gone', target: 'gone', sourceVm: vm('x'), targetVm: vm('x') }), 'contradiction')
  assert.is(judge({ source: 'gone', target: 'completed', sourceVm: vm('x'), targetVm: vm('x') }), 'contradiction')
})

test('silence decides nothing while the source lives', () => {
  for (const target of ['busy', 'silent'] as const)
    assert.is(judge({ source: 'busy', target, sourceVm: vm('x'), targetVm: undefined }), null)
  assert.is(judge({ source: 'silent', target: 'failed', sourceVm: undefined, targetVm: undefined }), null)
})

test.run()
