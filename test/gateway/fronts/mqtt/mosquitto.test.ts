import type { Measurement } from '../../../../gateway/handoff/measurements.ts'
import { connectMqtt } from '../../../../mqtt/client.ts'
import { eventually } from '../../../../ops/deadline.ts'
import { silentLog } from '../../../../wire/log.ts'
import { contract } from '../../../mqtt/contract.ts'
import { assert, codeOf, suite } from '../../../support/suite.ts'
import { world } from '../../fixture.ts'
import { actOut, codeOfReply, connectAs, counted, type Mosquitto, mosquitto, noMosquitto, PHASE_ORDER, stage, topics } from './support.ts'

const test = suite('gateway/fronts/mqtt: Mosquitto', { ms: 30_000 })
const skip = noMosquitto
const ALL = `${topics.root}/#`
const url = (broker: Mosquitto) => `mqtt://127.0.0.1:${broker.port}`
const until = (probe: () => unknown, what: string) => eventually(async () => (await probe()) || undefined, { ms: 8_000, everyMs: 10, what })

contract(
  test,
  async () => {
    const broker = await mosquitto()
    return {
      options: broker.options('tls'),
      url: () => url(broker),
      version: 5,
      [Symbol.asyncDispose]: () => broker[Symbol.asyncDispose](),
    }
  },
  skip,
)

type Status = { handoffId: string; phase: string }

test(
  'the broker down in any phase leaves a migration untouched; when it is back everything that stands is said again, and the result',
  async () => {
    await using broker = await mosquitto()
    await using w = await world({ mqtt: broker.options('tls') })
    const s = await stage(w)
    await using eye = await connectAs('eye', { url: url(broker), version: 5, subscriptions: [ALL], options: { reconnectPeriod: 20 } })
    for (const [round, downAt] of PHASE_ORDER.entries()) {
      await until(() => w.gateway.mqtt?.up && eye.client.connected, 'gateway and observer at the broker')
      const [from, to] = round % 2 === 0 ? [s.a, s.b] : [s.b, s.a]
      if (downAt === 'proposed') await broker.stop()
      const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', {
        vm: 'vm-1',
        to: round % 2 === 0 ? 'b' : 'a',
      })
      await until(() => from.started.some(({ plan }) => plan.migrationId === migrationId), `start of round ${round}`)
      await actOut({ a: from, b: to }, async phase => {
        if (phase === downAt) await broker.stop()
      })
      const record = await w.until(migrationId, ({ state }) => state === 'DONE')
      assert.is(record.outcome, 'completed', downAt)
      await until(() => !w.gateway.mqtt?.up, 'the gateway without its broker')
      await broker.start()
      await eye.wait<Status>(
        (topic, status) => topic.endsWith(`${migrationId}/status`) && status.phase === 'completed',
        `status after ${downAt}`,
      )
      await eye.wait(topic => topic.endsWith(`${migrationId}/result`), `result after ${downAt}`)
      await using late = await connectAs('eye', { url: url(broker), version: 5, subscriptions: [ALL] })
      await late.wait((topic, site) => topic.endsWith('site/a/state') && site['online'] === true, 'what stands of a')
      await late.wait(
        (topic, place) => topic.endsWith('vm/vm-1/placement') && place['siteId'] === (round % 2 === 0 ? 'b' : 'a'),
        'placement',
      )
    }
  },
  { skip, ms: 60_000 },
)

test(
  'commands that came while the gateway was away wait at the broker; what is late by then says so',
  async () => {
    await using broker = await mosquitto()
    await using w = await world({ mqtt: broker.options('tls') })
    const s = await stage(w)
    await using noc = await connectAs('noc', { url: url(broker), version: 5, subscriptions: [ALL] })
    await noc.wait(topic => topic.endsWith('vm/vm-1/placement'), 'placement')
    await w.stop()
    const waiting = noc.command('cancel', {})
    const late = noc.command('cancel', { notAfter: new Date(Date.now() - 4_900).toISOString() })
    await new Promise(resolve => setTimeout(resolve, 300))
    await w.restart()
    assert.is(codeOfReply(await waiting), 'MIGRATION_UNKNOWN')
    assert.is(codeOfReply(await late), 'COMMAND_LATE')
    await s.a.link.close()
  },
  { skip },
)

test(
  'MQTT 5: a reply carries the Correlation Data, and goes to the Response Topic when the payload names none; 3.1.1 with a password serves as well',
  async () => {
    await using broker = await mosquitto()
    await using w = await world({ mqtt: broker.options('password') })
    await stage(w)
    await using noc = await connectAs('noc', { url: url(broker), version: 5, subscriptions: [ALL] })
    await noc.wait(topic => topic.endsWith('vm/vm-1/placement'), 'placement')
    assert.is(codeOfReply(await noc.command('prestage', { toSite: 'nowhere' })), 'SITE_UNKNOWN')
    assert.is(noc.of('reply')[0]?.packet.properties?.correlationData, undefined)
  },
  { skip },
)

