// Requests that no client of ours sends, on raw sockets: each has a coded answer or a closed connection within bounds,
// none is INTERNAL, none costs a line at error.
import { connect } from 'node:net'
import { within } from '../../ops/deadline.ts'
import { type Route, startHttpServer } from '../../ops/http.ts'
import { createRandom } from '../../sim-network/random.ts'
import type { Log } from '../../wire/log.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('ops/http: odd requests', { ms: 60_000 })
const TOKEN = 'secret'
const AUTH = `authorization: Bearer ${TOKEN}\r\n`
const ANSWER_BYTES_MAX = 8 * 1024

const routes: Route[] = [
  { method: 'GET', path: '/open', open: true, handle: () => ({ body: { ok: true } }) },
  { method: 'GET', path: '/v1/things/:name', handle: ({ params, query }) => ({ body: { ...params, q: query.get('q') } }) },
  { method: 'POST', path: '/v1/things', handle: async ({ json }) => ({ body: { got: await json() } }) },
]

type Server = { port: number; lines: string[] } & AsyncDisposable

async function server(): Promise<Server> {
  const lines: string[] = []
  const note = (level: string) => (event: string, fields?: object) => void lines.push(`${level} ${event} ${JSON.stringify(fields)}`)
  const log: Log = { debug() {}, info() {}, warn: note('warn'), error: note('error'), child: () => log }
  const timeouts = { headersMs: 700, requestMs: 1_000, checkEveryMs: 100 }
  const { address, close } = await startHttpServer({ listen: { host: '127.0.0.1', port: 0 }, routes, token: TOKEN, timeouts, log })
  return { port: 'port' in address ? address.port : 0, lines, [Symbol.asyncDispose]: close }
}

/** Sends `parts`, a moment between them, and gives all that comes until the server closes. */
async function speak(port: number, parts: (string | Buffer)[], { end = false, ms = 10_000 } = {}): Promise<string> {
  const socket = connect({ host: '127.0.0.1', port })
  let text = ''
  socket.setEncoding('latin1').on('data', chunk => {
    text += chunk
  })
  socket.on('error', () => {})
  const closed = new Promise<void>(resolve => socket.once('close', () => resolve()))
  for (const part of parts) {
    socket.write(part)
    await new Promise(resolve => setTimeout(resolve, 5))
  }
  if (end) socket.end()
  try {
    await within(closed, { ms, what: `the end of ${JSON.stringify(String(parts[0]).slice(0, 60))}` })
  } finally {
    socket.destroy()
  }
  return text
}

const request = (line: string, headers = '') => `${line}\r\nhost: x\r\n${AUTH}${headers}connection: close\r\n\r\n`
const upgradeOf = (line: string, to: string) => request(line).replace('connection: close', `connection: upgrade\r\nupgrade: ${to}`)

