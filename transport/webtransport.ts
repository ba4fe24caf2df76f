// The WebTransport engine: HTTP/3 where the quiche addon of @fails-components is installed, else HTTP/2 over TLS. For networks that let only HTTPS pass.
// One session; in it `lanes` bidirectional streams, opened by the client, that our muxer runs over. So streams, credits, resets and heartbeats
// are ours, and the library's own (HTTP/3 without read backpressure, streams of HTTP/2 that are never forgotten, `closed` that cannot tell a
// dead network from a farewell) carry nothing. A lane begins with 4 bytes from the client: 'GW' | u8 number of lanes | u8 index.
// Buffers given to the library are never touched again: it reads them until its write resolves.
// The client asks the server for its certificate first (TLS on the same port number), pins its hash, and gives the hash as `binding` to the
// node-gateway handshake above, which decides who the server is.
import { createHash, randomBytes } from 'node:crypto'
import type { Http2Session } from 'node:http2'
import * as tls from 'node:tls'
import { within } from '../ops/deadline.ts'
import { GodwitError } from '../wire/errors.ts'
import { createAdmission } from './admission.ts'
import { createInbox } from './inbox.ts'
import { createLinkMux, createMuxConnection, type LinkOptions, type LinkSettings, linkSettings, type MuxedLane } from './mux-connection.ts'
import { createServerCertificate } from './self-signed.ts'
import type { Connection, ConnectOptions, Engine, Listener, ListenOptions } from './types.ts'
import {
  http2Of,
  loadWebTransport,
  onHttp2Connection,
  raiseHttp2Window,
  type WtLibrary,
  type WtServer,
  type WtSession,
  type WtStream,
} from './webtransport-library.ts'

export type WebTransportOptions = LinkOptions & {
  /** Streams of the session that carry ours, as the client decides. 1 to 16; default 4. */
  lanes?: number
  /** Never HTTP/3, though it could be had. */
  http2Only?: boolean
}
type Settings = LinkSettings & { lanes: number; http2Only: boolean }

const PATH = '/godwit'
const MAGIC = Buffer.from('GW')
const PREAMBLE_BYTES = 4
const LANES_MAX = 16
const BACKLOG_CONNECTIONS = 256
/** From the TCP connection to the last lane's preamble. */
const JOIN_MS = 10_000
const CLOSE_MS = 1_000
/** HTTP/2 connections on which no session of ours has come to be, in all and from one address. */
const STRANGERS = { total: 256, perAddress: 64 }
/** Certificates live ten days (nine from now on); clients refuse an expired one. */
const RENEW_MS = 5 * 86_400_000
/** HTTP/2 and WebTransport windows: larger than what a path holds, since our muxer has its own credits. */
const WINDOW_BYTES = 16 * 1024 * 1024
const FLOW = { initialStreamFlowControlWindow: WINDOW_BYTES, initialSessionFlowControlWindow: WINDOW_BYTES }
/** Bytes that the library has taken and not yet passed on, from which a lane counts as full. */
const LANE_FULL_BYTES = 512 * 1024

/** Ends a session for good. Its own close() is polite and waits for a peer that may be dead. */
function endSession(session: WtSession, http2: Http2Session | undefined): void {
  try {
    session.close()
  } catch {
    // It had not even begun.
  }
  http2?.destroy()
}

function createLane(
  stream: WtStream,
  side: 'client' | 'server',
  session: WtSession,
  settings: Settings,
  begin: { greeting?: Uint8Array; early?: Uint8Array },
): MuxedLane {
  const writer = stream.writable.getWriter()
  const reader = stream.readable.getReader()
  const http2 = http2Of(session)
  const count = { queued: 0, sent: 0, received: 0 }
  let full = false
  let lastWrite: Promise<unknown> = Promise.resolve()
  const lost = (error: unknown) =>
    mux.finish({ code: 'CONNECTION_LOST', message: error instanceof Error ? error.message : 'the peer hung up' })
  const lane = {
    send(bytes: Uint8Array): boolean {
      count.queued += bytes.length
      // Small buffers come out of Node's shared pool, which is not ours to give away.
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
  const mux = createLinkMux(side, lane, settings)
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
      // The peer ends the session when it has read the farewell; ending it here first would overtake what is still buffered.
      await lastWrite
      await session.closed.catch(() => {})
    },
    destroy: () => endSession(session, http2),
    sentBytes: () => count.sent,
    receivedBytes: () => count.received,
  }
}

/** The SHA-256 of the certificate that the server shows on TCP. */
async function probeCertificate({ host, port }: ConnectOptions, signal: AbortSignal): Promise<Buffer> {
  const socket = tls.connect({ host, port, ALPNProtocols: ['h2'], minVersion: 'TLSv1.3', rejectUnauthorized: false })
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
    if (!certificate || socket.alpnProtocol !== 'h2') throw new Error('the other side does not speak HTTP/2')
    return createHash('sha256').update(certificate.raw).digest()
  } finally {
    signal.removeEventListener('abort', abort)
    socket.on('error', () => {})
    socket.destroy()
  }
}

