// Names with several addresses (RFC 8305): each engine tries all of them, soon after one another, and an error names
// each.
import { execFile } from 'node:child_process'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { connectByName } from '../../transport/connect-by-name.ts'
import { Attempts, interleave } from '../../transport/happy-eyeballs.ts'
import { createQuicEngine } from '../../transport/quic.ts'
import { selectEngine } from '../../transport/select.ts'
import { createTlsEngine } from '../../transport/tls.ts'
import type { Connection, Engine, Listener } from '../../transport/types.ts'
import { createWebTransportEngine } from '../../transport/webtransport.ts'
import { GodwitError } from '../../wire/errors.ts'
import { assert, suite, thrown } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'

const test = suite('transport/names', { ms: 30_000 })
const run = promisify(execFile)
const BOTH = ['::1', '127.0.0.1']

test('families take turns, beginning with the first; the order within a family stays; doubles go', () => {
  assert.equal(interleave(['a::1', 'a::2', 'a::3', '10.0.0.1', '10.0.0.2', 'a::1']), ['a::1', '10.0.0.1', 'a::2', '10.0.0.2', 'a::3'])
  assert.equal(interleave(['10.0.0.1', 'a::1', '10.0.0.2']), ['10.0.0.1', 'a::1', '10.0.0.2'])
  assert.equal(interleave([]), [])
})

test('the next address has its turn after the delay, or at once when one has failed; each once', () => {
  const attempts = new Attempts(['a::1', 'a::2', '10.0.0.1'], 250)
  assert.equal([attempts.due(0), attempts.due(249), attempts.waitMs(100)], ['a::1', undefined, 150])
  assert.is(attempts.due(250), '10.0.0.1')
  attempts.failed()
  assert.equal([attempts.waitMs(260), attempts.due(260), attempts.due(9_999), attempts.waitMs(9_999)], [0, 'a::2', undefined, undefined])
})

test('all fail: the error names each address with its own reason; a silent one does not hide one that refuses', async () => {
  const reasons: Record<string, GodwitError> = {
    '::1': new GodwitError('CONNECT_TIMEOUT', 'no answer within 5 s'),
    '127.0.0.1': new GodwitError('CONNECT_FAILED', 'refused'),
  }
  const error = (await thrown(() =>
    connectByName(
      { host: 'gw.example', port: 7 },
      { what: 'X', resolve: async () => BOTH, connectOne: ({ host }) => Promise.reject(reasons[host]) },
    ),
  )) as GodwitError
  assert.is(error.code, 'CONNECT_FAILED')
  assert.is(error.message, 'X to gw.example:7: ::1: no answer within 5 s; 127.0.0.1: refused')
})

test('a name without an address, and one whose resolver is silent, end with a code that says so', async () => {
  const connectOne = () => Promise.reject(new Error('never'))
  const failing = Object.assign(new Error('no such name'), { code: 'ENOTFOUND' })
  const by = (resolve: () => Promise<string[]>) =>
    thrown(() => connectByName({ host: 'gw.example', port: 7, timeoutMs: 50 }, { what: 'X', resolve, connectOne }))
  assert.match(String(await by(() => Promise.reject(failing))), /CONNECT_FAILED|'gw.example' has no address: ENOTFOUND/)
  assert.match(String(await by(async () => [])), /has no address/)
  assert.is(((await by(() => new Promise(() => {}))) as GodwitError).code, 'CONNECT_TIMEOUT')
})

test('the second to connect is closed, and an aborted signal ends all attempts with its reason', async () => {
  const closed: string[] = []
  const made = (host: string) => ({ remoteAddress: host, close: async () => void closed.push(host) }) as unknown as Connection
  const late = Promise.withResolvers<void>()
  const connection = await connectByName(
    { host: 'gw.example', port: 7 },
    {
      what: 'X',
      resolve: async () => BOTH,
      async connectOne({ host }) {
        if (host === '::1') await late.promise
        return made(host)
      },
    },
  )
  assert.is(connection.remoteAddress, '127.0.0.1')
  late.resolve()
  await new Promise(resolve => setTimeout(resolve, 10))
  assert.equal(closed, ['::1'])
  const stop = new AbortController()
  const silent = connectByName(
    { host: 'gw.example', port: 7, signal: stop.signal },
    {
      what: 'X',
      resolve: async () => BOTH,
      connectOne: ({ signal }) => new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason))),
    },
  )
  stop.abort(new Error('enough'))
  assert.is(String(await thrown(() => silent)), 'Error: enough')
})

const resolve = async () => BOTH
const engines = [createQuicEngine({ resolve, idleTimeoutMs: 4_000 }), createTlsEngine({ resolve }), createWebTransportEngine({ resolve })]

async function withListener(engine: Engine, host: string, use: (listener: Listener) => Promise<void>): Promise<void> {
  const listener = await engine.listen({ host, port: 0 })
  try {
    await use(listener)
  } finally {
    await listener.close()
  }
}

for (const engine of engines) {
  const skip = (await engine.available()).ok ? false : `${engine.name} does not load here`
  for (const host of ['127.0.0.1', '::1'])
    test(
      `${engine.name}: a name with ::1 first and 127.0.0.1 after it, gateway on ${host}: connects within a second or two`,
      () =>
        withListener(engine, host, async ({ address }) => {
          const beganMs = performance.now()
          const connection = await engine.connect({ host: 'gw.example', port: address.port, timeoutMs: 5_000 })
          assert.ok(performance.now() - beganMs < 3_000, `${Math.round(performance.now() - beganMs)} ms`)
          await connection.close()
        }),
      { skip },
    )
}

const [quic] = engines
const quicMissing = (await quic!.available()).ok ? false : 'QUIC does not load here'

test(
  'auto takes QUIC where the name has ::1 first and the gateway is on IPv4',
  () =>
    withListener(quic!, '127.0.0.1', async ({ address }) => {
      const endpoints = { quic: { host: 'gw.example', port: address.port }, tls: { host: 'gw.example', port: address.port } }
      const { connection, selection } = await selectEngine({ prefer: 'auto', engines, endpoints })
      assert.is(selection.engine, 'quic')
      await connection.close()
    }),
  { skip: quicMissing },
)

const child = fileURLToPath(new URL('../support/connect-to-name.ts', import.meta.url))
const mountMissing = await run('unshare', ['-m', 'true']).then(
  () => false as const,
  (error: Error) => `mount namespaces are needed: ${error.message}`,
)

test(
  'the system resolves a name to both (hosts file of a mount namespace): each engine connects to a gateway on IPv4',
  async () => {
    await using folder = await tempFolder()
    const hosts = join(folder.path, 'hosts')
    await writeFile(hosts, '::1 gw.test\n127.0.0.1 gw.test\n127.0.0.1 localhost\n')
    const script = `mount --bind "${hosts}" /etc/hosts && "${process.execPath}" "${child}" gw.test`
    const { stdout } = await run('unshare', ['-m', 'sh', '-c', script], { timeout: 25_000 })
    const { addresses, connected } = JSON.parse(stdout) as { addresses: string[]; connected: string[] }
    assert.equal([...addresses].sort(), ['127.0.0.1', '::1'])
    assert.equal(connected, quicMissing ? ['tls', 'webtransport'] : ['quic', 'tls', 'webtransport'])
  },
  { skip: mountMissing },
)

test.run()
