// The link model in virtual time: what it promises, by seed, with no waiting.
import { createLink, type Delivery, type LinkModel, type LinkModelOptions } from '../../sim-network/link.ts'
import { burstLoss } from '../../sim-network/loss.ts'
import { profileOf, profiles } from '../../sim-network/profiles.ts'
import { parseRateTrace } from '../../sim-network/server.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('sim-network: link model')

const PACKET_BYTES = 1250 // 10_000 bits: 1 ms at 10 Mbit/s
const base: LinkModelOptions = { rate: { bitsPerSecond: 10_000_000 }, delayMs: 20, queueBytes: 1_000_000 }
const link = (options: Partial<LinkModelOptions> = {}, seed: number | string = 1) => createLink<number>({ ...base, ...options }, seed)

/** Offers `bitsPerSecond` of equal packets for `ms` and gives all arrivals. */
function offer(
  target: LinkModel<number>,
  { bitsPerSecond, ms, bytes = PACKET_BYTES }: { bitsPerSecond: number; ms: number; bytes?: number },
) {
  const gapMs = ((bytes * 8) / bitsPerSecond) * 1000
  const arrivals: Delivery<number>[] = []
  for (let at = 0, number = 0; at < ms; at += gapMs) {
    target.enqueue(at, bytes, number++)
    arrivals.push(...target.advance(at))
  }
  arrivals.push(...target.advance(ms + 3_600_000))
  return arrivals
}

const rateOf = (arrivals: Delivery<number>[]) => {
  const bytes = arrivals.reduce((sum, { bytes }) => sum + bytes, 0)
  return ((bytes - arrivals[0]!.bytes) * 8000) / (arrivals.at(-1)!.atMs - arrivals[0]!.atMs)
}

const inOrder = (arrivals: Delivery<number>[]) =>
  arrivals.every((arrival, at) => at === 0 || (arrivals[at - 1]!.packet < arrival.packet && arrivals[at - 1]!.atMs <= arrival.atMs))

test('one packet takes its sending time and the delay, to the microsecond', () => {
  const one = link()
  one.enqueue(100, PACKET_BYTES, 1)
  assert.is(one.nextMs(), 101)
  assert.equal(one.advance(120.999), [])
  assert.is(one.nextMs(), 121)
  assert.equal(one.advance(121), [{ atMs: 121, bytes: PACKET_BYTES, packet: 1 }])
  assert.is(one.nextMs(), undefined)
})

test('the rate is kept within 1 % however much is offered', () => {
  for (const bitsPerSecond of [5e6, 35e6, 100e6, 500e6]) {
    const arrivals = offer(link({ rate: { bitsPerSecond }, queueBytes: 100_000 }), { bitsPerSecond: bitsPerSecond * 1.7, ms: 2000 })
    assert.ok(Math.abs(rateOf(arrivals) / bitsPerSecond - 1) < 0.01, `${rateOf(arrivals)} for ${bitsPerSecond}`)
  }
})

test('below the rate nothing waits', () => {
  const calm = link()
  const arrivals = offer(calm, { bitsPerSecond: 5e6, ms: 1000 })
  assert.ok(Math.abs(calm.counters().queueDelayMsMax - 1) < 1e-9)
  assert.is(arrivals.length, 500)
  assert.ok(calm.counters().queueBytesMax <= PACKET_BYTES)
})

test('the queue holds no more than its bound and drops the newest', () => {
  const full = link({ queueBytes: 10 * PACKET_BYTES })
  const accepted = Array.from({ length: 15 }, (_, number) => full.enqueue(0, PACKET_BYTES, number))
  assert.equal(accepted, [...new Array(10).fill(true), ...new Array(5).fill(false)])
  assert.equal(
    full.advance(1000).map(({ packet }) => packet),
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9],
  )
  const counters = full.counters()
  assert.is(counters.queueBytesMax, 10 * PACKET_BYTES)
  assert.is(counters.queueBytes, 0)
  assert.is(counters.droppedPackets.queue, 5)
  assert.is(counters.queueDelayMsMax, 10)
})