test(
  'MQTT 5 properties mirror the payload',
  async () => {
    await using broker = await mosquitto()
    await using w = await world({ mqtt: broker.options('tls') })
    await stage(w)
    await using noc = await connectAs('noc', { url: url(broker), version: 5, subscriptions: [ALL] })
    await noc.wait(topic => topic.endsWith('vm/vm-1/placement'), 'placement')
    const correlationData = Buffer.from('c-42')
    const responseTopic = topics.build('reply', { clientId: 'noc' })
    await noc.publish(topics.build('start'), '{"commandId":"malformed-1"}', { properties: { correlationData, responseTopic } })
    await until(() => noc.of('reply').length === 1, 'a reply')
    const { packet } = noc.of('reply')[0]!
    assert.is(packet.properties?.correlationData?.toString(), 'c-42')
    assert.is(packet.properties?.userProperties?.['schema'], 'godwit/v1/reply')
    assert.is(packet.properties?.contentType, 'application/json')
    assert.ok((packet.properties?.messageExpiryInterval ?? 0) > 0)
  },
  { skip },
)

test(
  'workers share what is measured of users ($share): every message comes once, to all of them, and an older one never after a newer one',
  async () => {
    await using broker = await mosquitto()
    const options = broker.options('tls')
    if (options.broker.mode !== 'external') throw new Error('external')
    const measured: Measurement[] = []
    const mqtt = { ...options, broker: { ...options.broker, workers: 3 } }
    await using w = await world({ mqtt, onMeasurement: one => measured.push(one) })
    await stage(w)
    await until(() => w.gateway.mqtt?.up, 'the gateway at its broker')
    await using telco = await connectAs('telco', { url: url(broker), version: 5 })
    const at = (user: number) => `${topics.root}/ue/u${user}/meas/latency`
    const taken = (user: number) => measured.flatMap(one => (one.kind === 'latency' && one.ueKey === `u${user}` ? [one.value.seq] : []))
    let probe = 0
    await until(async () => {
      await telco.publish(at(0), { seq: ++probe, vmId: 'vm-1', targetSite: 'a', rttMs: 1 })
      return measured.length > 0
    }, 'the first measurement')
    for (let seq = 1; seq <= 100; seq++) {
      for (let user = 1; user <= 5; user++) await telco.publish(at(user), { seq, vmId: 'vm-1', targetSite: 'a', rttMs: seq }, { qos: 0 })
    }
    await until(() => [1, 2, 3, 4, 5].every(user => taken(user).at(-1) === 100), 'the last of each user')
    for (let user = 1; user <= 5; user++)
      assert.equal(
        taken(user),
        [...new Set(taken(user))].sort((a, b) => a - b),
        `user ${user}`,
      )
    await until(() => taken(0).at(-1) === probe, 'the last probe')
    const old = (await counted(w, 'mqtt_measurements_total', { kind: 'latency', outcome: 'old' })) - (probe - taken(0).length)
    assert.is([1, 2, 3, 4, 5].reduce((sum, user) => sum + taken(user).length, 0) + old, 500, 'each once')
  },
  { skip },
)

test(
  'a gateway that vanishes is declared dead by its Will, with the number of its birth',
  async () => {
    await using broker = await mosquitto()
    const options = broker.options('tls')
    if (options.broker.mode !== 'external') throw new Error('external')
    const topic = topics.build('gatewayState', { gatewayId: 'gw' })
    const link = connectMqtt({
      target: options.broker.target,
      clientId: 'vanishing',
      will: () => ({ topic, payload: '{"online":false,"timestamp":"2026-11-21T10:00:00Z","bdSeq":7}', qos: 1, retained: true }),
      subscriptions: [{ topic: topics.filter('start'), qos: 1 }],
      onMessage() {},
      log: silentLog,
    })
    await link.whenUp({ timeoutMs: 5_000 })
    await using eye = await connectAs('eye', { url: url(broker), version: 5, subscriptions: [ALL] })
    // The same client id from elsewhere: the broker ends the first connection, without its goodbye.
    const other = connectMqtt({ target: options.broker.target, clientId: 'vanishing', subscriptions: [], onMessage() {}, log: silentLog })
    await eye.wait((where, state) => where === topic && state['online'] === false && state['bdSeq'] === 7, 'the Will')
    await Promise.all([link.close(), other.close()])
  },
  { skip },
)

test(
  'wrong credentials, a wrong authority and a broker that is not there are told apart',
  async () => {
    await using broker = await mosquitto()
    const up = async (target: Parameters<typeof connectMqtt>[0]['target']) => {
      const link = connectMqtt({ target, clientId: 'x', subscriptions: [], onMessage() {}, log: silentLog, firstOrNever: true })
      try {
        return await codeOf(() => link.whenUp({ timeoutMs: 2_500 }))
      } finally {
        await link.close()
      }
    }
    const at = `mqtt://127.0.0.1:${broker.port}`
    assert.is(await up({ url: at, username: 'godwit', password: 'wrong', version: 'auto' }), 'AUTH_FAILED')
    assert.is(await up({ url: `mqtts://127.0.0.1:${broker.tlsPort}`, version: 'auto' }), 'BROKER_UNREACHABLE')
    assert.is(await up({ url: 'mqtt://127.0.0.1:1', version: 'auto' }), 'BROKER_UNREACHABLE')
  },
  { skip },
)

test.run()
