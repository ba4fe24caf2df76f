// What every transport engine must do, as tests over a factory: `transportCompliance('quic', o => createQuicEngine(o),
// {...}).run()`.
// Enters: a factory of engines and the bounds it states. Leaves: a suite. An engine that cannot load here is skipped
// with its reason.
import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { createServer } from 'node:net'
import { createInterface } from 'node:readline'
import { sleep, within } from '../../ops/deadline.ts'
import { numberFromEnvironment } from '../../ops/script.ts'
import type { Connection, Engine, Listener, Stream } from '../../transport/types.ts'
import { assert, codeOf, type Suite, suite, thrown } from '../support/suite.ts'

type EngineUnderTest = {
  make: (options: { idleTimeoutMs?: number }) => Engine
  /** A writer whose peer does not read stops before this many bytes. */
  backpressureBytes: number
  /** How much the long-stream test sends; GODWIT_TEST_BYTES overrides. Default 1 GiB. */
  longStreamBytes?: number
  /** Why there is no process to kill. */
  inProcess?: string
  /** The engine's listeners speak this; what listens silently for the time-out test. */
  protocol: 'udp' | 'tcp' | 'none'
}

const HOST = '127.0.0.1'
const MiB = 1024 * 1024
/**
 * Growth of resident memory that a test of endless data may show: buffers of both ends (they share this process) and
 * garbage not yet collected.
 */
const RSS_GROWTH_BYTES = 400 * MiB

type Pair = { client: Connection; server: Connection; listener: Listener; engine: Engine } & AsyncDisposable

/** A connected pair on loopback; disposal closes all of it. */
async function connectPair(engine: Engine): Promise<Pair> {
  const listener = await engine.listen({ host: HOST, port: 0 })
  const [client, server] = await within(Promise.all([engine.connect({ host: HOST, port: listener.address.port }), listener.accept()]), {
    ms: 8_000,
    what: 'a pair of connections',
  })
  if (!server) throw new Error('accept() gave null')
  return {
    client,
    server,
    listener,
    engine,
    async [Symbol.asyncDispose]() {
      await within(Promise.all([client.close(), server.close(), listener.close()]), { ms: 8_000, what: 'closing a pair' })
    },
  }
}

/** A stream that both sides hold; its first byte has been written and read. */
async function streamPair(from: Connection, to: Connection): Promise<[Stream, Stream]> {
  const mine = await from.openStream()
  await mine.write(Uint8Array.of(1))
  const theirs = await to.acceptStream()
  if (!theirs) throw new Error('acceptStream() gave null')
  assert.equal([...((await theirs.read()) ?? [])], [1])
  return [mine, theirs]
}

async function readAll(stream: Stream): Promise<Buffer> {
  const chunks: Uint8Array[] = []
  for (;;) {
    const chunk = await stream.read()
    if (!chunk) return Buffer.concat(chunks)
    assert.ok(chunk.length > 0, 'a read gives at least one byte')
    chunks.push(chunk)
  }
}

async function echo(stream: Stream): Promise<void> {
  for (;;) {
    const chunk = await stream.read()
    if (!chunk) return stream.end()
    await stream.write(chunk)
  }
}

async function echoAll(connection: Connection): Promise<void> {
  for (;;) {
    const stream = await connection.acceptStream()
    if (!stream) return
    echo(stream).catch(() => {})
  }
}

/** Reads until the stream fails and gives the code. Bytes that were on their way may come first. */
const drainCode = (stream: Stream) =>
  codeOf(async () => {
    while (await stream.read());
  })

const noise = (bytes: number, seed: number) => {
  const out = Buffer.alloc(bytes)
  let x = seed | 1
  for (let i = 0; i < bytes; i++) {
    x = (Math.imul(x, 1664525) + 1013904223) | 0
    out[i] = x >>> 24
  }
  return out
}

/** Writes for ever; tells how far it came. */
function flood(stream: Stream): { written(): number; stop(): Promise<number> } {
  const block = noise(64 * 1024, 7)
  let bytes = 0
  let running = true
  const done = (async () => {
    while (running) {
      await stream.write(block)
      bytes += block.length
    }
    await stream.end()
  })().catch(() => {})
  return {
    written: () => bytes,
    async stop() {
      running = false
      await done
      return bytes
    },
  }
}

