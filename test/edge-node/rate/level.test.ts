// The level against a modelled source: workers of a given speed, a link of a given rate, and what each level gives.
import { LEVELS, type Level, LevelPolicy } from '../../../edge-node/rate/level.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('rate: level')
/** Batches of 256 KiB; level 1 does `megabytes` a second, the link takes `linkMegabytes` of wire bytes a second. */
function run(
  policy: LevelPolicy,
  o: { megabytes: number; linkMegabytes: number; seconds: number; cap?: Level; ratioOf?: (level: Level) => number },
) {
  const ratioOf = o.ratioOf ?? (level => (level === 'off' ? 1 : 2.2 + 0.03 * Math.max(0, level)))
  const state = { atMs: 0, batches: 0, linkWaits: 0, workerWaits: 0, busyMs: 0 }
  const levels: Level[] = []
  for (let tick = 0; tick < o.seconds * 10; tick++) {
    state.atMs += 100
    const { level, cost } = LEVELS.find(each => each.level === policy.level)!
    const compress = o.megabytes / cost
    const link = o.linkMegabytes * ratioOf(level)
    const guest = Math.min(compress, link)
    const batches = (guest * 0.1) / 0.262
    state.batches += batches
    state.busyMs += (100 * guest) / compress
    if (link < compress) state.linkWaits += batches
    else state.workerWaits += batches
    policy.step({ ...state }, o.cap)
    levels.push(policy.level)
  }
  return levels
}

test('a slow link gets the highest level that the workers can keep up with, and stays there', () => {
  const policy = new LevelPolicy(1)
  const levels = run(policy, { megabytes: 430, linkMegabytes: 1.25, seconds: 20 })
  assert.ok(Number(policy.level) >= 15, `level ${policy.level}`)
  assert.is(new Set(levels.slice(-100)).size, 1)
})

test('a link that is faster than compression gets less of it, or none', () => {
  const policy = new LevelPolicy(1)
  run(policy, { megabytes: 100, linkMegabytes: 1000, seconds: 10 })
  assert.is(policy.level, 'off')
})

test('in between it finds a level, and does not swing to and fro', () => {
  for (const linkMegabytes of [3, 6, 12, 25, 50, 100]) {
    const policy = new LevelPolicy(1)
    const levels = run(policy, { megabytes: 430, linkMegabytes, seconds: 60 })
    let changes = 0
    for (let i = 100; i < levels.length; i++) if (levels[i] !== levels[i - 1]) changes++
    assert.ok(changes <= 12, `${changes} changes in 50 s at ${linkMegabytes} MB/s`)
    const cost = LEVELS.find(({ level }) => level === policy.level)!.cost
    assert.ok(430 / cost > linkMegabytes * 2, `level ${policy.level} is too slow for ${linkMegabytes} MB/s`)
  }
})

test('a cap holds at once, and what it held down rises again after it', () => {
  const policy = new LevelPolicy(1)
  run(policy, { megabytes: 430, linkMegabytes: 1.25, seconds: 20 })
  assert.equal(new Set(run(policy, { megabytes: 430, linkMegabytes: 1.25, seconds: 5, cap: 3 })), new Set([3]))
  run(policy, { megabytes: 430, linkMegabytes: 1.25, seconds: 20 })
  assert.ok(Number(policy.level) >= 15)
})

test('a level above 1 that no link asks for is given up where it costs', () => {
  const policy = new LevelPolicy(1)
  const state = { atMs: 0, batches: 0, linkWaits: 0, workerWaits: 0, busyMs: 0 }
  const second = (waitShare: number, busyMs: number) => {
    for (let i = 0; i < 10; i++) {
      state.atMs += 100
      state.batches += 20
      state.linkWaits += 20 * waitShare
      state.busyMs += busyMs
      policy.step({ ...state }, 3)
    }
    return policy.level
  }
  // A start-up in which batches wait for a window that is still small, then a path that takes all.
  assert.is(second(1, 20), 3)
  assert.is(second(0, 20), 3, 'workers with time to spare take nothing from anybody')
  assert.is(second(0, 60), 1)
})

test('where nobody waits for anybody nothing changes', () => {
  const policy = new LevelPolicy(2)
  for (let atMs = 0; atMs < 20_000; atMs += 100)
    assert.is(policy.step({ atMs, batches: atMs / 50, linkWaits: 0, workerWaits: 0, busyMs: atMs / 10 }), undefined)
  assert.is(policy.level, 1)
})

test.run()
