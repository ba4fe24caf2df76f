// What is said of the end, against modelled migrations of which the end is known.
import { Eta } from '../../../edge-node/rate/eta.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('rate: eta')
const MB = 1e6

/** Rounds over a guest with `zero` of its memory zero, at the end; until what remains takes 200 ms. */
function migrate(o: { rate: number; dirty: number; zero: number; memory: number; isSampled?: boolean }) {
  const eta = new Eta()
  let [atMs, guestBytes, rounds, remaining, dirtied] = [0, 0, 1, o.memory, 0]
  const content = o.memory * (1 - o.zero)
  for (; atMs < 600_000; atMs += 500) {
    const freeBytes = Math.max(0, Math.min(guestBytes, o.memory) - content)
    const contentBytes = o.isSampled ? content * 1.05 : undefined
    eta.step({
      atMs,
      rounds,
      remainingBytes: remaining,
      guestBytes,
      freeBytes,
      contentBytes,
      dirtyBytesPerSecond: rounds > 1 ? o.dirty : 0,
      rttMs: 40,
      isStopped: false,
    })
    let ms = 500
    while (ms > 0) {
      const isZero = rounds === 1 && guestBytes >= content
      const speed = isZero ? 4e6 : o.rate / 1000
      const step = Math.min(ms, Math.max(0.1, remaining / speed))
      ms -= step
      remaining -= step * speed
      guestBytes += step * speed
      dirtied += (step * o.dirty) / 1000
      if (remaining > 1) continue
      if (dirtied < (o.rate * 200) / 1000) return { eta, endMs: atMs + 500 - ms + 200 }
      remaining = dirtied
      dirtied = 0
      rounds++
    }
  }
  throw new Error('no end')
}

test('a guest that rewrites little: the end is known to a tenth, from the first seconds on', () => {
  const { eta, endMs } = migrate({ rate: 20 * MB, dirty: 1 * MB, zero: 0, memory: 400 * MB })
  const { medianRatio: median, worstRatio: worst } = eta.error(0, endMs)!
  assert.ok(median < 0.07 && worst < 0.12, `${median} ${worst}`)
})

test('zero memory behind what is filled: pessimistic where nobody has looked, right where memory was sampled', () => {
  const guest = { rate: 20 * MB, dirty: 1 * MB, zero: 0.5, memory: 400 * MB }
  const blind = migrate(guest)
  assert.ok(blind.eta.error(0, blind.endMs)!.medianRatio < 1)
  const { eta, endMs } = migrate({ ...guest, isSampled: true })
  const { medianRatio: median, worstRatio: worst } = eta.error(0, endMs)!
  assert.ok(median < 0.1 && worst < 0.2, `${median} ${worst}`)
})

test('a guest that rewrites half of what the path carries', () => {
  const { eta, endMs } = migrate({ rate: 20 * MB, dirty: 10 * MB, zero: 0, memory: 300 * MB })
  assert.ok(eta.error(0, endMs)!.medianRatio < 0.5)
})

test('no end is in sight when the guest rewrites faster than the path carries, or before anything went through', () => {
  const eta = new Eta()
  const sample = { rounds: 2, remainingBytes: 100 * MB, freeBytes: 0, dirtyBytesPerSecond: 50 * MB, rttMs: 10, isStopped: false }
  assert.is(eta.step({ atMs: 0, guestBytes: 0, ...sample }), null)
  assert.is(eta.step({ atMs: 1000, guestBytes: 10 * MB, ...sample }), null)
  assert.is(eta.error(0, 10), null)
  assert.is(eta.step({ atMs: 2000, guestBytes: 20 * MB, ...sample, isStopped: true }), 10_015)
})

test.run()
