// Streaming answers of the HTTP server, over real sockets: split pieces, slow readers, clients that go away, shutdown.
import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import { eventually } from '../../ops/deadline.ts'
import { type RequestContext, type Route, startHttpServer } from '../../ops/http.ts'
import { requestEvents, requestLines } from '../../ops/http-client.ts'
import { EVENT_STREAM, formatComment, formatEvent } from '../../ops/sse.ts'
import { hasCode } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('ops: streaming answers', { ms: 10_000 })

async function serve(handle: (context: RequestContext) => Promise<undefined>) {
  const routes: Route[] = [{ method: 'GET', path: '/stream', handle }]
  const server = await startHttpServer({ listen: { host: '127.0.0.1', port: 0 }, routes, log: silentLog })
  const port = 'port' in server.address ? server.address.port : 0
  return { port, url: `http://127.0.0.1:${port}`, close: () => server.close(), [Symbol.asyncDispose]: () => server.close() }
}

/** Resolves when a handler has ended, with the code of its error. */
function watched(handle: (context: RequestContext) => Promise<unknown>) {
  let settle: (code: string) => void
  const ended = new Promise<string>(resolve => {
    settle = resolve
  })
  const wrapped = async (context: RequestContext): Promise<undefined> => {
    settle(await codeOf(() => handle(context)).catch(() => 'none'))
    return undefined
  }
  return { handle: wrapped, ended }
}

const raw = (port: number) => {
  const socket = connect(port, '127.0.0.1')
  socket.on('error', () => {})
  socket.write('GET /stream HTTP/1.1\r\nHost: x\r\n\r\n')
  return socket
}

test('events come as they are written, and a client resumes with the id of the last one', async () => {
  const seen: (string | undefined)[] = []
  await using at = await serve(async ({ stream, headers }) => {
    seen.push(headers['last-event-id'] as string | undefined, headers.accept)
    const answer = stream({ contentType: EVENT_STREAM })
    for (let n = 1; n <= 3; n++) await answer.write(formatEvent({ id: `x-${n}`, event: 'count', data: `${n}` }))
    answer.end()
    return undefined
  })
  const events = []
  for await (const event of requestEvents({ url: at.url, path: '/stream', silenceMs: 5_000, after: 'x-0' })) events.push(event)
  assert.equal(
    events.map(({ id, event, data }) => [id, event, data]),
    [1, 2, 3].map(n => [`x-${n}`, 'count', `${n}`]),
  )
  assert.equal(seen, ['x-0', EVENT_STREAM])
})

test('pieces that part within a character and a line make whole events', async () => {
  const bytes = Buffer.from(formatEvent({ id: 'å-1', event: 'note', data: 'ett år 🐦' }))
  const server = createServer(async socket => {
    await once(socket, 'data')
    socket.write('HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n')
    for (const byte of bytes) {
      socket.write(Uint8Array.of(byte))
      await new Promise(resolve => setImmediate(resolve))
    }
    socket.end()
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  const url = `http://127.0.0.1:${typeof address === 'object' ? address?.port : 0}`
  const events = []
  for await (const event of requestEvents({ url, path: '/', silenceMs: 5_000 })) events.push(event)
  server.close()
  assert.equal(events, [{ id: 'å-1', event: 'note', data: 'ett år 🐦' }])
})

test('a server that falls silent is lost; comments keep it alive', async () => {
  await using at = await serve(async ({ stream, signal }) => {
    const answer = stream({ contentType: EVENT_STREAM })
    for (let n = 0; n < 8; n++) {
      await answer.write(formatComment('keep-alive'))
      await new Promise(resolve => setTimeout(resolve, 50))
    }
    await answer.write(formatEvent({ id: '1', event: 'note', data: '' }))
    await once(signal, 'abort')
    return undefined
  })
  const events = requestEvents({ url: at.url, path: '/stream', silenceMs: 200 })
  assert.is((await events.next()).value?.id, '1', 'after 400 ms of comments')
  assert.is(await codeOf(() => events.next()), 'CONNECTION_LOST')
})

test('a client that reads nothing is disconnected after the stall limit, and costs one write until then', async () => {
  let written = 0
  const { handle, ended } = watched(async ({ stream }) => {
    const answer = stream({ contentType: EVENT_STREAM, stallMs: 100 })
    for (;;) {
      await answer.write('x'.repeat(64 * 1024))
      written += 1
    }
  })
  await using at = await serve(handle)
  const socket = raw(at.port)
  await once(socket, 'readable')
  assert.is(await ended, 'CONNECTION_LOST')
  assert.ok(written * 64 * 1024 < 32 * 1024 * 1024, `${written} writes: what the kernel takes, and no more`)
  socket.destroy()
})

test('a client that goes away ends the handler, whether it writes or waits', async () => {
  for (const isWriting of [true, false]) {
    const { handle, ended } = watched(async ({ stream, signal }) => {
      const answer = stream({ contentType: EVENT_STREAM })
      await answer.write(': here\n\n')
      while (isWriting) await answer.write('x'.repeat(64 * 1024))
      await once(signal, 'abort')
      throw signal.reason
    })
    await using at = await serve(handle)
    const socket = raw(at.port)
    await once(socket, 'data')
    socket.destroy()
    assert.is(await ended, 'CONNECTION_LOST')
  }
})

test('shutdown ends every stream in order: what was written arrives, handlers end, and a client that does not read holds nothing up', async () => {
  const handlers: Promise<string>[] = []
  const routes = await serve(async context => {
    const one = watched(async ({ stream, signal }) => {
      const answer = stream({ contentType: 'application/x-ndjson' })
      await answer.write('{"n":1}\n')
      if (context.query.has('fill')) for (;;) await answer.write('x'.repeat(64 * 1024))
      await once(signal, 'abort')
      throw signal.reason
    })
    handlers.push(one.ended)
    return one.handle(context)
  })
  const stuck = connect(routes.port, '127.0.0.1')
  stuck.on('error', () => {})
  stuck.write('GET /stream?fill HTTP/1.1\r\nHost: x\r\n\r\n')
  const lines = requestLines<{ n: number }>({ url: routes.url, path: '/stream' })
  assert.is((await lines.next()).value.n, 1)
  await eventually(async () => handlers.length === 2 || undefined, { ms: 5_000, what: 'both handlers' })
  const rest = (async () => {
    for await (const _ of lines);
    return 'ended'
  })()
  const before = performance.now()
  await routes.close()
  assert.ok(performance.now() - before < 2_000)
  assert.is(await rest, 'ended', 'in order: not as a broken connection')
  assert.equal(await Promise.all(handlers), ['CONNECTION_LOST', 'CONNECTION_LOST'])
  stuck.destroy()
})

test('a refusal before the stream begins is an error like any other', async () => {
  await using at = await serve(async () => {
    throw new TypeError('a bug')
  })
  const error = await requestEvents({ url: at.url, path: '/stream', silenceMs: 1_000 })
    .next()
    .catch(thrown => thrown)
  assert.ok(hasCode(error, 'INTERNAL'))
})

test.run()
