// The pure parts: outbox, packet limit, access rules, measurements, phases.

import { generateCommandKey, publicKeyOf, signPayload } from '../../../../crypto/command-keys.ts'
import { mayPublish, mayRead, maySubscribe } from '../../../../gateway/fronts/mqtt/access.ts'
import { createKnown } from '../../../../gateway/fronts/mqtt/known.ts'
import { MESSAGES_WAITING_MAX, MqttOutbox } from '../../../../gateway/fronts/mqtt/outbox.ts'
import type { FrontHost } from '../../../../gateway/handoff/host.ts'
import { createMeasurements, SILENCE_MS } from '../../../../gateway/handoff/measurements.ts'
import { PHASES, phaseOf } from '../../../../gateway/handoff/phases.ts'
import { USERS_PER_VM_MAX } from '../../../../gateway/handoff/users.ts'
import type { MqttMessage } from '../../../../mqtt/message.ts'
import { PacketLimit } from '../../../../mqtt/packet-limit.ts'
import { MEASURED, topicsOf } from '../../../../mqtt/topics.ts'
import type { SiteView, VmView } from '../../../../wire/admin.ts'
import { assert, codeOf, suite } from '../../../support/suite.ts'

const test = suite('gateway/fronts/mqtt: parts')
const topics = topicsOf('acme')
const bytes = (value: unknown) => new TextEncoder().encode(JSON.stringify(value))
const retained = (topic: string, payload: string): MqttMessage => ({ topic, payload, qos: 1, retained: true })
const event = (payload: string, more: Partial<MqttMessage> = {}): MqttMessage => ({ topic: 'e', payload, qos: 1, retained: false, ...more })
const drain = (box: MqttOutbox, nowMs = 0) => {
  const out: string[] = []
  for (let m = box.next(nowMs); m; m = box.next(nowMs)) {
    out.push(`${m.topic}=${m.payload}`)
    box.sent(m)
  }
  return out
}

