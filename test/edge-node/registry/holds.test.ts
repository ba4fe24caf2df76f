import { HOLDS_MAX, Holds } from '../../../edge-node/registry/holds.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const test = suite('edge-node/registry/holds')

test('what is held counts for all but its own VM, until it is released, replaced or has lapsed', () => {
  let nowMs = 0
  const holds = new Holds(() => nowMs)
  holds.put('web', { id: '1', bytes: 100, untilMs: 1000 })
  holds.put('db', { id: '2', bytes: 7, untilMs: 500 })
  assert.equal(
    [holds.besides(undefined), holds.besides('web'), holds.besides('db').bytes],
    [{ bytes: 107, count: 2 }, { bytes: 7, count: 1 }, 100],
  )
  holds.put('web', { id: '3', bytes: 50, untilMs: 2000 })
  assert.equal([holds.release({ id: '1' }), holds.besides(undefined).bytes], [false, 57])
  nowMs = 500
  assert.equal(holds.besides(undefined), { bytes: 50, count: 1 })
  assert.equal([holds.release({ vm: 'web' }), holds.release({ id: '3' }), holds.besides(undefined).bytes], [true, false, 0])
})

test('their number is bounded, and lapsed ones make room', async () => {
  let nowMs = 0
  const holds = new Holds(() => nowMs)
  for (let at = 0; at < HOLDS_MAX; at++) holds.put(`vm-${at}`, { id: String(at), bytes: 1, untilMs: 10 })
  assert.is(await codeOf(() => holds.put('more', { id: 'x', bytes: 1, untilMs: 10 })), 'LIMIT_EXCEEDED')
  holds.put('vm-1', { id: 'again', bytes: 1, untilMs: 10 })
  nowMs = 10
  holds.put('more', { id: 'x', bytes: 1, untilMs: 20 })
})

test.run()
