import { followGates, type GateInputs, latencyGates, noGates, regretGates } from '../../../gateway/policy/gates.ts'
import { policySettings } from '../../../gateway/policy/settings.ts'
import type { GateLine, GateName } from '../../../gateway/policy/types.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('policy: gates')
const settings = policySettings()

/** All gates open. */
const open: GateInputs = {
  isPinned: false,
  from: 0,
  userSite: 1,
  target: 1,
  ageMs: 0,
  isMoving: false,
  backoffLeftMs: -1,
  regretMs: 12,
  smoothedRegretMs: 11,
  accountMsSeconds: 500,
  hysteresisMs: 3,
  aboveMs: 8000,
  rttMs: 25,
  thresholdMs: 20,
  hardLimitMs: Number.POSITIVE_INFINITY,
  ratio: 0.3,
  sinceArrivalMs: 60_000,
  residenceMs: 30_000,
  priceMsSeconds: 200,
}

const closing: [GateName, Partial<GateInputs>][] = [
  ['pinned', { isPinned: true }],
  ['unknown', { from: -1 }],
  ['unknown', { userSite: -1 }],
  ['unknown', { regretMs: Number.NaN }],
  ['stale', { ageMs: 10_001 }],
  ['moving', { isMoving: true }],
  ['backoff', { backoffLeftMs: 1 }],
  ['best', { target: 0, regretMs: 0 }],
  ['best', { target: -1, regretMs: 0 }],
  ['hysteresis', { smoothedRegretMs: 3 }],
  ['trigger', { aboveMs: 7999 }],
  ['trigger', { aboveMs: Number.NaN }],
  ['feasible', { ratio: 0.8 }],
  ['residence', { sinceArrivalMs: 29_999 }],
  ['cost', { accountMsSeconds: 199.9 }],
]

test('the regret gate lets a VM go when every gate is open', () => {
  assert.is(regretGates(open, settings), 'none')
})

for (const [gate, change] of closing) {
  test(`the regret gate says no with '${gate}' for ${JSON.stringify(change)}`, () => {
    assert.is(regretGates({ ...open, ...change }, settings), gate)
  })
}

test('the first closed gate is the one that is named, whatever comes after', () => {
  const lines: GateLine[] = []
  assert.is(regretGates({ ...open, ratio: 2, accountMsSeconds: 0, isPinned: true }, settings, lines), 'pinned')
  assert.equal(
    lines.filter(({ isOpen }) => !isOpen).map(({ gate }) => gate),
    ['pinned', 'feasible', 'cost'],
  )
})

test('asking for every finding does not change the answer', () => {
  for (const [gate, change] of closing) {
    const view = { ...open, ...change }
    assert.is(regretGates(view, settings, []), gate)
    assert.is(latencyGates(view, settings, []), latencyGates(view, settings))
  }
})

test('above the hard limit the trigger is not waited for, but all other gates are', () => {
  const hard = { ...open, aboveMs: 0, hardLimitMs: 24 }
  assert.is(regretGates(hard, settings), 'none')
  assert.is(regretGates({ ...hard, rttMs: 24 }, settings), 'trigger')
  for (const [gate, change] of closing) if (gate !== 'trigger') assert.is(regretGates({ ...hard, ...change }, settings), gate)
})

test('the latency policy asks for a better site, its own trigger, feasibility, and nothing of regret', () => {
  assert.is(latencyGates({ ...open, accountMsSeconds: 0, smoothedRegretMs: 0, aboveMs: 3000 }, settings), 'none')
  assert.is(latencyGates({ ...open, aboveMs: 2999 }, settings), 'trigger')
  assert.is(latencyGates({ ...open, regretMs: 4 }, settings), 'hysteresis')
  assert.is(latencyGates({ ...open, ratio: 0.9 }, settings), 'feasible')
})

test('follow-cell weighs nothing; never and manual move nothing', () => {
  assert.is(followGates({ ...open, accountMsSeconds: 0, ratio: 5, sinceArrivalMs: 0, smoothedRegretMs: 0 }, settings), 'none')
  assert.is(noGates(), 'policy')
})

test.run()
