// Streams of two sites through the gateway, over every engine that loads: what arrives is what was sent; what is
// refused never reaches the target.
import { randomBytes } from 'node:crypto'
import { eventually } from '../../../ops/deadline.ts'
import { requestText } from '../../../ops/http-client.ts'
import { createMemoryEngine } from '../../../transport/memory.ts'
import { createQuicEngine } from '../../../transport/quic.ts'
import { createTlsEngine } from '../../../transport/tls.ts'
import type { Engine, Stream } from '../../../transport/types.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { type TestNode, TOKEN, vm, type World, world } from '../fixture.ts'

const test = suite('gateway: relay', { ms: 20_000 })
const engines: Engine[] = [createMemoryEngine(), createQuicEngine(), createTlsEngine()]

async function running(w: World, dataConnections = 0) {
  const a = await w.node('a', { vms: [vm('vm-1')], dataConnections })
  const b = await w.node('b', { dataConnections })
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b', streams: 4 })
  await eventually(() => a.started[0], { ms: 5_000, what: 'start' })
  return { a, b, migrationId }
}

const incoming = (node: TestNode, index: number) =>
  eventually(() => node.streams.find(({ join }) => join.index === index)?.stream, { ms: 5_000, what: `stream ${index}`, everyMs: 5 })

async function readAll(stream: Stream): Promise<Buffer> {
  const parts: Uint8Array[] = []
  for (let part = await stream.read(); part; part = await stream.read()) parts.push(part.slice())
  return Buffer.concat(parts)
}

for (const engine of engines) {
  const loads = await engine.available()
  const skip = loads.ok ? undefined : loads.reason
  test(
    `${engine.name}: streams in parallel, both directions, with half-close`,
    async () => {
      await using w = await world({ carrier: engine })
      const { a, b, migrationId } = await running(w, 2)
      const sent = Array.from({ length: 6 }, () => randomBytes(300_000))
      await Promise.all(
        sent.map(async (bytes, index) => {
          const near = await a.link.openRelayStream({ sessionId: migrationId, index, attempt: 1 })
          const echoing = (async () => {
            const far = await incoming(b, index)
            const got = await readAll(far)
            await far.write(got.subarray(0, 1000))
            await far.end()
            return got
          })()
          await near.write(bytes)
          await near.end()
          assert.ok(bytes.equals(await echoing), `stream ${index} forth`)
          assert.ok(bytes.subarray(0, 1000).equals(await readAll(near)), `stream ${index} back`)
        }),
      )
      const status = await w.api<{ gateway: { relay: { bytes: number } } }>('GET', '/v1/status')
      assert.is(status.gateway.relay.bytes, 6 * 301_000)
    },
    { skip },
  )
}

test('the tap sees what crosses, and only what crosses', async () => {
  const seen: { index: number; direction: string; bytes: Buffer }[] = []
  await using w = await world({ tap: (_session, index, direction, bytes) => seen.push({ index, direction, bytes: Buffer.from(bytes) }) })
  const { a, b, migrationId } = await running(w)
  const near = await a.link.openRelayStream({ sessionId: migrationId, index: 2, attempt: 1 })
  await near.write(Buffer.from('sealed forth'))
  const far = await incoming(b, 2)
  await far.write(Buffer.from('sealed back'))
  await near.read()
  await eventually(() => (seen.length === 2 ? true : undefined), { ms: 5_000, what: 'both directions' })
  assert.equal(
    seen.map(({ index, direction, bytes }) => [index, direction, bytes.toString()]),
    [
      [2, 'source-to-target', 'sealed forth'],
      [2, 'target-to-source', 'sealed back'],
    ],
  )
})

test('refuses a JOIN of nobody, of the target, twice, beyond the plan; counts them, and the target hears of none', async () => {
  await using w = await world()
  const { a, b, migrationId } = await running(w)
  const refused = async (node: TestNode, sessionId: string, index: number) => {
    const stream = await node.link.openRelayStream({ sessionId, index, attempt: 1 })
    return codeOf(() => stream.read())
  }
  assert.is(await refused(a, '0'.repeat(32), 0), 'STREAM_RESET')
  assert.is(await refused(b, migrationId, 0), 'STREAM_RESET')
  assert.is(await refused(a, migrationId, 6), 'STREAM_RESET')
  await a.link.openRelayStream({ sessionId: migrationId, index: 0, attempt: 1 })
  await incoming(b, 0)
  assert.is(await refused(a, migrationId, 0), 'STREAM_RESET')
  assert.is(b.streams.length, 1)
  const metrics = await requestText({ url: w.gateway.adminUrl, token: TOKEN, path: '/metrics' })
  assert.match(metrics, 'godwit_gateway_joins_refused_total{code="MIGRATION_UNKNOWN"} 1')
  assert.match(metrics, 'godwit_gateway_joins_refused_total{code="AUTH_FAILED"} 1')
  assert.match(metrics, 'godwit_gateway_joins_refused_total{code="MIGRATION_STATE"} 2')
})

test('a reset crosses the gateway, and so does the death of the other node', async () => {
  await using w = await world()
  const { a, b, migrationId } = await running(w)
  const open = async (index: number) => {
    const near = await a.link.openRelayStream({ sessionId: migrationId, index, attempt: 1 })
    return { near, far: await incoming(b, index) }
  }
  const first = await open(0)
  first.near.reset('enough')
  assert.is(await codeOf(() => first.far.read()), 'STREAM_RESET')
  const second = await open(1)
  await b.link.close()
  assert.is(await codeOf(() => second.near.read()), 'STREAM_RESET')
  const third = await a.link.openRelayStream({ sessionId: migrationId, index: 2, attempt: 1 })
  assert.is(await codeOf(() => third.read()), 'STREAM_RESET', 'the target is offline')
})

test('the end of a migration ends its streams; so does the end of the gateway', async () => {
  await using w = await world()
  const { a, b, migrationId } = await running(w)
  const near = await a.link.openRelayStream({ sessionId: migrationId, index: 0, attempt: 1 })
  await incoming(b, 0)
  a.link.report({ migrationId, side: 'source', outcome: 'failed', error: { code: 'QEMU_EXITED', message: 'gone' } })
  assert.is(await codeOf(() => near.read()), 'STREAM_RESET')
  await w.gateway.close()
  await eventually(() => (a.link.state === 'connecting' ? true : undefined), { ms: 5_000, what: 'the node notices' })
  // The next attempt may have failed already, as nobody listens any more.
  assert.match(a.link.stats().lastError?.message ?? '', /gateway|nothing listens/)
})

test.run()