/** What is sent, and the statuses that are right; 'closed': no answer is needed. */
const CASES: [string, (string | Buffer)[], (number | 'closed')[]][] = [
  ['two slashes', [request('GET // HTTP/1.1')], [404]],
  ['many slashes', [request(`GET ${'/'.repeat(4000)} HTTP/1.1`)], [404]],
  ['//host', [request('GET //[ HTTP/1.1')], [404]],
  ['a broken escape', [request('GET /v1/things/%zz HTTP/1.1')], [404]],
  ['half a surrogate', [request('GET /v1/things/%ed%a0%80 HTTP/1.1')], [404]],
  ['an escaped NUL', [request('GET /v1/things/a%00b HTTP/1.1')], [200]],
  ['an escaped slash', [request('GET /v1/things/a%2fb HTTP/1.1')], [200]],
  ['dots', [request('GET /v1/things/../../etc HTTP/1.1')], [404]],
  ['a broken query', [request('GET /v1/things/a?q=%zz&&&=%00 HTTP/1.1')], [200]],
  ['a fragment', [request('GET /v1/things/a#b HTTP/1.1')], [200, 400]],
  [
    'bytes beyond ASCII',
    [Buffer.concat([Buffer.from('GET /v1/things/'), Buffer.of(0xff, 0xfe), Buffer.from(' HTTP/1.1\r\nhost: x\r\n\r\n')])],
    [400, 401],
  ],
  ['the absolute form', [request('GET http://other/v1/things/a HTTP/1.1')], [200]],
  ['the absolute form without a path', [request('GET http://other HTTP/1.1')], [404]],
  ['the absolute form, broken', [request('GET http://[/v1 HTTP/1.1')], [400, 404]],
  ['another scheme', [request('GET gopher://x/ HTTP/1.1')], [400]],
  ['the asterisk form', [request('OPTIONS * HTTP/1.1')], [400]],
  ['no path', [request('GET x HTTP/1.1')], [400]],
  ['HEAD', [request('HEAD /v1/things/a HTTP/1.1')], [405]],
  ['TRACE', [request('TRACE /open HTTP/1.1')], [405]],
  ['CONNECT', [request('CONNECT other:443 HTTP/1.1')], [405]],
  ['an unknown method', [request('BREW /open HTTP/1.1')], [400]],
  ['an upgrade that nobody offers', [upgradeOf('GET /open HTTP/1.1', 'websocket')], [400]],
  ['an upgrade of an odd path', [upgradeOf('GET // HTTP/1.1', 'raw')], [400]],
  ['an expectation', [request('GET /open HTTP/1.1', 'expect: tea\r\n')], [417]],
  ['HTTP/0.9', ['GET /open\r\n'], [400, 408]],
  ['HTTP/1.0', [`GET /open HTTP/1.0\r\n\r\n`], [200]],
  ['HTTP/2 preface', ['PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'], [400]],
  ['HTTP/9.9', ['GET /open HTTP/9.9\r\nhost: x\r\n\r\n'], [400]],
  ['a TLS hello', [Buffer.from('16030100a5010000a10303', 'hex')], [400]],
  ['nothing but zeros', [Buffer.alloc(4096)], [400]],
  ['no host', ['GET /open HTTP/1.1\r\n\r\n'], [200]],
  ['two content lengths', [request('POST /v1/things HTTP/1.1', 'content-length: 2\r\ncontent-length: 3\r\n'), '{}'], [400]],
  ['length and chunks at once', [request('POST /v1/things HTTP/1.1', 'content-length: 2\r\ntransfer-encoding: chunked\r\n'), '{}'], [400]],
  ['a negative length', [request('POST /v1/things HTTP/1.1', 'content-length: -1\r\n')], [400]],
  ['a length of no number', [request('POST /v1/things HTTP/1.1', 'content-length: 9e9\r\n')], [400]],
  ['a huge length', [request('POST /v1/things HTTP/1.1', 'content-length: 99999999999999999999\r\n')], [400]],
  ['a broken chunk', [request('POST /v1/things HTTP/1.1', 'transfer-encoding: chunked\r\n'), 'zz\r\n'], [400, 503]],
  ['an unknown coding', [request('POST /v1/things HTTP/1.1', 'transfer-encoding: gzip\r\n'), '{}'], [400]],
  ['a body that is no JSON', [request('POST /v1/things HTTP/1.1', 'content-length: 3\r\n'), '{]}'], [400]],
  ['a body too large', [request('POST /v1/things HTTP/1.1', 'content-length: 3000000\r\n'), Buffer.alloc(3_000_000, 32)], [429, 'closed']],
  [
    'a body that nobody asked for',
    [request('POST /nowhere HTTP/1.1', 'content-length: 3000000\r\n'), Buffer.alloc(3_000_000, 32)],
    [404, 'closed'],
  ],
  ['huge headers', [request('GET /open HTTP/1.1', `x: ${'y'.repeat(100_000)}\r\n`)], [431]],
  ['thousands of headers', [request('GET /open HTTP/1.1', 'a: b\r\n'.repeat(5_000))], [431]],
  ['a NUL in a header', [request('GET /open HTTP/1.1', 'x: a\0b\r\n')], [400]],
  ['a folded header', [request('GET /open HTTP/1.1', 'x: a\r\n b\r\n')], [200, 400]],
  ['a space before the colon', [request('GET /open HTTP/1.1', 'x : a\r\n')], [400]],
  ['headers that never end', ['GET /open HTTP/1.1\r\nhost: x\r\n', 'a: b\r\n'], [408]],
  ['a body that never ends', [request('POST /v1/things HTTP/1.1', 'content-length: 10\r\n'), '{'], [408, 503]],
  ['two at once', [`GET /open HTTP/1.1\r\nhost: x\r\n\r\n${request('GET // HTTP/1.1')}`], [200]],
]

