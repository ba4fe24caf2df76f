// How a gateway stays connected to a broker that does not want it so: taken client ids, versions that are not answered,
// silence.
import { createServer, type Socket } from 'node:net'
import { connectMqtt, type MqttLinkOptions } from '../../../../mqtt/client.ts'
import { createRetry, NoAnswer, takenError, VersionRefused } from '../../../../mqtt/retry.ts'
import { eventually, sleep } from '../../../../ops/deadline.ts'
import { createLog } from '../../../../ops/log.ts'
import { GodwitError } from '../../../../wire/errors.ts'
import { assert, codeOf, suite } from '../../../support/suite.ts'
import { world } from '../../fixture.ts'
import { mosquitto, noMosquitto } from './support.ts'

const test = suite('gateway/fronts/mqtt: reconnecting', { ms: 60_000 })
const MS = 15_000

function recording() {
  const lines: string[] = []
  return { lines, log: createLog({ format: 'text', level: 'debug', write: line => void lines.push(line) }) }
}
const until = (probe: () => unknown, what: string) => eventually(async () => (await probe()) || undefined, { ms: MS, everyMs: 10, what })

test('waits grow until a connection has lasted; a taken id is tried seldom; the log goes on', () => {
  const retry = createRetry({ version: 'auto', clientId: 'gw', random: () => 1 })
  const lost = new GodwitError('BROKER_UNREACHABLE', 'the connection was closed')
  const waits: number[] = []
  const lines: number[] = []
  for (let at = 1; at <= 1000; at++) {
    retry.failed(lost)
    const { waitMs, isWorthALine } = retry.next()
    if (at <= 8) waits.push(waitMs)
    if (isWorthALine) lines.push(at)
  }
  assert.equal(waits, [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000])
  assert.equal(lines, [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 512, 720])
  retry.connected()
  assert.is(retry.ended(lost, 60_000), lost)
  assert.is(retry.next().waitMs, 200, 'one that has lasted begins anew')
  const codes: string[] = []
  const short: number[] = []
  for (let at = 0; at < 7; at++) {
    retry.connected()
    codes.push(retry.ended(lost, 500).code)
    short.push(retry.next().waitMs)
  }
  assert.equal(codes, [...Array(4).fill('BROKER_UNREACHABLE'), ...Array(3).fill('BROKER_CLIENT_TAKEN')], 'by pattern')
  assert.equal(short, [400, 800, 1600, 3200, 5_000, 10_000, 20_000])
  const taken = createRetry({ version: '5', clientId: 'gw', random: () => 0 })
  assert.is(taken.ended(takenError('gw'), 500).code, 'BROKER_CLIENT_TAKEN')
  assert.equal(taken.next(), { waitMs: 2_500, isWorthALine: true })
})

test('a version that is refused, or not answered twice, gives way to the other one; never where one is asked for', () => {
  const retry = createRetry({ version: 'auto', clientId: 'gw', random: () => 1 })
  const silent = new NoAnswer('mqtt://b', new Error('closed'))
  const versions: number[] = []
  for (let at = 0; at < 6; at++) {
    versions.push(retry.version)
    retry.failed(silent)
    retry.next()
  }
  assert.equal(versions, [5, 5, 4, 4, 5, 5])
  const refused = createRetry({ version: 'auto', clientId: 'gw', random: () => 1 })
  refused.failed(new VersionRefused())
  assert.equal([refused.version, refused.next()], [4, { waitMs: 0, isWorthALine: true }])
  const five = createRetry({ version: '5', clientId: 'gw', random: () => 1 })
  for (let at = 0; at < 6; at++) five.failed(silent)
  assert.is(five.version, 5)
})

/**
 * A broker that knows one version only (level 4: MQTT 3.1.1), and ends or ignores every other CONNECT without a word.
 */