test('of a retained topic only the latest is said, the same text once, everything again after a replay', () => {
  const box = new MqttOutbox()
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
  const box = new MqttOutbox(why => dropped.push(why))
  for (let i = 0; i < MESSAGES_WAITING_MAX + 2; i++) box.put(event(String(i)), false)
  assert.is(box.size.waiting, MESSAGES_WAITING_MAX)
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
  const box = new MqttOutbox()
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

const NOW = Date.parse('2026-11-21T10:00:00Z')
const iso = (ms: number) => new Date(ms).toISOString()
const probe = generateCommandKey('probe', 'measurement')
const linkProbe = generateCommandKey('links', 'measurement')

/** Measurements of a gateway with sites a and b, and the VMs named. */
function measurements({ isSignatureNeeded = false, vms = ['vm-1', 'vm-2'] } = {}) {
  const world = { vms: new Set(vms) }
  const all = createMeasurements({
    topics,
    keys: [
      { name: 'probe', key: publicKeyOf(probe.publicKey), kinds: MEASURED },
      { name: 'links', key: publicKeyOf(linkProbe.publicKey), kinds: ['siteLink'] },
    ],
    isSignatureNeeded,
    isSite: name => name === 'a' || name === 'b',
    isVm: name => world.vms.has(name),
  })
  const of = (payload: Uint8Array, nowMs = 0, rest = 'ue/k1/meas/latency') =>
    all.take(topics.parse(`godwit/v1/acme/${rest}`)!, payload, NOW + nowMs)
  const outcome = (value: object, nowMs = 0, rest = 'ue/k1/meas/latency') => of(bytes(value), nowMs, rest).outcome
  return { all, of, outcome, world }
}
const latencyOf = (seq: number, more: object = {}) => ({ seq, vmId: 'vm-1', targetSite: 'a', rttMs: 12.5, ...more })
const signedAt = (rest: string, value: object, key = probe) => signPayload(key, `godwit/v1/acme/${rest}`, value)

test('measurements are checked, and of one user only newer ones pass, until a long silence', () => {
  const { of } = measurements()
  const latency = (seq: number, more: object = {}) => bytes(latencyOf(seq, more))
  const first = of(latency(5, { vendorField: 1 }))
  assert.equal(first.outcome === 'taken' && first.measurement, {
    kind: 'latency',
    ueKey: 'k1',
    receivedAtMs: NOW,
    value: { seq: 5, vmId: 'vm-1', targetSite: 'a', rttMs: 12.5 },
  })
  assert.is(of(latency(5)).outcome, 'old')
  assert.is(of(latency(4)).outcome, 'old')
  assert.is(of(latency(4), 0, 'ue/k2/meas/latency').outcome, 'taken', 'users do not mix')
  assert.is(of(latency(6), 1).outcome, 'taken')
  assert.is(of(latency(0), SILENCE_MS + 1).outcome, 'taken', 'a sender that began anew')
  const malformed = [{ rttMs: -1 }, { rttMs: 1e300 }, { targetSite: 'A' }, { at: 'yesterday' }].map(more => latency(9, more))
  for (const bad of [...malformed, latency(-1), bytes(null), new Uint8Array([1])]) assert.is(of(bad, 2).outcome, 'malformed')
  assert.is(of(new Uint8Array(20_000)).outcome, 'oversized')
  const radio = { trigger: 'EVENT_A3', serving: { nrcgi: '1', rsrpDbm: -90 }, neighbours: [{ rsrpDbm: -85, rsrqDb: -9 }] }
  assert.is(of(bytes(radio), 0, 'ue/k1/meas/radio').outcome, 'taken')
  assert.is(of(bytes({ lat: 91, lon: 0 }), 0, 'ue/k1/meas/location').outcome, 'malformed')
  const link = of(bytes({ rttMs: 3, sampledAt: iso(NOW) }), 7, 'site/a/link/b')
  assert.equal(link.outcome === 'taken' && link.measurement.kind === 'link' && [link.measurement.site, link.measurement.peer], ['a', 'b'])
})

test('what names a site, a VM or a user that is not here is not taken, and leaves nothing behind', () => {
  const { all, outcome, world } = measurements()
  assert.is(outcome(latencyOf(1, { vmId: 'other' })), 'unknown')
  assert.is(outcome(latencyOf(1, { targetSite: 'c' })), 'unknown')
  assert.is(outcome({ rttMs: 3, sampledAt: iso(NOW) }, 0, 'site/a/link/c'), 'unknown')
  assert.is(outcome({ lat: 1, lon: 1 }, 0, 'ue/k1/meas/location'), 'unknown')
  assert.equal(all.size(), { sequences: 0, users: 0 })
  assert.is(outcome(latencyOf(1)), 'taken')
  assert.is(outcome({ lat: 1, lon: 1 }, 0, 'ue/k1/meas/location'), 'taken')
  world.vms.clear()
  all.tidy(NOW + 1)
  assert.equal(all.size(), { sequences: 1, users: 0 })
  assert.is(outcome({ lat: 1, lon: 1 }, 2, 'ue/k1/meas/location'), 'unknown')
  all.tidy(NOW + 130_000)
  assert.equal(all.size(), { sequences: 0, users: 0 }, 'what decides nothing any more is forgotten')
})

test('what has come is known at once, what is gone within a second, and nobody who asks makes the lists anew for nothing', () => {
  const world = { nowMs: 0, sites: ['a'], vms: ['vm-1'], made: 0 }
  const known = createKnown({
    clock: { now: () => world.nowMs } as FrontHost['clock'],
    sites: () => {
      world.made += 1
      return world.sites.map(site => ({ site })) as SiteView[]
    },
    vms: () => world.vms.map(name => ({ name })) as VmView[],
  })
  assert.equal([known.isSite('a'), known.isSite('b'), known.isVm('vm-1'), known.isVm('vm-2')], [true, false, true, false])
  assert.is(world.made, 1)
  Object.assign(world, { sites: ['b'], vms: [] })
  known.changed()
  assert.equal([known.isSite('a'), world.made], [true, 1])
  assert.equal([known.isSite('b'), known.isSite('a'), known.isVm('vm-1'), world.made], [true, false, false, 2])
  world.sites = []
  known.changed()
  world.nowMs = 1_001
  assert.equal([known.isSite('b'), known.isSite('x'), world.made], [false, false, 3])
})

test('a flood of users of one VM displaces nobody who is measured, and takes no room of another VM', () => {
  const { all, outcome } = measurements()
  const user = (name: string, vmId: string, nowMs = 0) => outcome(latencyOf(1 + nowMs, { vmId }), nowMs, `ue/${name}/meas/latency`)
  assert.is(user('honest', 'vm-1'), 'taken')
  for (let at = 1; at < USERS_PER_VM_MAX; at++) assert.is(user(`u${at}`, 'vm-1'), 'taken')
  for (let at = 0; at < 1000; at++) assert.is(user(`flood${at}`, 'vm-1'), 'limit')
  assert.is(user('honest', 'vm-1', 1), 'taken')
  assert.is(user('other', 'vm-2', 1), 'taken')
  assert.is(user('late', 'vm-1', 10_000), 'taken', 'one who was silent for 10 s gives way')
  assert.is(user('honest', 'vm-1', 10_000), 'taken')
  assert.is(all.size().users, USERS_PER_VM_MAX + 1)
})

test('a measurement that is dated is refused when it has outlived its kind, or comes from the future, whatever the broker keeps', () => {
  const { outcome } = measurements()
  const link = (atMs: number, nowMs = 0) => outcome({ rttMs: 3, sampledAt: iso(NOW + atMs) }, nowMs, 'site/a/link/b')
  assert.is(outcome({ rttMs: 3, sampledAt: '2020-01-01T00:00:00Z' }, 0, 'site/a/link/b'), 'old')
  assert.is(link(-65_001), 'old')
  assert.is(link(5_001), 'future')
  assert.is(link(-64_000), 'taken')
  assert.is(link(-64_500), 'old', 'behind one that was taken')
  assert.is(link(-64_000), 'old', 'the same again')
  assert.is(link(0), 'taken')
  let seq = 0
  const latency = (atMs: number) => outcome(latencyOf(++seq, { at: iso(NOW + atMs) }))
  assert.equal([latency(-15_001), latency(5_001), latency(-15_000), latency(0)], ['old', 'future', 'taken', 'taken'])
  assert.is(outcome({ lat: 1, lon: 1, at: iso(NOW - 35_001) }, 0, 'ue/k1/meas/location'), 'old')
  const radio = { trigger: 'EVENT_A3', serving: { rsrpDbm: -90 }, neighbours: [], at: iso(NOW - 15_001) }
  assert.is(outcome(radio, 0, 'ue/k1/meas/radio'), 'old')
})

test('where signatures are needed only signed measurements are taken: by a known key, of its kinds, dated, once, on their topic', () => {
  const { outcome } = measurements({ isSignatureNeeded: true })
  const at = iso(NOW)
  const rest = 'ue/k1/meas/latency'
  assert.is(outcome(latencyOf(1, { at })), 'unsigned')
  const good = signedAt(rest, latencyOf(1, { at }))
  assert.is(outcome({ ...good, rttMs: 1 }), 'forged')
  assert.is(outcome(good, 0, 'ue/k2/meas/latency'), 'forged', 'of another user')
  assert.is(outcome(signedAt(rest, latencyOf(1, { at }), linkProbe)), 'forged', 'a key for links only')
  assert.is(outcome(signedAt(rest, latencyOf(1, { at }), generateCommandKey('nobody', 'measurement'))), 'forged')
  assert.is(outcome(signedAt(rest, latencyOf(1))), 'malformed', 'not dated: it could be played again for ever')
  assert.is(outcome(good), 'taken', 'what was forged before has changed nothing')
  assert.is(outcome(good), 'old')
  assert.is(outcome(good, SILENCE_MS + 1), 'old', 'played again after a silence')
  assert.is(outcome(signedAt(rest, latencyOf(0, { at: iso(NOW + 1000) })), 1000), 'taken', 'a sender that began anew')
  assert.is(outcome(signedAt('site/a/link/b', { rttMs: 3, sampledAt: at }, linkProbe), 0, 'site/a/link/b'), 'taken')
  const { of } = measurements()
  const taken = of(bytes(good))
  assert.equal(taken.outcome === 'taken' && [taken.measurement.signedBy, 'sig' in taken.measurement.value], ['probe', false])
  assert.is(measurements().outcome({ ...good, rttMs: 1 }), 'forged', 'a wrong signature is refused also where none is needed')
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
