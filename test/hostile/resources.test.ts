// What an attacker can make a gateway and a node spend (catalogue #50 to #53): memory stays
// bounded, every refusal has its code, and an honest transfer beside it comes whole. What the attack costs the honest
// in speed is measured by npm run bench:attack, not here.

import { randomBytes } from 'node:crypto'
import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Flood, falseHellos, hugeFrames, manyStreams, silentConnections, silentSockets } from '../../bench/attack/floods.ts'
import { authenticateToGateway } from '../../edge-node/link/authenticate.ts'
import { createApplier } from '../../edge-node/pages/apply.ts'
import { batch as batchTarget } from '../../fuzz/targets/batch.ts'
import { systemClock } from '../../ops/clock.ts'
import { eventually, sleep } from '../../ops/deadline.ts'
import { requestText } from '../../ops/http-client.ts'
import { createMemoryEngine } from '../../transport/memory.ts'
import { createRpc } from '../../transport/rpc.ts'
import { createTlsEngine } from '../../transport/tls.ts'
import type { Connection, Stream } from '../../transport/types.ts'
import { GodwitError } from '../../wire/errors.ts'
import { encodeFrame, FRAME_HEADER_BYTES, writeFrameHeader } from '../../wire/frame.ts'
import { silentLog } from '../../wire/log.ts'
import { toJson } from '../../wire/schema.ts'
import { FRAME } from '../../wire/types.ts'
import { MIB } from '../../wire/units.ts'
import { dialTo, identityOf, type TestNode, TOKEN, vm, type World, world } from '../gateway/fixture.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('hostile/resources', { ms: 60_000 })
const gc = () => (globalThis as { gc?: () => void }).gc?.()

/** Growth of this process (gateway, nodes and attacker in one) at its highest while `during` runs, bytes. */
async function growth(during: () => Promise<void>): Promise<number> {
  gc()
  const before = process.memoryUsage.rss()
  let most = before
  const look = setInterval(() => {
    most = Math.max(most, process.memoryUsage.rss())
  }, 20)
  try {
    await during()
  } finally {
    clearInterval(look)
  }
  return Math.max(most, process.memoryUsage.rss()) - before
}

async function honestPair(w: World): Promise<{ a: TestNode; b: TestNode; migrationId: string }> {
  const a = await w.node('a', { vms: [vm('vm-1')] })
  const b = await w.node('b')
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b', streams: 4 })
  await eventually(() => a.started[0], { ms: 10_000, what: 'start' })
  return { a, b, migrationId }
}

/** 16 MiB through the gateway; whole. */
async function transfer({ a, b, migrationId }: Awaited<ReturnType<typeof honestPair>>, index: number): Promise<void> {
  const near = await a.link.openRelayStream({ sessionId: migrationId, index, attempt: 1 })
  const bytes = randomBytes(MIB)
  const sending = (async () => {
    for (let i = 0; i < 16; i++) await near.write(bytes)
    await near.end()
  })()
  const far = await eventually(() => b.streams.find(({ join: each }) => each.index === index)?.stream, { ms: 10_000, what: 'the stream' })
  let got = 0
  for (let part = await far.read(); part; part = await far.read()) {
    assert.ok(bytes.subarray(got % MIB, (got % MIB) + part.length).equals(part.subarray(0, MIB - (got % MIB))), `byte ${got}`)
    got += part.length
  }
  await sending
  assert.is(got, 16 * MIB)
}

const metric = async (w: World, name: string): Promise<number> => {
  const text = await requestText({ url: w.gateway.adminUrl, token: TOKEN, path: '/metrics' })
  return Number(new RegExp(`^godwit_gateway_${name.replace(/[{}"]/g, '\\$&')} (\\d+)$`, 'm').exec(text)?.[1] ?? 0)
}

/** The honest transfer while floods run; gives how much memory grew. */
async function underFloods(w: World, floods: () => Flood[], check: (running: Flood[]) => Promise<void>): Promise<number> {
  const pair = await honestPair(w)
  return await growth(async () => {
    const running = floods()
    try {
      await sleep(300)
      await transfer(pair, 0)
      await transfer(pair, 2)
      await check(running)
    } finally {
      await Promise.all(running.map(each => each.stop()))
    }
    // When it is over, strangers are nobody again and a new site comes in at once.
    await w.node('late')
  })
}

