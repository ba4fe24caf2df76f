import { type Carriers, type CarriersSample, createCarriersWatch } from '../../../edge-node/rate/carriers.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('carriers')
const quic: Carriers = { ids: [1], congestion: 'cubic' }
const bbr: Carriers = { ids: [2], congestion: 'bbr' }
const many: Carriers = { ids: [1, 3, 4, 5, 6, 7, 8, 9], congestion: 'cubic' }
const calm = { isLossy: false, isEnd: false }

/** When it asks for a change, ms, looking each 100 ms. */
function asked(ms: number, at: (atMs: number) => Omit<CarriersSample, 'atMs'>): number[] {
  const watch = createCarriersWatch()
  return Array.from({ length: ms / 100 }, (_, i) => i * 100).filter(atMs => watch({ atMs, ...at(atMs) }))
}

test('changes over to BBR when that has been there for a second', () => {
  assert.equal(asked(5_000, atMs => ({ ...calm, used: quic, best: atMs < 2_000 ? quic : bbr })).slice(0, 1), [3_000])
  // It comes and goes.
  assert.equal(
    asked(20_000, atMs => ({ ...calm, used: quic, best: atMs % 1_000 < 500 ? quic : bbr })),
    [],
  )
})

test('not near the end, not from BBR, not to what carries already, and not where nothing is known', () => {
  assert.equal(
    asked(20_000, () => ({ isLossy: true, isEnd: true, used: quic, best: bbr })),
    [],
  )
  assert.equal(
    asked(20_000, () => ({ ...calm, isLossy: true, used: bbr, best: { ids: [7], congestion: 'bbr' } })),
    [],
  )
  assert.equal(
    asked(20_000, () => ({ ...calm, isLossy: true, used: { ids: [1, 2] }, best: { ids: [2] } })),
    [],
  )
  assert.equal(
    asked(20_000, () => ({ ...calm, used: undefined, best: bbr })),
    [],
  )
})

test('without BBR more connections are worth it only while packets are lost', () => {
  assert.equal(
    asked(5_000, () => ({ ...calm, used: quic, best: many })),
    [],
  )
  assert.equal(asked(5_000, () => ({ ...calm, isLossy: true, used: quic, best: many })).length, 1)
})

test('rests after a change, and ends after some', () => {
  const times = asked(300_000, () => ({ ...calm, used: quic, best: bbr }))
  assert.is(times.length, 8)
  assert.ok(times.every((at, i) => i === 0 || at - times[i - 1]! >= 10_000))
})

test.run()
