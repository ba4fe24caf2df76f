// JSON RPC over a stream: answers, limits, heartbeats, and everything a peer can send that it should not.
import { createFrameStream } from '../../transport/frames.ts'
import { createMemoryEngine } from '../../transport/memory.ts'
import { createRpc, REQUESTS_MAX, type RpcOptions } from '../../transport/rpc.ts'
import type { Stream } from '../../transport/types.ts'
import { GodwitError } from '../../wire/errors.ts'
import { encodeFrame } from '../../wire/frame.ts'
import { silentLog } from '../../wire/log.ts'
import { toJson } from '../../wire/schema.ts'
import { allow, FRAME, FRAME_LIMITS } from '../../wire/types.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('transport: rpc', { ms: 10_000 })

/** Two ends of one stream; `near` writes first, so that `far` exists. */
async function streams(): Promise<{ near: Stream; far: Stream }> {
  const engine = createMemoryEngine()
  const listener = await engine.listen({ host: '127.0.0.1', port: 0 })
  const client = await engine.connect({ host: '127.0.0.1', port: listener.address.port })
  const server = await listener.accept()
  const near = await client.openStream()
  await near.write(encodeFrame(FRAME.PONG, new Uint8Array()))
  return { near, far: (await server?.acceptStream()) as Stream }
}

const options = (more: Partial<RpcOptions> = {}): RpcOptions => ({ handlers: {}, log: silentLog, ...more })

async function peers(near: Partial<RpcOptions> = {}, far: Partial<RpcOptions> = {}) {
  const ends = await streams()
  return { near: createRpc(ends.near, options(near)), far: createRpc(ends.far, options(far)), ...{ stream: ends.far } }
}

/** An RPC peer against a raw stream that says whatever the test wants. */
async function against(more: Partial<RpcOptions> = {}) {
  const ends = await streams()
  return { rpc: createRpc(ends.far, options(more)), raw: ends.near, frames: createFrameStream(ends.near) }
}
const rpcFrame = (value: unknown) => encodeFrame(FRAME.RPC, toJson(value))

test('answers requests both ways, out of order', async () => {
  const slow = Promise.withResolvers<string>()
  const { near, far } = await peers(
    { handlers: { hello: async () => 'from near' } },
    { handlers: { slow: () => slow.promise, fast: async n => n } },
  )
  const first = near.request('slow', {})
  assert.is(await near.request('fast', 7), 7)
  assert.is(await far.request('hello', null), 'from near')
  slow.resolve('late')
  assert.is(await first, 'late')
  near.close()
  assert.is(await far.closed, null)
})

test("a handler's error comes back with its code, an unknown method with one, and the link lives on", async () => {
  const { near } = await peers(
    {},
    {
      handlers: {
        refuse: async () => {
          throw new GodwitError('PREFLIGHT_CPU', 'no such CPU')
        },
        bug: async () => {
          throw new Error('secret detail')
        },
        ok: async () => 1,
      },
    },
  )
  assert.is(await codeOf(() => near.request('refuse', {})), 'PREFLIGHT_CPU')
  assert.is(await codeOf(() => near.request('bug', {})), 'INTERNAL')
  for (const name of ['nothing', 'constructor', '__proto__', 'toString'])
    assert.is(await codeOf(() => near.request(name, {})), 'VERSION_UNSUPPORTED')
  assert.is(await near.request('ok', {}), 1)
  near.close()
})

test('a request ends by its deadline, its signal, or the end of the link', async () => {
  const { near, far } = await peers({}, { handlers: { never: () => new Promise(() => {}) } })
  assert.is(await codeOf(() => near.request('never', {}, { timeoutMs: 20 })), 'TIMEOUT')
  const stop = new AbortController()
  const aborted = near.request('never', {}, { signal: stop.signal })
  stop.abort(new GodwitError('MIGRATION_CANCELLED'))
  assert.is(await codeOf(() => aborted), 'MIGRATION_CANCELLED')
  const lost = near.request('never', {})
  far.close(new GodwitError('SITE_DUPLICATE', 'another is here'))
  assert.is(await codeOf(() => lost), 'SITE_DUPLICATE')
  assert.is((await near.closed)?.code, 'SITE_DUPLICATE', 'the peer says why it leaves')
  assert.is(await codeOf(() => near.request('never', {})), 'SITE_DUPLICATE')
})

test('bounds outstanding requests, running handlers, and the size of requests and answers', async () => {
  const { near } = await peers({}, { handlers: { never: () => new Promise(() => {}), big: async () => 'x'.repeat(FRAME_LIMITS.RPC) } })
  assert.is(await codeOf(() => near.request('never', 'x'.repeat(FRAME_LIMITS.RPC))), 'LIMIT_EXCEEDED')
  assert.is(await codeOf(() => near.request('big', {})), 'LIMIT_EXCEEDED')
  for (let i = 0; i < REQUESTS_MAX; i++) near.request('never', {}).catch(() => {})
  assert.is(await codeOf(() => near.request('never', {})), 'LIMIT_EXCEEDED')
  near.close()

  const { rpc, raw, frames } = await against({ handlers: { never: () => new Promise(() => {}) } })
  for (let id = 1; id <= REQUESTS_MAX + 1; id++) await raw.write(rpcFrame({ id, method: 'never', params: {} }))
  const answer = JSON.parse(new TextDecoder().decode((await frames.next(allow('RPC')))?.payload))
  assert.is(answer.id, REQUESTS_MAX + 1)
  assert.is(answer.error.code, 'LIMIT_EXCEEDED')
  rpc.close()
})

