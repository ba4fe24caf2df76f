// godwit status --watch, godwit events and godwit migrations against a gateway, and against gateways that are older or
// go away.
import { run } from '../../cli/run.ts'
import { applyEvent, renderEvent } from '../../cli/watch.ts'
import { eventually } from '../../ops/deadline.ts'
import { type Route, startHttpServer } from '../../ops/http.ts'
import { EVENT_STREAM, formatEvent } from '../../ops/sse.ts'
import { type GatewayStatus, type MigrationRecord, type SiteView, VmView } from '../../wire/admin.ts'
import { EXIT } from '../../wire/errors.ts'
import { FeedEvent } from '../../wire/events.ts'
import { silentLog } from '../../wire/log.ts'
import { TOKEN, vm, type World, world } from '../gateway/fixture.ts'
import { assert, suite } from '../support/suite.ts'
import { recordingIo } from './recording-io.ts'

const test = suite('cli: events', { ms: 20_000 })

/** A command that runs until it is interrupted. */
function start(url: string, words: string[], more: Parameters<typeof recordingIo>[0] = {}) {
  const io = recordingIo({ ...more, env: { GODWIT_GATEWAY: url, GODWIT_TOKEN: TOKEN } })
  const code = run(words, io)
  const until = (pattern: RegExp, ms = 10_000) =>
    eventually(async () => (pattern.test(io.stdout) ? true : undefined), { ms, everyMs: 5, what: `${pattern}: ${io.stdout}${io.stderr}` })
  const end = async () => {
    io.interrupt()
    return await code
  }
  return { io, code, until, end }
}

async function move(w: World): Promise<void> {
  const a = await w.node('a', { vms: [vm('vm-1')] })
  await w.node('b')
  a.handlers.start = async () => {
    throw new Error('no')
  }
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  await w.until(migrationId, ({ outcome }) => outcome === 'failed')
}

test('status --watch, not on a terminal: the state once, then a line for each event, until Ctrl-C', async () => {
  await using w = await world()
  const watch = start(w.gateway.adminUrl, ['status', '--watch'])
  await watch.until(/no migrations/)
  await move(w)
  await watch.until(/vm-1: migration failed, a -> b \(INTERNAL\)/)
  assert.is(await watch.end(), EXIT.ok)
  assert.is(watch.io.stdout.split('SITE').length, 1, 'no table: no site was there')
  const lines = watch.io.stdout.split('\n').filter(line => /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ {2}/.test(line))
  for (const part of ['site a: connected over memory, 1 VM', 'vm-1: belongs to site a', 'vm-1: migration begins, a -> b'])
    assert.ok(
      lines.some(line => line.includes(part)),
      part,
    )
  assert.not.match(watch.io.stdout, '\u001b')
})

test('status --watch --json: one JSON object in each line; the state after the reset, then events with their ids', async () => {
  await using w = await world()
  const watch = start(w.gateway.adminUrl, ['status', '--watch', '--json'])
  await watch.until(/"event":"status"/)
  await move(w)
  await watch.until(/"event":"migration-ended"/)
  assert.is(await watch.end(), EXIT.ok)
  const lines = watch.io.stdout.trimEnd().split('\n')
  const all = lines.map(line => JSON.parse(line) as { id?: string; event: string })
  assert.equal(
    all.slice(0, 2).map(({ event }) => event),
    ['reset', 'status'],
  )
  for (const event of all.filter(one => one.event !== 'status')) {
    FeedEvent.parse(event)
    assert.match(event.id!, /^[0-9a-f]{8}-\d+$/)
  }
})

test('status --watch on a terminal draws the state again in its place', async () => {
  await using w = await world()
  const watch = start(w.gateway.adminUrl, ['status', '-w'], { isOutTty: true })
  await watch.until(/no site has connected yet/)
  await move(w)
  await watch.until(/ABORTED +failed \(INTERNAL\)/)
  assert.is(await watch.end(), EXIT.ok)
  const last = watch.io.stdout.split('\u001b[H').at(-1)!
  assert.match(last, /a +online/)
  assert.match(last, /vm-1 +a +running/)
  assert.match(last, /site b: connected over memory/)
  assert.is(watch.io.stdout.split('\u001b[2J').length, 2, 'the screen is cleared once')
})

