// The ring behind the feed of events, and what becomes an event: resume points, bounds, what is published when. Time is
// passed in.
import { EventRing } from '../../../gateway/fronts/event-ring.ts'
import { EventSource, PROGRESS_EVERY_MS, type SiteNow } from '../../../gateway/fronts/event-source.ts'
import type { GatewayEvent } from '../../../gateway/handoff/events.ts'
import { SseReader } from '../../../ops/sse.ts'
import type { MigrationRecord, PrestageRecord } from '../../../wire/admin.ts'
import type { MigrationProgress, VmFacts } from '../../../wire/control.ts'
import { EventId, FeedEvent } from '../../../wire/events.ts'
import { assert, suite } from '../../support/suite.ts'
import { vm } from '../fixture.ts'

const test = suite('gateway: ring of events')

const BOOT = '0123abcd'
const numbersIn = (text: string) => new SseReader().push(text).map(({ data }) => Number(data))

test('a reader gets each event after its resume point once and in order, in writes of a bounded size', () => {
  const ring = new EventRing(BOOT)
  assert.equal([ring.head, ring.placeOf(`${BOOT}-0`)], [0, 0])
  for (let n = 1; n <= 100; n++) ring.add('count', String(n))
  for (let from = 0; from <= 100; from++) {
    const seen: number[] = []
    for (let place = ring.placeOf(`${BOOT}-${from}`)!; place < ring.head; ) {
      const found = ring.read(place, 200)!
      assert.ok(found.place > place && found.text.length <= 200)
      seen.push(...numbersIn(found.text))
      place = found.place
    }
    assert.equal(
      seen,
      Array.from({ length: 100 - from }, (_, i) => from + i + 1),
    )
  }
  assert.equal(ring.read(100, 200), { text: '', place: 100 })
  const [event] = new SseReader().push(ring.read(98, 10)!.text)
  assert.equal(event, { id: `${BOOT}-99`, event: 'count', data: '99' }, 'one event at least, whatever its size')
  assert.ok(EventId.safeParse(event!.id).success)
})

test('a resume point that is gone, of another process, or none at all, is no place', () => {
  const ring = new EventRing(BOOT, { events: 10, bytes: 10_000 })
  for (let n = 1; n <= 25; n++) ring.add('count', String(n))
  assert.is(ring.head, 25)
  assert.equal(
    [14, 15, 16, 25, 26].map(number => ring.placeOf(ring.idOf(number))),
    [undefined, 15, 16, 25, undefined],
  )
  for (const id of ['ffffffff-20', '', BOOT, `${BOOT}-`, `${BOOT}-x`, `${BOOT}--1`, `${BOOT}-1e1`, `${BOOT}-20.5`])
    assert.is(ring.placeOf(id), undefined, id)
  assert.is(ring.read(14, 1000), undefined, 'a slow reader learns that it has missed some')
  assert.equal(numbersIn(ring.read(15, 10_000)!.text), [16, 17, 18, 19, 20, 21, 22, 23, 24, 25])
})

test('the ring is bounded in characters too, and keeps the newest event whatever its size', () => {
  const ring = new EventRing(BOOT, { events: 1000, bytes: 1000 })
  for (let n = 1; n <= 100; n++) ring.add('count', 'x'.repeat(100))
  assert.ok(ring.read(93, 100_000) && !ring.read(90, 100_000))
  ring.add('count', 'x'.repeat(5000))
  assert.is(ring.read(99, 100_000), undefined)
  assert.is(ring.read(100, 100_000)!.text.length > 5000, true)
})

const view = (site: string, online: boolean, more: Partial<SiteNow['view']> = {}): SiteNow['view'] => ({
  ...{ site, online, transport: online ? 'quic' : null, dataConnections: 0, rttMs: 1, version: '1', since: 5, certificateNotAfter: 9 },
  ...{ host: null, vms: [], ...more },
})

/** A source over sites that a test changes, at a time that a test sets. */
function watched(sites: Map<string, SiteNow> = new Map()) {
  const published: FeedEvent[] = []
  const at = { ms: 1000 }
  const source = new EventSource(
    { siteNow: site => sites.get(site), now: () => at.ms, publish: event => void published.push(FeedEvent.parse(event)) },
    { sites: sites.keys(), migrations: [] },
  )
  return {
    ...{ sites, at, source },
    take: () => published.splice(0),
    event: (event: GatewayEvent) => source.event(event),
  }
}