test('notifications arrive, and one that is not understood does no harm', async () => {
  const seen: unknown[] = []
  const { near, far } = await peers(
    {},
    {
      handlers: { ok: async () => 1 },
      onNotify(method, params) {
        if (method === 'bad') throw new GodwitError('FRAME_MALFORMED')
        seen.push([method, params])
      },
    },
  )
  near.notify('bad', {})
  near.notify('good', { a: 1 })
  assert.is(await near.request('ok', {}), 1)
  assert.equal(seen, [['good', { a: 1 }]])
  far.close()
})

test('heartbeats keep a quiet link; silence ends it', async () => {
  const quick = { heartbeatMs: 10, silenceMs: 80 }
  const { near } = await peers(quick, { ...quick, handlers: { ok: async () => 1 } })
  await new Promise(resolve => setTimeout(resolve, 200))
  assert.is(await near.request('ok', {}), 1)
  near.close()
  // A peer that is stopped but whose connection stays: nobody reads or writes at the other end.
  const { rpc } = await against(quick)
  assert.is((await rpc.closed)?.code, 'CONNECTION_LOST')
})

test('malformed frames end the link with their code, and the peer is told', async () => {
  const cases: [string, Uint8Array, string][] = [
    ['an unknown type', encodeFrame(99, new Uint8Array()), 'FRAME_TYPE'],
    ['a type of another stream', encodeFrame(FRAME.JOIN, toJson({})), 'FRAME_TYPE'],
    ['a length beyond the limit', new Uint8Array([0xff, 0xff, 0xff, 0xff, FRAME.RPC]), 'FRAME_TOO_LARGE'],
    ['no JSON', encodeFrame(FRAME.RPC, new Uint8Array([0xff, 0x00])), 'FRAME_MALFORMED'],
    ['JSON of another shape', rpcFrame([1, 2]), 'FRAME_MALFORMED'],
    ['a negative id', rpcFrame({ id: -1, method: 'x', params: 1 }), 'FRAME_MALFORMED'],
    ['an extra field', rpcFrame({ id: 1, method: 'x', params: 1, more: 1 }), 'FRAME_MALFORMED'],
    ['an answer to nothing', rpcFrame({ id: 1, result: 1 }), 'FRAME_MALFORMED'],
    ['a bad error body', rpcFrame({ id: 1, error: { code: 1 } }), 'FRAME_MALFORMED'],
  ]
  for (const [what, bytes, code] of cases) {
    const { rpc, raw, frames } = await against()
    await raw.write(bytes)
    assert.is((await rpc.closed)?.code, code, what)
    const told = await frames.next(allow('ERROR'))
    assert.is(JSON.parse(new TextDecoder().decode(told?.payload)).code, code, `${what}: told`)
  }
})

test('works at every split of its bytes, and every truncation is a coded error', async () => {
  const bytes = Buffer.concat([rpcFrame({ id: 1, method: 'ok', params: { n: 5 } }), rpcFrame({ method: 'note', params: {} })])
  const frameEnd = rpcFrame({ id: 1, method: 'ok', params: { n: 5 } }).length
  for (let cut = 1; cut < bytes.length; cut++) {
    const { rpc, raw, frames } = await against({ handlers: { ok: async () => 'yes' } })
    await raw.write(bytes.subarray(0, cut))
    await new Promise(resolve => setImmediate(resolve))
    await raw.write(bytes.subarray(cut))
    assert.ok(await frames.next(allow('RPC')))
    rpc.close()

    const short = await against({ handlers: { ok: async () => 'yes' } })
    await short.raw.write(bytes.subarray(0, cut))
    await short.raw.end()
    const why = await short.rpc.closed
    assert.is(why?.code, cut === frameEnd ? undefined : 'FRAME_TRUNCATED', `cut at ${cut}`)
  }
})

test('frames hand on the rest of their stream untouched', async () => {
  for (const chunk of [1, 3, 7, 1000]) {
    const { near, far } = await streams()
    const all = Buffer.concat([encodeFrame(FRAME.JOIN, toJson({ a: 1 })), Buffer.from('raw bytes that look like nothing')])
    const frames = createFrameStream(far)
    await frames.next(allow('PONG'))
    const sending = (async () => {
      for (let at = 0; at < all.length; at += chunk) await near.write(all.subarray(at, at + chunk))
      await near.end()
    })()
    assert.is((await frames.next(allow('JOIN')))?.type, FRAME.JOIN)
    const rest: Uint8Array[] = []
    const raw = frames.rest()
    for (let part = await raw.read(); part; part = await raw.read()) rest.push(part)
    assert.is(Buffer.concat(rest).toString(), 'raw bytes that look like nothing')
    await sending
  }
})

test.run()
