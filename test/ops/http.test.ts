// The small JSON server and its client, over TCP and a unix socket.
import { once } from 'node:events'
import { stat, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { type Route, startHttpServer } from '../../ops/http.ts'
import { requestJson, requestLines, requestUpgrade } from '../../ops/http-client.ts'
import { GodwitError } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { assert, codeOf, suite, thrown } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'

const test = suite('ops: http', { ms: 10_000 })

const routes: Route[] = [
  { method: 'GET', path: '/things/:name/of/:owner', handle: ({ params, query }) => ({ body: { ...params, q: query.get('q') } }) },
  { method: 'POST', path: '/echo', handle: async ({ json }) => ({ status: 201, body: (await json()) ?? null }) },
  {
    method: 'GET',
    path: '/refuse',
    handle() {
      throw new GodwitError('VM_STATE', 'the VM is stopped', { hint: 'start it' })
    },
  },
  {
    method: 'GET',
    path: '/bug',
    handle() {
      throw new Error('a bug')
    },
  },
  { method: 'GET', path: '/never', handle: () => new Promise<undefined>(() => {}) },
  {
    method: 'GET',
    path: '/lines',
    async handle({ ndjson }) {
      const answer = ndjson()
      for (let n = 0; n < 1000; n++) await answer.line({ n, text: 'x'.repeat(500) })
      answer.end()
      return undefined
    },
  },
]

test('serves over a unix socket that only its owner may open', async () => {
  await using folder = await tempFolder()
  const socketPath = join(folder.path, 'api.sock')
  const server = await startHttpServer({ listen: { socketPath }, routes, log: silentLog })
  try {
    assert.is((await stat(socketPath)).mode & 0o777, 0o600)
    assert.equal(await requestJson({ socketPath, path: '/things/a%20b/of/c?q=1' }), { name: 'a b', owner: 'c', q: '1' })
    assert.equal(await requestJson({ socketPath, method: 'POST', path: '/echo', body: { a: [1] } }), { a: [1] })
    const error = (await thrown(() => requestJson({ socketPath, path: '/refuse' }))) as GodwitError
    assert.equal([error.code, error.message, error.hint], ['VM_STATE', 'the VM is stopped', 'start it'])
    assert.is(await codeOf(() => requestJson({ socketPath, path: '/bug' })), 'INTERNAL')
    assert.is(await codeOf(() => requestJson({ socketPath, path: '/never', timeoutMs: 30 })), 'TIMEOUT')
    assert.is(
      await codeOf(() => requestJson({ socketPath, path: '/never', signal: AbortSignal.abort(new GodwitError('MIGRATION_CANCELLED')) })),
      'MIGRATION_CANCELLED',
    )
    assert.is(await codeOf(() => startHttpServer({ listen: { socketPath }, routes, log: silentLog })), 'CONFIG_INVALID', 'in use')
  } finally {
    await server.close()
  }
  assert.is(await codeOf(() => requestJson({ socketPath, path: '/x' })), 'NODE_UNREACHABLE')
})

test('replaces the socket file of a process that is gone', async () => {
  await using folder = await tempFolder()
  const socketPath = join(folder.path, 'api.sock')
  await writeFile(socketPath, '')
  const server = await startHttpServer({ listen: { socketPath }, routes, log: silentLog })
  assert.equal(await requestJson({ socketPath, method: 'POST', path: '/echo', body: 1 }), 1)
  await server.close()
})

test('streams lines to a reader of any speed, and stops when it goes away', async () => {
  const server = await startHttpServer({ listen: { host: '127.0.0.1', port: 0 }, routes, log: silentLog })
  const url = 'host' in server.address ? `http://127.0.0.1:${server.address.port}` : ''
  try {
    let seen = 0
    for await (const line of requestLines<{ n: number }>({ url, path: '/lines' })) assert.is(line.n, seen++)
    assert.is(seen, 1000)
    for await (const line of requestLines<{ n: number }>({ url, path: '/lines' })) if (line.n === 3) break
    assert.is(await codeOf(async () => (await requestLines({ url, path: '/refuse' }).next()).value), 'VM_STATE')
    const stop = new AbortController()
    const lines = requestLines({ url, path: '/lines', signal: stop.signal })
    await lines.next()
    stop.abort(new GodwitError('MIGRATION_CANCELLED'))
    assert.is(
      await codeOf(async () => {
        for await (const _ of lines);
      }),
      'MIGRATION_CANCELLED',
    )
  } finally {
    await server.close()
  }
})

test('switches to raw bytes both ways, or refuses with a code', async () => {
  await using folder = await tempFolder()
  const socketPath = join(folder.path, 'api.sock')
  const server = await startHttpServer({
    listen: { socketPath },
    routes,
    upgrades: [
      {
        path: '/v1/vms/:name/console',
        async handle({ params }) {
          if (params['name'] !== 'vm-1') throw new GodwitError('VM_UNKNOWN', `no VM ${params['name']}`)
          return socket => {
            socket.write('login: ')
            socket.on('data', bytes => socket.write(`you said ${bytes}`))
          }
        },
      },
    ],
    log: silentLog,
  })
  try {
    const console = await requestUpgrade({ socketPath, path: '/v1/vms/vm-1/console' })
    assert.is(String((await once(console, 'data'))[0]), 'login: ')
    console.write('hello')
    assert.is(String((await once(console, 'data'))[0]), 'you said hello')
    console.destroy()
    assert.is(await codeOf(() => requestUpgrade({ socketPath, path: '/v1/vms/other/console' })), 'VM_UNKNOWN')
  } finally {
    await server.close()
  }
})

test('an answer that is not HTTP, or none at all, is a coded error', async () => {
  const server = createServer(socket => socket.end('hello there\r\n')).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  const url = `http://127.0.0.1:${typeof address === 'object' ? address?.port : 0}`
  assert.is(await codeOf(() => requestJson({ url, path: '/' })), 'GATEWAY_UNREACHABLE')
  server.close()
  assert.is(await codeOf(() => requestJson({ url: 'ftp://localhost', path: '/' })), 'CONFIG_INVALID')
  assert.is(await codeOf(() => requestJson({ url: 'https://127.0.0.1:1', path: '/' })), 'GATEWAY_UNREACHABLE')
  assert.is(await codeOf(() => requestJson({ url: 'nonsense', path: '/' })), 'CONFIG_INVALID')
})

test.run()
