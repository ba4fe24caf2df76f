// The feed of events over real sockets: who may read, what comes, resuming, slow readers, limits, shutdown.
import { once } from 'node:events'
import { connect } from 'node:net'
import { createRequest } from '../../../crypto/certificate.ts'
import { generateSiteKeys } from '../../../crypto/identity.ts'
import { enrol } from '../../../edge-node/link/enrol.ts'
import { createEventFeed, type FeedOptions, READERS_MAX, READERS_PER_ADDRESS } from '../../../gateway/fronts/events.ts'
import { createEvents } from '../../../gateway/handoff/events.ts'
import { eventually, within } from '../../../ops/deadline.ts'
import { type Route, startHttpServer } from '../../../ops/http.ts'
import { requestEvents, requestText } from '../../../ops/http-client.ts'
import type { SseEvent } from '../../../ops/sse.ts'
import type { TokenReply } from '../../../wire/admin.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { FeedEvent } from '../../../wire/events.ts'
import { silentLog } from '../../../wire/log.ts'
import { readDocument } from '../../support/openapi-checker.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { emptyReport, TOKEN, vm, type World, world } from '../fixture.ts'

const test = suite('gateway: feed of events', { ms: 60_000 })

type Got = FeedEvent & { id: string }

/** Reads in the background; `until` waits for an event that is good. */
function reader(url: string, { after, query = '' }: { after?: string; query?: string } = {}) {
  const got: Got[] = []
  const stop = new AbortController()
  const request = { url, token: TOKEN, path: `/v1/events${query}`, silenceMs: 10_000, signal: stop.signal }
  const ended = (async () => {
    for await (const { id, data, event } of requestEvents({ ...request, ...(after === undefined ? {} : { after }) })) {
      const parsed = FeedEvent.parse(JSON.parse(data))
      assert.is(parsed.event, event)
      got.push({ ...parsed, id })
    }
  })().then(
    () => 'in order',
    error => (stop.signal.aborted ? 'stopped' : String(error.code)),
  )
  const until = <E extends FeedEvent['event']>(event: E, good: (event: Extract<Got, { event: E }>) => boolean = () => true) =>
    eventually(async () => got.find((one): one is Extract<Got, { event: E }> => one.event === event && good(one as never)), {
      ms: 30_000,
      everyMs: 5,
      what: `${event}: ${got.map(one => one.event).join(' ')}`,
    })
  return { got, until, ended, stop: () => stop.abort() }
}

const readersOf = async (w: World) =>
  Number(/^godwit_gateway_event_readers (\S+)$/m.exec(await requestText({ url: w.gateway.adminUrl, token: TOKEN, path: '/metrics' }))?.[1])

test('the token is needed; a wrong resume point is a 400 that names it, an unknown parameter too', async () => {
  await using w = await world()
  const url = w.gateway.adminUrl
  const read = (path: string, token?: string) =>
    codeOf(() => requestEvents({ url, path, silenceMs: 1_000, ...(token === undefined ? {} : { token }) }).next())
  assert.is(await read('/v1/events'), 'TOKEN_INVALID')
  for (const query of ['after=nonsense', 'after=', 'since=1', 'after=0123abcd-1&after=0123abcd-2']) {
    const answer = await fetch(`${url}/v1/events?${query}`, { headers: { authorization: `Bearer ${TOKEN}` } })
    const { code, message } = (await answer.json()) as { code: string; message: string }
    assert.equal([answer.status, code], [400, 'CONFIG_INVALID'], query)
    assert.match(message, query.split('=')[0]!)
  }
})

test('sites, homes, pins, migrations, pre-stagings and enrolments come as they happen, each as the document says', async () => {
  await using w = await world()
  const r = reader(w.gateway.adminUrl)
  assert.is((await r.until('reset')).why, 'start')
  const a = await w.node('a', { vms: [vm('vm-1')] })
  const b = await w.node('b')
  assert.equal(
    (await r.until('site-connected', ({ site }) => site.site === 'a')).vms.map(({ name }) => name),
    ['vm-1'],
  )
  assert.equal((await r.until('vm-home')).to, 'a')
  a.vms.push(vm('vm-2', { state: 'stopped' }))
  a.announce()
  assert.equal(
    (await r.until('site-state')).vms.map(({ name }) => name),
    ['vm-2'],
  )
  await w.api('PUT', '/v1/vms/vm-2/pin', { pinned: true })
  assert.equal((await r.until('vm-pin')).vm, 'vm-2')

  await w.api('POST', '/v1/prestages', { vm: 'vm-1', to: 'b' })
  await r.until('prestage-begun')
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  await r.until('migration-begun', ({ migration }) => migration.migrationId === migrationId)
  await r.until('migration-state', ({ migration }) => migration.state === 'STREAMING')
  assert.is((await r.until('prestage-ended')).prestage.outcome, 'used')
  a.link.progress({ migrationId, side: 'source', phase: 'precopy', round: 1 })
  assert.is((await r.until('migration-progress')).progress.round, 1)
  for (const [node, side] of [
    [a, 'source'],
    [b, 'target'],
  ] as const)
    node.link.report({ migrationId, side, outcome: 'completed', report: emptyReport(migrationId) })
  assert.is((await r.until('migration-ended')).migration.outcome, 'completed')

  const { token } = await w.api<TokenReply>('POST', '/v1/enrolments/tokens', { site: 'c' })
  const stop = new AbortController()
  const request = createRequest(generateSiteKeys(), { role: 'site', id: 'c' })
  const asking = codeOf(() => enrol({ dial: w.dial, token, request, rootPublic: w.root.signPublic, signal: stop.signal }))
  assert.is((await r.until('enrolment-request')).site, 'c')
  stop.abort()
  await asking
  await b.link.close()
  assert.is((await r.until('site-left')).site, 'b')
  r.stop()
  assert.is(await r.ended, 'stopped')
  assert.equal(
    r.got.slice(1).map(({ id }) => Number(id.split('-')[1])),
    r.got.slice(1).map((_, i) => i + 1),
    'ids count without gaps',
  )
  const document = readDocument('openapi-gateway.json')
  const names = JSON.stringify(document.components.schemas['FeedEvent'])
  for (const { event } of r.got) assert.match(names, `"const":"${event}"`)
})