/** Waits until the number is the same three times, `quietMs` apart: a busy machine stalls now and then. */
async function settled(value: () => number, quietMs: number): Promise<number> {
  for (let last = -1, same = 0; ; await sleep(quietMs)) {
    same = value() === last ? same + 1 : 0
    last = value()
    if (same === 3) return last
  }
}

function streamTests(
  test: Suite,
  { make, backpressureBytes, longStreamBytes = 1024 * MiB }: EngineUnderTest,
  skip: string | undefined,
): void {
  test(
    'what is written comes back from an echo',
    async () => {
      await using pair = await connectPair(make({}))
      void echoAll(pair.server)
      const stream = await pair.client.openStream()
      await stream.write(Buffer.from('godwit'))
      await stream.end()
      assert.is((await readAll(stream)).toString(), 'godwit')
      assert.is(await stream.read(), null)
    },
    { skip },
  )

  test(
    'bytes keep their order whatever the sizes of writes, and a buffer may be reused after its write',
    async () => {
      await using pair = await connectPair(make({}))
      const [out, into] = await streamPair(pair.client, pair.server)
      const sent = createHash('sha256')
      const scratch = new Uint8Array(700_000)
      const writing = (async () => {
        for (let i = 0; i < 60; i++) {
          const piece = scratch.subarray(0, [1, 13, 4096, 65_537, 700_000][i % 5])
          piece.set(noise(Math.min(piece.length, 4096), i))
          sent.update(piece)
          await out.write(piece)
        }
        // Writes that do not wait for one another keep their order too.
        await Promise.all([1, 2, 3].map(i => out.write(noise(300_000, i))))
        for (const i of [1, 2, 3]) sent.update(noise(300_000, i))
        await out.end()
      })()
      const got = createHash('sha256')
        .update(await readAll(into))
        .digest('hex')
      await writing
      assert.is(got, sent.digest('hex'))
    },
    { skip },
  )

  test(
    `a writer whose peer does not read stops within ${(backpressureBytes / MiB).toFixed(1)} MiB, and nothing is lost`,
    async () => {
      await using pair = await connectPair(make({}))
      const [out, into] = await streamPair(pair.client, pair.server)
      const writer = flood(out)
      const stuckAt = await settled(writer.written, 200)
      assert.ok(stuckAt <= backpressureBytes, `stopped at ${stuckAt} bytes`)
      const rssBytes = process.memoryUsage().rss
      await sleep(500)
      assert.is(writer.written(), stuckAt)
      assert.ok(process.memoryUsage().rss - rssBytes < 32 * MiB, 'memory is flat while the writer waits')
      // Another stream of the connection is not held up by it.
      const [other, otherEnd] = await streamPair(pair.server, pair.client)
      await other.write(noise(200_000, 3))
      await other.end()
      assert.is((await readAll(otherEnd)).length, 200_000)
      const reading = (async () => {
        let bytes = 0
        for (let chunk = await into.read(); chunk; chunk = await into.read()) bytes += chunk.length
        return bytes
      })()
      assert.is(await writer.stop(), await reading)
    },
    { skip },
  )

  test(
    'each direction ends on its own',
    async () => {
      await using pair = await connectPair(make({}))
      const [mine, theirs] = await streamPair(pair.client, pair.server)
      await mine.end()
      assert.is(await theirs.read(), null)
      await theirs.write(Buffer.from('still open'))
      assert.is(Buffer.from((await mine.read())!).toString(), 'still open')
      await theirs.end()
      assert.is(await mine.read(), null)

      const [one, two] = await streamPair(pair.client, pair.server)
      await two.end()
      assert.is(await one.read(), null)
      await one.write(Buffer.from('late'))
      await one.end()
      assert.is((await readAll(two)).toString(), 'late')
      assert.match(String(await thrown(() => one.write(Uint8Array.of(1)))), /after end/)
    },
    { skip },
  )

  test(
    `${longStreamBytes / MiB} MiB go through one stream in bounded memory`,
    async () => {
      await using pair = await connectPair(make({}))
      const [out, into] = await streamPair(pair.client, pair.server)
      const totalBytes = numberFromEnvironment(process.env, 'GODWIT_TEST_BYTES', longStreamBytes, { min: 1 })
      const block = noise(256 * 1024, 5)
      const before = process.memoryUsage().rss
      let peak = before
      const writing = (async () => {
        for (let sent = 0; sent < totalBytes; sent += block.length) await out.write(block)
        await out.end()
      })()
      let got = 0
      let chunks = 0
      for (let chunk = await into.read(); chunk; chunk = await into.read()) {
        if (chunk[0] !== block[got % block.length]) throw new Error(`byte ${got} is wrong`)
        got += chunk.length
        if (++chunks % 256 === 0) peak = Math.max(peak, process.memoryUsage().rss)
      }
      await writing
      assert.is(got, Math.ceil(totalBytes / block.length) * block.length)
      assert.ok(peak - before < RSS_GROWTH_BYTES, `memory grew by ${Math.round((peak - before) / MiB)} MiB`)
    },
    { skip, ms: 60_000 },
  )

  test(
    '256 streams work in parallel, opened from both sides',
    async () => {
      await using pair = await connectPair(make({}))
      void echoAll(pair.server)
      void echoAll(pair.client)
      const one = async (connection: Connection, i: number) => {
        const stream = await connection.openStream()
        const bytes = noise(8_192 + i, i)
        const answer = readAll(stream)
        await stream.write(bytes)
        await sleep(5)
        await stream.end()
        assert.ok((await answer).equals(bytes), `stream ${i}`)
      }
      const opened = Array.from({ length: 256 }, (_, i) => one(i % 2 ? pair.client : pair.server, i))
      await Promise.all([...opened, ...Array.from({ length: 128 }, (_, i) => one(pair.client, i))])
    },
    { skip },
  )
}

