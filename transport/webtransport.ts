// The WebTransport engine: HTTP/3 if the quiche addon of @fails-components is installed, else HTTP/2 over TLS. For
// networks that allow only HTTPS. One session with `lanes` bidirectional streams, opened by the client, that our muxer
// runs over. So streams, credits, resets and heartbeats are our own, and the library's (HTTP/3 without read
// backpressure, streams of HTTP/2 that are never freed, `closed` that cannot distinguish a dead network from a goodbye)
// carry nothing. A lane begins with 4 bytes of the client: 'GW' | u8 number of lanes | u8 index. Buffers passed to the
// library are never changed: it reads them until its write resolves. The client first requests the server's certificate
// (TLS on the same port number), pins its hash, and passes the hash as `binding` to the node-gateway handshake above,
// which authenticates the server.
import { createHash, randomBytes } from 'node:crypto'
import type { Http2Session } from 'node:http2'
import * as tls from 'node:tls'
import { within } from '../ops/deadline.ts'
import { GodwitError } from '../wire/errors.ts'
import { createAdmission } from './admission.ts'
import { type AddressOptions, connectByName, type Resolve } from './connect-by-name.ts'
import { BACKLOG_CONNECTIONS, createInbox } from './inbox.ts'
import { createLinkMux, createMuxConnection, type MuxedLane, type MuxOptions, type MuxSettings, muxSettings } from './mux-connection.ts'
import { createServerCertificate } from './self-signed.ts'
import { Stranger, type StrangerLimits } from './stranger.ts'
import type { Connection, Engine, Listener, ListenOptions } from './types.ts'
import {
  guardPing,
  http2Of,
  loadWebTransport,
  onHttp2Connection,
  raiseHttp2Window,
  type WtLibrary,
  type WtServer,
  type WtSession,
  type WtStream,
} from './webtransport-library.ts'

type WebTransportOptions = MuxOptions & {
  /** Lanes of a session, chosen by the client. 1 to 16; default 4. */
  lanes?: number
  /** Do not use HTTP/3 even if it is available. */
  http2Only?: boolean
  /** Resolver of server names. Default: the system's. */
  resolve?: Resolve | undefined
}
type Settings = MuxSettings & { lanes: number; http2Only: boolean }

const PATH = '/godwit'
const MAGIC = Buffer.from('GW')
const PREAMBLE_BYTES = 4
const LANES_MAX = 16
/** From the TCP connection to the last lane's preamble. */
const JOIN_MS = 10_000
const CLOSE_MS = 1_000
/** Limits of HTTP/2 connections without a session, in total and from one address. */
const STRANGERS = { total: 256, perAddress: 64 }
/** Interval of the check of unauthenticated connections. */
const STRANGERS_LOOK_MS = 25
/** Bytes of TLS and HTTP/2, in addition to the bytes that an unauthenticated peer may send. */
const HANDSHAKE_BYTES = 64 * 1024
/** Certificates are valid for ten days (nine from now); clients reject an expired one. */
const RENEW_MS = 5 * 86_400_000
/** HTTP/2 and WebTransport windows: larger than the content of a path, because the muxer has its own credits. */
const WINDOW_BYTES = 16 * 1024 * 1024
const FLOW = { initialStreamFlowControlWindow: WINDOW_BYTES, initialSessionFlowControlWindow: WINDOW_BYTES }
/** Unsent bytes in the library above which a lane counts as full. */
const LANE_FULL_BYTES = 512 * 1024

/** Ends a session for good. Its own close() waits for a peer that may be dead. */
function endSession(session: WtSession, http2: Http2Session | undefined): void {
  try {
    session.close()
  } catch {
    // The session was not established yet.
  }
  http2?.destroy()
}