async function oldBroker(how: 'closes' | 'is silent', known = 4) {
  const connects: number[] = []
  const sockets = new Set<Socket>()
  const server = createServer(socket => {
    sockets.add(socket)
    socket.on('error', () => {})
    socket.once('data', bytes => {
      // Fixed header, 'MQTT', protocol level.
      const level = Number(bytes[bytes.indexOf('MQTT') + 4])
      connects.push(level)
      if (level === known) socket.write(Buffer.from([0x20, 2, 0, 0]))
      else if (how === 'closes') socket.end()
    })
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  return {
    connects,
    url: `mqtt://127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      await new Promise(resolve => server.close(resolve))
    },
  }
}

async function linkTo(url: string, more: Partial<MqttLinkOptions> = {}) {
  const { lines, log } = recording()
  const link = connectMqtt({
    target: { url, version: 'auto' },
    clientId: 'godwit-test',
    subscriptions: [],
    onMessage() {},
    backoff: { firstMs: 10, maxMs: 20 },
    log,
    ...more,
  })
  return { link, lines, [Symbol.asyncDispose]: () => link.close() }
}

for (const how of ['closes', 'is silent'] as const) {
  test(`a broker that ${how} on MQTT 5 is asked in 3.1.1 after two attempts, and the log says so`, async () => {
    await using broker = await oldBroker(how)
    await using l = await linkTo(broker.url, { connectMs: 300 })
    await l.link.whenUp({ timeoutMs: MS })
    assert.equal(broker.connects, [5, 5, 4])
    assert.match(l.lines.join(''), /MQTT broker rejected this version; trying the other version=5 next=3\.1\.1/)
    // A person who waits gets there as well.
    await using person = await linkTo(broker.url, { connectMs: 300, firstOrNever: true })
    await person.link.whenUp({ timeoutMs: MS })
  })
}

test('a broker that answers neither version is named again and again, and a person who waits is told', async () => {
  await using broker = await oldBroker('closes', 0)
  await using l = await linkTo(broker.url)
  await until(() => l.lines.filter(line => line.includes('MQTT broker not reachable')).length >= 4, 'four lines')
  assert.match(l.lines.join(''), /does not answer CONNECT/)
  await using person = await linkTo(broker.url, { firstOrNever: true })
  assert.is(await codeOf(() => person.link.whenUp({ timeoutMs: MS })), 'BROKER_UNREACHABLE')
})

test(
  'two gateways of one name and two tenants share a broker',
  async () => {
    await using broker = await mosquitto()
    const options = broker.options('password')
    const one = { ...options, backoff: { firstMs: 100, maxMs: 100 } }
    await using first = await world({ mqtt: one })
    await until(() => first.gateway.mqtt?.up, 'the first one')
    await using second = await world({ mqtt: { ...one, tenant: 'other' } })
    await until(() => second.gateway.mqtt?.up || /Denied|denied/.test(broker.log()), 'the second one')
    await sleep(2_000)
    assert.not.match(broker.log(), /already connected, closing old connection/)
    assert.ok(first.gateway.mqtt?.up)
  },
  { skip: noMosquitto },
)

for (const [how, version] of [
  ['tls', 'MQTT 5'],
  ['password', 'MQTT 3.1.1'],
] as const) {
  test(
    `two gateways with one client id over ${version}: the taking is recognised, named, and not repeated all the time`,
    async () => {
      await using broker = await mosquitto()
      const { backoff: _, ...options } = broker.options(how)
      const [a, b] = [recording(), recording()]
      await using first = await world({ mqtt: options, log: a.log })
      await using second = await world({ mqtt: options, log: b.log })
      await until(() => first.gateway.mqtt?.up || second.gateway.mqtt?.up, 'one of them')
      await sleep(20_000)
      const taken = broker.log().match(/already connected, closing old connection/g)?.length ?? 0
      assert.ok(taken >= 1 && taken <= 14, `${taken} takeovers`)
      assert.match(
        a.lines.join('') + b.lines.join(''),
        /BROKER_CLIENT_TAKEN: .*'godwit-acme-gw'.* hint=give each gateway at the broker its own id/,
      )
    },
    { skip: noMosquitto },
  )
}

test.run()