function resetTests(test: Suite, { make }: EngineUnderTest, skip: string | undefined): void {
  test(
    "a reset rejects the peer's pending read, and both sides' later calls, with STREAM_RESET",
    async () => {
      await using pair = await connectPair(make({}))
      const [mine, theirs] = await streamPair(pair.client, pair.server)
      const theirRead = codeOf(() => theirs.read())
      const myRead = codeOf(() => mine.read())
      await sleep(20)
      mine.reset('test')
      mine.reset('twice is no error')
      assert.is(await myRead, 'STREAM_RESET')
      assert.is(await theirRead, 'STREAM_RESET')
      assert.is(await codeOf(() => mine.read()), 'STREAM_RESET')
      assert.is(await codeOf(() => mine.write(Uint8Array.of(1))), 'STREAM_RESET')
      assert.is(await codeOf(() => theirs.write(Uint8Array.of(1))), 'STREAM_RESET')
    },
    { skip },
  )

  test(
    'a reset by a reader that does not read frees a blocked writer with STREAM_RESET; other streams live on',
    async () => {
      await using pair = await connectPair(make({}))
      const [out, into] = await streamPair(pair.client, pair.server)
      const [other, otherEnd] = await streamPair(pair.client, pair.server)
      const block = noise(64 * 1024, 7)
      let bytes = 0
      const writing = codeOf(async () => {
        for (;;) {
          await out.write(block)
          bytes += block.length
        }
      })
      await settled(() => bytes, 150)
      into.reset('enough')
      assert.is(await writing, 'STREAM_RESET')
      await other.write(Buffer.from('alive'))
      assert.is(Buffer.from((await otherEnd.read())!).toString(), 'alive')
    },
    { skip },
  )

  test(
    "a blocked writer's own reset ends its write at once, and reaches the peer when that reads on",
    async () => {
      await using pair = await connectPair(make({}))
      const [out, into] = await streamPair(pair.client, pair.server)
      const block = noise(64 * 1024, 7)
      let bytes = 0
      const writing = codeOf(async () => {
        for (;;) {
          await out.write(block)
          bytes += block.length
        }
      })
      const reading = codeOf(() => out.read())
      await settled(() => bytes, 150)
      out.reset('changed my mind')
      assert.is(await writing, 'STREAM_RESET')
      assert.is(await reading, 'STREAM_RESET')
      assert.is(await drainCode(into), 'STREAM_RESET')
    },
    { skip },
  )
}

