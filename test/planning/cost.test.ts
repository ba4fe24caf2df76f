// What `godwit plan` says, for guests and ways of all kinds.
import { type PlanFacts, type PlanMethod, planMigration, planStopped } from '../../planning/cost.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('ops: cost')
const MB = 1e6
const facts: PlanFacts = {
  ...{ memoryBytes: 400 * MB, zeroShare: 0.5, duplicateShare: 0, compressedShare: 0.5, dirtyBytesPerSecond: 2 * MB, downtimeMs: 300 },
  path: { bytesPerSecond: 12.5 * MB, rttMs: 20 },
}
const of = (plan: { methods: PlanMethod[] }, name: PlanMethod['method']) => plan.methods.find(({ method }) => method === name)!

test('a calm guest goes live; the first round is its content, compressed', () => {
  const plan = planMigration(facts)
  assert.is(plan.recommended, 'live')
  const live = of(plan, 'live')
  assert.ok(live.isPossible && live.downtimeMs <= 300)
  assert.ok(live.wireBytes > 100 * MB && live.wireBytes < 120 * MB)
  assert.ok(live.totalMs > 8_000 && live.totalMs < 11_000)
  assert.ok(Math.abs(of(plan, 'cold').downtimeMs - 8_090) < 10)
})

test('a guest that rewrites more than the way carries is slowed down, as much as that needs', () => {
  const plan = planMigration({ ...facts, dirtyBytesPerSecond: 30 * MB })
  assert.is(plan.recommended, 'live, throttled')
  assert.is(of(plan, 'live').isPossible, false)
  assert.is(of(plan, 'live, throttled').throttlePercent, 72)
  assert.match(plan.reason, /rewrites 30.0 MB\/s, the path carries 25.0 MB\/s/)
})

test('a little memory is stopped, copied and started', () => {
  const plan = planMigration({ ...facts, memoryBytes: 8 * MB, dirtyBytesPerSecond: 900 * MB })
  assert.is(plan.recommended, 'cold')
  assert.ok(of(plan, 'cold').isPossible)
})

test('where none keeps the downtime, the shortest is named with what it takes', () => {
  const far = planMigration({ ...facts, path: { bytesPerSecond: 2.5 * MB, rttMs: 600 } })
  assert.ok(far.methods.every(({ isPossible }) => !isPossible))
  assert.match(far.reason, /round trips of 600 ms alone take longer; this one has a downtime of \d+ ms/)
})

test('disks travel before the guest stops: more time and bytes, the same downtime', () => {
  const [without, plan] = [planMigration(facts), planMigration({ ...facts, diskBytes: 250 * MB })]
  for (const method of ['live', 'live, throttled', 'cold'] as const) {
    assert.is(of(plan, method).downtimeMs, of(without, method).downtimeMs)
    assert.ok(Math.abs(of(plan, method).totalMs - of(without, method).totalMs - 10_000) < 1)
    assert.ok(Math.abs(of(plan, method).wireBytes - of(without, method).wireBytes - 125 * MB) < 1)
  }
})

test('of a stopped VM only the disks travel', () => {
  const { methods, recommended } = planStopped({ ...facts, diskBytes: 125 * MB })
  assert.equal([recommended, methods.length, methods[0]!.downtimeMs, methods[0]!.wireBytes], ['cold', 1, 0, 125 * MB])
  assert.ok(Math.abs(methods[0]!.totalMs - 10_720) < 1)
  assert.is(planStopped(facts).methods[0]!.wireBytes, 0)
})

test('extremes give numbers', () => {
  for (const more of [
    { dirtyBytesPerSecond: 0 },
    { zeroShare: 1 },
    { zeroShare: 0.8, duplicateShare: 0.4 },
    { compressedShare: 0 },
    { dirtyBytesPerSecond: 25 * MB },
    { memoryBytes: 4096 },
  ] as Partial<PlanFacts>[])
    for (const { totalMs, downtimeMs, wireBytes } of planMigration({ ...facts, ...more }).methods)
      for (const value of [totalMs, downtimeMs, wireBytes]) assert.ok(Number.isFinite(value) && value >= 0, JSON.stringify(more))
})

test.run()
