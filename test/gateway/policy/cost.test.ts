import { freshBytes, migrationCost } from '../../../planning/cost.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('policy: cost')
const limits = { switchMs: 100, downtimeMs: 300, roundsMax: 8 }
const vm = { memoryBytes: 1e9, dirtyBytesPerSecond: 25e6, bandwidthBytesPerSecond: 100e6, stagedBytes: 0 }

test('pre-copy is the geometric series of its rounds', () => {
  const cost = migrationCost(vm, limits)
  // 10 s, 2.5 s, 0.625 s, 0.156 s: after three rounds what is left takes 156 ms.
  assert.is(cost.rounds, 3)
  assert.ok(Math.abs(cost.precopyMs - (10_000 + 2500 + 625)) < 1e-6)
  assert.ok(Math.abs(cost.downtimeMs - (156.25 + 100)) < 1e-6)
  assert.ok(Math.abs(cost.bytes - 1e9 * (1 + 0.25 + 0.0625 + 0.015625)) < 1)
  assert.ok(Math.abs(cost.totalMs - cost.precopyMs - cost.downtimeMs) < 1e-6)
})

test('a guest that writes nothing stops for the switch alone; one that outruns the link is one round', () => {
  const idle = migrationCost({ ...vm, dirtyBytesPerSecond: 0 }, limits)
  assert.is(idle.downtimeMs, 100)
  const wild = migrationCost({ ...vm, dirtyBytesPerSecond: 100e6 }, limits)
  assert.is(wild.rounds, 1)
  assert.is(wild.ratio, 1)
  assert.ok(wild.downtimeMs > 10_000)
})

test('rounds are limited', () => {
  assert.is(migrationCost({ ...vm, dirtyBytesPerSecond: 99e6 }, limits).rounds, 8)
})

test('a staged copy saves what of it is still right', () => {
  const staged = freshBytes(1e9, 4000, 25e6)
  assert.is(staged, 9e8)
  const cost = migrationCost({ ...vm, stagedBytes: staged }, limits)
  assert.ok(cost.totalMs < 1500, String(cost.totalMs))
  assert.is(freshBytes(1e9, 1e6, 25e6), 0)
  assert.is(freshBytes(1e9, -5, 25e6), 1e9)
})

test.run()
