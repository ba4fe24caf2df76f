import { mkdtemp, rm } from 'node:fs/promises'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { connectQmp, type QmpClient } from '../../../edge-node/qmp/client.ts'
import { qmpCommands } from '../../../edge-node/qmp/commands.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { assert, codeOf, suite, thrown } from '../../support/suite.ts'

const test = suite('edge-node/qmp/client')

type Command = { execute: string; arguments?: Record<string, unknown>; id: number }
type Fake = AsyncDisposable & { path: string; seen: Command[]; send(object: unknown): void; hangUp(): void; listen(): Promise<void> }

/** A QMP server whose answers are `answer`'s results: { return } or { error }, or undefined for silence. */
async function fakeQemu(answer: (command: Command) => object | undefined = () => ({ return: {} }), version = [10, 0, 2]): Promise<Fake> {
  const dir = await mkdtemp(join(tmpdir(), 'godwit-qmp-'))
  const seen: Command[] = []
  let socket: Socket | undefined
  const send = (object: unknown) => void socket?.write(`${JSON.stringify(object)}\r\n`)
  const server: Server = createServer(connection => {
    socket = connection
    const [major, minor, micro] = version
    send({ QMP: { version: { qemu: { major, minor, micro }, package: 'fake' }, capabilities: ['oob'] } })
    connection.on('error', () => {})
    connection.on('data', chunk => {
      for (const line of chunk.toString().split('\n').filter(Boolean)) {
        const command = JSON.parse(line) as Command
        if (command.execute === 'qmp_capabilities') {
          send({ return: {}, id: command.id })
          continue
        }
        seen.push(command)
        const reply = answer(command)
        if (reply) send({ ...reply, id: command.id })
      }
    })
  })
  const path = join(dir, 'qmp.sock')
  const close = async () => {
    socket?.destroy()
    await new Promise<void>(resolve => server.close(() => resolve()))
    await rm(dir, { recursive: true, force: true })
  }
  return {
    path,
    seen,
    send,
    hangUp: () => socket?.destroy(),
    listen: () => new Promise<void>(resolve => server.listen(path, () => resolve())),
    [Symbol.asyncDispose]: close,
  }
}

async function connected(fake: Fake): Promise<QmpClient & Disposable> {
  await fake.listen()
  const client = await connectQmp({ path: fake.path, timeoutMs: 5_000 })
  return Object.assign(client, { [Symbol.dispose]: () => client.close() })
}

test('the client connects as soon as QEMU listens, and knows its version', async () => {
  await using fake = await fakeQemu(undefined, [9, 1, 3])
  const connecting = connectQmp({ path: fake.path, timeoutMs: 5_000 })
  await wait(60)
  await fake.listen()
  const client = await connecting
  assert.equal(client.version, { major: 9, minor: 1, micro: 3 })
  client.close()
})

test('connecting gives up at its deadline and at an abort', async () => {
  assert.is(await codeOf(() => connectQmp({ path: '/nonexistent/qmp.sock', timeoutMs: 80 })), 'QEMU_TIMEOUT')
  const reason = new Error('enough')
  const signal = AbortSignal.abort(reason)
  assert.is(await thrown(() => connectQmp({ path: '/nonexistent/qmp.sock', timeoutMs: 5_000, signal })), reason)
})

test('answers go to the command that asked, in any order', async () => {
  const ids: number[] = []
  await using fake = await fakeQemu(({ id }) => void ids.push(id))
  using client = await connected(fake)
  const both = [client.execute<string>('a'), client.execute<string>('b')]
  while (ids.length < 2) await wait(5)
  fake.send({ return: 'second', id: ids[1] })
  fake.send({ return: 'first', id: ids[0] })
  assert.equal(await Promise.all(both), ['first', 'second'])
})

test('a refusal is QEMU_COMMAND with the words of QEMU', async () => {
  await using fake = await fakeQemu(() => ({ error: { class: 'GenericError', desc: 'No such thing' } }))
  using client = await connected(fake)
  const error = await thrown(() => client.execute('do-it'))
  assert.ok(error instanceof GodwitError && error.code === 'QEMU_COMMAND')
  assert.match((error as Error).message, 'do-it: No such thing')
})

test('a command without an answer ends at its deadline, and the late answer harms nobody', async () => {
  const ids: number[] = []
  await using fake = await fakeQemu(({ execute, id }) => (execute === 'slow' ? void ids.push(id) : { return: 'fine' }))
  using client = await connected(fake)
  assert.is(await codeOf(() => client.execute('slow', undefined, { timeoutMs: 50 })), 'QEMU_TIMEOUT')
  fake.send({ return: 'late', id: ids[0] })
  assert.is(await client.execute('quick'), 'fine')
})

test('an abort ends the wait with its reason', async () => {
  await using fake = await fakeQemu(() => undefined)
  using client = await connected(fake)
  const reason = new Error('cancelled')
  const controller = new AbortController()
  setTimeout(() => controller.abort(reason), 20)
  assert.is(await thrown(() => client.execute('slow', undefined, { signal: controller.signal })), reason)
})