const LIMITS = { total: 64, perAddress: 40 }

for (const carrier of [createMemoryEngine(), createTlsEngine()]) {
  test(`#52 handshake flood over ${carrier.name}: strangers are bounded, the honest transfer comes whole, memory is bounded`, async () => {
    await using w = await world({ carrier, strangers: LIMITS })
    const door = { engine: carrier, port: w.port }
    const grown = await underFloods(
      w,
      () => [silentConnections(door, 100), falseHellos(door, 30), ...(carrier.name === 'tls' ? [silentSockets(door, 100)] : [])],
      async running => {
        assert.ok(running.every(({ made }) => made > 0))
        assert.ok((await metric(w, 'strangers')) <= LIMITS.perAddress, 'one address has its share and no more')
        assert.ok((await metric(w, 'refused_total{code="LIMIT_EXCEEDED"}')) > 0, 'refusals are counted')
      },
    )
    assert.ok(grown < 192 * MIB, `${(grown / MIB).toFixed(0)} MiB`)
  })

  test(`#51 huge declared lengths over ${carrier.name}: refused from the header, memory for what came only, the honest transfer comes whole`, async () => {
    await using w = await world({ carrier, strangers: LIMITS })
    const door = { engine: carrier, port: w.port }
    const grown = await underFloods(
      w,
      () => [hugeFrames(door, 60)],
      async () => assert.ok((await metric(w, 'refused_total{code="FRAME_TOO_LARGE"}')) > 0),
    )
    assert.ok(grown < 128 * MIB, `${(grown / MIB).toFixed(0)} MiB`)
  })
}

/** A connection of a site that is one of ours and means ill. */
async function insider(w: World, site: string): Promise<{ connection: Connection; control: Stream }> {
  const { connection } = await dialTo(w.engine, w.port)({ signal: AbortSignal.timeout(10_000) })
  const { frames } = await authenticateToGateway({
    ...{ connection, purpose: 'control', incarnation: 1, identity: identityOf(w.root, 'site', site), rootPublic: w.root.signPublic },
    ...{ clock: systemClock, random: bytes => new Uint8Array(randomBytes(bytes)) },
  })
  return { connection, control: frames.stream }
}

test('#52 TCP connections that never begin a handshake: one address has its share, the next is shown the door at once', async () => {
  const engine = createTlsEngine()
  const listener = await engine.listen({ host: '127.0.0.1', port: 0 })
  const sockets = silentSockets({ engine, port: listener.address.port }, 400)
  try {
    // Each place that is refused tries again: 256 stand, the others come back.
    await eventually(() => (sockets.made > 1000 ? true : undefined), { ms: 20_000, what: 'refusals' })
  } finally {
    await sockets.stop()
    await listener.close()
  }
})

test('thousands of streams of one site: most are refused with a code, the others are few, the honest transfer comes whole', async () => {
  await using w = await world()
  const { connection } = await insider(w, 'mallory')
  const nonsense = () => encodeFrame(FRAME.JOIN, toJson({ sessionId: randomBytes(16).toString('hex'), index: 0, attempt: 1 }))
  const grown = await underFloods(
    w,
    () => [manyStreams(connection, 300, nonsense), manyStreams(connection, 700, () => Uint8Array.of(0))],
    async ([joins]) => {
      await eventually(() => (joins!.made > 3000 ? true : undefined), { ms: 30_000, what: 'thousands' })
      assert.ok((await metric(w, 'joins_refused_total{code="MIGRATION_UNKNOWN"}')) > 1000)
    },
  )
  await connection.close()
  assert.ok(grown < 128 * MIB, `${(grown / MIB).toFixed(0)} MiB`)
})

