// A migration as the gateway runs it: the order of its messages, refusals, cancelling, restarts. The nodes are
// scripted.

import { eventually, within } from '../../../ops/deadline.ts'
import { requestLines } from '../../../ops/http-client.ts'
import type { MigrationEvent } from '../../../wire/admin.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { assert, codeOf, suite, thrown } from '../../support/suite.ts'
import { emptyReport, TOKEN, vm, type World, world } from '../fixture.ts'

const test = suite('gateway: migrations')

const begin = async (w: World, body: object = { vm: 'vm-1', to: 'b' }) =>
  (await w.api<{ migrationId: string }>('POST', '/v1/migrations', body)).migrationId
const until = (probe: () => unknown, what: string) => eventually(() => probe() || undefined, { ms: 5_000, everyMs: 5, what })

async function pair(w: World) {
  const a = await w.node('a', { vms: [vm('vm-1')] })
  const b = await w.node('b')
  return { a, b }
}

test('prepares the target, then starts the source, and is done when both have completed', async () => {
  await using w = await world()
  const { a, b } = await pair(w)
  const migrationId = await begin(w, { vm: 'vm-1', to: 'b', method: 'live', downtimeMs: 250, streams: 3 })
  await until(() => a.started.length, 'start')
  assert.is(b.prepared.length, 1)
  const { plan } = b.prepared[0]!
  assert.equal(a.started[0]?.plan, plan)
  assert.equal([plan.source, plan.target, plan.downtimeMs, plan.streams, plan.epoch], ['a', 'b', 250, 3, 1])
  assert.not.equal(b.prepared[0]?.sourceCertificate, a.started[0]?.targetCertificate)

  b.link.report({ migrationId, side: 'target', outcome: 'completed', report: { ...emptyReport(migrationId), downtimeMs: 33 } })
  assert.is((await w.until(migrationId, record => record.state === 'COMMIT_SEEN')).outcome, null)
  a.link.report({ migrationId, side: 'source', outcome: 'completed', report: emptyReport(migrationId) })
  const record = await w.until(migrationId, ({ state }) => state === 'DONE')
  assert.is(record.outcome, 'completed')
  assert.is(record.report?.downtimeMs, 33, "what the source's report leaves open is the target's word")
  assert.is(record.report?.downtimeParts.finalPagesMs, 1)
})

test('follows a migration as lines: states, progress, and the record at the end', async () => {
  await using w = await world()
  const { a, b } = await pair(w)
  const migrationId = await begin(w)
  await until(() => a.started.length, 'start')
  const events: MigrationEvent[] = []
  const reading = (async () => {
    const path = `/v1/migrations/${migrationId}/events`
    for await (const event of requestLines<MigrationEvent>({ url: w.gateway.adminUrl, token: TOKEN, path })) events.push(event)
  })()
  await until(() => events.length, 'the first line')
  a.link.progress({ migrationId, side: 'source', phase: 'precopy', round: 2, bytesSent: 7, extra: 'kept' })
  await until(() => events.some(event => event.event === 'progress'), 'progress')
  a.link.progress({ migrationId, side: 'source', phase: 'committed' })
  await until(() => events.some(event => event.event === 'state' && event.state === 'COMMIT_SEEN'), 'the commit')
  b.link.report({ migrationId, side: 'target', outcome: 'completed' })
  a.link.report({ migrationId, side: 'source', outcome: 'completed' })
  await reading
  const first = events.find(event => event.event === 'progress')
  assert.is(first?.event === 'progress' && first.progress['extra'], 'kept')
  const last = events.at(-1)
  assert.is(last?.event === 'end' && last.migration.state, 'DONE')
})

test("shows the target's refusal and never tells the source", async () => {
  await using w = await world()
  const { a, b } = await pair(w)
  b.handlers.prepare = async () => {
    throw new GodwitError('PREFLIGHT_MEMORY', 'needs 4 GiB, has 1')
  }
  const record = await w.until(await begin(w), ({ state }) => state === 'ABORTED')
  assert.is(record.error?.code, 'PREFLIGHT_MEMORY')
  assert.is(a.started.length, 0)
})

test("the source's refusal cancels the target", async () => {
  await using w = await world()
  const { a, b } = await pair(w)
  a.handlers.start = async () => {
    throw new GodwitError('PREFLIGHT_WRITABLE_DISK')
  }
  const record = await w.until(await begin(w), ({ state }) => state === 'ABORTED')
  assert.is(record.error?.code, 'PREFLIGHT_WRITABLE_DISK')
  await until(() => b.cancelled.length, "the target's cancel")
})

