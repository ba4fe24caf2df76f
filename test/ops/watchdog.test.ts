// What stands still is found by its state's deadline, with time passed in.
import { WATCH_EVERY_MS, Watchdog, type WatchedState } from '../../ops/watchdog.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('ops/watchdog')

const DEADLINES: Record<string, number> = { A: 60_000, B: 600_000 }

/** Steps every WATCH_EVERY_MS up to `toMs`; gives when something was overdue. */
function watch(dog: Watchdog<string>, fromMs: number, toMs: number, stageAt: (ms: number) => WatchedState | undefined) {
  const found: { atMs: number; state: string; times: number; forMs: number }[] = []
  for (let atMs = fromMs; atMs <= toMs; atMs += WATCH_EVERY_MS) {
    const stage = stageAt(atMs)
    for (const { state, times, forMs } of dog.step(atMs, stage ? [{ id: 'm', item: 'm', stage }] : []))
      found.push({ atMs, state, times, forMs })
  }
  return found
}
const newDog = () => new Watchdog<string>((_, state) => DEADLINES[state]!)

test('what stands still in a state is overdue at its deadline, and again after each further one', () => {
  const found = watch(newDog(), 0, 190_000, () => ({ state: 'A' }))
  assert.equal(
    found.map(({ atMs, times }) => [atMs, times]),
    [
      [60_000, 1],
      [120_000, 2],
      [180_000, 3],
    ],
  )
  assert.is(found[0]!.forMs, 60_000)
})

test('each state has its own deadline, and begins anew', () => {
  const found = watch(newDog(), 0, 700_000, atMs => ({ state: atMs < 50_000 ? 'A' : 'B' }))
  assert.equal(
    found.map(({ atMs, state }) => [atMs, state]),
    [[650_000, 'B']],
  )
})

test('what gets on is never overdue, however long it takes', () => {
  assert.equal(
    watch(newDog(), 0, 3_600_000, atMs => ({ state: 'A', mark: String(Math.floor(atMs / 55_000)) })),
    [],
  )
})

test('what has ended is forgotten: the same name begins anew', () => {
  const dog = newDog()
  watch(dog, 0, 55_000, () => ({ state: 'A' }))
  watch(dog, 60_000, 60_000, () => undefined)
  assert.equal(
    watch(dog, 65_000, 120_000, () => ({ state: 'A' })),
    [],
  )
})

test('time in which the process itself stood still does not count', () => {
  const dog = newDog()
  watch(dog, 0, 30_000, () => ({ state: 'A' }))
  // SIGSTOP for an hour.
  const after = watch(dog, 3_630_000, 3_700_000, () => ({ state: 'A' }))
  assert.is(after.length, 1)
  assert.ok(after[0]!.atMs > 3_630_000 && after[0]!.atMs <= 3_670_000, `at ${after[0]!.atMs}`)
})

test.run()