test('nothing is lost uncounted: entered = delivered + dropped', () => {
  const lossy = link({
    loss: { ratio: 0.1 },
    queueBytes: 20_000,
    mtuBytes: 1500,
    blackouts: [{ startMs: 300, durationMs: 50, mode: 'drop' }],
  })
  lossy.enqueue(0, 1501, -1)
  offer(lossy, { bitsPerSecond: 15e6, ms: 1000 })
  const { enteredPackets, deliveredPackets, droppedPackets, enteredBytes, deliveredBytes, droppedBytes } = lossy.counters()
  const sum = (record: Record<string, number>) => Object.values(record).reduce((all, value) => all + value, 0)
  assert.is(enteredPackets, deliveredPackets + sum(droppedPackets))
  assert.is(enteredBytes, deliveredBytes + sum(droppedBytes))
  for (const cause of ['queue', 'loss', 'blackout', 'mtu'] as const) assert.ok(droppedPackets[cause] > 0, cause)
})

test('jitter moves packets by at most its bound and never past each other', () => {
  for (const seed of [1, 2, 3, 4, 5]) {
    const arrivals = offer(link({ jitterMs: 10, rate: { bitsPerSecond: 1e9 } }, seed), { bitsPerSecond: 20e6, ms: 5000 })
    assert.ok(inOrder(arrivals), `seed ${seed}`)
    const delays = arrivals.map(({ atMs, packet }) => atMs - packet * 0.5)
    const mean = delays.reduce((sum, value) => sum + value, 0) / delays.length
    assert.ok(Math.min(...delays) >= 10 && Math.max(...delays) <= 30.1, `${Math.min(...delays)}..${Math.max(...delays)}`)
    assert.ok(Math.max(...delays) - Math.min(...delays) > 10, 'it does jitter')
    assert.ok(Math.abs(mean - 20) < 2, `no bias: mean ${mean}, seed ${seed}`)
  }
})

test('jitter faster than the model likes still never reorders', () => {
  const arrivals = offer(link({ jitterMs: 15, jitterPeriodMs: 3, rate: { bitsPerSecond: 1e9 } }), { bitsPerSecond: 50e6, ms: 2000 })
  assert.ok(inOrder(arrivals))
})

test('random loss keeps its ratio within four standard deviations', () => {
  for (const ratio of [0.001, 0.01, 0.2]) {
    const lossy = link({ loss: { ratio } }, `loss ${ratio}`)
    const count = offer(lossy, { bitsPerSecond: 9e6, ms: 100_000 }).length
    const total = lossy.counters().enteredPackets
    const sigma = Math.sqrt(total * ratio * (1 - ratio))
    assert.ok(Math.abs(total - count - total * ratio) < 4 * sigma, `${total - count} of ${total} at ${ratio}`)
  }
})

test('burst loss keeps its ratio and its mean burst', () => {
  const arrivals = offer(link({ loss: burstLoss(0.02, 8), queueBytes: 1e7 }, 'bursts'), { bitsPerSecond: 9e6, ms: 200_000 })
  const total = arrivals.at(-1)!.packet + 1
  const bursts: number[] = []
  arrivals.forEach(({ packet }, at) => {
    const gap = at === 0 ? packet : packet - arrivals[at - 1]!.packet - 1
    if (gap > 0) bursts.push(gap)
  })
  const lost = bursts.reduce((sum, value) => sum + value, 0)
  assert.ok(Math.abs(lost / total - 0.02) < 0.004, `ratio ${lost / total}`)
  assert.ok(Math.abs(lost / bursts.length - 8) < 1.2, `mean burst ${lost / bursts.length}`)
})