test('events reach their listeners and those who wait', async () => {
  await using fake = await fakeQemu()
  using client = await connected(fake)
  const names: string[] = []
  client.on('*', ({ event }) => names.push(event))
  const off = client.on('STOP', () => {
    throw new Error('a listener that fails')
  })
  const passed = client.waitFor(({ event, data }) => event === 'MIGRATION_PASS' && data.pass === 2, { ms: 5_000 })
  fake.send({ event: 'STOP', timestamp: { seconds: 1, microseconds: 500_000 } })
  fake.send({ event: 'MIGRATION_PASS', data: { pass: 1 }, timestamp: { seconds: 2, microseconds: 0 } })
  fake.send({ event: 'MIGRATION_PASS', data: { pass: 2 }, timestamp: { seconds: 3, microseconds: 250_000 } })
  assert.is((await passed).atMs, 3250)
  off()
  assert.equal(names, ['STOP', 'MIGRATION_PASS', 'MIGRATION_PASS'])
  assert.is(await codeOf(() => client.waitFor('RESUME', { ms: 30 })), 'QEMU_TIMEOUT')
})

test('when QEMU goes, everyone who waits hears it', async () => {
  await using fake = await fakeQemu(() => undefined)
  using client = await connected(fake)
  const waits = [client.execute('slow'), client.waitFor('STOP', { ms: 5_000 })].map(promise => codeOf(() => promise))
  await wait(20)
  fake.hangUp()
  assert.equal(await Promise.all(waits), ['QEMU_EXITED', 'QEMU_EXITED'])
  await client.closed
  assert.is(client.ended, true)
  assert.is(await codeOf(() => client.execute('more')), 'QEMU_EXITED')
  assert.is(await codeOf(() => client.waitFor('STOP', { ms: 5_000 })), 'QEMU_EXITED')
})

test('what is not QMP ends the connection with the reason', async () => {
  await using fake = await fakeQemu()
  using client = await connected(fake)
  fake.send([1, 2])
  const reason = await client.closed
  assert.ok(reason instanceof GodwitError && reason.code === 'FRAME_MALFORMED')
})

test('an incoming migration asks QEMU to stay alive where QEMU knows that (9.1)', async () => {
  for (const [version, expected] of [
    [[9, 0, 0], { uri: 'unix:/x' }],
    [[9, 1, 0], { uri: 'unix:/x', 'exit-on-error': false }],
    [[10, 0, 2], { uri: 'unix:/x', 'exit-on-error': false }],
  ] as const) {
    await using fake = await fakeQemu(undefined, [...version])
    using client = await connected(fake)
    await qmpCommands(client).migrateIncoming('unix:/x')
    assert.equal(fake.seen[0]?.arguments, expected)
  }
})

test('migration parameters carry their units, and 8.2 ones only to those who know them', async () => {
  for (const [version, more] of [
    [[7, 2, 22], {}],
    [[10, 0, 2], { 'avail-switchover-bandwidth': 5000 }],
  ] as const) {
    await using fake = await fakeQemu(undefined, [...version])
    using client = await connected(fake)
    await qmpCommands(client).setParameters({
      maxBandwidthBytesPerSecond: 1000.4,
      downtimeLimitMs: 300,
      announceRounds: 0,
      availSwitchoverBandwidthBytesPerSecond: 5000,
    })
    assert.equal(fake.seen[0]?.arguments, { 'max-bandwidth': 1000, 'downtime-limit': 300, 'announce-rounds': 0, ...more })
  }
})

test('query-migrate is read whatever is absent or new in it', async () => {
  const answers: object[] = [
    {},
    { status: 'some-future-status', ram: { transferred: 5, total: 10 } },
    { status: 'failed', 'error-desc': 'broken', 'blocked-reasons': ['a device'] },
    {
      status: 'active',
      ram: {
        transferred: 1,
        total: 2,
        remaining: 1,
        duplicate: 3,
        normal: 4,
        'dirty-sync-count': 2,
        'dirty-pages-rate': 9,
        mbps: 8.5,
        'page-size': 4096,
      },
    },
  ]
  await using fake = await fakeQemu(() => ({ return: answers.shift() }))
  using client = await connected(fake)
  const { queryMigrate } = qmpCommands(client)
  const none = await queryMigrate()
  assert.is(none.status, 'none')
  assert.is(none.ram, undefined)
  const future = await queryMigrate()
  assert.is(future.status, 'some-future-status')
  assert.equal([future.ram?.transferredBytes, future.ram?.remainingBytes, future.ram?.dirtySyncCount], [5, undefined, undefined])
  const failed = await queryMigrate()
  assert.equal([failed.errorText, failed.blockedReasons], ['broken', ['a device']])
  const active = await queryMigrate()
  assert.equal(
    [active.ram?.remainingBytes, active.ram?.zeroPages, active.ram?.dirtyPagesPerSecond, active.ram?.megabitsPerSecond],
    [1, 3, 9, 8.5],
  )
})

test.run()