function connectionTests(test: Suite, { make, protocol, inProcess }: EngineUnderTest, skip: string | undefined): void {
  test(
    'both ends see the same channel binding, and another listener has another',
    async () => {
      await using pair = await connectPair(make({}))
      await using second = await connectPair(make({}))
      assert.is(pair.client.binding.length, 32)
      assert.equal(Buffer.from(pair.client.binding), Buffer.from(pair.server.binding))
      assert.not.equal(Buffer.from(pair.client.binding), Buffer.from(second.client.binding))
    },
    { skip },
  )

  test(
    'closing a connection rejects what waits on it with CONNECTION_LOST, at both ends',
    async () => {
      await using pair = await connectPair(make({}))
      const [mine, theirs] = await streamPair(pair.client, pair.server)
      const waits = [mine.read(), theirs.read()].map(wait => codeOf(() => wait))
      const accepts = [pair.client.acceptStream(), pair.server.acceptStream()]
      await pair.client.close('done')
      assert.equal(await Promise.all(waits), ['CONNECTION_LOST', 'CONNECTION_LOST'])
      assert.equal(await Promise.all(accepts), [null, null])
      assert.is((await pair.client.closed).code, 'CLOSED')
      assert.is((await pair.server.closed).code, 'CLOSED')
      assert.is(await codeOf(() => mine.write(Uint8Array.of(1))), 'CONNECTION_LOST')
      assert.is(await codeOf(() => pair.client.openStream()), 'CONNECTION_LOST')
      assert.is(await codeOf(() => pair.server.openStream()), 'CONNECTION_LOST')
      assert.is(await pair.server.acceptStream(), null)
    },
    { skip },
  )

  test(
    'last words that were written and ended before a close arrive',
    async () => {
      await using pair = await connectPair(make({}))
      const [mine, theirs] = await streamPair(pair.client, pair.server)
      const heard = readAll(theirs)
      await mine.write(Buffer.from('farewell'))
      await mine.end()
      await pair.client.close()
      assert.is((await heard).toString(), 'farewell')
    },
    { skip },
  )

  test(
    'accept() gives null after close(), and then nothing can connect there',
    async () => {
      const engine = make({})
      const listener = await engine.listen({ host: HOST, port: 0 })
      const waiting = listener.accept()
      await listener.close()
      assert.is(await waiting, null)
      assert.is(await listener.accept(), null)
      assert.match(
        await codeOf(() => engine.connect({ host: HOST, port: listener.address.port, timeoutMs: 700 })),
        /^CONNECT_(FAILED|TIMEOUT)$/,
      )
      // The port is free again.
      await (await engine.listen({ host: HOST, port: listener.address.port })).close()
    },
    { skip },
  )

  test(
    'closing a listener closes the connections that it accepted',
    async () => {
      await using pair = await connectPair(make({}))
      const [mine] = await streamPair(pair.client, pair.server)
      const reading = codeOf(() => mine.read())
      await pair.listener.close()
      assert.is(await reading, 'CONNECTION_LOST')
      assert.is((await pair.server.closed).code, 'CLOSED')
      assert.is((await pair.client.closed).code, 'CLOSED')
    },
    { skip },
  )

  test(
    'connecting to a silent port ends with CONNECT_TIMEOUT, and an aborted signal ends it at once',
    async () => {
      const silent = await silentPort(protocol as 'udp' | 'tcp')
      try {
        const engine = make({})
        const started = performance.now()
        assert.is(await codeOf(() => engine.connect({ host: HOST, port: silent.port, timeoutMs: 400 })), 'CONNECT_TIMEOUT')
        const abort = new AbortController()
        setTimeout(() => abort.abort(new Error('no more')), 50)
        assert.match(String(await thrown(() => engine.connect({ host: HOST, port: silent.port, signal: abort.signal }))), /no more/)
        assert.ok(performance.now() - started < 5_000)
      } finally {
        silent.close()
      }
    },
    { skip: skip ?? (protocol === 'none' && 'no port can be silent in this engine') },
  )

  test(
    'statistics are numbers',
    async () => {
      await using pair = await connectPair(make({}))
      const [mine, theirs] = await streamPair(pair.client, pair.server)
      await mine.write(noise(100_000, 1))
      await mine.end()
      await readAll(theirs)
      for (const [name, value] of Object.entries(pair.client.stats()))
        assert.ok(value === undefined || Number.isFinite(value) || name === 'congestion', name)
      assert.ok((pair.client.stats().sentBytes ?? 100_000) >= 100_000)
    },
    { skip },
  )

  for (const role of ['listen', 'connect'] as const) {
    test(
      `the death of the ${role === 'listen' ? 'server' : 'client'} by SIGKILL is seen as CONNECTION_LOST within its idle timeout`,
      async () => {
        const idleTimeoutMs = 1_500
        const engine = make({ idleTimeoutMs })
        await using stack = new AsyncDisposableStack()
        const connection = await withPeer(stack, engine, role, idleTimeoutMs)
        const stream = role === 'listen' ? await connection.openStream() : (await connection.acceptStream())!
        if (role === 'listen') await stream.write(Uint8Array.of(1))
        await stream.read()
        const reading = codeOf(() => stream.read())
        stack.adopt(connection, it => it.close())
        peers.get(stack)!.kill('SIGKILL')
        const reason = await within(connection.closed, { ms: idleTimeoutMs * 2 + 1_000, what: 'noticing the death' })
        assert.is(reason.code, 'CONNECTION_LOST', reason.message)
        assert.is(await reading, 'CONNECTION_LOST')
      },
      { skip: skip ?? inProcess, ms: 15_000 },
    )
  }
}