test('a blackout that holds delays, one that drops loses; both end on time', () => {
  const held = link({ blackouts: [{ startMs: 100, durationMs: 50 }] })
  held.enqueue(99.5, PACKET_BYTES, 1) // half of it is out when the blackout starts
  held.enqueue(120, PACKET_BYTES, 2)
  assert.equal(
    held.advance(1000).map(({ atMs, packet }) => [packet, atMs]),
    [
      [1, 170.5],
      [2, 171.5],
    ],
  )
  const cut = link({ blackouts: [{ startMs: 100, durationMs: 50, everyMs: 1000, mode: 'drop' }] })
  for (let number = 0; number < 2000; number++) cut.enqueue(number, 125, number) // out 0.1 ms later
  const lost = new Set(Array.from({ length: 2000 }, (_, at) => at))
  for (const { packet } of cut.advance(5000)) lost.delete(packet)
  assert.equal([...lost], [...Array.from({ length: 50 }, (_, at) => 100 + at), ...Array.from({ length: 50 }, (_, at) => 1100 + at)])
})

test('a schedule 5 -> 35 -> 5 Mbit/s gives each its rate', () => {
  const steps = [
    { atMs: 0, bitsPerSecond: 5e6 },
    { atMs: 2000, bitsPerSecond: 35e6 },
    { atMs: 4000, bitsPerSecond: 5e6 },
  ]
  for (const repeatMs of [undefined, 6000]) {
    const rate = repeatMs === undefined ? { steps } : { steps, repeatMs }
    const arrivals = offer(link({ rate, delayMs: 0, queueBytes: 20_000 }), { bitsPerSecond: 50e6, ms: 9000 })
    const bitsIn = (from: number, to: number) => arrivals.filter(({ atMs }) => atMs > from && atMs <= to).length * PACKET_BYTES * 8
    assert.ok(Math.abs(bitsIn(0, 2000) / 10e6 - 1) < 0.01)
    assert.ok(Math.abs(bitsIn(2000, 4000) / 70e6 - 1) < 0.01)
    assert.ok(Math.abs(bitsIn(4000, 6000) / 10e6 - 1) < 0.01)
    const later = bitsIn(8000, 9000)
    assert.ok(Math.abs(later / (repeatMs === undefined ? 5e6 : 35e6) - 1) < 0.01, `${later} later`)
  }
})

test('a packet that spans a change of rate is sent at both', () => {
  const rate = {
    steps: [
      { atMs: 0, bitsPerSecond: 1e6 },
      { atMs: 5, bitsPerSecond: 10e6 },
    ],
  }
  const spanning = link({ rate, delayMs: 0 })
  spanning.enqueue(0, PACKET_BYTES, 1) // 10_000 bits: 5 ms at 1 Mbit/s, the other half in 0.5 ms
  assert.is(spanning.advance(100)[0]?.atMs, 5.5)
})

test('a rate of nothing for ever keeps the packet and asks for no timer', () => {
  const still = link({ rate: { bitsPerSecond: 0 } })
  assert.ok(still.enqueue(0, 100, 1))
  assert.is(still.nextMs(), undefined)
  assert.equal(still.advance(1e9), [])
  still.change(1e9, { rate: { bitsPerSecond: 8e5 } })
  assert.is(still.advance(1e9 + 1000)[0]?.atMs, 1e9 + 1 + 20)
})

test('a trace lets 1500 bytes out at each of its moments, and starts anew', () => {
  const trace = parseRateTrace('1\n1\n5\n10\n')
  const traced = link({ rate: { trace }, delayMs: 0 })
  for (let number = 0; number < 6; number++) traced.enqueue(0, 1500, number)
  assert.equal(
    traced.advance(100).map(({ atMs }) => atMs),
    [1, 1, 5, 10, 11, 11],
  )
  traced.enqueue(1002, 700, 6) // two small ones share the opportunity at 1005, a third half-used waits for 1010
  traced.enqueue(1002, 700, 7)
  traced.enqueue(1002, 700, 8)
  assert.equal(
    traced.advance(1100).map(({ atMs }) => atMs),
    [1005, 1005, 1010],
  )
})

test('an opportunity inside a blackout is lost', () => {
  const traced = link({ rate: { trace: parseRateTrace('2\n4\n6\n') }, delayMs: 0, blackouts: [{ startMs: 3, durationMs: 6 }] })
  traced.enqueue(0, 1500, 0)
  traced.enqueue(0, 1500, 1)
  assert.equal(
    traced.advance(100).map(({ atMs }) => atMs),
    [2, 10],
  )
})

