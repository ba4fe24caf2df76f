// The gate: who waits, in what order, and what ends the waiting.
import { Flight } from '../../../edge-node/rate/flight.ts'
import { createGate } from '../../../edge-node/rate/gate.ts'
import { assert, codeOf, suite, thrown } from '../../support/suite.ts'

const test = suite('gate')
const small = () => new Flight({ windowInitialBytes: 100, windowMinBytes: 100, windowMaxBytes: 100 })

test('records wait for room and pass in the order they came', async () => {
  let now = 0
  const gate = createGate(small(), () => now)
  const passed: number[] = []
  await gate.pass(100)
  const waits = [1, 2, 3].map(n => gate.pass(50).then(() => passed.push(n)))
  await new Promise(resolve => setImmediate(resolve))
  assert.equal(passed, [])
  now = 10
  gate.acked(100)
  await new Promise(resolve => setImmediate(resolve))
  assert.equal(passed, [1, 2])
  gate.acked(150)
  await Promise.all(waits)
  assert.equal(passed, [1, 2, 3])
})

test('closing rejects those who wait and those who come', async () => {
  const gate = createGate(small(), () => 0)
  await gate.pass(100)
  const waiting = thrown(() => gate.pass(100))
  const reason = new Error('over')
  gate.close(reason)
  assert.is(await waiting, reason)
  assert.is(await thrown(() => gate.pass(1)), reason)
})

test('an acknowledgement of bytes that were never sent is malformed', async () => {
  const gate = createGate(small(), () => 0)
  assert.is(await codeOf(() => gate.acked(1)), 'FRAME_MALFORMED')
})

test('a stall is counted from the last acknowledgement, and only while something is on the way', async () => {
  let now = 0
  const gate = createGate(small(), () => now)
  now = 5_000
  assert.is(gate.stalledMs(), 0)
  await gate.pass(80)
  now = 6_000
  assert.is(gate.stalledMs(), 1_000)
  gate.acked(40)
  now = 6_500
  assert.is(gate.stalledMs(), 500)
  gate.acked(80)
  assert.is(gate.stalledMs(), 0)
})

test.run()
