// The one definition of a standing queue: its bounds, and that the loops that use it agree on it.
import { Flight } from '../../edge-node/rate/flight.ts'
import { createLossWatch } from '../../edge-node/rate/loss.ts'
import { Pace } from '../../transport/pace.ts'
import { ACK_NOISE_MS, queueMs, queueStands } from '../../transport/standing-queue.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('transport: standing queue')

test('a queue stands above noise, a fifth of the shortest round trip, and 4 ms', () => {
  assert.is(queueStands({ rttMs: 28, rttMinMs: 20 }), false)
  assert.is(queueStands({ rttMs: 28.1, rttMinMs: 20 }), true)
  assert.is(queueStands({ rttMs: 33, rttMinMs: 20, noiseMs: 5 }), false)
  assert.is(queueStands({ rttMs: 33.1, rttMinMs: 20, noiseMs: 5 }), true)
  assert.is(queueStands({ rttMs: 184, rttMinMs: 150 }), false)
  assert.is(queueStands({ rttMs: 185, rttMinMs: 150 }), true)
})

test('an unknown path has no queue, and no queue is negative', () => {
  assert.is(queueStands({ rttMs: 0, rttMinMs: 0 }), false)
  assert.is(queueMs({ rttMs: 10, rttMinMs: 20 }), 0)
  assert.is(queueMs({ rttMs: 22, rttMinMs: 20, noiseMs: 5 }), 0)
  assert.is(queueMs({ rttMs: 30, rttMinMs: 20, noiseMs: 5 }), 5)
})

for (const [rttMs, hasQueue] of [
  [31, false],
  [31.5, true],
] as const) {
  test(`round trips of ${rttMs} ms over 20 ms, 3 ms of it noise: loss and pace agree`, () => {
    const pace = new Pace()
    const loss = createLossWatch()
    let limit: number | undefined
    let isLossy: boolean | undefined
    for (let i = 0; i <= 10; i++) {
      const path = { atMs: 100 * i, rttMs, rttMinMs: 20, rttDeviationMs: 3 }
      limit = pace.step({ ...path, deliveredBytes: 1_000_000 * i, deliveryBytesPerSecond: 10_000_000, isWhole: true })
      isLossy = loss({ ...path, sentPackets: 1000 * i, lostPackets: 10 * i })?.isLossy
    }
    assert.is(limit !== undefined, hasQueue)
    assert.is(isLossy, !hasQueue)
  })
}

for (const [excessMs, hasQueue] of [
  [0.2 * 50 + 4 + ACK_NOISE_MS, false],
  [0.2 * 50 + 4 + ACK_NOISE_MS + 1, true],
] as const) {
  test(`the flight's start-up ${hasQueue ? 'ends' : 'goes on'} when acknowledgements take ${excessMs} ms longer than 50 ms`, () => {
    const flight = new Flight()
    // The rate grows with each round trip: only a queue may end the start-up.
    let nowMs = 0
    for (let round = 0; round < 12; round++) {
      const bytes = 10_000 * 2 ** round
      flight.sent(bytes, nowMs)
      nowMs += round === 0 ? 50 : 50 + excessMs
      flight.acked(flight.sentBytes, nowMs)
    }
    // By then the time of the engine's own slow start (9 round trips) is over.
    assert.is(flight.isStarting, !hasQueue)
  })
}

test.run()
