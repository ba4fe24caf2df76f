// What one user or one address may take of the embedded broker.

import { once } from 'node:events'
import { connect as dial, type Socket } from 'node:net'
import { startBroker } from '../../../../gateway/fronts/mqtt/broker.ts'
import {
  BROKER_STRANGER_MS,
  BROKER_STRANGERS,
  BROKER_SUBSCRIPTIONS_MAX,
  CLIENTS_PER_USER_MAX,
} from '../../../../gateway/fronts/mqtt/broker-limits.ts'
import { connectMqtt } from '../../../../mqtt/client.ts'
import { eventually, sleep, within } from '../../../../ops/deadline.ts'
import { createLog } from '../../../../ops/log.ts'
import { type Log, silentLog } from '../../../../wire/log.ts'
import { assert, suite } from '../../../support/suite.ts'
import { connectAs, topics } from './support.ts'

const test = suite('gateway/fronts/mqtt: limits of the embedded broker', { ms: 60_000 })
const MS = 15_000

async function brokerWith(log: Log = silentLog) {
  const refused: string[] = []
  const users = (['noc', 'eye', 'telco'] as const).map(name => ({
    name,
    password: `${name}-secret`,
    may: ['observe' as const, 'measure' as const],
  }))
  const listen = { host: '127.0.0.1', port: 0 }
  const broker = await startBroker({ listen, topics, users, onRefused: why => refused.push(why), log })
  const port = Number(new URL(broker.url).port)
  const sockets: Socket[] = []
  return {
    broker,
    port,
    refused,
    url: broker.url,
    /** A socket that says nothing by itself. */
    async socket() {
      const socket = dial(port, '127.0.0.1')
      socket.on('error', () => {})
      sockets.push(socket)
      await within(once(socket, 'connect'), { ms: MS, what: 'a connection' })
      return socket
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      await broker.close()
    },
  }
}

// Packets of MQTT 3.1.1, for a client that does what no library would.
const text = (value: string) => Buffer.concat([Buffer.from([value.length >> 8, value.length & 0xff]), Buffer.from(value)])
function packet(header: number, ...parts: Buffer[]): Buffer {
  const body = Buffer.concat(parts)
  const length: number[] = []
  for (let rest = body.length; rest > 0 || length.length === 0; rest = Math.floor(rest / 128))
    length.push((rest % 128) | (rest >= 128 ? 0x80 : 0))
  return Buffer.concat([Buffer.from([header, ...length]), body])
}
/** Clean session, user name and password, 60 s of keep-alive. */
const connectPacket = (name: string, clientId: string) =>
  packet(0x10, text('MQTT'), Buffer.from([4, 0xc2, 0, 60]), text(clientId), text(name), text(`${name}-secret`))
const number = (value: number) => Buffer.from([value >> 8, value & 0xff])
const publishPacket = (topic: string, messageId: number, payload: Buffer) => packet(0x34, text(topic), number(messageId), payload)
const subscribePacket = (filter: string) => packet(0x82, number(1), text(filter), Buffer.from([1]))

test('those who have shown no password take few places from one address, and others still come in', async () => {
  await using b = await brokerWith()
  const sockets = []
  for (let at = 0; at < BROKER_STRANGERS.perAddress; at++) sockets.push(await b.socket())
  const ended = once(await b.socket(), 'close')
  await within(ended, { ms: MS, what: 'the end of one too many' })
  assert.equal(b.refused, ['strangers'])
  sockets[0]!.write(connectPacket('eye', 'eye-1'))
  await within(once(sockets[0]!, 'data'), { ms: MS, what: 'CONNACK' })
  await using noc = await connectAs('noc', { url: b.url, version: 4 })
  assert.ok(noc.client.connected, 'a place is given back with the password')
})

test('who shows no password is sent away; the gateway itself is not, however long the process is held up at its start', async () => {
  await using b = await brokerWith()
  const silent = await b.socket()
  const lines: string[] = []
  const gateway = connectMqtt({
    target: { attach: b.broker.attach, version: '3.1.1' },
    clientId: 'godwit-gateway',
    subscriptions: [],
    onMessage() {},
    log: createLog({ level: 'warn', write: line => void lines.push(line) }),
  })
  const untilMs = performance.now() + BROKER_STRANGER_MS + 1_000
  while (performance.now() < untilMs);
  await within(new Promise(resolve => (silent.closed ? resolve(undefined) : silent.once('close', resolve))), { ms: MS, what: 'its end' })
  await gateway.whenUp({ timeoutMs: MS })
  assert.equal(lines, [])
  await gateway.close()
})

