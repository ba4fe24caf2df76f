import { renderPlan } from '../../cli/commands/plan.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('cli: plan')

test('each method with what it takes, the recommended one marked, and what that was reckoned from', () => {
  const text = renderPlan({
    ...{ vm: 'web-1', target: 'hamburg-1', recommended: 'live', reason: 'rounds shrink' },
    methods: [
      { method: 'live', isPossible: true, totalMs: 9_400, downtimeMs: 210.4, wireBytes: 104_000_000, throttlePercent: 0 },
      { method: 'live, throttled', isPossible: true, totalMs: 9_000, downtimeMs: 190, wireBytes: 101_000_000, throttlePercent: 20 },
      { method: 'cold', isPossible: false, totalMs: null, downtimeMs: null, wireBytes: null, throttlePercent: 0 },
    ],
    facts: {
      ...{ dirtyBytesPerSecond: 2e6, zeroShare: 0.5, duplicateShare: 0.1, compressedShare: 0.4 },
      path: { bytesPerSecond: 12.5e6, rttMs: 20 },
    },
    pathFrom: 'the last migration there',
    pathAgeMs: 720_000,
  })
  assert.match(text, /^web-1 -> hamburg-1: live\nrounds shrink\n/)
  assert.match(text, /\* +live +9\.4 s +210 ms +104 MB +yes/)
  assert.match(text, /live, throttled by 20 %/)
  assert.match(text, /cold +- +- +- +no/)
  assert.match(
    text,
    /memory: 50 % zero, at least 10 % duplicate, the rest compresses to 40 %; dirty rate 2\.0 MB\/s\npath: 100 Mbit\/s \(measured by the last migration, 12 min 00 s ago\), 20 ms round trip/,
  )
})

test.run()
