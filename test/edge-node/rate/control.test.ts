// What QEMU is told, for samples of all kinds.
import { decide } from '../../../edge-node/rate/control.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('control')
const sample = {
  downtimeMs: 300,
  rateBytesPerSecond: 12_500_000,
  rttMinMs: 40,
  inFlightBytes: 500_000,
  guestBytes: 200_000_000,
  wireBytes: 100_000_000,
}

test('while the path is unknown QEMU may not switch over', () => {
  assert.equal(decide({ ...sample, rateBytesPerSecond: 0 }), { downtimeLimitMs: 1, switchoverBytesPerSecond: undefined })
  assert.equal(decide({ ...sample, wireBytes: 0 }), { downtimeLimitMs: 1, switchoverBytesPerSecond: undefined })
})

test('the bandwidth is the path times what compression gains', () => {
  assert.is(decide(sample).switchoverBytesPerSecond, 25_000_000)
})

test('the commit and what is on the way come off the downtime that was asked for', () => {
  assert.is(decide(sample).downtimeLimitMs, 300 - 60 - 60)
  assert.is(decide({ ...sample, inFlightBytes: 1_000_000 }).downtimeLimitMs, 300 - 60 - 60 - 40)
})

test('a downtime that the path cannot give leaves the least limit, never a negative one', () => {
  assert.is(decide({ ...sample, downtimeMs: 50 }).downtimeLimitMs, 1)
})

test('memory that does not compress counts as it is', () => {
  assert.is(decide({ ...sample, guestBytes: 90_000_000 }).switchoverBytesPerSecond, 12_500_000)
})

test.run()
