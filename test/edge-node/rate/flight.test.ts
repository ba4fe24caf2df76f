// The flight's estimates against a simulated path, in virtual time: rate, RTT, and above all that the window fills the
// path and not much more.
import { Flight, firstWindowBytes } from '../../../edge-node/rate/flight.ts'
import { assert, suite } from '../../support/suite.ts'
import { seeded } from '../pages/support.ts'

const test = suite('flight')
const RECORD = 65_000

type Path = { rateBytesPerSecond: number; rttMs: number }

/**
 * Sends for `ms` of virtual time over a FIFO path with acknowledgements; `path` may change with time. Returns the worst
 * queue seen after `settleMs`.
 */
function drive(flight: Flight, path: (nowMs: number) => Path, ms: number, settleMs = 0) {
  let freeAtMs = 0
  let received = 0
  let queueMs = 0
  const acks: { atMs: number; total: number }[] = []
  for (let now = 0; now < ms; now += 1) {
    const { rateBytesPerSecond, rttMs } = path(now)
    while (acks[0] && acks[0].atMs <= now) flight.acked(acks.shift()!.total, now)
    while (flight.maySend(RECORD)) {
      flight.sent(RECORD, now)
      freeAtMs = Math.max(freeAtMs, now) + (RECORD * 1000) / rateBytesPerSecond
      received += RECORD
      acks.push({ atMs: freeAtMs + rttMs, total: received })
    }
    if (now >= settleMs) queueMs = Math.max(queueMs, freeAtMs - now)
  }
  return { queueMs, acked: flight.ackedBytes }
}

for (const [mbit, rttMs] of [
  [10, 50],
  [100, 40],
  [100, 200],
  [20, 600],
  [1000, 10],
] as const) {
  test(`fills ${mbit} Mbit/s at ${rttMs} ms and keeps the queue short`, () => {
    const flight = new Flight()
    const rate = mbit * 125_000
    const ms = Math.max(12_000, 40 * rttMs)
    const { queueMs, acked } = drive(flight, () => ({ rateBytesPerSecond: rate, rttMs }), ms, ms / 2)
    const estimate = flight.estimate()
    assert.ok(acked / (ms / 1000) > 0.75 * rate, `goodput ${acked / (ms / 1000)} of ${rate}`)
    assert.ok(Math.abs(estimate.rateBytesPerSecond - rate) < 0.1 * rate, `estimated ${estimate.rateBytesPerSecond} of ${rate}`)
    assert.ok(estimate.rttMinMs >= rttMs && estimate.rttMinMs <= rttMs + (2 * RECORD * 1000) / rate + 2, `rtt ${estimate.rttMinMs}`)
    assert.ok(queueMs <= Math.max(160, 0.6 * rttMs + 130, (3 * RECORD * 1000) / rate), `queue of ${queueMs} ms`)
  })
}

test('recovers when round trips become long for another reason than our queue', () => {
  const flight = new Flight()
  const rate = 12_500_000
  // 8 s of a busy host that answers 90 ms late, then 8 s of a quiet one.
  const { acked } = drive(flight, now => ({ rateBytesPerSecond: rate, rttMs: now > 2_000 && now < 10_000 ? 130 : 40 }), 16_000)
  assert.ok(acked / 16 > 0.6 * rate, `goodput ${acked / 16} of ${rate}`)
})

