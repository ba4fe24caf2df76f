// The table and the verdict: every pair of state and event, every pair of words.
import { type HandoffEventName, type HandoffState, isOver, stepHandoff, transitions } from '../../../gateway/handoff/transitions.ts'
import { judgeMigration, type SiteWord } from '../../../gateway/handoff/verdict.ts'
import { MigrationState } from '../../../wire/admin.ts'
import type { VmFacts } from '../../../wire/control.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { assert, suite } from '../../support/suite.ts'
import { vm } from '../fixture.ts'

const test = suite('gateway: transitions')
const states = Object.keys(transitions) as HandoffState[]
const events = [...new Set(states.flatMap(state => Object.keys(transitions[state])))] as HandoffEventName[]
const written = (state: HandoffState) => (MigrationState.options as string[]).includes(state)

test('every pair of state and event gives a step or a coded refusal, and an end is never left', () => {
  for (const state of states)
    for (const event of events) {
      try {
        const next = stepHandoff(state, event)
        if (isOver(state)) {
          assert.is(next.state, state, `${state} ${event}`)
          assert.equal(
            next.effects.filter(effect => effect !== 'alarm'),
            [],
            'a late message has no effects',
          )
        }
      } catch (error) {
        assert.ok(error instanceof GodwitError && ['MIGRATION_STATE', 'MIGRATION_LATE'].includes(error.code), `${state} ${event}`)
      }
    }
})

test('what changes the state of a migration is written down before anyone is told', () => {
  for (const state of states)
    for (const [event, found] of Object.entries(transitions[state])) {
      if ('refuse' in found || found.to === state || !written(found.to)) continue
      assert.is(found.effects[0], 'save', `${state} ${event}`)
    }
})

test('a handoff goes from its proposal to its end, and only a refused intent leads out of its migration again', () => {
  const order: HandoffState[][] = [['PROPOSED'], ['PRESTAGING', 'PREPARED'], ['INTENT'], ['PREPARING'], ['STREAMING'], ['COMMIT_SEEN']]
  const rank = (state: HandoffState) => (isOver(state) ? order.length : order.findIndex(row => row.includes(state)))
  const reached = new Set<HandoffState>(['PROPOSED'])
  for (const state of states)
    for (const [event, found] of Object.entries(transitions[state])) {
      if ('refuse' in found) continue
      reached.add(found.to)
      assert.ok(rank(found.to) >= rank(state), `${state} ${event}`)
      if (written(state) && !written(found.to)) assert.equal([state, event, found.to], ['INTENT', 'unwritten', 'WASTED'])
    }
  assert.equal([...reached].sort(), [...states].sort(), 'every state is reached')
})

test('room that may be held is given back wherever a handoff ends without its use', () => {
  for (const state of states)
    for (const [event, found] of Object.entries(transitions[state])) {
      if ('refuse' in found || isOver(state) || !isOver(found.to) || found.to === 'DONE') continue
      // What a target has refused is not held there.
      assert.is(found.effects.includes('release'), event !== 'refused', `${state} ${event}`)
      assert.is(found.effects.at(-1), written(found.to) ? 'finish' : 'drop', `${state} ${event}`)
    }
})

test('after the commit nothing cancels', () => {
  assert.throws(() => stepHandoff('COMMIT_SEEN', 'cancel'), /handed over/)
  assert.throws(() => stepHandoff('DONE', 'cancel'), /handed over/)
})

const words: SiteWord[] = ['busy', 'silent', 'gone', 'completed', 'failed', 'doubt']
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
        const verdict = judgeMigration({ source, target, sourceVm, targetVm })
        if (verdict === null) continue
        for (const state of ['STREAMING', 'COMMIT_SEEN'] as const) stepHandoff(state, verdict)
        const what = `${source}/${target} ${sourceVm ? 'S' : '-'}${targetVm ? 'T' : '-'}: ${verdict}`
        if (verdict === 'bothCompleted') assert.ok(target === 'completed' || targetVm, what)
        if (verdict === 'sourceFailed') assert.ok(target !== 'completed', what)
      }
})

test('two running copies are a contradiction, never an outcome', () => {
  assert.is(judgeMigration({ source: 'failed', target: 'completed', sourceVm: vm('x'), targetVm: vm('x') }), 'contradiction')
  assert.is(judgeMigration({ source: 'gone', target: 'gone', sourceVm: vm('x'), targetVm: vm('x') }), 'contradiction')
  assert.is(judgeMigration({ source: 'gone', target: 'completed', sourceVm: vm('x'), targetVm: vm('x') }), 'contradiction')
})

test("a VM whose QEMU has died is still its site's: where it was handed over counts, not whether it lives", () => {
  const dead = (epoch: number) => vm('x', { state: 'failed', epoch })
  const cases: [SiteWord, SiteWord, VmFacts | undefined, VmFacts | undefined, HandoffEventName][] = [
    ['completed', 'gone', undefined, dead(2), 'bothCompleted'],
    ['completed', 'doubt', undefined, dead(2), 'bothCompleted'],
    ['gone', 'gone', undefined, dead(2), 'bothCompleted'],
    ['gone', 'gone', dead(1), undefined, 'sourceFailed'],
    ['gone', 'failed', dead(1), undefined, 'sourceFailed'],
    ['gone', 'gone', vm('x', { state: 'paused' }), dead(2), 'bothCompleted'],
    ['gone', 'gone', dead(3), dead(2), 'sourceFailed'],
    ['gone', 'gone', dead(1), vm('x', { state: 'incoming' }), 'sourceFailed'],
  ]
  for (const [source, target, sourceVm, targetVm, verdict] of cases)
    assert.is(judgeMigration({ source, target, sourceVm, targetVm }), verdict, `${source}/${target} ${sourceVm?.state} ${targetVm?.state}`)
})

test('silence decides nothing while the source lives', () => {
  for (const target of ['busy', 'silent'] as const)
    assert.is(judgeMigration({ source: 'busy', target, sourceVm: vm('x'), targetVm: undefined }), null)
  assert.is(judgeMigration({ source: 'silent', target: 'failed', sourceVm: undefined, targetVm: undefined }), null)
})

test.run()
