// Shares of one window, in virtual time: a path that carries one record a millisecond, and classes that always,
// sometimes or never have something to send.
import { Flight } from '../../../edge-node/rate/flight.ts'
import { createGate } from '../../../edge-node/rate/gate.ts'
import { Shares, type SharesOf } from '../../../edge-node/rate/shares.ts'
import type { TrafficClass } from '../../../wire/roles.ts'
import { assert, suite } from '../../support/suite.ts'
import { seeded } from '../pages/support.ts'

const test = suite('rate: shares')
const RECORD = 10_000
const WINDOW = 20 * RECORD
const ROUND_TRIP_MS = 10

type Sender = { name: TrafficClass; bytes?: number; waitsMax?: number; isOn?: (nowMs: number) => boolean }
type Seen = { bytes: number; waitedMs: number; worstMs: number }

/**
 * Each sender keeps records waiting while it is on; the path delivers them one after the other and acknowledges them a
 * round trip later.
 */
function drive(sharesOf: SharesOf, senders: Sender[], ms: number) {
  const shares = new Shares<{ name: TrafficClass; sinceMs: number }>(sharesOf)
  const flight = new Flight({ windowInitialBytes: WINDOW, windowMinBytes: WINDOW, windowMaxBytes: WINDOW })
  const waiting = new Map<TrafficClass, number>()
  const seen = new Map<TrafficClass, Seen>(senders.map(({ name }) => [name, { bytes: 0, waitedMs: 0, worstMs: 0 }]))
  const acks: { atMs: number; total: number }[] = []
  let [freeAtMs, sent, inFlightMax] = [0, 0, 0]
  for (let nowMs = 0; nowMs < ms; nowMs++) {
    while (acks[0] && acks[0].atMs <= nowMs) {
      const { total } = acks.shift()!
      flight.acked(total, nowMs)
      shares.acked(total)
    }
    for (const { name, bytes = RECORD, waitsMax = 4, isOn = () => true } of senders) {
      for (let count = waiting.get(name) ?? 0; isOn(nowMs) && count < waitsMax; count++) {
        shares.add(name, bytes, { name, sinceMs: nowMs })
        waiting.set(name, count + 1)
      }
    }
    for (let next = shares.next(flight); next; next = shares.next(flight)) {
      const { bytes, item } = next
      flight.sent(bytes, nowMs)
      waiting.set(item.name, waiting.get(item.name)! - 1)
      const to = seen.get(item.name)!
      to.bytes += bytes
      to.waitedMs += nowMs - item.sinceMs
      to.worstMs = Math.max(to.worstMs, nowMs - item.sinceMs)
      sent += bytes
      freeAtMs = Math.max(freeAtMs, nowMs) + bytes / RECORD
      acks.push({ atMs: freeAtMs + ROUND_TRIP_MS, total: sent })
    }
    inFlightMax = Math.max(inFlightMax, flight.inFlightBytes)
  }
  const total = [...seen.values()].reduce((sum, { bytes }) => sum + bytes, 0)
  return { of: (name: TrafficClass) => ({ ...seen.get(name)!, ratio: seen.get(name)!.bytes / total }), total, inFlightMax }
}

const near = (value: number, wanted: number, by = 0.02) => assert.ok(Math.abs(value - wanted) <= by, `${value}, not ${wanted}`)
const THREE: SharesOf = { pages: 6, disks: 3, standbys: 1 }

test('classes that all have much to send get bytes by their shares, whatever the size of their records', () => {
  const { of } = drive(THREE, [{ name: 'pages' }, { name: 'disks', bytes: 3 * RECORD }, { name: 'standbys', bytes: RECORD / 4 }], 20_000)
  near(of('pages').ratio, 0.6)
  near(of('disks').ratio, 0.3)
  near(of('standbys').ratio, 0.1)
})

test('the share of an idle class goes to the others in proportion', () => {
  const two = drive(THREE, [{ name: 'pages' }, { name: 'disks' }], 20_000)
  near(two.of('pages').ratio, 2 / 3)
  const one = drive(THREE, [{ name: 'standbys' }], 20_000)
  assert.ok(one.total >= 0.99 * 20_000 * RECORD, `${one.total} bytes: the path is full`)
})

test('a class that comes back gets its share at once, and nothing for the time before', () => {
  const isOn = (nowMs: number) => nowMs >= 5_000
  const { of } = drive(THREE, [{ name: 'pages', isOn }, { name: 'standbys' }], 10_000)
  near(of('pages').bytes / (5_000 * RECORD), 6 / 7, 0.01)
  assert.ok(of('pages').worstMs <= 12, `${of('pages').worstMs} ms`)
})

