// The QUIC engine: quinn by its native binding. Enters and leaves: what types.ts says.
// Always holds: a native call that cannot be cancelled never keeps one of our promises waiting after reset, loss or close; the native stream is
// kept until both halves are over, because dropping it (garbage collection) would finish its write half as if its end had been meant.
// Measured (2.1.1, loopback, 2 cores): 2.0-2.8 Gbit/s for 64 KiB - 1 MiB reads and writes; slower below 16 KiB.
import { createHash } from 'node:crypto'
import { lookup } from 'node:dns/promises'
import { isIP } from 'node:net'
import { sleep, within } from '../ops/deadline.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'
import { createGuard } from './guard.ts'
import { createInbox } from './inbox.ts'
import { createIdentity, loadQuic, type NativeConnection, type NativeServer, type NativeStream, parseRemote } from './quic-native.ts'
import type { CloseReason, Connection, Engine, Listener, Stream } from './types.ts'
import { enlargeReceiveBuffer } from './udp-buffer.ts'

export type QuicOptions = {
  /** A silent peer is lost after this. Default 15_000. Both ends take the smaller of their two. */
  idleTimeoutMs?: number
  /** Default a third of the idle timeout. */
  keepAliveMs?: number
  /** What the peer may send on one stream before we read. Default 8 MiB: 100 Mbit/s at 600 ms. */
  streamWindowBytes?: number
  /** The same over all streams of a connection. Default 128 MiB. Streams that are not read must together stay below it, or they stop the others. */
  connectionWindowBytes?: number
  /** Streams the peer may have open at once. Default 1024. */
  maxStreams?: number
}
type Settings = Required<QuicOptions>

/** quinn allocates this much for every read; larger ones gave nothing. */
const READ_BYTES = 128 * 1024
/** A reset waits behind one native write at most, so writes go down in pieces. */
const WRITE_BYTES = 128 * 1024
/** quinn finishes a handshake inside accept: with one accept pending, one silent client would hold up all others until it times out. An accept that
 * waits costs a promise; so many silent clients at once hold up the next. */
const PARALLEL_HANDSHAKES = 256
const CLOSE_MS = 1_000
const BACKLOG_CONNECTIONS = 256
/** UDP socket buffers; the kernel clamps them to net.core.[rw]mem_max. */
const SOCKET_BUFFER_BYTES = 4 * 1024 * 1024

const textOf = (error: unknown) => (error instanceof Error ? error.message : String(error))

type Wrapped = {
  stream: Stream
  /** Our side closes: fails our promises and nothing else, since a reset would take back what was written. */
  lose(error: GodwitError): void
}

function createStream(native: NativeStream, id: number, lost: () => GodwitError | undefined, onOver: () => void): Wrapped {
  const guard = createGuard()
  const halves = { write: true, read: true }
  const over = (half: 'write' | 'read') => {
    halves[half] = false
    if (!halves.write && !halves.read) onOver()
  }
  let ended = false
  let reading = false
  let turn: Promise<unknown> = Promise.resolve()

  const fail = (error: GodwitError) => {
    if (guard.error || (!halves.write && !halves.read)) return
    guard.fail(error)
    // Each may wait behind a pending call of its half. That call ends when the peer reads, writes or learns of the other half's reset.
    const done = [native.resetWrite().catch(() => {}), native.stopRead().catch(() => {})]
    Promise.all(done).then(() => {
      over('write')
      over('read')
    })
  }
  /** The peer's reset of one half takes both: that is the seam's meaning of reset. */
  const mapped = (error: unknown): GodwitError => {
    if (guard.error) return guard.error
    const message = textOf(error)
    const isReset = message.includes('reset') || message.includes('stopped')
    const mine = isReset
      ? new GodwitError('STREAM_RESET', `stream ${id}: ${message}`, { cause: error })
      : (lost() ?? new GodwitError('CONNECTION_LOST', `stream ${id}: ${message}`, { cause: error }))
    if (isReset) fail(mine)
    return mine
  }
  const put = async (bytes: Uint8Array) => {
    try {
      for (let at = 0; at < bytes.length; at += WRITE_BYTES) {
        if (guard.error) throw guard.error
        // A copy: after reset() rejects this promise the native side still reads the buffer, which the caller may by then have
        // reused or transferred to a worker (that would crash the process).
        await guard.run(native.write(Buffer.from(bytes.subarray(at, at + WRITE_BYTES))))
      }
    } catch (error) {
      throw mapped(error)
    }
  }
  const stream: Stream = {
    id,
    async write(bytes) {
      if (ended) throw new Error('write after end()')
      const mine = turn.then(() => put(bytes))
      turn = mine.catch(() => {})
      await mine
    },
    async end() {
      if (ended) return
      ended = true
      await turn
      if (guard.error) throw guard.error
      await guard.run(native.finishWrite()).catch(error => {
        throw mapped(error)
      })
      over('write')
    },
    async read() {
      if (reading) throw new Error('two reads at once on one stream')
      if (guard.error) throw guard.error
      if (!halves.read) return null
      reading = true
      try {
        const bytes = await guard.run(native.read(READ_BYTES))
        if (bytes === null) over('read')
        // The native buffer is READ_BYTES large whatever it holds: a queue of small messages must not pin one each.
        return bytes && bytes.length < READ_BYTES / 8 ? Buffer.from(bytes) : bytes
      } catch (error) {
        throw mapped(error)
      } finally {
        reading = false
      }
    },
    reset: reason => fail(new GodwitError('STREAM_RESET', `stream ${id} reset${reason ? `: ${reason}` : ''}`)),
  }
  return { stream, lose: guard.fail }
}

