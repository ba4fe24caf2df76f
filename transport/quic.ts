// The QUIC engine: quinn by its native binding. Interface: types.ts. Always holds: a native call that cannot be
// cancelled never blocks a promise of this engine after reset, loss or close; the native stream is kept until both
// halves have ended, because dropping it (garbage collection) would finish its write half like a clean end. Measured
// (2.1.1, loopback, 2 cores): 2.0-2.8 Gbit/s for 64 KiB - 1 MiB reads and writes; slower below 16 KiB.
import { createHash } from 'node:crypto'
import { lookup } from 'node:dns/promises'
import { isIP } from 'node:net'
import { sleep, within } from '../ops/deadline.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'
import { AcceptSlots } from './accept-slots.ts'
import { type AddressOptions, connectByName, type Resolve } from './connect-by-name.ts'
import { createGuard } from './guard.ts'
import { BACKLOG_CONNECTIONS, createInbox } from './inbox.ts'
import { InitialGate } from './initial-gate.ts'
import {
  createIdentity,
  loadQuic,
  type NativeConnection,
  type NativeQuic,
  type NativeServer,
  type NativeStream,
  parseRemote,
} from './quic-native.ts'
import { Stranger, type StrangerLimits, TOO_MUCH } from './stranger.ts'
import type { CloseReason, Connection, Engine, Listener, ListenOptions, Stream } from './types.ts'
import { enlargeReceiveBuffer } from './udp-buffer.ts'
import { setUdpFilter } from './udp-filter.ts'

type QuicOptions = {
  /** A peer that sends nothing for this time is lost. Default 15_000. The smaller value of both ends applies. */
  idleTimeoutMs?: number
  /** Default a third of the idle timeout. */
  keepAliveMs?: number
  /** Receive window of one stream. Default 8 MiB: 100 Mbit/s at 600 ms. */
  streamWindowBytes?: number
  /**
   * Receive window of a connection. Default 128 MiB. Unread streams must together stay below it, or they block the
   * others.
   */
  connectionWindowBytes?: number
  /** Streams the peer may have open at once. Default 1024. */
  maxStreams?: number
  /** How names of servers become addresses. Default: the system's way. */
  resolve?: Resolve | undefined
}
type Settings = Required<Omit<QuicOptions, 'resolve'>>

/** quinn allocates this much for every read; larger reads were not faster. */
const READ_BYTES = 128 * 1024
/** A reset waits for at most one native write, so writes are split into pieces. */
const WRITE_BYTES = 128 * 1024
/** See accept-slots.ts. The same limit as for unauthenticated peers of the gateway. */
const ACCEPT = { idle: 64, handshakesMax: 1024 }
/** quinn's messages for a failed handshake that had begun; other messages may be about its first packet. */
const HANDSHAKE_ENDS = /^(timed out|closed|reset)/
/** Intervals at which blocked calls are replaced: at rest, and while clients arrive faster. */
const ACCEPT_LOOK_MS = { rest: 100, busy: 10 }
const CLOSE_MS = 1_000
/** UDP socket buffers; the kernel clamps them to net.core.[rw]mem_max. */
const SOCKET_BUFFER_BYTES = 4 * 1024 * 1024

const textOf = (error: unknown) => (error instanceof Error ? error.message : String(error))

/**
 * Interval of the check of unauthenticated peers: the binding has one window for all connections of a server, so a peer
 * that sends too much can only be detected and closed.
 */
const STRANGERS_LOOK_MS = 25
/**
 * UDP bytes for a handshake and for acknowledgements, in addition to the bytes that an unauthenticated peer may send.
 */
const HANDSHAKE_BYTES = 32 * 1024

type Wrapped = {
  stream: Stream
  /** This side closes: reject only the promises, because a reset would discard written bytes. */
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
    // Each may wait behind a pending call of its half. That call ends when the peer reads, writes or learns of the
    // other half's reset.
    const done = [native.resetWrite().catch(() => {}), native.stopRead().catch(() => {})]
    Promise.all(done).then(() => {
      over('write')
      over('read')
    })
  }
  /** The peer's reset of one half ends both halves, as types.ts defines it. */
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
        // A copy: after reset() rejects this promise the native side still reads the buffer, which the caller may by
        // then have reused or transferred to a worker (that would crash the process).
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
  return { code: clean ? 'CLOSED' : 'CONNECTION_LOST', message: message === 'timed out' ? 'the peer stopped responding' : message }
}

