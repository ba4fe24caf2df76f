// godwit migrate, cancel and status against a gateway's admin API that answers as told.
import { migrate } from '../../cli/commands/migrate.ts'
import { run } from '../../cli/run.ts'
import { eventually } from '../../ops/deadline.ts'
import { type HttpServer, type Route, startHttpServer } from '../../ops/http.ts'
import type { MigrationEvent, MigrationRecord } from '../../wire/admin.ts'
import type { Report } from '../../wire/control.ts'
import { type ErrorBody, EXIT, GodwitError } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { assert, suite } from '../support/suite.ts'
import { recordingIo } from './recording-io.ts'

const test = suite('cli: migrate')

const ID = '0123456789abcdef0123456789abcdef'
const TOKEN = 'secret'
const report = {
  ...{
    migrationId: ID,
    vm: 'web-1',
    source: 'a',
    target: 'b',
    method: 'live',
    outcome: 'completed',
    startedAt: 1,
    totalMs: 1234,
    downtimeMs: 210,
  },
  downtimeParts: { finalPagesMs: 50, deviceStateMs: 40, loadMs: 60, commitMs: 40, resumeMs: 20 },
  ...{ guestBytes: 4096, pagesZero: 0, pagesDuplicate: 0, pagesUnchanged: 0, pagesCompressed: 1, pagesRaw: 0 },
  ...{ bytesZero: 0, bytesDuplicate: 0, bytesUnchanged: 0, bytesCompressed: 1000, bytesRaw: 0, wireBytes: 1100, ratio: 3.7 },
  ...{ rounds: 2, transport: 'memory', streams: 4, notes: [] },
} as const

const record = (outcome: MigrationRecord['outcome'], error?: ErrorBody): MigrationRecord => {
  const plan = { version: 1, migrationId: ID, vm: 'web-1', epoch: 1, source: 'a', target: 'b', method: 'live', downtimeMs: 300 } as const
  return {
    ...{
      migrationId: ID,
      vm: 'web-1',
      source: 'a',
      target: 'b',
      method: 'live',
      state: outcome === 'completed' ? 'DONE' : 'ABORTED',
      outcome,
    },
    plan: { ...plan, streams: 4, attempt: 1, compression: 'zstd', createdAt: 1 },
    ...{ createdAt: 1, updatedAt: 2 },
    ...(outcome === 'completed' ? { report: structuredClone(report) as unknown as Report } : {}),
    ...(error ? { error } : {}),
  }
}
const progress = (round: number): MigrationEvent => ({
  event: 'progress',
  progress: { migrationId: ID, side: 'source', phase: 'precopy', round, bytesTotal: 4096, bytesSent: 1024 },
})

type Script = {
  events?: (attempt: number) => AsyncIterable<MigrationEvent> | Iterable<MigrationEvent>
  start?: () => unknown
  cancel?: () => void
  current?: () => MigrationRecord
}

async function gateway(script: Script): Promise<HttpServer & AsyncDisposable & { bodies: unknown[]; env: Record<string, string> }> {
  const bodies: unknown[] = []
  let attempt = 0
  const routes: Route[] = [
    {
      method: 'POST',
      path: '/v1/migrations',
      handle: async ({ json }) => {
        bodies.push(await json())
        return { status: 202, body: script.start?.() ?? { migrationId: ID } }
      },
    },
    {
      method: 'GET',
      path: '/v1/migrations/:id/events',
      handle: async ({ ndjson }) => {
        const answer = ndjson()
        for await (const event of script.events?.(++attempt) ?? []) await answer.line(event)
        answer.end()
        return undefined
      },
    },
    { method: 'GET', path: '/v1/migrations/:id', handle: () => ({ body: script.current?.() ?? record(null) }) },
    {
      method: 'DELETE',
      path: '/v1/migrations/:id',
      handle: () => {
        script.cancel?.()
        return { status: 202, body: {} }
      },
    },
  ]
  const server = await startHttpServer({ listen: { host: '127.0.0.1', port: 0 }, routes, token: TOKEN, log: silentLog })
  const { address } = server
  const url = 'port' in address ? `http://127.0.0.1:${address.port}` : ''
  return { ...server, bodies, env: { GODWIT_GATEWAY: url, GODWIT_TOKEN: TOKEN }, [Symbol.asyncDispose]: () => server.close() }
}

test('a migration shows progress on stderr and its report on stdout', async () => {
  await using at = await gateway({ events: () => [progress(1), progress(2), { event: 'end', migration: record('completed') }] })
  const io = recordingIo({ env: at.env })
  const words = ['migrate', 'web-1', '--to', 'b', '--method', 'live', '--downtime', '0.25s', '--streams', '2']
  assert.is(await run(words, io), EXIT.ok)
  assert.equal(at.bodies, [{ vm: 'web-1', to: 'b', method: 'live', downtimeMs: 250, streams: 2 }])
  assert.match(io.stderr, /precopy +round 1 .*\nprecopy +round 2 /)
  assert.ok(io.stdout.startsWith('web-1: a -> b, live, completed in 1.2 s\n  downtime: '))
})

test('with --json the report is all there is on stdout, and stderr is empty', async () => {
  await using at = await gateway({ events: () => [progress(1), { event: 'end', migration: record('completed') }] })
  const io = recordingIo({ env: at.env, isTty: true })
  assert.is(await run(['migrate', 'web-1', '--to', 'b', '--json'], io), EXIT.ok)
  assert.equal(JSON.parse(io.stdout), JSON.parse(JSON.stringify(report)))
  assert.is(io.stderr, '')
  assert.equal(at.bodies, [{ vm: 'web-1', to: 'b' }])
})

