import { createLossWatch } from '../../../edge-node/rate/loss.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('rate: loss')

/** Samples every 100 ms: packets a second and the share that is lost, for so many seconds; the last verdict of each. */
function run(series: [packets: number, ratio: number, seconds: number][]) {
  const watch = createLossWatch()
  let [atMs, sent, lost] = [0, 0, 0]
  return series.map(([packets, ratio, seconds]) => {
    let last: ReturnType<typeof watch>
    for (let i = 0; i < seconds * 10; i++) {
      atMs += 100
      sent += packets / 10
      lost += (packets * ratio) / 10
      last = watch({ atMs, sentPackets: Math.round(sent), lostPackets: Math.round(lost) })
    }
    return last
  })
}

test('a path that loses a tenth of a per cent is lossy, one that loses nothing is not', () => {
  assert.is(run([[8000, 0.001, 3]])[0]!.isLossy, true)
  assert.is(run([[8000, 0, 3]])[0]!.isLossy, false)
  assert.is(Math.round(run([[8000, 0.01, 3]])[0]!.ratio * 1000), 10)
})

test('packets lost while a queue stands are lost to that queue', () => {
  const watch = createLossWatch()
  const verdict = (rttMs: number) => {
    let last: ReturnType<typeof watch>
    for (let i = 1; i <= 30; i++) last = watch({ atMs: 100 * i, sentPackets: 800 * i, lostPackets: 60 * i, rttMs, rttMinMs: 20 })
    return last
  }
  assert.equal(verdict(40), { ratio: 0.075, isLossy: false })
  assert.equal(createLossWatch()({ atMs: 0, sentPackets: 0, lostPackets: 0, rttMs: 21, rttMinMs: 20 }), undefined)
  const random = createLossWatch()
  for (let i = 0; i < 30; i++) random({ atMs: 100 * i, sentPackets: 800 * i, lostPackets: 8 * i, rttMs: 26, rttMinMs: 20 })
  assert.is(random({ atMs: 3_000, sentPackets: 24_000, lostPackets: 240, rttMs: 26, rttMinMs: 20 })?.isLossy, true)
})

test('too few packets say nothing', () => {
  assert.is(run([[20, 0.5, 3]])[0], undefined)
})

test('a burst that overran a queue is over after a while; random loss is not', () => {
  const [burst, calm] = run([
    [8000, 0.2, 1],
    [8000, 0, 10],
  ])
  assert.is(burst!.isLossy, true)
  assert.is(calm!.isLossy, false)
})

test('counters that begin anew are no negative loss', () => {
  const watch = createLossWatch()
  watch({ atMs: 0, sentPackets: 50_000, lostPackets: 500 })
  watch({ atMs: 100, sentPackets: 0, lostPackets: 0 })
  const verdict = watch({ atMs: 200, sentPackets: 1000, lostPackets: 0 })
  assert.equal(verdict, { ratio: 0, isLossy: false })
})

test.run()
