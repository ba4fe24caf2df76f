// What outsiders may make the policy do: over a live gateway, with its own broker and with Mosquitto.
import { generateCommandKey, signPayload } from '../../../../crypto/command-keys.ts'
import type { MqttOptions } from '../../../../gateway/fronts/mqtt/start.ts'
import { PolicyConfig } from '../../../../gateway/policy/config.ts'
import type { LiveExplanation } from '../../../../gateway/policy/live.ts'
import { MEASURED } from '../../../../mqtt/topics.ts'
import { eventually, sleep } from '../../../../ops/deadline.ts'
import { assert, suite } from '../../../support/suite.ts'
import { vm, type World, world } from '../../fixture.ts'
import { connectAs, counted, embedded, mosquitto, noMosquitto, type TestClient, topics } from './support.ts'

const test = suite('gateway/fronts/mqtt: what measurements may do', { ms: 120_000 })
const MS = 15_000
const policy = (given: object = {}) => PolicyConfig.parse({ smoothing: 0.5, regret: { triggerMs: 2_000, residenceMs: 1_000 }, ...given })
const key = generateCommandKey('probe', 'measurement')
const link = (siteId: string, peerId: string) => topics.build('siteLink', { siteId, peerId })
const latency = topics.build('latency', { ueKey: 'u1' })
const now = () => new Date().toISOString()

type Sent = (topic: string, payload: object) => object
const asIs: Sent = (_topic, payload) => payload
const signed: Sent = (topic, payload) => signPayload(key, topic, 'sampledAt' in payload ? payload : { ...payload, at: now() })

/**
 * A user of vm-1 who measures 40 ms to a and 16 ms to b, once a second, until `good` says so, or for so many seconds.
 */
async function drive(telco: TestClient, good: () => unknown, seconds: number, sent: Sent = asIs): Promise<void> {
  for (let second = 0, seq = 0; second < seconds; second++) {
    for (const [targetSite, rttMs] of [
      ['a', 40],
      ['b', 16],
    ] as const)
      await telco.publish(latency, sent(latency, { seq: ++seq, vmId: 'vm-1', targetSite, rttMs }), { qos: 0 })
    if (await good()) return
    await sleep(1_000)
  }
}

const explain = (w: World) => w.api<LiveExplanation>('GET', '/v1/vms/vm-1/explain')
const outcomes = (w: World, kind: string, outcome: string) => counted(w, 'mqtt_measurements_total', { kind, outcome })
const until = (probe: () => unknown, what: string) => eventually(async () => (await probe()) || undefined, { ms: MS, everyMs: 20, what })

async function staged(mqtt: MqttOptions, given: object = {}) {
  const w = await world({ mqtt, policy: policy(given) })
  const a = await w.node('a', { vms: [vm('vm-1', { policy: { sloMs: 20 } })] })
  await w.node('b')
  await until(() => w.gateway.mqtt?.up, 'the gateway at its broker')
  return { w, a }
}

test('1,030 links of sites that are not there grow nothing, and a bandwidth of 5e-324 bit/s stops nobody', async () => {
  const { w, a } = await staged(embedded())
  await using _ = w
  await using telco = await connectAs('telco', { url: w.gateway.mqtt?.url ?? '', version: 4 })
  const before = process.memoryUsage().arrayBuffers
  for (let at = 0; at < 1_030; at++)
    await telco.publish(link(`x${at}`, `y${at}`), { rttMs: 1, availableBps: 1e9, sampledAt: now() }, { qos: 0 })
  await until(async () => (await outcomes(w, 'siteLink', 'unknown')) === 1_030, 'all of them refused')
  await telco.publish(link('b', 'a'), { rttMs: 24, availableBps: 5e-324, sampledAt: now() })
  await telco.publish(link('a', 'b'), { rttMs: 24, availableBps: 1e9, sampledAt: now() })
  await drive(telco, () => a.started.length > 0, 30)
  assert.is(a.started[0]?.plan.target, 'b', JSON.stringify(await explain(w)))
  const grownMiB = (process.memoryUsage().arrayBuffers - before) / 2 ** 20
  assert.ok(grownMiB < 16, `${grownMiB.toFixed(1)} MiB`)
})

test(
  'a retained link of 2020 moves no VM, whatever the broker says of it; a fresh one does',
  async () => {
    await using broker = await mosquitto()
    const url = `mqtt://127.0.0.1:${broker.port}`
    await using telco = await connectAs('telco', { url, version: 5 })
    await telco.publish(link('a', 'b'), { rttMs: 24, sampledAt: '2020-01-01T00:00:00Z' }, { retain: true })
    const options = { ...broker.options('password'), trustBroker: true }
    const { w, a } = await staged(options)
    await using _ = w
    await until(async () => (await outcomes(w, 'siteLink', 'old')) + (await outcomes(w, 'siteLink', 'unknown')) >= 1, 'the link refused')
    // Once more, now that both sites are known: the broker hands it out to a gateway that comes back.
    await broker.stop()
    await broker.start()
    await using again = await connectAs('telco', { url, version: 5 })
    await again.publish(link('a', 'b'), { rttMs: 24, sampledAt: '2020-01-01T00:00:00Z' }, { retain: true })
    await until(async () => (await outcomes(w, 'siteLink', 'old')) >= 1, 'the link refused')
    await drive(again, () => false, 6)
    assert.equal([a.started.length, (await explain(w)).inputs.regretMs], [0, 0], "the gateway's own estimate counts")
    await again.publish(link('a', 'b'), { rttMs: 24, sampledAt: now() }, { retain: true })
    await drive(again, () => a.started.length > 0, 30)
    assert.is(a.started[0]?.plan.target, 'b')
  },
  { skip: noMosquitto },
)

test(
  "over somebody else's broker the policy takes signed measurements only, unless the operator trusts the broker",
  async () => {
    await using broker = await mosquitto()
    const measurementKeys = [{ name: 'probe', publicKey: key.publicKey, kinds: MEASURED }]
    const { w, a } = await staged({ ...broker.options('password'), measurementKeys })
    await using _ = w
    await using telco = await connectAs('telco', { url: `mqtt://127.0.0.1:${broker.port}`, version: 5 })
    await telco.publish(link('a', 'b'), { rttMs: 24, sampledAt: now() })
    await drive(telco, () => false, 6)
    assert.equal([a.started.length, (await explain(w)).gate], [0, 'unknown'])
    assert.equal([(await outcomes(w, 'latency', 'unsigned')) >= 12, (await outcomes(w, 'siteLink', 'unsigned')) >= 1], [true, true])
    const forged: Sent = (topic, payload) => ({ ...signed(topic, payload), rttMs: 1 })
    await telco.publish(latency, forged(latency, { seq: 1, vmId: 'vm-1', targetSite: 'b', rttMs: 16 }))
    await until(async () => (await outcomes(w, 'latency', 'forged')) === 1, 'a forged one refused')
    await telco.publish(link('a', 'b'), signed(link('a', 'b'), { rttMs: 24, sampledAt: now() }))
    await drive(telco, () => a.started.length > 0, 30, signed)
    assert.is(a.started[0]?.plan.target, 'b')
  },
  { skip: noMosquitto },
)

test.run()