test('a refusal has its code and exit code; so has a migration that fails', async () => {
  await using refuses = await gateway({
    start: () => {
      throw new GodwitError('SITE_UNKNOWN', 'no site c')
    },
  })
  const io = recordingIo({ env: refuses.env })
  assert.is(await run(['migrate', 'web-1', '--to', 'c', '--json'], io), EXIT.refused)
  assert.is(JSON.parse(io.stdout).error.code, 'SITE_UNKNOWN')
  const error = { code: 'CONNECTION_LOST', message: 'the link died' }
  await using fails = await gateway({ events: () => [{ event: 'end', migration: record('failed', error) }] })
  const other = recordingIo({ env: fails.env })
  assert.is(await run(['migrate', 'web-1', '--to', 'b'], other), EXIT.unreachable)
  assert.match(other.stderr, /error CONNECTION_LOST: the link died/)
})

test('Ctrl-C asks the gateway to cancel and waits for the outcome', async () => {
  const cancelled = Promise.withResolvers<void>()
  await using at = await gateway({
    cancel: cancelled.resolve,
    events: async function* () {
      yield progress(1)
      await cancelled.promise
      yield { event: 'end', migration: record('cancelled') }
    },
  })
  const io = recordingIo({ env: at.env })
  const ended = run(['migrate', 'web-1', '--to', 'b'], io)
  await eventually(() => io.stderr.includes('round 1') || undefined, { ms: 5000, what: 'progress' })
  io.interrupt()
  assert.is(await ended, EXIT.cancelled)
  assert.match(io.stderr, /cancelling; press Ctrl-C again to exit[\s\S]*error MIGRATION_CANCELLED/)
})

test('a cancel that comes too late is said, and the migration ends well', async () => {
  const late = Promise.withResolvers<void>()
  await using at = await gateway({
    cancel: () => {
      late.resolve()
      throw new GodwitError('MIGRATION_LATE')
    },
    events: async function* () {
      yield progress(1)
      await late.promise
      await new Promise(resolve => setTimeout(resolve, 50))
      yield { event: 'end', migration: record('completed') }
    },
  })
  const io = recordingIo({ env: at.env })
  const ended = run(['migrate', 'web-1', '--to', 'b'], io)
  await eventually(() => io.stderr.includes('round 1') || undefined, { ms: 5000, what: 'progress' })
  io.interrupt()
  assert.is(await ended, EXIT.ok)
  assert.match(io.stderr, /cancelling failed: too late/)
})

test('a second Ctrl-C exits at once', async () => {
  await using at = await gateway({
    events: async function* () {
      yield progress(1)
      await new Promise(resolve => setTimeout(resolve, 20_000).unref())
    },
  })
  const io = recordingIo({ env: at.env })
  const ended = run(['migrate', 'web-1', '--to', 'b'], io)
  await eventually(() => io.stderr.includes('round 1') || undefined, { ms: 5000, what: 'progress' })
  io.interrupt()
  io.interrupt()
  assert.is(await ended, EXIT.cancelled)
  assert.match(io.stderr, new RegExp(`stopped waiting; migration ${ID} may still be running`))
})

test('a gateway that drops the event stream is asked again until the migration has ended', async () => {
  await using at = await gateway({
    events: attempt => (attempt < 3 ? [progress(attempt)] : [{ event: 'end', migration: record('completed') }]),
  })
  const io = recordingIo({ env: at.env })
  assert.is(await run(['migrate', 'web-1', '--to', 'b'], io), EXIT.ok)
  await using ended = await gateway({ events: () => [], current: () => record('completed') })
  assert.is(await run(['migrate', 'web-1', '--to', 'b'], recordingIo({ env: ended.env })), EXIT.ok)
})

test('--detach prints the id and does not wait', async () => {
  await using at = await gateway({})
  const io = recordingIo({ env: at.env })
  assert.is(await run(['migrate', 'web-1', '--to', 'b', '--detach'], io), EXIT.ok)
  assert.is(io.stdout, `${ID}\n`)
})

test('no gateway, wrong token and a downtime out of range have their codes', async () => {
  const away = recordingIo({ env: { GODWIT_GATEWAY: 'http://127.0.0.1:9', GODWIT_TOKEN: 'x' } })
  assert.is(await run(['migrate', 'x', '--to', 'b'], away), EXIT.unreachable)
  assert.match(away.stderr, /error GATEWAY_UNREACHABLE/)
  await using at = await gateway({})
  const denied = recordingIo({ env: { ...at.env, GODWIT_TOKEN: 'wrong' } })
  assert.is(await run(['migrate', 'x', '--to', 'b'], denied), EXIT.denied)
  const long = recordingIo({ env: at.env })
  assert.is(await run(['migrate', 'x', '--to', 'b', '--downtime', '2h'], long), EXIT.usage)
  assert.equal(at.bodies, [])
  assert.ok(migrate.examples.length > 0)
})

test('cancel and status speak to the same API', async () => {
  let cancels = 0
  await using at = await gateway({
    cancel: () => {
      cancels++
    },
  })
  assert.is(await run(['cancel', ID], recordingIo({ env: at.env })), EXIT.ok)
  assert.is(cancels, 1)
  const io = recordingIo({ env: at.env })
  // This gateway has no such route, as one of another release.
  assert.is(await run(['status'], io), EXIT.refused)
  assert.match(io.stderr, /VERSION_UNSUPPORTED: the gateway does not know GET \/v1\/status/)
})

test.run()