function createLane(
  stream: WtStream,
  side: 'client' | 'server',
  session: WtSession,
  settings: Settings,
  begin: { greeting?: Uint8Array; early?: Uint8Array; stranger?: Stranger },
): MuxedLane {
  const writer = stream.writable.getWriter()
  const reader = stream.readable.getReader()
  const http2 = http2Of(session)
  const count = { queued: 0, sent: 0, received: 0 }
  let full = false
  let lastWrite: Promise<unknown> = Promise.resolve()
  const lost = (error: unknown) =>
    mux.finish({ code: 'CONNECTION_LOST', message: error instanceof Error ? error.message : 'the peer closed the connection' })
  const lane = {
    send(bytes: Uint8Array): boolean {
      count.queued += bytes.length
      // Small buffers belong to Node's shared pool and must not be passed on.
      const own = bytes.length === bytes.buffer.byteLength ? bytes : new Uint8Array(bytes)
      lastWrite = writer.write(own).then(() => {
        count.queued -= own.length
        count.sent += own.length
        if (!full || count.queued > LANE_FULL_BYTES / 2) return
        full = false
        mux.drained()
      }, lost)
      if (count.queued >= LANE_FULL_BYTES) full = true
      return !full
    },
    queuedBytes: () => count.queued,
  }
  if (begin.greeting) lane.send(begin.greeting)
  const mux = createLinkMux(side, lane, settings, begin.stranger)
  const receiveAll = async () => {
    for (;;) {
      const { value, done } = await reader.read()
      if (done) return lost('ended')
      count.received += value.length
      mux.push(value)
    }
  }
  if (begin.early?.length) mux.push(begin.early)
  receiveAll().catch(lost)
  writer.closed.catch(lost)
  mux.closed.then(reason => reason.code === 'CONNECTION_LOST' && endSession(session, http2))
  return {
    mux,
    async end() {
      // The peer ends the session when it has read the goodbye; ending it here first would discard buffered bytes.
      await lastWrite
      await session.closed.catch(() => {})
    },
    destroy: () => endSession(session, http2),
    sentBytes: () => count.sent,
    receivedBytes: () => count.received,
  }
}

/** The SHA-256 of the server's certificate on TCP. */
async function probeCertificate({ host, port, serverName }: AddressOptions, signal: AbortSignal): Promise<Buffer> {
  const name = serverName === undefined ? {} : { servername: serverName }
  const socket = tls.connect({ host, port, ...name, ALPNProtocols: ['h2'], minVersion: 'TLSv1.3', rejectUnauthorized: false })
  const abort = () => void socket.destroy(new Error('given up'))
  signal.addEventListener('abort', abort, { once: true })
  try {
    if (signal.aborted) throw new Error('given up')
    await new Promise<void>((resolve, reject) => {
      socket.once('secureConnect', resolve)
      socket.on('error', reject)
      socket.once('close', () => reject(new Error('closed during the handshake')))
    })
    const certificate = socket.getPeerX509Certificate()
    if (!certificate || socket.alpnProtocol !== 'h2') throw new Error('the other side does not support HTTP/2')
    return createHash('sha256').update(certificate.raw).digest()
  } finally {
    signal.removeEventListener('abort', abort)
    socket.on('error', () => {})
    socket.destroy()
  }
}

async function open(library: WtLibrary, options: AddressOptions, settings: Settings, signal: AbortSignal): Promise<Connection> {
  const { port, timeoutMs, serverName, isOnly } = options
  // The library resolves names itself: it receives the address if there are several, else the name, for proxies that
  // route HTTPS by name.
  const host = isOnly && serverName !== undefined ? serverName : options.host
  const hash = await probeCertificate(options, signal)
  const authority = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
  const session = new library.WebTransport(`https://${authority}${PATH}`, {
    serverCertificateHashes: [{ algorithm: 'sha-256', value: hash }],
    forceReliable: settings.http2Only || !library.http3,
    quicConnectTimeout: Math.min(3_000, timeoutMs / 2),
    ...FLOW,
  })
  guardPing(http2Of(session))
  const abort = () => {
    guardPing(http2Of(session))
    endSession(session, http2Of(session))
  }
  signal.addEventListener('abort', abort, { once: true })
  session.closed.catch(() => {})
  try {
    await session.ready
    guardPing(http2Of(session))
    raiseHttp2Window(http2Of(session), WINDOW_BYTES)
    const lanes: MuxedLane[] = []
    for (let index = 0; index < settings.lanes; index++) {
      const stream = await session.createBidirectionalStream()
      lanes.push(createLane(stream, 'client', session, settings, { greeting: Buffer.concat([MAGIC, Buffer.of(settings.lanes, index)]) }))
    }
    if (signal.aborted) throw new Error('given up')
    return createMuxConnection({
      engine: 'webtransport',
      remoteAddress: `${host}:${port}`,
      binding: hash,
      lanes,
      maxStreams: settings.maxStreams,
    })
  } catch (error) {
    abort()
    throw error
  } finally {
    signal.removeEventListener('abort', abort)
  }
}