test('an outage of a second changes nothing of what is known of the path', () => {
  const flight = new Flight()
  const rate = 6_250_000
  const isOut = (nowMs: number) => nowMs >= 4_000 && nowMs < 5_000
  const acks: { atMs: number; total: number }[] = []
  let freeAtMs = 0
  let sent = 0
  for (let now = 0; now < 5_400; now++) {
    while (acks[0] && acks[0].atMs <= now && !isOut(now)) flight.acked(acks.shift()!.total, now)
    while (flight.maySend(RECORD)) {
      flight.sent(RECORD, now)
      sent += RECORD
      // What is lost in the outage is sent again some time after it, one after the other, as TCP does.
      const readyMs = isOut(now) || isOut(freeAtMs) ? 5_700 : now
      freeAtMs = Math.max(freeAtMs, readyMs) + (RECORD * 1000) / rate
      acks.push({ atMs: freeAtMs + 40, total: sent })
    }
  }
  const before = flight.windowBytes()
  for (let now = 5_400; now < 7_000; now++) {
    while (acks[0] && acks[0].atMs <= now) flight.acked(acks.shift()!.total, now)
    assert.ok(flight.windowBytes() > 0.7 * before, `${flight.windowBytes()} of ${before} at ${now} ms`)
  }
})

test('a path that becomes slower shrinks the window within a few seconds', () => {
  const flight = new Flight()
  drive(flight, now => ({ rateBytesPerSecond: now < 5_000 ? 4_375_000 : 625_000, rttMs: 50 }), 12_000)
  const { rateBytesPerSecond, windowBytes } = flight.estimate()
  assert.ok(rateBytesPerSecond < 800_000, `rate ${rateBytesPerSecond}`)
  assert.ok(windowBytes <= 256 * 1024, `window ${windowBytes}`)
})

test('an idle sender does not pull the estimate down', () => {
  const flight = new Flight()
  drive(flight, () => ({ rateBytesPerSecond: 1_250_000, rttMs: 40 }), 3_000)
  const before = flight.estimate().rateBytesPerSecond
  let now = 3_000
  flight.acked(flight.sentBytes, now)
  for (; now < 4_500; now += 100) {
    flight.sent(1_000, now)
    flight.acked(flight.sentBytes, now + 40)
  }
  assert.ok(flight.estimate().rateBytesPerSecond > 0.9 * before)
})

test('acknowledgements out of order or of too much change nothing', () => {
  const flight = new Flight()
  flight.sent(100, 0)
  flight.acked(100, 10)
  flight.acked(50, 20)
  flight.acked(500, 30)
  assert.is(flight.inFlightBytes, 0)
  assert.is(flight.ackedBytes, 100)
})

test('one record may always travel on an empty path', () => {
  const flight = new Flight({ windowMinBytes: 1, windowInitialBytes: 1 })
  assert.ok(flight.maySend(RECORD))
  flight.sent(RECORD, 0)
  assert.not(flight.maySend(1))
})

test('what arrived of late, and time in queues, are told apart from what the path can carry', () => {
  // A recorded series in small: 64 KiB records over 10 Mbit/s and 40 ms, twice as fast as the path for a second, then
  // half as fast.
  const flight = new Flight()
  const acks: { atMs: number; total: number }[] = []
  let [sent, freeAtMs] = [0, 0]
  const seen: { goodput: number; queueMs: number }[] = []
  for (let nowMs = 0; nowMs < 8_000; nowMs++) {
    if (nowMs % (nowMs < 1_000 ? 26 : 105) === 0) {
      sent += RECORD
      flight.sent(RECORD, nowMs)
      freeAtMs = Math.max(freeAtMs, nowMs) + RECORD / 1_250
      acks.push({ atMs: freeAtMs + 40, total: sent })
    }
    while (acks[0] && acks[0].atMs <= nowMs) flight.acked(acks.shift()!.total, nowMs)
    const { goodputBytesPerSecond, queueMs } = flight.estimate()
    if (nowMs % 1_000 === 999) seen.push({ goodput: goodputBytesPerSecond, queueMs })
  }
  assert.ok(seen[0]!.queueMs > 300, `${seen[0]!.queueMs} ms in the queue`)
  assert.ok(seen.at(-1)!.queueMs < 30)
  assert.ok(Math.abs(seen[1]!.goodput - 1_250_000) < 250_000, `${seen[1]!.goodput}`)
  assert.ok(Math.abs(seen.at(-1)!.goodput - 624_000) < 60_000, `${seen.at(-1)!.goodput}`)
})