for (const [name, parts, right] of CASES)
  test(`${name}: ${right.join(' or ')}`, async () => {
    await using at = await server()
    const text = await speak(at.port, parts)
    const status = text === '' ? 'closed' : Number(/^HTTP\/1\.1 (\d{3}) /.exec(text)?.[1])
    assert.ok(right.includes(status), `${status}: ${text.slice(0, 300)}`)
    assert.ok(text.length < ANSWER_BYTES_MAX, `${text.length} bytes`)
    if (typeof status === 'number' && status >= 400 && !parts[0]!.toString().startsWith('HEAD')) assert.match(text, /"code":"[A-Z_]+"/)
    assert.not.match(text, 'INTERNAL')
    assert.equal(at.lines, [], 'nothing is logged')
  })

test('400 requests with bytes changed, doubled, cut and swapped: each ends within bounds, none is INTERNAL, nothing is logged', async () => {
  await using at = await server()
  const seed = Number(process.env['GODWIT_SEED'] ?? Date.now() % 1_000_000)
  const random = createRandom(seed)
  const pick = (below: number) => Math.floor(random.next() * below)
  const models = [
    request('GET /v1/things/a?q=b HTTP/1.1'),
    `${request('POST /v1/things HTTP/1.1', 'content-length: 7\r\ncontent-type: application/json\r\n')}{"a":1}`,
    `${request('POST /v1/things HTTP/1.1', 'transfer-encoding: chunked\r\n')}7\r\n{"a":1}\r\n0\r\n\r\n`,
    request('GET /open HTTP/1.1', 'upgrade: raw\r\nexpect: 100-continue\r\n'),
  ]
  const mutate = (text: string): Buffer => {
    let bytes = Buffer.from(text)
    for (let i = 0; i <= pick(4); i++) {
      const [at, to] = [pick(bytes.length), pick(bytes.length)].sort((a, b) => a - b) as [number, number]
      const ways = [
        () => bytes.fill(pick(256), at, at + 1),
        () => Buffer.concat([bytes.subarray(0, to), bytes.subarray(at)]),
        () => Buffer.concat([bytes.subarray(0, at), bytes.subarray(to)]),
        () => Buffer.concat([bytes.subarray(at), bytes.subarray(0, at)]),
      ]
      bytes = ways[pick(ways.length)]!()
      if (bytes.length === 0) return Buffer.from('\r\n')
    }
    return bytes
  }
  for (let round = 0; round < 10; round++) {
    const requests = Array.from({ length: 40 }, () => mutate(models[pick(models.length)]!))
    const answers = await Promise.all(requests.map(bytes => speak(at.port, [bytes], { end: true })))
    answers.forEach((text, i) => {
      const told = `seed ${seed}: ${JSON.stringify(requests[i]!.toString('latin1'))}: ${text.slice(0, 300)}`
      assert.ok(text.length < ANSWER_BYTES_MAX && !text.includes('INTERNAL'), told)
      assert.ok(text === '' || /^HTTP\/1\.1 \d{3} /.test(text), told)
    })
    assert.equal(at.lines, [], `seed ${seed}`)
  }
})

test('a client that hangs up in its headers, in its body, or before the answer: nothing is logged', async () => {
  await using at = await server()
  for (const parts of [
    ['GET /op'],
    [request('POST /v1/things HTTP/1.1', 'content-length: 10\r\n'), '{'],
    [request('GET /open HTTP/1.1')],
  ]) {
    const socket = connect({ host: '127.0.0.1', port: at.port })
    for (const part of parts) socket.write(part)
    await new Promise(resolve => setTimeout(resolve, 20))
    socket.resetAndDestroy()
  }
  await new Promise(resolve => setTimeout(resolve, 100))
  assert.equal(at.lines, [])
  assert.match(await speak(at.port, [request('GET /open HTTP/1.1')]), '200 OK')
})

test('beyond this machine nothing listens without TLS', async () => {
  const { log } = { log: { debug() {}, info() {}, warn() {}, error() {}, child: () => log } as Log }
  for (const host of ['0.0.0.0', '::', '192.0.2.1', 'gateway.example'])
    assert.is(await codeOf(() => startHttpServer({ listen: { host, port: 0 }, routes, token: TOKEN, log })), 'CONFIG_INVALID', host)
})

test.run()
