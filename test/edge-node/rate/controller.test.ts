// The controller in a closed loop with a modelled QEMU: rounds over dirty memory, a switchover when what remains fits
// the limit it was told.
import { Controller, type ControllerOptions } from '../../../edge-node/rate/controller.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('rate: controller')
const MB = 1e6

type World = {
  memoryBytes: number
  /** Guest bytes a second that the path carries. */
  guestRate: number
  /** Rewritten by the guest a second, over a working set of so much. */
  dirtyRate: number
  workingSetBytes: number
  rttMs?: number
  downtimeMs?: number
  isAsked?: boolean
  /** The guest can be slowed down. */
  throttles?: boolean
  noise?: (round: number) => number
}

function migrate(world: World, seconds = 200) {
  const { rttMs = 40, downtimeMs = 300, noise = () => 1 } = world
  const options: ControllerOptions = { downtimeMs, isAsked: world.isAsked ?? false, isLive: true, workers: 1, streams: 4 }
  const controller = new Controller(options)
  let remaining = world.memoryBytes
  let dirty = 0
  let rounds = 1
  let throttle = 0
  let highRounds = 0
  let atMs = 0
  let sentInRound = 0
  for (; atMs < seconds * 1000; atMs += 100) {
    const decision = controller.step({
      atMs,
      isStopped: false,
      path: {
        rateBytesPerSecond: atMs < 300 ? 0 : world.guestRate / 2,
        rttMinMs: rttMs,
        inFlightBytes: (world.guestRate / 2) * (rttMs / 1000),
      },
      waitingBytes: 0,
      ratio: 2,
      compression: { batches: atMs / 10, linkWaits: atMs / 10, workerWaits: 0, busyMs: atMs / 10 },
      qemu: { rounds, remainingBytes: remaining, dirtyBytesPerSecond: world.dirtyRate * (1 - throttle / 100), throttlePercent: throttle },
    })
    if (decision.refuse) return { refused: decision.refuse, rounds, throttle, atMs, controller }
    // QEMU: looks at what remains all the time, switches over when it fits, begins a round when nothing is left.
    const threshold = ((decision.switchoverBytesPerSecond ?? 0) * decision.downtimeLimitMs) / 1000
    for (let left = world.guestRate / 10; left > 0; ) {
      const part = Math.min(left, Math.max(remaining, 4096))
      left -= part
      remaining = Math.max(0, remaining - part)
      sentInRound += part
      dirty = Math.min(world.workingSetBytes, dirty + (world.dirtyRate * (1 - throttle / 100) * noise(rounds) * part) / world.guestRate)
      if (remaining > threshold) continue
      // A sync: what was written meanwhile counts.
      const pending = Math.min(remaining + dirty, Math.max(remaining, world.workingSetBytes))
      if (pending <= threshold)
        return { finalBytes: pending, rounds: rounds + 1, throttle, atMs, controller, limitMs: decision.downtimeLimitMs }
      if (world.throttles && dirty > 0.5 * sentInRound && ++highRounds >= 2)
        throttle = Math.min(99, throttle === 0 ? (decision.throttle?.initialPercent ?? 20) : throttle + 20)
      remaining = pending
      dirty = 0
      sentInRound = 0
      rounds++
    }
  }
  return { rounds, throttle, atMs, controller }
}

const downtimeOf = (finalBytes: number | undefined, { guestRate }: World) => ((finalBytes ?? Number.NaN) * 1000) / guestRate

test('an idle guest is switched over with next to nothing left, though far more would have fitted', () => {
  const world = { memoryBytes: 200 * MB, guestRate: 20 * MB, dirtyRate: 0.3 * MB, workingSetBytes: 5 * MB, downtimeMs: 500 }
  const { finalBytes, atMs } = migrate(world)
  assert.ok(downtimeOf(finalBytes, world) < 60, `${downtimeOf(finalBytes, world)} ms`)
  assert.ok(atMs < 14_000, `${atMs} ms`)
})

test('a guest that rewrites a quarter of what the path carries converges below the downtime, and near its minimum', () => {
  const world = { memoryBytes: 200 * MB, guestRate: 20 * MB, dirtyRate: 5 * MB, workingSetBytes: 40 * MB, downtimeMs: 400 }
  const { finalBytes, throttle } = migrate(world)
  assert.ok(downtimeOf(finalBytes, world) <= 300)
  assert.is(throttle, 0)
})

test('what remains stops falling: it is switched over soon, not after rounds without end', () => {
  const world = { memoryBytes: 100 * MB, guestRate: 20 * MB, dirtyRate: 200 * MB, workingSetBytes: 3 * MB, downtimeMs: 400 }
  const { finalBytes, atMs } = migrate(world)
  assert.ok(downtimeOf(finalBytes, world) <= 300)
  assert.ok(atMs < 12_000, `${atMs} ms`)
})

test('a guest that rewrites as fast as the path carries is slowed down until it fits', () => {
  const world = { memoryBytes: 100 * MB, guestRate: 10 * MB, dirtyRate: 12 * MB, workingSetBytes: 80 * MB, throttles: true }
  const { finalBytes, throttle, controller } = migrate(world)
  assert.ok(downtimeOf(finalBytes, world) <= 300)
  assert.ok(throttle >= 60)
  assert.ok(controller.changes.some(({ what, reason }) => what === 'throttle' && reason.includes('rewrites 12.0 MB/s')))
})