type ConnectionOptions = {
  native: NativeConnection
  serverKey: Uint8Array
  side: 'client' | 'server'
  maxStreams: number
  /** Absent: the peer may do all at once. */
  strangers?: StrangerLimits | undefined
  /** The peer, at this address, has proved who it is. */
  onTrusted?: (address: string) => void
}
/**
 * `look`: ends the connection of an unauthenticated peer that has sent too much; false once the peer is authenticated.
 */
type Watched = { connection: Connection; look(): boolean }

function createConnection({ native, serverKey, side, maxStreams, strangers, onTrusted }: ConnectionOptions): Watched {
  const { host, port } = parseRemote(native.remoteMultiaddr())
  const stranger = new Stranger(strangers)
  const inbox = createInbox<Stream>(maxStreams)
  const live = new Set<Wrapped>()
  const closed = Promise.withResolvers<CloseReason>()
  const guard = createGuard()

  // Streams get no event for a loss: their native calls fail by themselves after the received bytes are read.
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
  /** Frees the buffers of its streams: the native side keeps them until they are read or stopped. */
  const throwOut = () => {
    finish({ code: 'CONNECTION_LOST', message: TOO_MUCH })
    for (const { stream } of live) stream.reset(TOO_MUCH)
    native.abort()
  }
  const acceptAll = async () => {
    for (;;) {
      const stream = adopt(await native.inboundStream(), side === 'client' ? 'server' : 'client')
      if (!stranger.mayOpen()) return throwOut()
      if (!inbox.push(stream)) stream.reset('too many unaccepted streams')
    }
  }
  // The accept loop ends with the connection, and its error is the only place where the binding tells why.
  acceptAll().catch(error => finish(reasonOf(error)))

  const look = () => {
    if (guard.error || stranger.isTrusted) return false
    const isTooMuch = strangers && Number(native.stats().udpRxBytes) > strangers.bytes + HANDSHAKE_BYTES
    if (isTooMuch) throwOut()
    return !isTooMuch
  }
  const connection: Connection = {
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
    trust() {
      stranger.trust()
      onTrusted?.(host)
    },
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
      // CONNECTION_CLOSE overtakes data in transit: give the last data (an error, a goodbye) about a round trip to
      // arrive.
      await sleep(Math.min(Math.max(2 * native.rtt(), 20), 1000))
      native.abort()
    },
    closed: closed.promise,
  }
  return { connection, look }
}

/** Checks connections until they are authenticated. */
function createWatch(): { add(watched: Watched): void; stop(): void } {
  const watched = new Set<Watched>()
  let timer: NodeJS.Timeout | undefined
  const stop = () => {
    clearInterval(timer)
    timer = undefined
  }
  const lookAll = () => {
    for (const each of watched) if (!each.look()) watched.delete(each)
    if (watched.size === 0) stop()
  }
  return {
    add(each) {
      watched.add(each)
      timer ??= setInterval(lookAll, STRANGERS_LOOK_MS)
    },
    stop,
  }
}

/**
 * Keeps accept calls pending at the server until it is closed. `take` receives each connection with a completed
 * handshake.
 */
function acceptFrom(
  server: NativeServer,
  gate: InitialGate,
  take: (native: NativeConnection) => Promise<void>,
): { handshakes(): number; stop(): void } {
  const slots = new AcceptSlots(ACCEPT)
  let isStopped = false
  let timer: NodeJS.Timeout | undefined
  const nextConnection = async (): Promise<NativeConnection | undefined> => {
    try {
      const native = await server.inboundConnection()
      slots.end(true)
      return native
    } catch (error) {
      const message = textOf(error)
      if (message === 'server closed') isStopped = true
      slots.end(HANDSHAKE_ENDS.test(message))
      return undefined
    }
  }
  const acceptOne = async () => {
    const native = await nextConnection()
    if (native) take(native).catch(() => {})
    if (!isStopped) fill()
  }
  const fill = (): number => {
    const more = slots.more(server.stats().acceptedHandshakes)
    for (let i = 0; i < more; i++) void acceptOne()
    return more
  }
  const look = () => {
    if (isStopped) return
    const filter = gate.step(slots.handshakes(server.stats().acceptedHandshakes))
    if (filter !== undefined) void setUdpFilter(server.port(), filter)
    const more = fill()
    timer = setTimeout(look, more > 0 ? ACCEPT_LOOK_MS.busy : ACCEPT_LOOK_MS.rest).unref()
  }
  look()
  return {
    handshakes: () => (isStopped ? 0 : slots.handshakes(server.stats().acceptedHandshakes)),
    stop() {
      isStopped = true
      clearTimeout(timer)
    },
  }
}

