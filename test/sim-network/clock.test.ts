import { createVirtualClock } from '../../sim-network/clock.ts'
import { createRandom, randomAt } from '../../sim-network/random.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('sim-network: clock and random')

test('callbacks run in order of time, ties in order of arrival', () => {
  const clock = createVirtualClock()
  const seen: string[] = []
  for (const [at, name] of [
    [5, 'c'],
    [1, 'a'],
    [5, 'd'],
    [3, 'b'],
  ] as const)
    clock.at(at, () => seen.push(`${name}@${clock.nowMs()}`))
  clock.advanceTo(4)
  assert.equal(seen, ['a@1', 'b@3'])
  assert.is(clock.nextMs(), 5)
  clock.advanceBy(1)
  assert.equal(seen, ['a@1', 'b@3', 'c@5', 'd@5'])
  assert.is(clock.nextMs(), undefined)
})

test('a callback may add callbacks, and a cancelled one never runs', () => {
  const clock = createVirtualClock(100)
  const seen: number[] = []
  const tick = () => {
    seen.push(clock.nowMs())
    if (seen.length < 4) clock.at(clock.nowMs() + 10, tick)
  }
  clock.at(0, tick)
  clock.at(105, () => seen.push(-1)).cancel()
  clock.advanceTo(1000)
  assert.equal(seen, [100, 110, 120, 130])
  assert.throws(() => clock.advanceTo(999), /cannot go/)
})

test('many timers in random order come out sorted', () => {
  const clock = createVirtualClock()
  const random = createRandom('sorted')
  const seen: number[] = []
  for (let at = 0; at < 2000; at++) clock.at(Math.floor(random.between(0, 500)), () => seen.push(clock.nowMs()))
  clock.advanceTo(500)
  assert.is(seen.length, 2000)
  assert.ok(seen.every((at, index) => index === 0 || seen[index - 1]! <= at))
})

test('equal seeds give equal numbers, forks depend on the label only', () => {
  const a = createRandom(7)
  const b = createRandom(7)
  const first = Array.from({ length: 50 }, () => a.uint32())
  assert.equal(
    first,
    Array.from({ length: 50 }, () => b.uint32()),
  )
  assert.is(a.fork('x').uint32(), createRandom(7).fork('x').uint32())
  assert.is.not(a.fork('x').uint32(), a.fork('y').uint32())
  assert.is.not(createRandom(8).uint32(), first[0])
})

test('numbers are uniform enough', () => {
  const random = createRandom('uniform')
  const buckets = new Array(10).fill(0)
  for (let at = 0; at < 100_000; at++) buckets[Math.floor(random.next() * 10)]++
  for (const count of buckets) assert.ok(Math.abs(count - 10_000) < 400, `bucket of ${count}`)
  const indexed = Array.from({ length: 100_000 }, (_, at) => randomAt(99, at))
  const mean = indexed.reduce((sum, value) => sum + value, 0) / indexed.length
  assert.ok(Math.abs(mean - 0.5) < 0.005, `mean ${mean}`)
})

test.run()