async function connectOne(options: AddressOptions, settings: Settings): Promise<Connection> {
  const { host, port, timeoutMs, signal } = options
  const what = `WebTransport to ${host}:${port}`
  const giveUp = new AbortController()
  const opening = open(await library(), options, settings, giveUp.signal)
  try {
    return await within(opening, { ms: timeoutMs, what, code: 'CONNECT_TIMEOUT', signal })
  } catch (error) {
    giveUp.abort()
    opening.then(
      connection => connection.close(),
      () => {},
    )
    if (signal.aborted) throw signal.reason
    throw error instanceof GodwitError ? error : new GodwitError('CONNECT_FAILED', `${what}: ${(error as Error).message}`, { cause: error })
  }
}

async function library(): Promise<WtLibrary> {
  try {
    return await loadWebTransport()
  } catch (error) {
    throw new GodwitError('ENGINE_UNAVAILABLE', `webtransport: ${(error as Error).message}`, { cause: error })
  }
}

/** Collects the lanes of a client's session. */
async function joinLanes(session: WtSession, binding: Uint8Array, settings: Settings, stranger: Stranger): Promise<Connection> {
  await session.ready
  const incoming = session.incomingBidirectionalStreams.getReader()
  let lanes: (MuxedLane | undefined)[] = []
  try {
    for (let have = 0, wanted = 1; have < wanted; have++) {
      const { value: stream, done } = await incoming.read()
      if (done) throw new Error('closed before all its lanes were open')
      const { count, index, early } = await readPreamble(stream)
      if (have === 0) {
        wanted = count
        lanes = Array(count)
      }
      if (count !== wanted || lanes[index]) throw new Error('a lane does not match its session')
      lanes[index] = createLane(stream, 'server', session, settings, { early, stranger })
    }
  } catch (error) {
    for (const lane of lanes) lane?.destroy()
    throw error
  }
  return createMuxConnection({
    engine: 'webtransport',
    remoteAddress: session.peerAddress ?? 'unknown',
    binding,
    lanes: lanes.filter(lane => lane !== undefined),
    maxStreams: settings.maxStreams,
    stranger,
  })
}

async function readPreamble(stream: WtStream): Promise<{ count: number; index: number; early: Buffer }> {
  const reader = stream.readable.getReader()
  let have: Buffer = Buffer.alloc(0)
  while (have.length < PREAMBLE_BYTES) {
    const { value, done } = await reader.read()
    if (done) throw new Error('closed before its preamble')
    have = Buffer.concat([have, value])
  }
  reader.releaseLock()
  const [count = 0, index = 0] = have.subarray(MAGIC.length)
  if (!have.subarray(0, MAGIC.length).equals(MAGIC) || count < 1 || count > LANES_MAX || index >= count) throw new Error('a wrong preamble')
  return { count, index, early: have.subarray(PREAMBLE_BYTES) }
}

async function startServer(
  { host, port }: ListenOptions,
  settings: Settings,
): Promise<{ server: WtServer; hash(): Uint8Array; stopRenewing(): void }> {
  const { Http2Server, HttpServer, http3 } = await library()
  let certificate = createServerCertificate()
  const { certificatePem: cert, keyPem: privKey } = certificate
  const options = { host, port, secret: randomBytes(32).toString('hex'), cert, privKey, ...FLOW }
  const server = http3 && !settings.http2Only ? new HttpServer({ ...options, reliability: 'both' }) : new Http2Server(options)
  server.startServer()
  await within(server.ready, { ms: JOIN_MS, what: `listening on ${host}:${port}` })
  const renew = () => {
    certificate = createServerCertificate()
    server.updateCert(certificate.certificatePem, certificate.keyPem, false)
  }
  const timer = setInterval(renew, RENEW_MS).unref()
  return { server, hash: () => certificate.hash, stopRenewing: () => clearInterval(timer) }
}