test('a class with the smallest share is never kept waiting for longer than its share of the path explains', () => {
  const { of } = drive(
    { pages: 50, disks: 49, standbys: 1 },
    [{ name: 'pages' }, { name: 'disks' }, { name: 'standbys', waitsMax: 1 }],
    20_000,
  )
  // A hundred records of others, and the first round trip, in which nothing is acknowledged.
  assert.ok(of('standbys').worstMs <= 101 + ROUND_TRIP_MS, `${of('standbys').worstMs} ms`)
})

const WITH_URGENT: SharesOf = { urgent: 1, pages: 2, disks: 1 }

test('an urgent record never waits behind bulk, not even at a full window', () => {
  const every = (nowMs: number) => nowMs % 7 === 0
  const { of, total } = drive(
    WITH_URGENT,
    [{ name: 'pages' }, { name: 'disks' }, { name: 'urgent', bytes: 1_000, waitsMax: 1, isOn: every }],
    20_000,
  )
  assert.is(of('urgent').worstMs, 0)
  assert.ok(of('urgent').bytes > 2_800 * 1_000, `${of('urgent').bytes}`)
  near(of('pages').bytes / of('disks').bytes, 2)
  assert.ok(total >= 0.99 * 20_000 * RECORD, 'the path is full')
})

test('a flood of urgent records stays within its share, and what is in flight within the window and that share', () => {
  const { of, inFlightMax } = drive(WITH_URGENT, [{ name: 'pages' }, { name: 'disks' }, { name: 'urgent', waitsMax: 40 }], 20_000)
  near(of('urgent').ratio, 0.25, 0.06)
  near(of('pages').bytes / of('disks').bytes, 2, 0.05)
  assert.ok(inFlightMax <= 1.25 * WINDOW, `${inFlightMax} bytes in flight`)
})

test('no class starves, whatever comes and goes', () => {
  for (let seed = 1; seed <= 20; seed++) {
    const random = seeded(seed)
    const names: TrafficClass[] = ['urgent', 'pages', 'disks', 'standbys']
    const sharesOf = Object.fromEntries(names.map(name => [name, 1 + Math.floor(9 * random())]))
    const isOn = names.map(() => ({ untilMs: 0, value: false }))
    const senders = names.map((name, i) => ({
      name,
      bytes: 1_000 + Math.floor(2 * RECORD * random()),
      isOn: (nowMs: number) => {
        const state = isOn[i]!
        if (nowMs >= state.untilMs) Object.assign(state, { untilMs: nowMs + 500 * random(), value: random() < 0.7 })
        return state.value
      },
    }))
    const { of } = drive(sharesOf, senders, 5_000)
    // Four records wait, of at most 21 kB, at the least with a tenth of the smallest possible share.
    for (const name of names) assert.ok(of(name).worstMs < 400, `seed ${seed}: ${name} has waited ${of(name).worstMs} ms`)
  }
})

test('one class with everything is the window itself: first come, first served', () => {
  const shares = new Shares<number>({ pages: 1 })
  const window = { windowBytes: () => WINDOW, maySend: (bytes: number) => bytes <= 10 }
  for (const [item, bytes] of [5, 10, 11, 1].entries()) shares.add('pages', bytes, item)
  assert.equal([shares.next(window)?.item, shares.next(window)?.item, shares.next(window)], [0, 1, undefined])
  assert.equal(shares.clear(), [2, 3])
  assert.is(shares.next(window), undefined)
})

test('a class without a share is a mistake of ours', () => {
  assert.throws(() => new Shares<number>({ pages: 1 }).add('disks', 1, 1), /class disks has no share/)
  assert.throws(() => new Shares<number>({ pages: 0 }), /a share above 0/)
  assert.throws(() => new Shares<number>({}), /a share above 0/)
})

test('the gate gives its window by shares', async () => {
  const flight = new Flight({ windowInitialBytes: 100, windowMinBytes: 100, windowMaxBytes: 100 })
  const gate = createGate(flight, () => 0, { urgent: 1, pages: 3 })
  const passed: string[] = []
  await gate.pass(100)
  const page = gate.pass(50).then(() => passed.push('page'))
  const urgent = gate.pass(25, 'urgent').then(() => passed.push('urgent'))
  await urgent
  assert.equal(passed, ['urgent'])
  assert.is(flight.inFlightBytes, 125)
  gate.acked(100)
  await page
  assert.equal(passed, ['urgent', 'page'])
})

test.run()