test('a claim to another site`s VM is an alert', async () => {
  await using w = await world()
  await w.node('a', { vms: [vm('vm-1')] })
  const r = reader(w.gateway.adminUrl)
  await r.until('reset')
  await w.node('b', { vms: [vm('vm-1', { epoch: 7 })] })
  const { kind, site, vm: name, message } = await r.until('alert')
  assert.equal([kind, site, name, message], ['vm_claim', 'b', 'vm-1', 'site b claims VM vm-1 at epoch 7; it belongs to site a'])
  r.stop()
})

test('two sites that contradict each other about a migration are an alert', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [vm('vm-1')] })
  const b = await w.node('b')
  const r = reader(w.gateway.adminUrl)
  await r.until('reset')
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  await w.until(migrationId, ({ state }) => state === 'STREAMING')
  b.link.report({ migrationId, side: 'target', outcome: 'completed', report: emptyReport(migrationId) })
  await w.until(migrationId, ({ state }) => state === 'COMMIT_SEEN')
  const error = new GodwitError('MIGRATION_FAILED').toJSON()
  a.link.report({ migrationId, side: 'source', outcome: 'failed', error })
  const { kind, vm: name, migrationId: id } = await r.until('alert')
  assert.equal([kind, name, id], ['in_doubt', 'vm-1', migrationId])
  r.stop()
})

test('a reader resumes after the id that it has read last, by header or parameter; after a restart it is told to read anew', async () => {
  await using w = await world()
  const first = reader(w.gateway.adminUrl)
  await first.until('reset')
  await w.node('a', { vms: [vm('vm-1')] })
  const { id } = await first.until('site-connected')
  first.stop()
  for (const pinned of [true, false, true]) await w.api('PUT', '/v1/vms/vm-1/pin', { pinned })
  for (const where of [{ after: id }, { query: `?after=${id}` }, { after: id, query: '?after=00000000-1' }]) {
    const again = reader(w.gateway.adminUrl, where)
    await eventually(async () => again.got.filter(({ event }) => event === 'vm-pin').length === 3 || undefined, {
      ms: 5_000,
      what: 'what was missed',
    })
    assert.is(
      again.got.some(({ event }) => event === 'reset' || event === 'site-connected'),
      false,
    )
    again.stop()
  }
  await w.restart()
  const after = reader(w.gateway.adminUrl, { after: id })
  assert.is((await after.until('reset')).why, 'lost')
  await w.api('PUT', '/v1/vms/vm-1/pin', { pinned: false })
  assert.is((await after.until('vm-pin')).pinned, false)
  after.stop()
})

test('shutdown ends the streams of readers in order', async () => {
  await using w = await world()
  const readers = [reader(w.gateway.adminUrl), reader(w.gateway.adminUrl)]
  for (const { until } of readers) await until('reset')
  await w.gateway.close()
  for (const { ended } of readers) assert.is(await ended, 'in order')
})

test('readers are bounded in all, and one that has gone makes room', async () => {
  await using w = await world()
  const readers = Array.from({ length: READERS_MAX }, () => reader(w.gateway.adminUrl))
  for (const { until } of readers) await until('reset')
  assert.is(await readersOf(w), READERS_MAX)
  assert.is(await reader(w.gateway.adminUrl).ended, 'LIMIT_EXCEEDED')
  readers[0]!.stop()
  await eventually(async () => ((await readersOf(w)) < READERS_MAX ? true : undefined), { ms: 5_000, what: 'room' })
  const late = reader(w.gateway.adminUrl)
  await late.until('reset')
  for (const { stop } of [...readers, late]) stop()
})