async function open(library: WtLibrary, options: ConnectOptions, settings: Settings, signal: AbortSignal): Promise<Connection> {
  const { host, port, timeoutMs = 10_000 } = options
  const hash = await probeCertificate(options, signal)
  const authority = host.includes(':') ? `[${host}]:${port}` : `${host}:${port}`
  const session = new library.WebTransport(`https://${authority}${PATH}`, {
    serverCertificateHashes: [{ algorithm: 'sha-256', value: hash }],
    forceReliable: settings.http2Only || !library.http3,
    quicConnectTimeout: Math.min(3_000, timeoutMs / 2),
    ...FLOW,
  })
  const abort = () => endSession(session, http2Of(session))
  signal.addEventListener('abort', abort, { once: true })
  session.closed.catch(() => {})
  try {
    await session.ready
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

async function connect(options: ConnectOptions, settings: Settings): Promise<Connection> {
  const { host, port, timeoutMs = 10_000, signal } = options
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
    if (signal?.aborted) throw signal.reason
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

/** Collects the lanes of a session that a client has begun. */
async function joinLanes(session: WtSession, binding: Uint8Array, settings: Settings): Promise<Connection> {
  await session.ready
  const incoming = session.incomingBidirectionalStreams.getReader()
  let lanes: (MuxedLane | undefined)[] = []
  try {
    for (let have = 0, wanted = 1; have < wanted; have++) {
      const { value: stream, done } = await incoming.read()
      if (done) throw new Error('closed before its lanes were there')
      const { count, index, early } = await readPreamble(stream)
      if (have === 0) {
        wanted = count
        lanes = Array(count)
      }
      if (count !== wanted || lanes[index]) throw new Error('a lane that does not fit')
      lanes[index] = createLane(stream, 'server', session, settings, { early })
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

async function listen(options: ListenOptions, settings: Settings): Promise<Listener> {
  const { host, port, signal } = options
  signal?.throwIfAborted()
  const { server, hash, stopRenewing } = await startServer(options, settings).catch(error => {
    if (error instanceof GodwitError) throw error
    throw new GodwitError('CONNECT_FAILED', `cannot listen on ${host}:${port}: ${error?.message ?? error}`, { cause: error })
  })
  const inbox = createInbox<Connection>(BACKLOG_CONNECTIONS)
  const live = new Set<Connection>()
  const connections = new Set<Http2Session>()
  const joined = new WeakSet<Http2Session>()
  const strangers = createAdmission(STRANGERS)
  const leaves = new WeakMap<Http2Session, () => void>()
  onHttp2Connection(server, http2 => {
    http2.on('error', () => {})
    const leave = strangers.enter(http2.socket.remoteAddress ?? '')
    if (!leave) return void http2.destroy()
    leaves.set(http2, leave)
    connections.add(http2)
    http2.on('close', () => {
      connections.delete(http2)
      leave()
    })
    raiseHttp2Window(http2, WINDOW_BYTES)
    // A connection on which no session of ours comes to be (a probe for the certificate, a stranger).
    setTimeout(() => !joined.has(http2) && http2.destroy(), JOIN_MS).unref()
  })
  const onSession = async (session: WtSession) => {
    session.closed.catch(() => {})
    const http2 = http2Of(session)
    try {
      const connection = await within(joinLanes(session, hash(), settings), { ms: JOIN_MS, what: 'the lanes of a session' })
      if (http2) {
        joined.add(http2)
        leaves.get(http2)?.()
      }
      if (!inbox.push(connection)) return await connection.close('too many connections wait')
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
    for (const http2 of connections) http2.destroy()
    await within(Promise.all([...connections].map(gone)), { ms: CLOSE_MS, what: 'closing' }).catch(() => {})
  }
  const close = () => {
    closing ??= stop()
    return closing
  }
  signal?.addEventListener('abort', () => void close(), { once: true })
  return { address: { host, port: server.address()?.port ?? port }, accept: () => inbox.next(), close }
}

const gone = (http2: Http2Session) => new Promise<void>(resolve => http2.once('close', resolve))

/** An engine over @fails-components/webtransport. Listener.close() also closes the connections that it accepted. */
export function createWebTransportEngine({ lanes = 4, http2Only = false, ...options }: WebTransportOptions = {}): Engine {
  if (!Number.isInteger(lanes) || lanes < 1 || lanes > LANES_MAX) throw new TypeError(`lanes must be 1 to ${LANES_MAX}`)
  const settings: Settings = { ...linkSettings(options), lanes, http2Only }
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
      return connect(connecting, settings)
    },
  }
}
