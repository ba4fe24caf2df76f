// The pace against a simulated path with a bounded queue, in virtual time: senders that try 1.25 times what they are
// held to, as BBR does.
import { Pace, type PaceSample } from '../../transport/pace.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('transport: pace')

type Path = { rate: number; rttMs: number; queueBytes: number }
/** What the senders would send if nobody held them, bytes a second; and who else fills the queue. */
type Load = { wants: number; othersMs?: number; deviationMs?: number }

/** Runs for `ms`; gives what was held to and what became of it, from `fromMs` on. */
function drive(
  path: (atMs: number) => Path,
  ms: number,
  { load = () => ({ wants: 1e9 }), fromMs = 0 }: { load?: (atMs: number) => Load; fromMs?: number } = {},
) {
  const pace = new Pace()
  let limit: number | undefined
  let queue = 0
  let delivered = 0
  const seen = { delivered: 0, dropped: 0, sent: 0, queueMs: 0, samples: 0 }
  const limits: { atMs: number; limit: number | undefined }[] = []
  for (let atMs = 0; atMs < ms; atMs += 10) {
    const { rate, rttMs, queueBytes } = path(atMs)
    const { wants, othersMs = 0, deviationMs = 0 } = load(atMs)
    const isCounted = atMs >= fromMs
    // A congestion control without a limit tries a quarter more than the path carries.
    const sent = (Math.min(wants, limit ?? 1.25 * rate) * 10) / 1000
    const through = Math.min(queue + sent, (rate * 10) / 1000)
    const dropped = Math.max(0, queue + sent - through - queueBytes)
    queue = queue + sent - through - dropped
    delivered += through
    if (isCounted) {
      seen.sent += sent
      seen.delivered += through
      seen.dropped += dropped
    }
    if (atMs % 100 !== 0) continue
    const queueMs = (queue * 1000) / rate + othersMs
    if (isCounted) {
      seen.queueMs += queueMs
      seen.samples++
    }
    const sample: PaceSample = {
      ...{ atMs, deliveredBytes: delivered, deliveryBytesPerSecond: rate, rttMs: rttMs + queueMs + deviationMs, rttMinMs: rttMs },
      ...{ rttDeviationMs: deviationMs, isWhole: true },
    }
    limit = pace.step(sample)
    limits.push({ atMs, limit })
  }
  return { goodput: (seen.delivered * 1000) / (ms - fromMs), lost: seen.dropped / seen.sent, queueMs: seen.queueMs / seen.samples, limits }
}

const steady = (megabits: number, rttMs: number) => () => {
  const rate = megabits * 125_000
  return { rate, rttMs, queueBytes: (rate * rttMs) / 1000 }
}

for (const [megabits, rttMs] of [
  [10, 50],
  [100, 20],
  [100, 80],
  [200, 150],
  [20, 600],
] as const) {
  test(`${megabits} Mbit/s at ${rttMs} ms: full, with a short queue, next to nothing lost`, () => {
    const { goodput, lost, queueMs } = drive(steady(megabits, rttMs), 60_000, { fromMs: 20_000 })
    assert.ok(goodput > 0.95 * megabits * 125_000, `${(goodput / (megabits * 125_000)).toFixed(3)} of the rate`)
    assert.ok(lost < 0.01, `${(100 * lost).toFixed(2)} % lost`)
    assert.ok(queueMs < 0.5 * rttMs + 10, `a queue of ${queueMs.toFixed(0)} ms`)
  })
}

test('without a queue there is no limit', () => {
  const { limits } = drive(steady(100, 20), 10_000, { load: () => ({ wants: 6_000_000 }) })
  assert.ok(limits.every(({ limit }) => limit === undefined))
})

test('follows a path from 5 to 35 and back to 5 Mbit/s', () => {
  const rateAt = (atMs: number) => (atMs < 20_000 || atMs >= 40_000 ? 625_000 : 4_375_000)
  const path = (atMs: number) => ({ rate: rateAt(atMs), rttMs: 50, queueBytes: 60_000 })
  const up = drive(path, 40_000, { fromMs: 30_000 })
  assert.ok(up.goodput > 0.9 * 4_375_000, `${up.goodput}`)
  const down = drive(path, 60_000, { fromMs: 50_000 })
  assert.ok(down.goodput > 0.9 * 625_000 && down.lost < 0.05, `${down.goodput} ${down.lost}`)
})

test('jitter is no queue', () => {
  const { limits } = drive(steady(50, 40), 20_000, { load: () => ({ wants: 3_000_000, deviationMs: 8 }) })
  assert.ok(limits.every(({ limit }) => limit === undefined))
})

test('a queue of others is not given way to for ever', () => {
  const { limits, goodput } = drive(steady(100, 20), 30_000, { load: () => ({ wants: 8_000_000, othersMs: 40 }) })
  assert.ok(
    limits.some(({ limit }) => limit !== undefined),
    'it does give way at first',
  )
  const free = limits.filter(({ limit }) => limit === undefined).length / limits.length
  assert.ok(free > 0.6, `free for ${free}`)
  assert.ok(goodput > 0.75 * 8_000_000, `${goodput}`)
})

test('a moment of standstill, or with a part of the sockets, says nothing of the path', () => {
  const pace = new Pace()
  const base = { deliveryBytesPerSecond: 12_000_000, rttMinMs: 20, rttDeviationMs: 0 }
  let bytes = 0
  const step = (atMs: number, rate: number, more: Partial<PaceSample> = {}) => {
    bytes += rate / 10
    return pace.step({ ...base, atMs, deliveredBytes: bytes, rttMs: 45, isWhole: true, ...more })
  }
  for (let atMs = 0; atMs <= 300; atMs += 100) step(atMs, 12_000_000)
  const limit = step(400, 12_000_000)!
  assert.ok(limit > 10_000_000, `${limit}`)
  for (let atMs = 500; atMs < 3_000; atMs += 100) assert.is(step(atMs, 0, { rttMs: 900 }), limit)
  for (let atMs = 3_000; atMs < 5_000; atMs += 100) assert.is(step(atMs, 6_000_000, { isWhole: false }), limit)
})

test('after a long silence nothing is known of the path any more', () => {
  const pace = new Pace()
  const sample = (atMs: number, rttMs: number): PaceSample => ({
    ...{ atMs, deliveredBytes: atMs * 12_000, deliveryBytesPerSecond: 12_000_000, rttMs, rttMinMs: 20, rttDeviationMs: 0, isWhole: true },
  })
  for (let atMs = 0; atMs <= 400; atMs += 100) pace.step(sample(atMs, 45))
  assert.ok(pace.step(sample(500, 45))! > 0)
  assert.is(pace.step(sample(40_000, 21)), undefined)
})

test('a thin or a near path is left alone', () => {
  for (const [rate, rttMs] of [
    [100_000, 50],
    [100_000_000, 0.2],
  ] as const) {
    const { limits } = drive(() => ({ rate, rttMs, queueBytes: 1e6 }), 10_000)
    assert.ok(limits.every(({ limit }) => limit === undefined))
  }
})

test.run()