/** Wraps a native server: accept calls feed one inbox. */
function createListener(
  server: NativeServer,
  { host, strangers }: ListenOptions,
  serverKey: Uint8Array,
  { maxStreams }: Settings,
): Listener {
  const watch = createWatch()
  const gate = new InitialGate(ACCEPT.handshakesMax)
  const inbox = createInbox<Connection>(BACKLOG_CONNECTIONS)
  const live = new Set<Connection>()
  let closing: Promise<void> | undefined
  const wrap = (native: NativeConnection) => {
    try {
      return createConnection({ native, serverKey, side: 'server', maxStreams, strangers, onTrusted: address => gate.know(address) })
    } catch (error) {
      // A peer whose key is not Ed25519.
      native.abort()
      throw error
    }
  }
  const accepting = acceptFrom(server, gate, async native => {
    const watched = wrap(native)
    const { connection } = watched
    if (watched.look()) watch.add(watched)
    if (!inbox.push(connection)) return await connection.close('too many unaccepted connections')
    live.add(connection)
    connection.closed.then(() => live.delete(connection))
  })
  const close = async () => {
    accepting.stop()
    watch.stop()
    await Promise.all([...live].map(connection => connection.close('the listener closed')))
    // The binding waits for every connection to drain; a client that failed during its handshake delays it for the idle
    // timeout. The native side keeps waiting (and keeps the port), but close() does not.
    await Promise.race([server.abort(), sleep(CLOSE_MS)])
  }
  return {
    address: { host, port: server.port() },
    accept: () => inbox.next(),
    handshakes: accepting.handshakes,
    close() {
      if (!closing) {
        closing = close()
        inbox.end()
      }
      return closing
    },
  }
}

type Prepared = { native: NativeQuic; config: InstanceType<NativeQuic['QuinnConfig']> }

async function connectOne(
  { native, config }: Prepared,
  maxStreams: number,
  { host, port, timeoutMs, signal }: AddressOptions,
): Promise<Connection> {
  const what = `QUIC to ${host}:${port}`
  let client: InstanceType<typeof native.Client> | undefined
  try {
    client = new native.Client(config, isIP(host) === 6 ? 1 : 0)
    const inner = await within(client.outboundConnection(host, port), { ms: timeoutMs, what, code: 'CONNECT_TIMEOUT', signal })
    const serverKey = parseRemote(inner.remoteMultiaddr()).publicKey
    const { connection } = createConnection({ native: inner, serverKey, side: 'client', maxStreams })
    const abort = () => client?.abort()
    // The socket belongs to this connection alone. closed() of the native side comes after the farewell was sent.
    inner.closed().then(abort, abort)
    return connection
  } catch (error) {
    client?.abort()
    if (signal.aborted) throw signal.reason
    if (textOf(error) === 'timed out') throw new GodwitError('CONNECT_TIMEOUT', `${what}: no answer`, { cause: error })
    throw error instanceof GodwitError ? error : new GodwitError('CONNECT_FAILED', `${what}: ${textOf(error)}`, { cause: error })
  }
}

/**
 * An engine over quinn with its own ephemeral Ed25519 identity. Listener.close() also closes the connections that it
 * accepted: they share its socket.
 */
export function createQuicEngine({ resolve, ...options }: QuicOptions = {}): Engine {
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
    async listen(options) {
      const { host, port, signal } = options
      signal?.throwIfAborted()
      const { native, config, publicKey } = ready()
      try {
        const ip = isIP(host) ? host : (await lookup(host)).address
        const server = new native.Server(config, ip, port)
        await enlargeReceiveBuffer(server.port())
        const listener = createListener(server, options, publicKey, settings)
        signal?.addEventListener('abort', () => void listener.close(), { once: true })
        return listener
      } catch (error) {
        throw new GodwitError('CONNECT_FAILED', `cannot listen on UDP ${host}:${port}: ${textOf(error)}`, { cause: error })
      }
    },
    connect: options => connectByName(options, { what: 'QUIC', resolve, connectOne: one => connectOne(ready(), settings.maxStreams, one) }),
  }
}