/** The HTTP/2 connections of a server, including unauthenticated ones. */
function watchHttp2(server: WtServer, limits: StrangerLimits | undefined) {
  const connections = new Map<Http2Session, { stranger: Stranger; leave(): void; hasSession: boolean }>()
  const strangers = createAdmission(STRANGERS)
  const joined = new WeakSet<Http2Session>()
  onHttp2Connection(server, http2 => {
    http2.on('error', () => {})
    const leave = strangers.enter(http2.socket.remoteAddress ?? '')
    if (!leave) return void http2.destroy()
    const stranger = new Stranger(limits)
    connections.set(http2, { stranger, leave, hasSession: false })
    http2.on('close', () => {
      connections.delete(http2)
      leave()
    })
    if (stranger.isTrusted) raiseHttp2Window(http2, WINDOW_BYTES)
    // A connection without a session (a request for the certificate, an unknown client).
    setTimeout(() => !joined.has(http2) && http2.destroy(), JOIN_MS).unref()
  })
  // The library reads and stores bytes of other streams, which the muxers do not count.
  const look = () => {
    for (const [http2, { stranger }] of connections) {
      // A session that is being destroyed has no socket.
      const receivedBytes = http2.destroyed ? 0 : (http2.socket?.bytesRead ?? 0)
      if (limits && !stranger.isTrusted && receivedBytes > limits.bytes + HANDSHAKE_BYTES) http2.destroy()
    }
  }
  const timer = limits && setInterval(look, STRANGERS_LOOK_MS).unref()
  return {
    /** The budget of a session; an HTTP/2 connection has only one session. */
    begin(http2: Http2Session | undefined): Stranger {
      const entry = http2 && connections.get(http2)
      if (entry?.hasSession) throw new GodwitError('LIMIT_EXCEEDED', 'a second session on one HTTP/2 connection')
      if (entry) entry.hasSession = true
      return entry?.stranger ?? new Stranger(limits)
    },
    /** All its lanes are open. */
    joined(http2: Http2Session): void {
      joined.add(http2)
      connections.get(http2)?.leave()
    },
    async close(): Promise<void> {
      clearInterval(timer)
      const all = [...connections.keys()]
      for (const http2 of all) http2.destroy()
      await within(Promise.all(all.map(gone)), { ms: CLOSE_MS, what: 'closing' }).catch(() => {})
    },
  }
}

async function listen(options: ListenOptions, settings: Settings): Promise<Listener> {
  const { host, port, signal } = options
  signal?.throwIfAborted()
  const { server, hash, stopRenewing } = await startServer(options, settings).catch(error => {
    if (error instanceof GodwitError) throw error
    throw new GodwitError('CONNECT_FAILED', `cannot listen on ${host}:${port}: ${error?.message ?? error}`, { cause: error })
  })
  const inbox = createInbox<Connection>(BACKLOG_CONNECTIONS)
  const live = new Set<Connection>()
  const connections = watchHttp2(server, options.strangers)
  const onSession = async (session: WtSession) => {
    session.closed.catch(() => {})
    const http2 = http2Of(session)
    try {
      const stranger = connections.begin(http2)
      const joining = joinLanes(session, hash(), settings, stranger)
      const whole = await within(joining, { ms: JOIN_MS, what: 'the lanes of a session' })
      const trust = () => {
        stranger.trust()
        raiseHttp2Window(http2, WINDOW_BYTES)
      }
      const connection = { ...whole, trust }
      if (http2) connections.joined(http2)
      if (!inbox.push(connection)) return await connection.close('too many unaccepted connections')
      live.add(connection)
      connection.closed.then(() => live.delete(connection))
    } catch {
      endSession(session, http2)
    }
  }
  const acceptAll = async () => {
    const sessions = server.sessionStream(PATH).getReader()
    for (let next = await sessions.read(); !next.done; next = await sessions.read()) void onSession(next.value)
  }
  void acceptAll().catch(() => {})
  let closing: Promise<void> | undefined
  const stop = async () => {
    inbox.end()
    stopRenewing()
    server.stopServer()
    await Promise.all([...live].map(connection => connection.close('the listener closed')))
    await connections.close()
  }
  const close = () => {
    closing ??= stop()
    return closing
  }
  signal?.addEventListener('abort', () => void close(), { once: true })
  return { address: { host, port: server.address()?.port ?? port }, accept: () => inbox.next(), close }
}

const gone = (http2: Http2Session) => new Promise<void>(resolve => http2.once('close', resolve))

/** An engine over @fails-components/webtransport. Listener.close() also closes its accepted connections. */
export function createWebTransportEngine({ lanes = 4, http2Only = false, resolve, ...options }: WebTransportOptions = {}): Engine {
  if (!Number.isInteger(lanes) || lanes < 1 || lanes > LANES_MAX) throw new TypeError(`lanes must be 1 to ${LANES_MAX}`)
  const settings: Settings = { ...muxSettings(options), lanes, http2Only }
  return {
    name: 'webtransport',
    async available() {
      try {
        const { http3 } = await library()
        return { ok: true, detail: http3 && !http2Only ? 'WebTransport over HTTP/3, else HTTP/2' : 'WebTransport over HTTP/2' }
      } catch (error) {
        return { ok: false, reason: (error as Error).message }
      }
    },
    listen: listening => listen(listening, settings),
    async connect(connecting) {
      connecting.signal?.throwIfAborted()
      return await connectByName(connecting, { what: 'WebTransport', resolve, connectOne: options => connectOne(options, settings) })
    },
  }
}
