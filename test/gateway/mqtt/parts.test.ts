// The pure parts: outbox, packet limit, access rules, measurements, phases.
import { mayPublish, mayRead, maySubscribe } from '../../../gateway/control/mqtt/access.ts'
import { createMeasurements, SILENCE_MS } from '../../../gateway/control/mqtt/measurements.ts'
import { Outbox, type Outgoing, WAITING_MAX } from '../../../gateway/control/mqtt/outbox.ts'
import { PacketLimit } from '../../../gateway/control/mqtt/packet-limit.ts'
import { PHASES, phaseOf } from '../../../gateway/control/mqtt/phases.ts'
import { topicsOf } from '../../../gateway/control/mqtt/topics.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const test = suite('gateway/mqtt: parts')
const topics = topicsOf('acme')
const bytes = (value: unknown) => new TextEncoder().encode(JSON.stringify(value))
const retained = (topic: string, payload: string): Outgoing => ({ topic, payload, qos: 1, retained: true })
const event = (payload: string, more: Partial<Outgoing> = {}): Outgoing => ({ topic: 'e', payload, qos: 1, retained: false, ...more })
const drain = (box: Outbox, nowMs = 0) => {
  const out: string[] = []
  for (let m = box.next(nowMs); m; m = box.next(nowMs)) {
    out.push(`${m.topic}=${m.payload}`)
    box.sent(m)
  }
  return out
}

test('of a retained topic only the latest is said, the same text once, everything again after a replay', () => {
  const box = new Outbox()
  assert.ok(box.put(retained('a', '1'), false))
  assert.ok(box.put(retained('a', '2'), false))
  assert.not.ok(box.put(retained('a', '2'), false))
  assert.equal(drain(box), ['a=2'])
  box.replay()
  box.clear('b')
  assert.equal(drain(box), ['a=2', 'b='])
  box.replay()
  assert.equal(drain(box), ['a=2'], 'what was taken away is forgotten once the broker knows')
})

test('what must arrive waits in order and bounded; what is stale or fleeting does not', () => {
  const dropped: string[] = []
  const box = new Outbox(why => dropped.push(why))
  for (let i = 0; i < WAITING_MAX + 2; i++) box.put(event(String(i)), false)
  assert.is(box.size.waiting, WAITING_MAX)
  assert.is(drain(box)[0], 'e=2')
  box.put(event('old', { staleAtMs: 5 }), false)
  box.put({ ...event('telemetry'), qos: 0 }, false)
  assert.equal(drain(box, 6), [])
  assert.equal(dropped, ['full', 'full', 'offline', 'stale'])
  box.put({ ...event('1'), qos: 0 }, true)
  box.put({ ...event('2'), qos: 0 }, true)
  assert.equal(drain(box), ['e=2'])
})

test('a message that did not arrive is said again, unless a newer one stands', () => {
  const box = new Outbox()
  box.put(retained('a', '1'), true)
  const lost = box.next(0)!
  box.put(retained('a', '2'), true)
  box.failed(lost)
  assert.equal(drain(box), ['a=2'])
  box.put(event('x'), true)
  box.failed(box.next(0)!)
  assert.equal(drain(box), ['e=x'])
})

const packet = (length: number) => {
  const header = [0x30]
  for (let rest = length; ; ) {
    const byte = rest % 128
    rest = Math.floor(rest / 128)
    header.push(rest > 0 ? byte | 0x80 : byte)
    if (rest === 0) break
  }
  return Buffer.concat([Buffer.from(header), Buffer.alloc(length, 0xff)])
}

test('the packet limit follows packets at every split, and stops at the header that announces too much', async () => {
  const stream = Buffer.concat([packet(0), packet(5), packet(127), packet(128), packet(300), packet(0)])
  for (let split = 0; split <= stream.length; split++) {
    const limit = new PacketLimit(300)
    limit.push(stream.subarray(0, split))
    limit.push(stream.subarray(split))
  }
  const single = new PacketLimit(300)
  for (const byte of stream) single.push(Uint8Array.of(byte))
  assert.is(await codeOf(() => new PacketLimit(299).push(packet(300).subarray(0, 3))), 'FRAME_TOO_LARGE')
  assert.is(await codeOf(() => new PacketLimit(300).push(Uint8Array.of(0x30, 0x80, 0x80, 0x80, 0x80, 1))), 'FRAME_MALFORMED')
  assert.is(await codeOf(() => new PacketLimit(1000).push(Uint8Array.of(0x30, 0xff, 0xff, 0xff, 0x7f))), 'FRAME_TOO_LARGE')
})