test('events --after shows what was missed; --json has the ids', async () => {
  await using w = await world()
  const first = start(w.gateway.adminUrl, ['events', '--json'])
  await first.until(/"event":"reset"/)
  await w.node('a', { vms: [vm('vm-1')] })
  await first.until(/"event":"site-connected"/)
  assert.is(await first.end(), EXIT.ok)
  const { id } = JSON.parse(first.io.stdout.split('\n').find(line => line.includes('site-connected'))!) as { id: string }
  for (const pinned of [true, false]) await w.api('PUT', '/v1/vms/vm-1/pin', { pinned })
  const again = start(w.gateway.adminUrl, ['events', '--after', id])
  await again.until(/vm-1: pinned\n.*vm-1: unpinned\n/)
  assert.is(await again.end(), EXIT.ok)
  assert.not.match(again.io.stdout, 'connected')
  const wrong = start(w.gateway.adminUrl, ['events', '--after', 'yesterday'])
  assert.is(await wrong.code, EXIT.usage)
  assert.match(wrong.io.stderr, /after: expected the id of an event/)
})

test('migrations shows a page, and where the next one begins', async () => {
  await using w = await world()
  await move(w)
  await w.api('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  const one = start(w.gateway.adminUrl, ['migrations', '--limit', '1'])
  assert.is(await one.code, EXIT.ok)
  const cursor = /next page: --cursor (\S+)/.exec(one.io.stderr)?.[1]
  const rest = start(w.gateway.adminUrl, ['migrations', '--cursor', cursor!, '--vm', 'vm-1', '--state', 'ABORTED', '--json'])
  assert.is(await rest.code, EXIT.ok)
  const page = JSON.parse(rest.io.stdout) as { migrations: MigrationRecord[]; next: null }
  assert.equal([page.migrations.length, page.next], [1, null])
  const wrong = start(w.gateway.adminUrl, ['migrations', '--state', 'RUNNING'])
  assert.is(await wrong.code, EXIT.usage)
  assert.match(wrong.io.stderr, /state: expected comma-separated states/)
})

async function fake(routes: Route[]) {
  const server = await startHttpServer({ listen: { host: '127.0.0.1', port: 0 }, routes, token: TOKEN, log: silentLog })
  const url = 'port' in server.address ? `http://127.0.0.1:${server.address.port}` : ''
  return { url, [Symbol.asyncDispose]: () => server.close() }
}

test('an older gateway, which has no feed, is an error that says what to do; one that is not there too', async () => {
  await using at = await fake([])
  for (const words of [['status', '--watch'], ['events'], ['status', '--watch', '--json']]) {
    const watch = start(at.url, words)
    assert.is(await watch.code, EXIT.refused)
    assert.match(watch.io.stderr, /error VERSION_UNSUPPORTED: the gateway at \S+ has no feed of events.*\n +hint: upgrade the gateway/)
  }
  assert.is(await start('http://127.0.0.1:9', ['events']).code, EXIT.unreachable)
})

test('a stream that ends is resumed with the last id, and nothing comes twice', async () => {
  const asked: (string | undefined)[] = []
  const pin = (n: number): FeedEvent => ({ event: 'vm-pin', at: n, vm: `vm-${n}`, pinned: true })
  await using at = await fake([
    {
      method: 'GET',
      path: '/v1/events',
      async handle({ stream, query, signal }) {
        const after = query.get('after') ?? undefined
        asked.push(after)
        const answer = stream({ contentType: EVENT_STREAM })
        const from = Number(after?.split('-')[1] ?? 0)
        for (const n of [from + 1, from + 2])
          await answer.write(formatEvent({ id: `0123abcd-${n}`, event: 'vm-pin', data: JSON.stringify(pin(n)) }))
        if (asked.length < 3) answer.end()
        else await new Promise(resolve => signal.addEventListener('abort', resolve))
        return undefined
      },
    },
  ])
  const watch = start(at.url, ['events'])
  await watch.until(/vm-6: pinned/)
  assert.is(await watch.end(), EXIT.ok)
  assert.equal(asked, [undefined, '0123abcd-2', '0123abcd-4'])
  assert.equal(
    [...watch.io.stdout.matchAll(/(vm-\d): pinned/g)].map(([, name]) => name),
    ['vm-1', 'vm-2', 'vm-3', 'vm-4', 'vm-5', 'vm-6'],
  )
})

// --- the state by its events ---

const site = (name: string, more: Partial<SiteView> = {}): SiteView => ({
  ...{ site: name, online: true, transport: 'quic', dataConnections: 0, rttMs: 1, version: '1', since: 1, certificateNotAfter: null },
  ...{ host: null, vms: [], ...more },
})
const view = (name: string, at: string, more: Partial<VmView> = {}): VmView =>
  VmView.parse({ ...vm(name), site: at, online: true, ...more })
const status = (more: Partial<GatewayStatus> = {}): GatewayStatus => ({
  gateway: { id: 'gw', version: '1', startedAt: 1, listeners: [], relay: { streams: 0, bytes: 0 } },
  ...{ sites: [], vms: [], migrations: [], ...more },
})
const facts = (name: string) => {
  const { vms: _, ...rest } = site(name)
  return rest
}

test('a state follows its events, and is what the gateway would answer', () => {
  const names = ({ sites, vms }: GatewayStatus) => [
    sites.map(one => `${one.site}${one.online ? '' : ' off'}: ${one.vms.join(' ')}`),
    vms.map(one => `${one.name} ${one.site} ${one.state}${one.online ? '' : ' off'}${one.isHome === false ? ' claimed' : ''}`),
  ]
  const events: FeedEvent[] = [
    { event: 'site-connected', at: 1, site: facts('a'), vms: [view('two', 'a'), view('one', 'a')] },
    { event: 'site-connected', at: 2, site: facts('b'), vms: [view('one', 'b')] },
    { event: 'vm-home', at: 3, vm: 'one', from: null, to: 'a', epoch: 1 },
    { event: 'site-state', at: 4, site: facts('a'), vms: [view('two', 'a', { state: 'stopped' })], gone: [] },
  ]
  const after = events.reduce(applyEvent, status())
  assert.equal(names(after), [
    ['a: one two', 'b: one'],
    ['one a running', 'one b running claimed', 'two a stopped'],
  ])
  const left = applyEvent(applyEvent(after, { event: 'site-left', at: 9, site: 'b' }), {
    ...{ event: 'site-state', at: 10, site: facts('a'), vms: [], gone: ['two'] },
  })
  assert.equal(names(left), [
    ['a: one', 'b off: one'],
    ['one a running', 'one b running off claimed'],
  ])
  assert.is(left.sites[1]?.since, 9)
  assert.equal(names(applyEvent(left, { event: 'site-forgotten', at: 11, site: 'b' })), [['a: one'], ['one a running']])
  assert.is(applyEvent(left, { event: 'of a later version', at: 12 } as never), left)
  assert.match(renderEvent({ event: 'of a later version', at: 12 } as never), /^1970-01-01T00:00:00Z {2}of a later version$/)
})

test('every event has a line', () => {
  for (const option of FeedEvent.options) {
    const name = option.shape.event.value
    const plain = { at: 1, why: 'lost', vm: 'vm-1', site: 'a', from: 'a', to: null, epoch: 1, pinned: true, action: 'move', because: 'x' }
    const more = { kind: 'stuck', message: 'm', fingerprint: 'f', expiresAt: 1, source: 'a', target: 'b', state: 'STREAMING' }
    const prestage = { vm: 'vm-1', source: 'a', target: 'b', outcome: null }
    const migration = { ...prestage, state: 'STREAMING', migrationId: 'm' }
    const shaped = name === 'site-connected' || name === 'site-state' ? { site: facts('a'), vms: [view('vm-1', 'a')], gone: ['vm-2'] } : {}
    const progress = { phase: 'precopy', bytesTotal: 4, bytesSent: 1 }
    const line = renderEvent({ ...plain, ...more, prestage, migration, progress, ...shaped, event: name } as never)
    assert.match(line, /^1970-01-01T00:00:00Z {2}\S.*/)
    assert.not.match(line, /undefined|\[object/, name)
    assert.not.match(line, new RegExp(`  ${name}$`), 'a sentence of its own')
  }
})

test.run()