/** quinn's words for why a connection ended (quinn-proto ConnectionError). */
function reasonOf(error: unknown): CloseReason {
  const message = textOf(error)
  const clean = message.startsWith('closed by peer') || message === 'closed'
  return { code: clean ? 'CLOSED' : 'CONNECTION_LOST', message: message === 'timed out' ? 'the peer went silent' : message }
}

function createConnection(native: NativeConnection, serverKey: Uint8Array, side: 'client' | 'server', maxStreams: number): Connection {
  const { host, port } = parseRemote(native.remoteMultiaddr())
  const inbox = createInbox<Stream>(maxStreams)
  const live = new Set<Wrapped>()
  const closed = Promise.withResolvers<CloseReason>()
  const guard = createGuard()

  // Streams are not told of a loss: their native calls fail by themselves, after what has come was read.
  const finish = (reason: CloseReason) => {
    if (guard.error) return
    guard.fail(new GodwitError('CONNECTION_LOST', `connection to ${host}:${port}: ${reason.message}`))
    inbox.end()
    closed.resolve(reason)
  }
  const adopt = (stream: NativeStream, opener: 'client' | 'server'): Stream => {
    const wrapped = createStream(
      stream,
      Number(stream.id()) * 2 + (opener === 'server' ? 1 : 0),
      () => guard.error,
      () => live.delete(wrapped),
    )
    live.add(wrapped)
    return wrapped.stream
  }
  const acceptAll = async () => {
    for (;;) {
      const stream = adopt(await native.inboundStream(), side === 'client' ? 'server' : 'client')
      if (!inbox.push(stream)) stream.reset('too many streams wait')
    }
  }
  // The accept loop ends with the connection, and its error is the only place where the binding tells why.
  acceptAll().catch(error => finish(reasonOf(error)))

  return {
    engine: 'quic',
    remoteAddress: `${host}:${port}`,
    binding: createHash('sha256').update(serverKey).digest(),
    async openStream() {
      try {
        return adopt(await guard.run(native.outboundStream()), side)
      } catch (error) {
        throw guard.error ?? toGodwitError(error, 'CONNECTION_LOST')
      }
    },
    acceptStream: () => inbox.next(),
    stats() {
      const { pathCwnd, pathLostPackets, pathSentPackets, udpTxBytes, udpRxBytes } = native.stats()
      return {
        rttMs: native.rtt(),
        congestionWindowBytes: Number(pathCwnd),
        sentBytes: Number(udpTxBytes),
        receivedBytes: Number(udpRxBytes),
        lostPackets: Number(pathLostPackets),
        sentPackets: Number(pathSentPackets),
        congestion: 'cubic',
      }
    },
    async close(reason) {
      if (guard.error) return
      finish({ code: 'CLOSED', message: reason ?? 'closed' })
      for (const stream of live) stream.lose(guard.error!)
      // CONNECTION_CLOSE overtakes what is still on its way: give the last words (an error, a farewell) about a round trip to arrive.
      await sleep(Math.min(Math.max(2 * native.rtt(), 20), 1000))
      native.abort()
    },
    closed: closed.promise,
  }
}

async function addressOf(host: string): Promise<{ ip: string; family: 0 | 1 }> {
  const { address, family } = isIP(host) ? { address: host, family: isIP(host) } : await lookup(host)
  return { ip: address, family: family === 6 ? 1 : 0 }
}