test('a site: connected with all its VMs, then only what changed, left, forgotten; nothing for nothing', () => {
  const w = watched(new Map([['a', { view: view('a', false), vms: [vm('old')] }]]))
  const set = (now: SiteNow | undefined) => {
    if (now) w.sites.set('a', now)
    else w.sites.delete('a')
    w.event({ event: 'site', site: 'a' })
    return w.take()
  }
  assert.equal(set({ view: view('a', false), vms: [vm('old')] }), [], 'it is as it was')
  const [connected] = set({ view: view('a', true), vms: [vm('one'), vm('two')] })
  assert.ok(connected?.event === 'site-connected')
  assert.equal(
    [connected.at, connected.site.online, connected.vms.map(({ name, site, online }) => [name, site, online])],
    [
      1000,
      true,
      [
        ['one', 'a', true],
        ['two', 'a', true],
      ],
    ],
  )
  assert.equal(set({ view: view('a', true, { rttMs: 50, dataConnections: 4 }), vms: [vm('one'), vm('two')] }), [])
  const changes = (vms: VmFacts[], more: Partial<SiteNow['view']> = {}) =>
    set({ view: view('a', true, more), vms }).map(event =>
      event.event === 'site-state' ? [event.vms.map(({ name, state }) => `${name} ${state}`), event.gone] : event.event,
    )
  assert.equal(changes([vm('one'), vm('two', { state: 'stopped' })]), [[['two stopped'], []]])
  assert.equal(changes([vm('two', { state: 'stopped' }), vm('three')]), [[['three running'], ['one']]])
  assert.equal(changes([vm('two', { state: 'stopped' }), vm('three')], { version: '2' }), [[[], []]])
  assert.equal(set({ view: view('a', false), vms: [vm('two')] }), [{ event: 'site-left', at: 1000, site: 'a' }])
  assert.equal(set(undefined), [{ event: 'site-forgotten', at: 1000, site: 'a' }])
  assert.equal(set(undefined), [])
})

const ID = '0123456789abcdef0123456789abcdef'
const migration = (state: MigrationRecord['state'], outcome: MigrationRecord['outcome'] = null): MigrationRecord => ({
  ...{ migrationId: ID, vm: 'vm-1', source: 'a', target: 'b', method: 'live', state, outcome, createdAt: 1, updatedAt: 2 },
  plan: {
    ...{ version: 1, migrationId: ID, vm: 'vm-1', epoch: 1, source: 'a', target: 'b', method: 'live', downtimeMs: 300 },
    ...{ streams: 4, attempt: 1, compression: 'zstd', createdAt: 1 },
  },
})
const progress = (side: MigrationProgress['side'], round: number): MigrationProgress => ({ migrationId: ID, side, phase: 'precopy', round })

test('a migration: begun once, its states, ended; progress at most once a second, the newest, and none after its end', () => {
  const w = watched()
  const names = () => w.take().map(({ event }) => event)
  const rounds = () =>
    w.take().map(event => (event.event === 'migration-progress' ? `${event.progress.side} ${event.progress.round}` : event.event))
  const tell = (side: MigrationProgress['side'], round: number) =>
    w.event({ event: 'progress', migration: migration('STREAMING'), progress: progress(side, round) })
  tell('source', 0)
  for (const state of ['PREPARING', 'STREAMING'] as const) w.event({ event: 'migration', migration: migration(state) })
  assert.equal(names(), ['migration-begun', 'migration-state'], 'progress of what is not known to run is nothing')

  tell('source', 1)
  assert.equal(rounds(), ['source 1'], 'the first one at once')
  for (const n of [2, 3]) tell('source', n)
  tell('target', 3)
  assert.equal([rounds(), w.source.flush()], [[], PROGRESS_EVERY_MS])
  w.at.ms += 400
  assert.equal([w.source.flush(), rounds()], [600, []])
  w.at.ms += 600
  assert.equal([w.source.flush(), rounds()], [undefined, ['source 3']], "the source's newest, not the target's")
  w.at.ms += 500
  tell('target', 4)
  w.at.ms += 500
  assert.equal([w.source.flush(), rounds()], [undefined, ['target 4']], "the target's, where the source has sent none")
  tell('source', 5)
  w.at.ms -= 3_600_000
  assert.equal([w.source.flush(), rounds()], [undefined, ['source 5']], 'a clock that was set back stops nothing')

  tell('source', 6)
  w.event({ event: 'migration', migration: migration('DONE', 'completed') })
  w.at.ms += 10_000
  assert.equal([names(), w.source.flush(), names()], [['migration-ended'], undefined, []])
  w.event({ event: 'forgotten', migrationId: ID })
  assert.equal(names(), [])
})

test('the other events go on as they come', () => {
  const w = watched()
  const prestage: PrestageRecord = {
    ...{ handoffId: ID, vm: 'vm-1', epoch: 1, source: 'a', target: 'b', method: 'live', createdAt: 1, updatedAt: 2, untilMs: 3 },
    ...{ wireBytes: 0, memoryBytes: 1, outcome: null },
  }
  const events: GatewayEvent[] = [
    { event: 'pin', vm: 'vm-1', pinned: true },
    { event: 'prestage', prestage },
    { event: 'prestage', prestage: { ...prestage, outcome: 'used' } },
    { event: 'home', change: { vm: 'vm-1', from: 'a', to: null, epoch: null } },
    { event: 'alert', alert: { kind: 'vm_claim', vm: 'vm-1', site: 'b', migrationId: null, message: 'a claim' } },
    { event: 'decision', decision: { vm: 'vm-1', action: 'move', from: 'a', to: 'b', because: 'a reason' } },
    { event: 'enrolment', enrolment: { site: 'c', fingerprint: 'aaaaa', expiresAt: 9 } },
  ]
  for (const event of events) w.event(event)
  assert.equal(
    w.take().map(({ event }) => event),
    ['vm-pin', 'prestage-begun', 'prestage-ended', 'vm-home', 'alert', 'policy-decision', 'enrolment-request'],
  )
})

test.run()