test('the first window grows with the square of the round trip that is known, within bounds', () => {
  assert.equal(
    [undefined, 0, 20, 50, 150, 600].map(rttMs => firstWindowBytes(rttMs)),
    [262_144, 262_144, 262_144, 650_000, 5_850_000, 6_291_456],
  )
})

test("while the engine's own window must still be small, late acknowledgements do not shrink ours", () => {
  const flight = new Flight({ windowInitialBytes: 4_000_000 })
  // A slow start of the engine: the first bytes come back in time, the next wait in it for some round trips of 150 ms.
  for (let i = 0; i < 50; i++) flight.sent(RECORD, 0)
  flight.acked(RECORD, 150)
  for (let i = 2; i <= 6; i++) flight.acked(i * RECORD, 150 * i)
  assert.is(flight.estimate().isStarting, true)
  assert.ok(flight.windowBytes() >= 4_000_000)
  for (let i = 7; i <= 50; i++) flight.acked(i * RECORD, 150 * i)
  assert.is(flight.estimate().isStarting, false)
  assert.ok(flight.windowBytes() < 1_000_000, `${flight.windowBytes()}`)
})

test('far from the end a lossy path gets a larger window than near it', () => {
  const flight = new Flight()
  flight.setLossy(true)
  overLossyPath(flight, { megabits: 200, rttMs: 150, loss: 0.01 }, 6)
  const near = flight.windowBytes()
  flight.setFar(true)
  const far = flight.windowBytes()
  assert.ok(far > 1.3 * near && far < 1.6 * near, `${near} and ${far}`)
})

/**
 * A path that loses packets at random, under an engine that sends them again: what comes behind a lost one on its lane
 * waits for it. Mbit/s that arrive.
 */
function overLossyPath(flight: Flight, { megabits, rttMs, loss }: { megabits: number; rttMs: number; loss: number }, seconds = 12): number {
  const random = seeded(3)
  const [lanes, recordBytes, bytesPerMs] = [4, 65_536, megabits * 125]
  const lastAtMs = new Array<number>(lanes).fill(0)
  const arrivals: { atMs: number; bytes: number }[] = []
  const acks: { atMs: number; total: number }[] = []
  let [received, lane, busyUntilMs] = [0, 0, 0]
  for (let nowMs = 0; nowMs < seconds * 1000; nowMs++) {
    while (flight.maySend(recordBytes)) {
      flight.sent(recordBytes, nowMs)
      busyUntilMs = Math.max(busyUntilMs, nowMs) + recordBytes / bytesPerMs
      let isLost = false
      for (let packet = 0; packet < recordBytes / 1400; packet++) if (random() < loss) isLost = true
      const atMs = Math.max(busyUntilMs + rttMs / 2 + (isLost ? rttMs : 0), lastAtMs[lane]!)
      lastAtMs[lane] = atMs
      arrivals.push({ atMs, bytes: recordBytes })
      lane = (lane + 1) % lanes
    }
    const before = received
    for (let i = arrivals.length - 1; i >= 0; i--) if (arrivals[i]!.atMs <= nowMs) received += arrivals.splice(i, 1)[0]!.bytes
    if (received > before) acks.push({ atMs: nowMs + rttMs / 2, total: received })
    while (acks[0] && acks[0].atMs <= nowMs) flight.acked(acks.shift()!.total, nowMs)
  }
  return (received * 8) / seconds / 1e6
}

test('a path that loses at random is filled once that is known, and its queue stays within two round trips', () => {
  const path = { megabits: 200, rttMs: 150, loss: 0.01 }
  const blind = overLossyPath(new Flight(), path)
  const flight = new Flight()
  flight.setLossy(true)
  const knowing = overLossyPath(flight, path)
  assert.ok(blind < 120 && knowing > 160, `${blind} and ${knowing} Mbit/s`)
  assert.ok(flight.estimate().windowBytes < 25_000_000 * 1.3 * 0.4, `${flight.estimate().windowBytes}`)
})

test.run()