/** Wraps a native server: PARALLEL_HANDSHAKES accept calls feed one inbox. */
function createListener(server: NativeServer, host: string, ownKey: Uint8Array, { maxStreams }: Settings): Listener {
  const inbox = createInbox<Connection>(BACKLOG_CONNECTIONS)
  const live = new Set<Connection>()
  let closing: Promise<void> | undefined
  const wrap = (native: NativeConnection) => {
    try {
      return createConnection(native, ownKey, 'server', maxStreams)
    } catch (error) {
      // A peer whose key is not Ed25519.
      native.abort()
      throw error
    }
  }
  const acceptAll = async () => {
    while (!closing) {
      try {
        const native = await server.inboundConnection()
        const connection = wrap(native)
        if (!inbox.push(connection)) {
          await connection.close('too many connections wait')
          continue
        }
        live.add(connection)
        connection.closed.then(() => live.delete(connection))
      } catch (error) {
        // One client's failed handshake; only the end of the endpoint ends the loop.
        if (textOf(error) === 'server closed') return
        await sleep(10)
      }
    }
  }
  const close = async () => {
    await Promise.all([...live].map(connection => connection.close('the listener closed')))
    // The binding waits for every connection to drain; a client that died in its handshake holds it up for the idle timeout. The wait goes on
    // behind our back (and keeps the port until then), but nobody waits for it.
    await Promise.race([server.abort(), sleep(CLOSE_MS)])
  }
  for (let i = 0; i < PARALLEL_HANDSHAKES; i++) void acceptAll()
  return {
    address: { host, port: server.port() },
    accept: () => inbox.next(),
    close() {
      if (!closing) {
        closing = close()
        inbox.end()
      }
      return closing
    },
  }
}

/** An engine over quinn with its own ephemeral Ed25519 identity. Listener.close() also closes the connections that it accepted: they share its socket. */
export function createQuicEngine(options: QuicOptions = {}): Engine {
  const idleTimeoutMs = options.idleTimeoutMs ?? 15_000
  const settings: Settings = {
    idleTimeoutMs,
    keepAliveMs: options.keepAliveMs ?? Math.ceil(idleTimeoutMs / 3),
    streamWindowBytes: options.streamWindowBytes ?? 8 * 1024 * 1024,
    connectionWindowBytes: options.connectionWindowBytes ?? 128 * 1024 * 1024,
    maxStreams: options.maxStreams ?? 1024,
  }
  let prepared: ReturnType<typeof prepare> | undefined
  const prepare = () => {
    const { native } = loadQuic()
    const { proto, publicKey } = createIdentity()
    const config = new native.QuinnConfig({
      privateKeyProto: proto,
      handshakeTimeout: settings.idleTimeoutMs,
      maxIdleTimeout: settings.idleTimeoutMs,
      keepAliveInterval: settings.keepAliveMs,
      maxConcurrentStreamLimit: settings.maxStreams,
      maxStreamData: settings.streamWindowBytes,
      maxConnectionData: settings.connectionWindowBytes,
      receiveBufferSize: SOCKET_BUFFER_BYTES,
      sendBufferSize: SOCKET_BUFFER_BYTES,
      shutdownTimeout: 1000,
    })
    return { native, config, publicKey }
  }
  const ready = () => {
    try {
      prepared ??= prepare()
      return prepared
    } catch (error) {
      throw new GodwitError('ENGINE_UNAVAILABLE', `quic: ${textOf(error)}`, { cause: error })
    }
  }
  return {
    name: 'quic',
    async available() {
      try {
        ready()
        return { ok: true, detail: loadQuic().detail }
      } catch (error) {
        return { ok: false, reason: textOf(error) }
      }
    },
    async listen({ host, port, signal }) {
      signal?.throwIfAborted()
      const { native, config, publicKey } = ready()
      const { ip } = await addressOf(host)
      try {
        const server = new native.Server(config, ip, port)
        await enlargeReceiveBuffer(server.port())
        const listener = createListener(server, host, publicKey, settings)
        signal?.addEventListener('abort', () => void listener.close(), { once: true })
        return listener
      } catch (error) {
        throw new GodwitError('CONNECT_FAILED', `cannot listen on UDP ${host}:${port}: ${textOf(error)}`, { cause: error })
      }
    },
    async connect({ host, port, timeoutMs = 10_000, signal }) {
      signal?.throwIfAborted()
      const { native, config } = ready()
      const what = `QUIC to ${host}:${port}`
      const deadline = performance.now() + timeoutMs
      const left = () => ({ ms: Math.max(0, deadline - performance.now()), what, code: 'CONNECT_TIMEOUT' as const, signal })
      let client: InstanceType<typeof native.Client> | undefined
      try {
        const { ip, family } = await within(addressOf(host), left())
        client = new native.Client(config, family)
        const inner = await within(client.outboundConnection(ip, port), left())
        const connection = createConnection(inner, parseRemote(inner.remoteMultiaddr()).publicKey, 'client', settings.maxStreams)
        const abort = () => client?.abort()
        // The socket belongs to this connection alone. closed() of the native side comes after the farewell was sent.
        inner.closed().then(abort, abort)
        return connection
      } catch (error) {
        client?.abort()
        if (signal?.aborted) throw signal.reason
        if (textOf(error) === 'timed out') throw new GodwitError('CONNECT_TIMEOUT', `${what}: no answer`, { cause: error })
        throw error instanceof GodwitError ? error : new GodwitError('CONNECT_FAILED', `${what}: ${textOf(error)}`, { cause: error })
      }
    },
  }
}
