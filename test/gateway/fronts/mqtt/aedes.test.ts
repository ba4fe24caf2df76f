import { connect } from 'node:net'
import { eventually } from '../../../../ops/deadline.ts'
import { contract } from '../../../mqtt/contract.ts'
import { assert, suite } from '../../../support/suite.ts'
import { world } from '../../fixture.ts'
import { connectAs, counted, embedded, topics } from './support.ts'

const test = suite('gateway/fronts/mqtt: embedded broker', { ms: 20_000 })

contract(
  test,
  async () => ({ options: embedded(), url: w => w.gateway.mqtt?.url ?? '', version: 4, async [Symbol.asyncDispose]() {} }),
  undefined,
)

test('cuts a client off whose packet is too large, before it is read', async () => {
  await using w = await world({ mqtt: embedded() })
  const { port } = new URL(w.gateway.mqtt!.url)
  const socket = connect(Number(port), '127.0.0.1')
  const closed = new Promise<void>(resolve => socket.once('close', () => resolve()))
  socket.on('error', () => {})
  socket.write(Buffer.from([0x30, 0xff, 0xff, 0xff, 0x7f]))
  await closed
  assert.is(await counted(w, 'mqtt_broker_refused_total', { why: 'packet' }), 1)
  await using noc = await connectAs('noc', { url: w.gateway.mqtt!.url, version: 4 })
  assert.ok(noc.client.connected, 'others are served')
})

test('nobody takes the place of the gateway or of another user by its client id', async () => {
  await using w = await world({ mqtt: embedded() })
  const { url } = w.gateway.mqtt!
  const enter = (who: 'noc' | 'eye', clientId: string) =>
    connectAs(who, { url, version: 4, options: { clientId, reconnectPeriod: 0 } }).then(
      client => client,
      () => undefined,
    )
  assert.is(await enter('noc', 'godwit-gateway'), undefined)
  await using first = (await enter('noc', 'shared'))!
  assert.is(await enter('eye', 'shared'), undefined)
  assert.ok(first.client.connected)
  assert.is(await enter('eye', 'a/+'), undefined)
  await using again = (await enter('noc', 'shared'))!
  await eventually(() => !first.client.connected || undefined, { ms: 5_000, what: 'the first one gone' })
  await again.client.subscribeAsync(`${topics.root}/#`)
  await again.wait(topic => topic.endsWith('gateway/gw/state'), 'what a user may read, after a change of connection')
})

test('what outsiders publish is not retained, and nothing queues for a reader who is away', async () => {
  await using w = await world({ mqtt: embedded() })
  const { url } = w.gateway.mqtt!
  await using telco = await connectAs('telco', { url, version: 4 })
  const link = { rttMs: 1, sampledAt: new Date().toISOString() }
  await telco.publish(topics.build('siteLink', { siteId: 'a', peerId: 'b' }), link, { retain: true })
  const session = { clientId: 'eye-1', clean: false, reconnectPeriod: 0 }
  const eye = await connectAs('eye', { url, version: 4, options: session, subscriptions: [`${topics.root}/#`] })
  await eye.client.endAsync()
  await telco.publish(topics.build('siteLink', { siteId: 'a', peerId: 'c' }), link)
  await using back = await connectAs('eye', { url, version: 4, options: session })
  await new Promise(resolve => setTimeout(resolve, 100))
  assert.equal([...eye.of('siteLink'), ...back.messages], [])
})

test.run()
