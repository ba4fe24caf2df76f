// What QEMU is told, for samples of all kinds.
import { createRatio, splitDowntime } from '../../../edge-node/rate/control.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('control')
const sample = {
  downtimeMs: 300,
  rateBytesPerSecond: 12_500_000,
  rttMinMs: 40,
  inFlightBytes: 500_000,
  waitingBytes: 0,
  ratio: 2,
}

test('while the path is unknown QEMU may not switch over', () => {
  assert.equal(splitDowntime({ ...sample, rateBytesPerSecond: 0 }), {
    downtimeLimitMs: 1,
    switchoverBytesPerSecond: undefined,
    allowedMs: 0,
  })
  assert.equal(splitDowntime({ ...sample, ratio: 0 }), { downtimeLimitMs: 1, switchoverBytesPerSecond: undefined, allowedMs: 0 })
})

test('the bandwidth is the path times what compression gains', () => {
  assert.is(splitDowntime(sample).switchoverBytesPerSecond, 25_000_000)
})

test('the commit and what is on the way come off the downtime that was asked for', () => {
  assert.is(splitDowntime(sample).downtimeLimitMs, 300 - 60 - 30)
  assert.is(splitDowntime({ ...sample, inFlightBytes: 1_000_000 }).downtimeLimitMs, 300 - 60 - 30 - 40)
})

test('a downtime that the path cannot give leaves the least limit, never a negative one', () => {
  assert.is(splitDowntime({ ...sample, downtimeMs: 50 }).downtimeLimitMs, 1)
})

test('what waits in our own pipeline comes off as well', () => {
  assert.is(splitDowntime({ ...sample, waitingBytes: 2_500_000 }).downtimeLimitMs, 300 - 60 - 30 - 100)
})

test('the ratio is that of the last two seconds, and zero pages do not count', () => {
  const ratio = createRatio()
  assert.is(ratio({ atMs: 0, guestBytes: 0, wireBytes: 0, freeBytes: 0 }), 0, 'unknown')
  // A second of zeros and well compressible pages, then pages that halve.
  assert.is(ratio({ atMs: 1_000, guestBytes: 100e6, wireBytes: 10e6, freeBytes: 60e6 }), 4)
  assert.is(ratio({ atMs: 3_500, guestBytes: 120e6, wireBytes: 20e6, freeBytes: 60e6 }), 2)
  assert.is(ratio({ atMs: 7_000, guestBytes: 120e6, wireBytes: 20e6, freeBytes: 60e6 }), 3, 'too little to judge by: all there is')
})

test('memory that does not compress counts as it is', () => {
  const ratio = createRatio()
  ratio({ atMs: 0, guestBytes: 0, wireBytes: 0, freeBytes: 0 })
  assert.is(ratio({ atMs: 500, guestBytes: 9e6, wireBytes: 10e6, freeBytes: 0 }), 1)
})

test.run()