test('a failure of the source ends it; of the two errors the one that says more is shown', async () => {
  await using w = await world()
  const { a, b } = await pair(w)
  const migrationId = await begin(w)
  await until(() => a.started.length, 'start')
  b.link.report({ migrationId, side: 'target', outcome: 'failed', error: { code: 'QEMU_LOAD', message: 'bad section' } })
  await until(() => a.cancelled.length, "the source's cancel after the grace")
  a.link.report({ migrationId, side: 'source', outcome: 'cancelled', error: { code: 'MIGRATION_CANCELLED', message: 'told to' } })
  const record = await w.until(migrationId, ({ state }) => state === 'ABORTED')
  assert.equal([record.outcome, record.error?.code], ['failed', 'QEMU_LOAD'])
})

test('a cancel acts, and the gateway ends, while a site has not answered what it was asked before', async () => {
  // Each of these questions alone is waited for 10 to 60 s.
  for (const silent of ['prepare', 'start'] as const) {
    await using w = await world()
    const { a, b } = await pair(w)
    let isAsked = false
    const never = () => {
      isAsked = true
      return new Promise<void>(() => {})
    }
    if (silent === 'prepare') b.handlers.prepare = never
    else a.handlers.start = never
    a.handlers.cancel = async ({ migrationId }) =>
      a.link.report({ migrationId, side: 'source', outcome: 'cancelled', error: { code: 'MIGRATION_CANCELLED', message: 'told to' } })
    const migrationId = await begin(w)
    await until(() => isAsked, silent)
    await within(w.api('DELETE', `/v1/migrations/${migrationId}`), { ms: 4_000, what: `the cancel during ${silent}` })
    const record = await w.until(migrationId, ({ state }) => state === 'ABORTED')
    assert.is(record.outcome, 'cancelled', silent)
    isAsked = false
    await begin(w)
    await until(() => isAsked, `${silent} again`)
    await within(w.stop(), { ms: 6_000, what: `the end of the gateway during ${silent}` })
  }
})

test('refuses what cannot be, each with its code, and writes nothing down', async () => {
  await using w = await world()
  const { a, b } = await pair(w)
  a.vms = [vm('vm-1'), vm('cold', { state: 'stopped' }), vm('twin'), vm('moving', { state: 'migrating' })]
  b.vms = [vm('twin', { state: 'stopped' })]
  const c = await w.node('c', { vms: [vm('far')] })
  await Promise.all([a, b].map(async node => node.announce()))
  await until(() => w.api<{ vms: unknown[] }>('GET', '/v1/vms').then(({ vms }) => vms.length === 6 || undefined), 'six VMs')
  await c.link.close()
  await eventually(
    async () =>
      (await w.api<{ sites: { site: string; online: boolean }[] }>('GET', '/v1/sites')).sites.find(
        site => site.site === 'c' && !site.online,
      ),
    { ms: 5_000, what: 'c offline' },
  )
  const code = (body: unknown) => codeOf(() => w.api('POST', '/v1/migrations', body))
  assert.is(await code({ vm: 'nope', to: 'b' }), 'VM_UNKNOWN')
  assert.is(await code({ vm: 'vm-1', to: 'nope' }), 'SITE_UNKNOWN')
  assert.is(await code({ vm: 'vm-1', to: 'a' }), 'SITE_SAME')
  assert.is(await code({ vm: 'vm-1', to: 'c' }), 'SITE_OFFLINE')
  assert.is(await code({ vm: 'far', to: 'a' }), 'SITE_OFFLINE')
  const { code: why, hint } = (await thrown(() => w.api('POST', '/v1/migrations', { vm: 'cold', to: 'b' }))) as GodwitError
  assert.equal([why, hint], ['VM_STATE', 'move it as it is with --method cold, or start it first, at site a: godwit vm start cold'])
  assert.is(await code({ vm: 'twin', to: 'b' }), 'VM_EXISTS')
  assert.is(await code({ vm: 'moving', to: 'b' }), 'MIGRATION_BUSY')
  for (const bad of [
    { vm: '../x', to: 'b' },
    { vm: 'vm-1' },
    { vm: 'vm-1', to: 'b', method: 'warm' },
    { vm: 'vm-1', to: 'b', downtimeMs: 0 },
  ])
    assert.is(await code(bad), 'CONFIG_INVALID')
  assert.is(await code({ vm: 'vm-1', to: 'b', downtime: 5 }), 'CONFIG_INVALID', 'a mistyped field does not pass')
  assert.equal((await w.api<{ migrations: unknown[] }>('GET', '/v1/migrations')).migrations, [])
  assert.is(await codeOf(() => w.api('GET', '/v1/migrations/none')), 'MIGRATION_UNKNOWN')
})

test('of two requests for one VM at once exactly one is taken', async () => {
  await using w = await world()
  await pair(w)
  await w.node('c')
  const both = await Promise.allSettled([begin(w), begin(w, { vm: 'vm-1', to: 'c' })])
  assert.equal(both.map(({ status }) => status).sort(), ['fulfilled', 'rejected'])
  const refused = both.find(({ status }) => status === 'rejected') as PromiseRejectedResult
  assert.is(refused.reason.code, 'MIGRATION_BUSY')
})

