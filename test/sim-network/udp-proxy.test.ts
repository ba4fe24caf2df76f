// The real driver, on loopback: it delivers, it delays, it bounds, it closes. The figures are the model's own tests'
// matter.
import { createSocket, type Socket } from 'node:dgram'
import { once } from 'node:events'
import { eventually, sleep } from '../../ops/deadline.ts'
import type { LinkModelOptions } from '../../sim-network/link.ts'
import { startUdpProxy, type UdpProxyOptions } from '../../sim-network/udp-proxy.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('sim-network: UDP proxy', { ms: 20_000 })

const fast: LinkModelOptions = { rate: { bitsPerSecond: 100e6 }, delayMs: 5, queueBytes: 1_000_000 }

async function socketAt(port = 0): Promise<Socket & AsyncDisposable> {
  const socket = createSocket('udp4')
  socket.bind(port, '127.0.0.1')
  await once(socket, 'listening')
  return Object.assign(socket, { [Symbol.asyncDispose]: () => new Promise<void>(resolve => socket.close(() => resolve())) })
}

/** An echo server, a proxy before it, and a client. */
async function path(options: Partial<UdpProxyOptions> = {}) {
  const server = await socketAt()
  server.on('message', (bytes, { address, port }) => server.send(bytes, port, address))
  const proxy = await startUdpProxy({
    listen: { host: '127.0.0.1', port: 0 },
    upstream: { host: '127.0.0.1', port: server.address().port },
    up: fast,
    down: fast,
    ...options,
  })
  const client = await socketAt()
  const received: { number: number; atMs: number }[] = []
  client.on('message', bytes => received.push({ number: bytes.readUInt32BE(0), atMs: performance.now() }))
  return {
    proxy,
    client,
    received,
    send: (number: number, bytes = 100) => {
      const packet = Buffer.alloc(bytes)
      packet.writeUInt32BE(number)
      client.send(packet, proxy.address.port, '127.0.0.1')
      return performance.now()
    },
    [Symbol.asyncDispose]: async () => {
      await proxy.close()
      await client[Symbol.asyncDispose]()
      await server[Symbol.asyncDispose]()
    },
  }
}

test('a datagram goes there and back after both delays, whole and in order', async () => {
  await using there = await path({ up: { ...fast, delayMs: 30 }, down: { ...fast, delayMs: 15, jitterMs: 10 } })
  const sentAt = new Map<number, number>()
  for (let number = 0; number < 200; number++) {
    sentAt.set(number, there.send(number))
    if (number % 20 === 0) await sleep(2)
  }
  await eventually(() => there.received.length === 200 || undefined, { ms: 10_000, what: 'all echoes' })
  assert.equal(
    there.received.map(({ number }) => number),
    Array.from({ length: 200 }, (_, at) => at),
  )
  for (const { number, atMs } of there.received) assert.ok(atMs - sentAt.get(number)! >= 35 - 1.1, 'never before its time')
  const { up, down, clients } = there.proxy.stats()
  assert.is(up.deliveredPackets, 200)
  assert.is(down.deliveredBytes, 200 * 128)
  assert.is(clients, 1)
})

test('a slow link holds no more than its queue and drops the rest', async () => {
  await using there = await path({ up: { rate: { bitsPerSecond: 1e6 }, delayMs: 0, queueBytes: 10_000 } })
  for (let number = 0; number < 100; number++) there.send(number, 972) // 1000 bytes with headers, 8 ms each
  await eventually(() => there.received.length >= 10 || undefined, { ms: 10_000, what: 'what fits the queue' })
  await sleep(30)
  const { up } = there.proxy.stats()
  assert.ok(up.queueBytesMax <= 10_000)
  assert.is(up.enteredPackets, up.deliveredPackets + up.droppedPackets.queue)
  assert.is(there.received.length, up.deliveredPackets)
})

test('each client has its own way back, and too many are refused', async () => {
  await using there = await path({ clientsMax: 2 })
  const others = [await socketAt(), await socketAt()]
  const seen = others.map(() => 0)
  others.forEach((socket, at) => {
    socket.on('message', () => seen[at]!++)
  })
  there.send(1)
  await eventually(() => there.received.length === 1 || undefined, { ms: 5000, what: 'the first client' })
  for (const socket of others) {
    socket.send(Buffer.alloc(50), there.proxy.address.port, '127.0.0.1')
    await sleep(50)
  }
  assert.equal(seen, [1, 0])
  assert.is(there.proxy.stats().refusedClients, 1)
  for (const socket of others) await socket[Symbol.asyncDispose]()
})

test('a cut loses everything, and mending it works; conditions change at run time', async () => {
  await using there = await path()
  there.send(1)
  await eventually(() => there.received.length === 1 || undefined, { ms: 5000, what: 'before the cut' })
  there.proxy.cut(true)
  there.send(2)
  await sleep(60)
  there.proxy.cut(false)
  there.proxy.change('down', { delayMs: 60 })
  const at = there.send(3)
  await eventually(() => there.received.length === 2 || undefined, { ms: 5000, what: 'after the cut' })
  assert.is(there.received[1]?.number, 3)
  assert.ok(there.received[1]!.atMs - at >= 63)
})

test('conditions may change at any moment, also just after a release', async () => {
  await using there = await path()
  for (let number = 0; number < 300; number++) {
    there.send(number)
    await sleep(1)
    for (const direction of ['up', 'down'] as const) there.proxy.change(direction, { delayMs: 5 + (number % 7) })
  }
  await eventually(() => there.received.length === 300 || undefined, { ms: 5000, what: 'all of them' })
})

test('an upstream that is not there is loss, not a crash; a taken port is an error', async () => {
  await using there = await path({ upstream: { host: '127.0.0.1', port: 9 } })
  for (let number = 0; number < 5; number++) there.send(number)
  await sleep(60)
  assert.is(there.received.length, 0)
  const taken = there.proxy.address
  assert.is(await codeOf(() => startUdpProxy({ listen: taken, upstream: taken, up: fast, down: fast })), 'CONNECT_FAILED')
  await there.proxy.close()
  await there.proxy.close()
})

test.run()