test('one user leaves room for others', async () => {
  await using b = await brokerWith()
  const connack = async (at: number) => {
    const socket = await b.socket()
    socket.write(connectPacket('eye', `eye-${at}`))
    const [bytes] = (await within(once(socket, 'data'), { ms: MS, what: 'CONNACK' })) as [Buffer]
    return bytes[3]
  }
  for (let at = 0; at < CLIENTS_PER_USER_MAX; at++) assert.is(await connack(at), 0)
  assert.is(await connack(CLIENTS_PER_USER_MAX), 3)
  assert.equal(b.refused, ['clients'])
  await using noc = await connectAs('noc', { url: b.url, version: 4 })
  assert.ok(noc.client.connected)
})

test('a connection has so many subscriptions and no more; one that is given back makes room', async () => {
  await using b = await brokerWith()
  await using eye = await connectAs('eye', { url: b.url, version: 4 })
  const filter = (at: number) => `${topics.root}/site/s${at}/state`
  const granted = async (from: number, to: number) => {
    const wanted = Object.fromEntries(Array.from({ length: to - from }, (_, at) => [filter(from + at), { qos: 1 as const }]))
    const answer = await new Promise<number[]>(resolve => {
      eye.client.subscribe(wanted, (_error, _granted, packet) => resolve((packet?.granted ?? []) as number[]))
    })
    return answer.filter(qos => qos < 128).length
  }
  assert.is(await granted(0, 1000), BROKER_SUBSCRIPTIONS_MAX)
  assert.is(await granted(0, 1), 1, 'one that it has already')
  await eye.client.unsubscribeAsync(filter(0))
  assert.is(await granted(2000, 2010), 1)
  assert.ok(b.refused.every(why => why === 'subscriptions') && b.refused.length === 1000 - BROKER_SUBSCRIPTIONS_MAX + 9)
})

test('a flood of wrong passwords fills no log', async () => {
  const lines: string[] = []
  await using b = await brokerWith(createLog({ level: 'debug', write: line => void lines.push(line) }))
  for (let at = 0; at < 100; at++) {
    const socket = await b.socket()
    const closed = new Promise(resolve => socket.once('close', resolve))
    socket.resume()
    socket.write(connectPacket('x'.repeat(5_000), `stranger-${at}`))
    await within(closed, { ms: MS, what: 'the refusal' })
  }
  assert.is(b.refused.filter(why => why === 'credentials').length, 100)
  const warnings = lines.filter(line => line.includes('"level":"warn"'))
  assert.is(warnings.length, 30)
  assert.ok(warnings.every(line => line.length < 400))
})

test('QoS 2 messages that are never released do not pile up', async () => {
  await using b = await brokerWith()
  const socket = await b.socket()
  socket.write(connectPacket('telco', 'telco-1'))
  await within(once(socket, 'data'), { ms: MS, what: 'CONNACK' })
  const closed = new Promise(resolve => socket.once('close', resolve))
  const topic = topics.build('location', { ueKey: 'u1' })
  for (let messageId = 1; messageId <= 100 && !socket.destroyed; messageId++)
    socket.write(publishPacket(topic, messageId, Buffer.alloc(60_000)))
  await within(closed, { ms: MS, what: 'its end' })
})

test('a reader who does not read is cut off and stays out for a while; the others get everything, and memory stays', async () => {
  await using b = await brokerWith()
  const gateway = connectMqtt({
    target: { attach: b.broker.attach, version: '3.1.1' },
    clientId: 'godwit-gateway',
    subscriptions: [],
    onMessage() {},
    log: silentLog,
  })
  await gateway.whenUp({ timeoutMs: MS })
  const lazy = await b.socket()
  lazy.write(connectPacket('eye', 'eye-1'))
  await within(once(lazy, 'data'), { ms: MS, what: 'CONNACK' })
  lazy.write(subscribePacket(`${topics.root}/#`))
  await within(once(lazy, 'data'), { ms: MS, what: 'SUBACK' })
  lazy.pause()
  await using noc = await connectAs('noc', { url: b.url, version: 4, subscriptions: [`${topics.root}/#`] })
  const before = process.memoryUsage().rss
  const topic = topics.build('siteTelemetry', { siteId: 'a' })
  const [pieces, payload] = [600, 'x'.repeat(60_000)]
  let slowestMs = 0
  for (let at = 0; at < pieces; at++) {
    const sentMs = performance.now()
    await gateway.publish({ topic, payload, qos: 1, retained: false })
    slowestMs = Math.max(slowestMs, performance.now() - sentMs)
  }
  await eventually(() => noc.messages.length === pieces || undefined, { ms: MS, what: 'all messages at the one who reads' })
  await eventually(() => b.refused.includes('slow') || undefined, { ms: MS, what: 'the other one cut off' })
  assert.ok(slowestMs < 6_000, `${slowestMs} ms`)
  assert.ok(process.memoryUsage().rss - before < 200 * 2 ** 20)
  const again = await b.socket()
  again.write(connectPacket('eye', 'eye-2'))
  const [bytes] = (await within(once(again, 'data'), { ms: MS, what: 'CONNACK' })) as [Buffer]
  assert.is(bytes[3], 3, 'not at once')
  await sleep(10)
  await gateway.close()
})

test.run()