test('cancelling asks the source; after the commit it is too late', async () => {
  await using w = await world()
  const { a, b } = await pair(w)
  const first = await begin(w)
  await until(() => a.started.length, 'start')
  await w.api('DELETE', `/v1/migrations/${first}`)
  assert.equal(a.cancelled, [{ migrationId: first }])
  a.link.report({ migrationId: first, side: 'source', outcome: 'cancelled' })
  assert.is((await w.until(first, ({ state }) => state === 'ABORTED')).outcome, 'cancelled')
  b.link.report({ migrationId: first, side: 'target', outcome: 'cancelled' })

  const second = await begin(w)
  await until(() => a.started.length === 2, 'start')
  a.handlers.cancel = async () => {
    throw new GodwitError('MIGRATION_LATE')
  }
  assert.is(await codeOf(() => w.api('DELETE', `/v1/migrations/${second}`)), 'MIGRATION_LATE', "the source's word")
  a.link.report({ migrationId: second, side: 'source', outcome: 'completed' })
  await w.until(second, ({ state }) => state === 'COMMIT_SEEN')
  assert.is(await codeOf(() => w.api('DELETE', `/v1/migrations/${second}`)), 'MIGRATION_LATE', "the gateway's own")
  b.link.report({ migrationId: second, side: 'target', outcome: 'completed' })
  assert.is((await w.until(second, ({ state }) => state === 'DONE')).outcome, 'completed')
})

test('a restarted gateway takes an unfinished migration up again and hears its end', async () => {
  await using w = await world()
  const { a, b } = await pair(w)
  const migrationId = await begin(w)
  await until(() => a.started.length, 'start')
  a.migrations = b.migrations = [migrationId]
  await w.restart()
  await Promise.all([a.link.whenOnline(), b.link.whenOnline()])
  assert.is((await w.api<{ state: string }>('GET', `/v1/migrations/${migrationId}`)).state, 'STREAMING')
  const stream = await a.link.openRelayStream({ sessionId: migrationId, index: 0, attempt: 2 })
  await stream.write(new Uint8Array([1, 2, 3]))
  await until(() => b.streams.length, 'the relay stream after the restart')
  a.link.report({ migrationId, side: 'source', outcome: 'completed' })
  b.link.report({ migrationId, side: 'target', outcome: 'completed' })
  assert.is((await w.until(migrationId, ({ state }) => state === 'DONE')).outcome, 'completed')
})

test('results that were reported while the gateway was away arrive after its restart', async () => {
  await using w = await world()
  const { a, b } = await pair(w)
  const migrationId = await begin(w)
  await until(() => a.started.length, 'start')
  await w.stop()
  a.link.report({ migrationId, side: 'source', outcome: 'completed' })
  b.link.report({ migrationId, side: 'target', outcome: 'completed' })
  await w.restart()
  assert.is((await w.until(migrationId, ({ state }) => state === 'DONE')).outcome, 'completed')
})

test('a stale record is healed from where the VM is: done when it has moved, aborted when it has not', async () => {
  for (const moved of [true, false]) {
    await using w = await world()
    const { a, b } = await pair(w)
    const migrationId = await begin(w)
    await until(() => a.started.length, 'start')
    await w.stop()
    // Both nodes have forgotten the migration (they were restarted); only the VM's place tells.
    a.vms = moved ? [] : [vm('vm-1')]
    b.vms = moved ? [vm('vm-1', { epoch: 2 })] : []
    await w.restart()
    const record = await w.until(migrationId, ({ state }) => state === 'DONE' || state === 'ABORTED')
    assert.is(record.state, moved ? 'DONE' : 'ABORTED')
  }
})

test('what had not begun before a restart is aborted, and its target told so when it returns', async () => {
  await using w = await world()
  const { a, b } = await pair(w)
  b.handlers.prepare = () => new Promise(() => {})
  const migrationId = await begin(w)
  await w.until(migrationId, ({ state }) => state === 'PREPARING')
  b.migrations = [migrationId]
  await w.restart()
  const record = await w.until(migrationId, ({ state }) => state === 'ABORTED')
  assert.is(record.outcome, 'failed')
  await until(() => b.cancelled.length, 'cancel at the target')
  assert.is(a.started.length, 0)
})

test('a site cannot speak for another: neither its result nor its streams', async () => {
  await using w = await world()
  const { a } = await pair(w)
  const c = await w.node('c')
  const migrationId = await begin(w)
  await until(() => a.started.length, 'start')
  assert.is(await codeOf(() => c.link.request('migration.result', { migrationId, side: 'source', outcome: 'completed' })), 'AUTH_FAILED')
  const stream = await c.link.openRelayStream({ sessionId: migrationId, index: 0, attempt: 1 })
  assert.is(await codeOf(() => stream.read()), 'STREAM_RESET')
})

test.run()
