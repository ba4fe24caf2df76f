import { createEngines, selectEngine } from '../../transport/select.ts'
import type { Connection, Engine, EngineName } from '../../transport/types.ts'
import { GodwitError } from '../../wire/errors.ts'
import { assert, codeOf, suite, thrown } from '../support/suite.ts'

const test = suite('engine selection', { ms: 20_000 })
const HOST = '127.0.0.1'
const everywhere = { quic: { host: HOST, port: 1 }, tls: { host: HOST, port: 2 }, webtransport: { host: HOST, port: 3 } }

/** An engine whose connect() does as told. Connections close and say who they are. */
function fake(name: EngineName, connect: (signal?: AbortSignal) => Promise<unknown>, reason?: string): Engine & { closed: string[] } {
  const closed: string[] = []
  return {
    name,
    closed,
    available: async () => (reason ? { ok: false, reason } : { ok: true }),
    listen: () => Promise.reject(new Error('not here')),
    async connect({ signal }) {
      await connect(signal)
      return { engine: name, close: async (why: string) => void closed.push(why) } as unknown as Connection
    },
  }
}
const silent = (signal?: AbortSignal) => new Promise((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)))
const fails = () => Promise.reject(new GodwitError('CONNECT_FAILED', 'refused'))
const after = (ms: number) => () => new Promise(resolve => setTimeout(resolve, ms))

test('the first engine of the order that connects is taken, with what was tried before', async () => {
  const engines = [fake('quic', after(0), 'no binary'), fake('tls', fails), fake('webtransport', after(1))]
  const { connection, selection } = await selectEngine({ prefer: 'auto', engines, endpoints: everywhere })
  assert.is(connection.engine, 'webtransport')
  assert.is(selection.engine, 'webtransport')
  assert.equal(
    selection.tried.map(({ engine, outcome }) => [engine, outcome]),
    [
      ['quic', 'ENGINE_UNAVAILABLE: no binary'],
      ['tls', 'CONNECT_FAILED: refused'],
      ['webtransport', 'connected'],
    ],
  )
})

test('a silent engine does not hold up the next, and is given up when that connects', async () => {
  const engines = [fake('quic', silent), fake('tls', after(5))]
  const started = performance.now()
  const { connection, selection } = await selectEngine({ prefer: 'auto', engines, endpoints: everywhere, staggerMs: 50 })
  assert.is(connection.engine, 'tls')
  assert.ok(performance.now() - started < 5_000)
  assert.is(selection.tried[0]?.outcome, 'given up')
})

test('a connection that comes second is closed', async () => {
  const slow = fake('quic', after(150))
  const { connection } = await selectEngine({
    prefer: 'auto',
    engines: [slow, fake('tls', after(1))],
    endpoints: everywhere,
    staggerMs: 20,
  })
  assert.is(connection.engine, 'tls')
  await after(300)()
  assert.equal(slow.closed, ['another engine connected first'])
})

test('a preferred engine is the only one tried, and its error is the error', async () => {
  const engines = [fake('quic', after(1)), fake('tls', fails)]
  const error = await thrown(() => selectEngine({ prefer: 'tls', engines, endpoints: everywhere }))
  assert.ok(error instanceof GodwitError)
  assert.is(error.code, 'CONNECT_FAILED')
  assert.is(error.message, 'tls: CONNECT_FAILED: refused')
})

test('when all fail, the error tells of each', async () => {
  const engines = [fake('quic', after(0), 'no binary'), fake('tls', fails)]
  const error = await thrown(() => selectEngine({ prefer: 'auto', engines, endpoints: everywhere }))
  assert.match(String(error), /quic: ENGINE_UNAVAILABLE: no binary; tls: CONNECT_FAILED: refused/)
})

test('no endpoint is CONFIG_INVALID, and an aborted signal ends the search with its reason', async () => {
  assert.is(await codeOf(() => selectEngine({ prefer: 'auto', engines: [fake('quic', silent)], endpoints: {} })), 'CONFIG_INVALID')
  const abort = new AbortController()
  setTimeout(() => abort.abort(new Error('enough')), 30)
  const engines = [fake('quic', silent), fake('tls', silent)]
  assert.match(String(await thrown(() => selectEngine({ prefer: 'auto', engines, endpoints: everywhere, signal: abort.signal }))), /enough/)
})

test('each real engine connects by its name, and auto takes the first that loads', async () => {
  const engines = createEngines()
  const loaded: Engine[] = []
  for (const engine of engines) if ((await engine.available()).ok) loaded.push(engine)
  const listeners = await Promise.all(loaded.map(engine => engine.listen({ host: HOST, port: 0 })))
  const endpoints = Object.fromEntries(loaded.map(({ name }, i) => [name, listeners[i]!.address]))
  const opened: Connection[] = []
  for (const [i, { name }] of loaded.entries()) {
    const { connection } = await selectEngine({ prefer: name, engines, endpoints })
    assert.is((await listeners[i]!.accept())?.engine, name)
    opened.push(connection)
  }
  const { connection, selection } = await selectEngine({ prefer: 'auto', engines, endpoints })
  assert.is(selection.engine, loaded[0]?.name)
  assert.is((await listeners[0]!.accept())?.engine, selection.engine)
  await Promise.all([...opened, connection].map(it => it.close()))
  await Promise.all(listeners.map(listener => listener.close()))
})

test.run()