test('oversized control messages: the link of that site ends with a code, others live, memory is bounded', async () => {
  await using w = await world()
  const pair = await honestPair(w)
  const grown = await growth(async () => {
    for (const [type, length] of [
      [FRAME.RPC, 1024 * 1024 + 1],
      [FRAME.RPC, 0xffff_ffff],
      [FRAME.BATCH, 10],
    ] as const) {
      const { connection, control } = await insider(w, 'mallory')
      const header = new Uint8Array(FRAME_HEADER_BYTES)
      writeFrameHeader(header, 0, type, length)
      await control.write(header)
      await connection.closed
    }
    // As large as may be, and no sense in it: a million brackets, a thousand times a megabyte of text.
    const { control, connection } = await insider(w, 'mallory')
    const brackets = Buffer.from(`{"id":1,"method":"site.state","params":${'['.repeat(500_000)}`)
    await control.write(encodeFrame(FRAME.RPC, brackets)).catch(() => {})
    await connection.closed
    await transfer(pair, 0)
  })
  assert.ok(grown < 128 * MIB, `${(grown / MIB).toFixed(0)} MiB`)
})

test('#53 a stream of a byte now and then is ended by the minimum rate, an honest one beside it is not', async () => {
  await using w = await world({ relayIdleMs: 600 })
  const pair = await honestPair(w)
  const { a, migrationId } = pair
  const slow = await a.link.openRelayStream({ sessionId: migrationId, index: 1, attempt: 1 })
  const dripping = (async () => {
    for (;;) {
      await slow.write(Uint8Array.of(7))
      await sleep(20)
    }
  })()
  dripping.catch(() => {})
  const near = await a.link.openRelayStream({ sessionId: migrationId, index: 3, attempt: 1 })
  let isOver = false
  const steady = (async () => {
    while (!isOver) {
      await near.write(new Uint8Array(2048))
      await sleep(50)
    }
    await near.end()
  })()
  assert.is(await codeOf(() => slow.read()), 'STREAM_RESET')
  assert.is(await codeOf(() => dripping), 'STREAM_RESET')
  await sleep(300)
  isOver = true
  await steady
})

test('#53 a control message that arrives a byte at a time ends the link with TIMEOUT', async () => {
  const engine = createMemoryEngine()
  const listener = await engine.listen({ host: '127.0.0.1', port: 0 })
  const client = await engine.connect({ host: '127.0.0.1', port: listener.address.port })
  const server = (await listener.accept())!
  const raw = await client.openStream()
  const header = new Uint8Array(FRAME_HEADER_BYTES)
  writeFrameHeader(header, 0, FRAME.RPC, 100_000)
  await raw.write(header)
  const rpc = createRpc((await server.acceptStream())!, { handlers: {}, log: silentLog, heartbeatMs: 20, silenceMs: 60_000, frameMs: 200 })
  const dripping = (async () => {
    for (;;) {
      await raw.write(Uint8Array.of(0x20))
      await sleep(10)
    }
  })()
  dripping.catch(() => {})
  assert.is((await rpc.closed)?.code, 'TIMEOUT')
  await dripping.catch(() => {})
})

test('#50 zstd bombs from a peer with the keys: each is FRAME_MALFORMED, and a hundred of each cost no more memory than one batch may', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'godwit-bomb-'))
  await batchTarget.setup?.()
  const bombs = Object.entries(batchTarget.hostile?.() ?? {}).filter(([name]) => /bomb|frames/.test(name))
  assert.ok(bombs.length >= 3, 'there are bombs')
  const file = await open(join(dir, 'memory'), 'w+')
  try {
    await file.truncate(64 * MIB)
    const grown = await growth(async () => {
      for (const [name, bomb] of bombs) {
        for (let i = 0; i < 30; i++) {
          const applier = createApplier({ streams: 1, memory: [{ block: 0, fd: file.fd, bytes: 64 * MIB, offset: 0 }], workers: 0 })
          const code = await codeOf(async () => {
            await applier.batch(0, bomb)
            await applier.finish()
          })
          await applier.abort(new GodwitError('CONNECTION_LOST', 'over'))
          assert.is(code, 'FRAME_MALFORMED', name)
        }
      }
    })
    assert.ok(grown < 96 * MIB, `${(grown / MIB).toFixed(0)} MiB`)
  } finally {
    await file.close()
    await rm(dir, { recursive: true, force: true })
  }
})

test.run()