const peers = new WeakMap<AsyncDisposableStack, ChildProcess>()

/** Starts test/transport/peer.ts in another process and connects with it; the peer takes the role. */
async function withPeer(
  stack: AsyncDisposableStack,
  engine: Engine,
  role: 'listen' | 'connect',
  idleTimeoutMs: number,
): Promise<Connection> {
  const file = new URL('../transport/peer.ts', import.meta.url).pathname
  const listener = role === 'connect' ? await engine.listen({ host: HOST, port: 0 }) : undefined
  if (listener) stack.adopt(listener, it => it.close())
  const child = spawn(process.execPath, [file, engine.name, role, String(listener?.address.port ?? 0), String(idleTimeoutMs)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  stack.defer(() => void child.kill('SIGKILL'))
  peers.set(stack, child)
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  if (listener) {
    const connection = await within(listener.accept(), { ms: 10_000, what: 'the peer connecting' })
    if (!connection) throw new Error('accept() gave null')
    return connection
  }
  const line = await within(lines.next(), { ms: 10_000, what: 'the peer listening' })
  return engine.connect({ host: HOST, port: Number(line.value) })
}

/** A port that takes packets or connections and never says a word. */
async function silentPort(protocol: 'udp' | 'tcp'): Promise<{ port: number; close(): void }> {
  if (protocol === 'udp') {
    const socket = createSocket('udp4')
    await new Promise<void>(resolve => socket.bind(0, HOST, resolve))
    return { port: socket.address().port, close: () => void socket.close() }
  }
  const sockets = new Set<{ destroy(): void }>()
  const server = createServer(socket => {
    sockets.add(socket)
    socket.on('error', () => {})
  })
  await new Promise<void>(resolve => server.listen(0, HOST, resolve))
  return {
    port: (server.address() as { port: number }).port,
    close() {
      for (const socket of sockets) socket.destroy()
      server.close()
    },
  }
}

/** The suite for one engine; call `.run()` on it. */
export async function transportCompliance(name: string, engine: EngineUnderTest): Promise<Suite> {
  const test = suite(`${name} engine: compliance`, { ms: 15_000 })
  const availability = await engine.make({}).available()
  const skip = availability.ok ? undefined : availability.reason
  if (availability.ok) console.log(`  ${name}: ${availability.detail ?? 'loaded'}`)
  streamTests(test, engine, skip)
  resetTests(test, engine, skip)
  connectionTests(test, engine, skip)
  return test
}