test('a trace all of whose moments are blacked out ends as never, not as a hang', () => {
  const never = link({ rate: { trace: parseRateTrace('10\n') }, blackouts: [{ startMs: 5, durationMs: 9, everyMs: 10 }] })
  never.enqueue(0, 100, 1)
  assert.is(never.nextMs(), undefined)
})

test('a trace file that is wrong is refused with its line', async () => {
  for (const text of ['', '0\n', '1\nx\n', '5\n3\n', '-1\n', '1.5\n']) {
    assert.is(await codeOf(() => parseRateTrace(text)), 'CONFIG_INVALID', JSON.stringify(text))
  }
  assert.throws(() => parseRateTrace('1\n\n7\n2\n'), /line 4/)
})

test('conditions can change while packets are under way', () => {
  const changing = link({ rate: { bitsPerSecond: 1e6 }, delayMs: 10 })
  for (let number = 0; number < 10; number++) changing.enqueue(0, PACKET_BYTES, number)
  assert.is(changing.advance(35).length, 2)
  changing.change(35, { rate: { bitsPerSecond: 100e6 }, delayMs: 1 })
  const rest = changing.advance(1000)
  assert.is(rest.length, 8)
  assert.ok(inOrder(rest))
  assert.ok(rest.at(-1)!.atMs < 45)
})

test('a cut link loses what is under way, and works again after', () => {
  const plugged = link()
  plugged.enqueue(0, PACKET_BYTES, 0)
  plugged.enqueue(0, PACKET_BYTES, 1)
  plugged.cut(1.5, true)
  assert.not.ok(plugged.enqueue(2, PACKET_BYTES, 2))
  assert.equal(plugged.advance(100), [])
  assert.is(plugged.nextMs(), undefined)
  plugged.cut(100, false)
  plugged.enqueue(100, PACKET_BYTES, 3)
  assert.equal(
    plugged.advance(200).map(({ packet, atMs }) => [packet, atMs]),
    [[3, 121]],
  )
  assert.is(plugged.counters().droppedPackets.cut, 3)
})

test('equal seeds give equal arrivals, other seeds others', () => {
  const run = (seed: number) =>
    offer(link({ jitterMs: 5, loss: { ratio: 0.05 } }, seed), { bitsPerSecond: 9e6, ms: 500 }).map(
      ({ atMs, packet }) => `${packet}@${atMs}`,
    )
  assert.equal(run(3), run(3))
  assert.is.not(run(3).join(), run(4).join())
})

test('time never goes back, and wrong options are named', () => {
  const forward = link()
  forward.enqueue(10, 100, 1)
  assert.throws(() => forward.enqueue(9, 100, 2), /go back/)
  const wrong: [Partial<LinkModelOptions>, RegExp][] = [
    [{ delayMs: -1 }, /delayMs/],
    [{ jitterMs: 21 }, /jitterMs/],
    [{ queueBytes: 0 }, /queueBytes/],
    [{ rate: { bitsPerSecond: Number.NaN } }, /rate/],
    [{ rate: { steps: [{ atMs: 1, bitsPerSecond: 1 }] } }, /first step/],
    [{ loss: { ratio: 1.1 } }, /loss\.ratio/],
    [{ blackouts: [{ startMs: 0, durationMs: 5, everyMs: 5 }] }, /everyMs/],
  ]
  for (const [options, message] of wrong) assert.throws(() => link(options), message)
})

test('every profile carries traffic both ways at about its rate', () => {
  for (const [name, { up, down, description }] of Object.entries(profiles)) {
    assert.ok(description.length > 10, name)
    for (const direction of [up, down]) {
      const profiled = createLink<number>(direction, name)
      let arrived = 0
      for (let at = 0; at < 3000; at += 0.2) {
        profiled.enqueue(at, 1400, 0)
        arrived += profiled.advance(at).length
      }
      assert.ok(arrived > 500, `${name}: ${arrived}`)
      assert.ok(profiled.counters().queueBytesMax <= direction.queueBytes, name)
    }
  }
  assert.is(profileOf('demo'), profiles.demo)
  assert.is(profileOf('toString'), undefined)
})

test.run()