test('readers of one address beyond this machine are bounded; those of a proxy on this machine are not', async () => {
  await using at = await alone({})
  const stop = new AbortController()
  const served: Promise<void>[] = []
  const read = (address: string) => {
    const stream = () => ({ write: async () => {}, end() {} })
    const one = at.feed.serve({ address, after: undefined, signal: stop.signal, stream })
    served.push(one.catch(() => {}))
    return Promise.race([one.then(() => 'ended'), new Promise(resolve => setImmediate(() => resolve('reads')))])
  }
  // One network of IPv6, whatever the end of the address.
  for (let n = 0; n < READERS_PER_ADDRESS; n++) assert.is(await read(`2001:db8::${n}`), 'reads')
  assert.is(await codeOf(() => read('2001:db8::ffff')), 'LIMIT_EXCEEDED')
  assert.is(await read('2001:db8:0:1::1'), 'reads')
  for (let n = 0; n < READERS_PER_ADDRESS + 1; n++) assert.is(await read('127.0.0.1'), 'reads')
  assert.is(at.feed.readers, 2 * READERS_PER_ADDRESS + 2)
  stop.abort()
  await Promise.all(served)
  assert.is(at.feed.readers, 0)
})

/** A feed alone, with limits of a test's own. */
async function alone(limits: FeedOptions['limits']) {
  const events = createEvents(silentLog)
  const feed = createEventFeed({
    ...{ events, sites: [], migrations: [], siteNow: () => undefined, now: () => 1, boot: '0123abcd' },
    limits,
  })
  const handle: Route['handle'] = async ({ address, signal, stream, headers }) => {
    await feed.serve({ address, signal, stream, after: headers['last-event-id'] as string | undefined })
    return undefined
  }
  const routes: Route[] = [{ method: 'GET', path: '/v1/events', handle }]
  const server = await startHttpServer({ listen: { host: '127.0.0.1', port: 0 }, routes, log: silentLog })
  const port = 'port' in server.address ? server.address.port : 0
  const message = 'x'.repeat(10_000)
  return {
    ...{ events, feed, port, url: `http://127.0.0.1:${port}` },
    emit: (count: number) => {
      for (let n = 0; n < count; n++)
        events.emit({ event: 'alert', alert: { kind: 'test', vm: 'vm-1', site: null, migrationId: null, message } })
    },
    async [Symbol.asyncDispose]() {
      feed.close()
      await server.close()
    },
  }
}

test('an idle stream carries comments, which keep the client from giving it up', async () => {
  await using at = await alone({ keepAliveMs: 30 })
  const events = requestEvents({ url: at.url, path: '/v1/events', silenceMs: 300 })
  assert.is(((await events.next()).value as SseEvent).event, 'reset')
  const next = events.next()
  await new Promise(resolve => setTimeout(resolve, 900))
  at.emit(1)
  assert.is(((await next).value as SseEvent).event, 'alert')
  await events.return(undefined)
})

test('a slow reader holds up nobody, is told what it missed, and resumes where it stopped when it was disconnected', async () => {
  await using at = await alone({ stallMs: 300, ring: { events: 10_000, bytes: 256 * 1024 * 1024 } })
  const socket = connect(at.port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write('GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n')
  let read = String((await once(socket, 'data'))[0])
  socket.pause()
  const quick = reader(at.url)
  await quick.until('reset')
  at.emit(2000)
  await eventually(async () => quick.got.length > 2000 || undefined, { ms: 10_000, what: 'all events at the quick reader' })
  quick.stop()
  await eventually(async () => at.feed.readers === 0 || undefined, { ms: 5_000, what: 'the end of the slow reader' })
  socket.on('data', chunk => {
    read += chunk
  })
  socket.resume()
  await within(once(socket, 'close'), { ms: 5_000, what: 'the end of its connection' })
  const last = [...read.matchAll(/^id: (\S+)$/gm)].at(-1)![1]!
  const again = reader(at.url, { after: last })
  await eventually(async () => again.got.at(-1)?.id === '0123abcd-2000' || undefined, { ms: 10_000, what: 'the rest' })
  assert.is(
    again.got.some(({ event }) => event === 'reset'),
    false,
  )
  again.stop()
})

test('a reader that falls out of the ring gets a reset, and goes on from there', async () => {
  await using at = await alone({ stallMs: 10_000, ring: { events: 10, bytes: 1024 * 1024 } })
  const socket = connect(at.port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write('GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n')
  let read = String((await once(socket, 'data'))[0])
  socket.pause()
  for (let n = 0; n < 400; n++) {
    at.emit(10)
    await new Promise(resolve => setImmediate(resolve))
  }
  socket.on('data', chunk => {
    read += chunk
  })
  socket.resume()
  await eventually(async () => /"why":"lost"/.test(read) || undefined, { ms: 10_000, what: 'the reset' })
  at.emit(1)
  await eventually(async () => /^id: 0123abcd-4001$/m.test(read) || undefined, { ms: 10_000, what: 'the newest event' })
  socket.destroy()
})

test.run()