test('users say and read what their rights name, replies only their own', () => {
  const topic = (rest: string) => `godwit/v1/acme/${rest}`
  const telco = { name: 'telco', may: ['measure'] as const }
  const noc = { name: 'noc', may: ['command'] as const }
  const eye = { name: 'eye', may: ['observe'] as const }
  const may = (user: Parameters<typeof mayPublish>[1]) =>
    [
      'ue/x/meas/latency',
      'site/a/link/b',
      'cmd/handoff/start',
      'site/a/state',
      'handoff/0123456789abcdef0123456789abcdef/status',
      'reply/noc',
      'x',
    ]
      .map(topic)
      .filter(one => mayPublish(topics, user, one))
      .map(one => one.slice('godwit/v1/acme/'.length))
  assert.equal(may(telco), ['ue/x/meas/latency', 'site/a/link/b'])
  assert.equal(may(noc), ['cmd/handoff/start'])
  assert.equal(may(eye), [])
  const read = (user: Parameters<typeof mayRead>[1]) =>
    ['ue/x/meas/latency', 'cmd/handoff/start', 'site/a/state', 'site/a/telemetry', 'reply/noc', 'reply/noc.1', 'reply/noc-2', 'reply/eye']
      .map(topic)
      .filter(one => mayRead(topics, user, one))
      .map(one => one.slice('godwit/v1/acme/'.length))
  assert.equal(read(telco), [])
  assert.equal(read(noc), ['site/a/state', 'reply/noc', 'reply/noc.1'])
  assert.equal(read(eye), ['site/a/state', 'site/a/telemetry'])
  assert.ok(maySubscribe(topics, 'godwit/v1/acme/#'))
  for (const filter of ['#', '+/v1/acme/#', 'godwit/v1/#', '$SYS/#', 'godwit/v1/acmex/#'])
    assert.not.ok(maySubscribe(topics, filter), filter)
})

test('measurements are checked, and of one user only newer ones pass, until a long silence', () => {
  const all = createMeasurements()
  const latency = (seq: number, more: object = {}) => bytes({ seq, vmId: 'vm-1', targetSite: 'a', rttMs: 12.5, ...more })
  const of = (payload: Uint8Array, nowMs = 0, rest = 'ue/k1/meas/latency') =>
    all.take(topics.parse(`godwit/v1/acme/${rest}`)!, payload, nowMs)
  const first = of(latency(5, { vendorField: 1 }))
  assert.equal(first.outcome === 'taken' && first.measurement, {
    kind: 'latency',
    ueKey: 'k1',
    receivedAtMs: 0,
    value: { seq: 5, vmId: 'vm-1', targetSite: 'a', rttMs: 12.5 },
  })
  assert.is(of(latency(5)).outcome, 'old')
  assert.is(of(latency(4)).outcome, 'old')
  assert.is(of(latency(4), 0, 'ue/k2/meas/latency').outcome, 'taken', 'users do not mix')
  assert.is(of(latency(6), 1).outcome, 'taken')
  assert.is(of(latency(0), SILENCE_MS + 1).outcome, 'taken', 'a sender that began anew')
  for (const bad of [latency(-1), latency(9, { rttMs: -1 }), latency(9, { targetSite: 'A' }), bytes(null), new Uint8Array([1])])
    assert.is(of(bad, 2).outcome, 'malformed')
  assert.is(of(new Uint8Array(20_000)).outcome, 'oversized')
  const radio = { trigger: 'EVENT_A3', serving: { nrcgi: '1', rsrpDbm: -90 }, neighbours: [{ rsrpDbm: -85, rsrqDb: -9 }] }
  assert.is(of(bytes(radio), 0, 'ue/k1/meas/radio').outcome, 'taken')
  assert.is(of(bytes({ lat: 91, lon: 0 }), 0, 'ue/k1/meas/location').outcome, 'malformed')
  const link = of(bytes({ rttMs: 3, sampledAt: '2026-11-21T10:00:00Z' }), 7, 'site/a/link/b')
  assert.equal(link.outcome === 'taken' && link.measurement.kind === 'link' && [link.measurement.site, link.measurement.peer], ['a', 'b'])
})

test('every state of a migration has a phase, and phases rise', () => {
  const progress = (phase: string) => ({ migrationId: 'm', side: 'source' as const, phase })
  const of = (state: Parameters<typeof phaseOf>[0]['state'], phase?: string, outcome: 'failed' | 'cancelled' | null = null) =>
    phaseOf({ state, outcome, ...(phase ? { progress: progress(phase) } : {}) })
  assert.equal(
    [
      of('INTENT'),
      of('PREPARING'),
      of('STREAMING'),
      of('STREAMING', 'precopy'),
      of('STREAMING', 'switchover'),
      of('COMMIT_SEEN'),
      of('DONE'),
    ],
    ['proposed', 'proposed', 'precopy', 'precopy', 'switchover', 'switchover', 'completed'],
  )
  assert.equal([of('ABORTED', undefined, 'failed'), of('ABORTED', 'switchover', 'cancelled')], ['failed', 'cancelled'])
  assert.equal(
    Object.values(PHASES).map(({ seq }) => seq),
    [1, 2, 3, 4, 5, 5, 5],
  )
  assert.is(PHASES.completed.mec021.contextTransferState, 'USER_CONTEXT_TRANSFER_COMPLETED')
  assert.equal(PHASES.cancelled.acr, ['ACR_CANCELLATION'])
})

test.run()