test('a downtime that was asked for and cannot be kept is refused, with what it would be', () => {
  const world = { memoryBytes: 100 * MB, guestRate: 10 * MB, dirtyRate: 50 * MB, workingSetBytes: 30 * MB, isAsked: true }
  const { refused, finalBytes } = migrate(world)
  assert.is(finalBytes, undefined)
  assert.ok(refused && refused.predictedMs > 3_000 && refused.predictedMs < 4_000, JSON.stringify(refused))
  assert.match(refused!.reason, /stopped falling at 30\.\d MB/)
})

test('a default downtime that cannot be kept is taken at the minimum, and the reason says so', () => {
  const world = { memoryBytes: 100 * MB, guestRate: 10 * MB, dirtyRate: 50 * MB, workingSetBytes: 30 * MB }
  const { finalBytes, controller } = migrate(world)
  assert.ok(finalBytes! <= 33 * MB)
  assert.ok(controller.changes.some(({ value, reason }) => value === 'above the downtime' && reason.includes('no downtime was requested')))
  assert.ok(controller.changes.some(({ what, value }) => what === 'method' && value === 'stop and copy the rest'))
})

test('a path whose round trips alone take longer than was asked for is refused too', () => {
  const world = { memoryBytes: 50 * MB, guestRate: 10 * MB, dirtyRate: 1 * MB, workingSetBytes: 5 * MB, rttMs: 600, isAsked: true }
  const { refused } = migrate(world)
  assert.ok(refused && refused.predictedMs >= 930, JSON.stringify(refused))
})

test('a default downtime that the round trips leave nothing of is not waited for: final pages get 200 ms, and the decision says so', () => {
  const world = { memoryBytes: 50 * MB, guestRate: 20 * MB, dirtyRate: 4 * MB, workingSetBytes: 30 * MB, rttMs: 250 }
  const { finalBytes, rounds, controller } = migrate(world)
  assert.ok(downtimeOf(finalBytes, world) <= 200, `${downtimeOf(finalBytes, world)} ms`)
  assert.ok(rounds < 15, `${rounds} rounds`)
  assert.ok(controller.changes.some(({ what, reason }) => what === 'downtime' && reason.includes('605 ms instead of 300 ms')))
})

test('QEMU is never given more than what the downtime leaves beside the commit', () => {
  for (const dirtyRate of [0.1, 1, 4, 9]) {
    const { limitMs } = migrate({
      memoryBytes: 80 * MB,
      guestRate: 20 * MB,
      dirtyRate: dirtyRate * MB,
      workingSetBytes: 10 * MB,
      isAsked: true,
    })
    assert.ok(limitMs! <= 300 - 60 - 30)
  }
})

test('batches are large while much is to be sent over a slow path, and small, and few, when the guest may stop', () => {
  const step = (guestRate: number, remainingBytes: number, isStopped = false) =>
    new Controller({ downtimeMs: 300, isAsked: false, isLive: true, workers: 1, streams: 4 }).step({
      ...{ atMs: 1000, isStopped, waitingBytes: 0, ratio: 2 },
      path: { rateBytesPerSecond: guestRate / 2, rttMinMs: 20, inFlightBytes: 0 },
      compression: { batches: 0, linkWaits: 0, workerWaits: 0, busyMs: 0 },
      qemu: { rounds: 1, remainingBytes, dirtyBytesPerSecond: 0, throttlePercent: 0 },
    }).batching
  assert.equal(step(3 * MB, 200 * MB), { pages: 256, batchesMax: 7 })
  assert.equal(step(60 * MB, 900 * MB), { pages: 64, batchesMax: 7 })
  const end = step(3 * MB, 2 * MB)
  assert.ok(end.pages * end.batchesMax * 4096 <= Math.max(3 * MB * 0.1, 8 * 3 * 4096), JSON.stringify(end))
  assert.equal(step(60 * MB, 2 * MB), { pages: 64, batchesMax: 7 })
  assert.equal(step(3 * MB, 200 * MB, true), end)
})

test('what was decided is kept with its reason, in a list of bounded length', () => {
  const controller = new Controller({ downtimeMs: 300, isAsked: false, isLive: true, workers: 1, streams: 4 })
  controller.note(0, 'transport', 'tls', 'BBR')
  for (let i = 0; i < 500; i++) controller.note(i, 'level', String(i), 'because')
  assert.is(controller.changes.length, 64)
  assert.is(controller.changes[0]!.what, 'transport')
  assert.is(controller.changes.at(-1)!.value, '499')
  assert.is(controller.changesDropped, 501 - 64)
  controller.note(501, 'level', '499', 'again')
  assert.is(controller.changes.at(-1)!.atMs, 499)
})

test('a fixed level is kept', () => {
  const controller = new Controller({ downtimeMs: 300, isAsked: false, isLive: false, workers: 1, streams: 1, level: 'off' })
  const decision = controller.step({
    ...{ atMs: 0, isStopped: false, waitingBytes: 0, ratio: 0 },
    path: { rateBytesPerSecond: 0, rttMinMs: 0, inFlightBytes: 0 },
    compression: { batches: 0, linkWaits: 0, workerWaits: 0, busyMs: 0 },
  })
  assert.is(decision.level, 'off')
  assert.is(decision.downtimeLimitMs, 1)
})

test.run()
