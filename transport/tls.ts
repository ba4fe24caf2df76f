// The TLS engine: TLS 1.3 over `connections` parallel TCP connections (lanes) that form one logical connection, with
// streams by mux.ts. On a kernel with bbr (requested for each socket, tcp-info.ts) it is much faster than QUIC on lossy
// paths; if UDP is blocked it is the second choice. A lane begins with a preamble of the client: 'GWL1' | u8 number of
// lanes | u8 index of this one | 16 bytes of token. Lanes with the same token belong together; the token is random, new
// for each connection and known only to both ends. The client intentionally accepts any certificate: it is the server's
// ephemeral one, and its name and issuer have no meaning. The node-gateway handshake above authenticates the server by
// signing the hash of the certificate (`binding`); an attacker in between has another certificate. Always holds: all
// lanes of a connection have the same server certificate.
import { createHash, randomBytes } from 'node:crypto'
import type { AddressInfo } from 'node:net'
import * as tls from 'node:tls'
import { within } from '../ops/deadline.ts'
import { GodwitError } from '../wire/errors.ts'
import { createAdmission } from './admission.ts'
import { type AddressOptions, connectByName, type Resolve } from './connect-by-name.ts'
import { BACKLOG_CONNECTIONS, createInbox, type Inbox } from './inbox.ts'
import type { Mux } from './mux.ts'
import { createLinkMux, createMuxConnection, type MuxedLane, type MuxOptions, type MuxSettings, muxSettings } from './mux-connection.ts'
import { Pace } from './pace.ts'
import { createServerCertificate } from './self-signed.ts'
import { Stranger, type StrangerLimits } from './stranger.ts'
import { limitPace, limitUnsent, loadTcpInfo, preferBbr, type TcpPath, tcpPath } from './tcp-info.ts'
import { decodePreamble, encodePreamble, LANES_MAX, PREAMBLE_BYTES, type Preamble, TOKEN_BYTES } from './tls-preamble.ts'
import type { Connection, Engine, Listener, ListenOptions } from './types.ts'

type TlsOptions = MuxOptions & {
  /** Parallel TCP connections of one Connection, chosen by the client. 1 to 16; default 4. */
  connections?: number
  /** Resolver of server names. Default: the system's. */
  resolve?: Resolve | undefined
}

const ALPN = 'godwit/1'
/** From the TCP connection to the last lane's preamble. */
const JOIN_MS = 10_000
/** Interval of the adjustments of the lanes' sockets while they carry data. */
const TEND_EVERY_MS = 100
/** Limit of unsent bytes in the kernel of a lane, as time. */
const UNSENT_MS = 30
const TEND_BYTES_MIN = 16 * 1024
/** BBR measures the minimum round trip with 4 packets; meanwhile the other lanes use that lane's share. */
const STANDSTILL_BYTES = 8 * 1448
/** Wire bytes for each payload byte of a packet of 1,500 bytes. */
const HEADERS = 1500 / 1448
const UNSENT_BYTES_MIN = 16 * 1024
const UNSENT_BYTES_MAX = 1024 * 1024
/** Limits of incomplete connections, in total and from one address. */
const JOINING = { total: 512, perAddress: 64 }
/** Limits of TCP connections of incomplete connections, in total and from one address. A connection has at most 16. */
const STRANGERS = { total: 1024, perAddress: 256 }

const endpoint = (socket: tls.TLSSocket) => `${socket.remoteAddress}:${socket.remotePort}`

function joinLanes(
  remoteAddress: string,
  binding: Uint8Array,
  lanes: TlsLane[],
  { maxStreams }: MuxSettings,
  stranger?: Stranger,
): Connection {
  return tend(createMuxConnection({ engine: 'tls', remoteAddress, binding, lanes, maxStreams, ...(stranger && { stranger }) }), lanes)
}

type TlsLane = MuxedLane & { socket: tls.TLSSocket }

/** Adjusts the sockets of one connection during its lifetime: their unsent bytes and their send rate. */
function tend(connection: Connection, lanes: TlsLane[]): Connection {
  const pace = new Pace()
  const delivered = lanes.map(() => 0)
  let written = 0
  const look = () => {
    const sum = lanes.reduce((total, { socket }) => total + socket.bytesWritten, 0)
    // Heartbeats alone need no adjustment.
    if (sum - written < TEND_BYTES_MIN) return
    written = sum
    const busy: { socket: tls.TLSSocket; path: TcpPath }[] = []
    lanes.forEach(({ socket }, i) => {
      const path = tcpPath(socket)
      if (!path || path.deliveredBytes === delivered[i]) return
      delivered[i] = path.deliveredBytes
      const wanted = (path.deliveryBytesPerSecond * UNSENT_MS) / 1000
      limitUnsent(socket, Math.round(Math.min(UNSENT_BYTES_MAX, Math.max(UNSENT_BYTES_MIN, wanted))))
      busy.push({ socket, path })
    })
    if (busy.length === 0) return
    const moving = busy.filter(({ path }) => path.congestionWindowBytes > STANDSTILL_BYTES)
    const mean = (of: (path: TcpPath) => number) => busy.reduce((total, { path }) => total + of(path), 0) / busy.length
    const limit = pace.step({
      atMs: performance.now(),
      deliveredBytes: delivered.reduce((total, bytes) => total + bytes, 0),
      deliveryBytesPerSecond: busy.length * mean(path => path.deliveryBytesPerSecond),
      rttMs: mean(path => path.rttMs),
      rttDeviationMs: mean(path => path.rttDeviationMs),
      isWhole: moving.length === busy.length,
      rttMinMs: Math.min(...busy.map(({ path }) => path.rttMinMs)),
    })
    for (const { socket } of busy) limitPace(socket, limit && (limit * HEADERS) / Math.max(1, moving.length))
  }
  const timer = setInterval(look, TEND_EVERY_MS)
  timer.unref()
  void connection.closed.then(() => clearInterval(timer))
  return connection
}

/** A muxer on a socket after its preamble. `early`: bytes received before the muxer existed. */
function createLane(
  socket: tls.TLSSocket,
  side: 'client' | 'server',
  settings: MuxSettings,
  { early, stranger }: { early?: Uint8Array; stranger?: Stranger } = {},
): TlsLane {
  let trouble = 'the connection failed'
  const congestion = preferBbr(socket)
  const mux: Mux = createLinkMux(side, { send: bytes => socket.write(bytes), queuedBytes: () => socket.writableLength }, settings, stranger)
  socket.on('error', error => {
    trouble = error.message
  })
  socket.on('drain', () => mux.drained())
  socket.on('data', (chunk: Buffer) => mux.push(chunk))
  // A closing peer first sends a goodbye through the muxer: an end without it is a crash or a cut.
  socket.on('end', () => mux.finish({ code: 'CONNECTION_LOST', message: 'the peer closed the connection' }))
  socket.on('close', () => mux.finish({ code: 'CONNECTION_LOST', message: trouble }))
  mux.closed.then(reason => reason.code === 'CONNECTION_LOST' && socket.destroy())
  if (early?.length) mux.push(early)
  socket.resume()
  return {
    socket,
    mux,
    end() {
      // The peer closes when it has read the goodbye. If this side closed earlier, with unread bytes, the kernel would
      // send a reset, which can discard bytes in transit.
      const gone = new Promise<void>(resolve => socket.once('close', () => resolve()))
      socket.end()
      return socket.destroyed ? Promise.resolve() : gone
    },
    destroy: () => void socket.destroy(),
    sentBytes: () => socket.bytesWritten,
    receivedBytes: () => socket.bytesRead,
    path() {
      const path = tcpPath(socket)
      return path && { ...path, congestion }
    },
  }
}

/** One TLS connection to the server, its certificate's hash, and the preamble sent. */
async function openSocket(
  options: AddressOptions,
  preamble: Uint8Array,
  signal: AbortSignal,
): Promise<{ socket: tls.TLSSocket; hash: Buffer }> {
  const { host, port, serverName } = options
  const name = serverName === undefined ? {} : { servername: serverName }
  const socket = tls.connect({ host, port, ...name, ALPNProtocols: [ALPN], minVersion: 'TLSv1.3', rejectUnauthorized: false })
  socket.setNoDelay(true)
  const abort = () => void socket.destroy(new Error('given up'))
  signal.addEventListener('abort', abort, { once: true })
  try {
    if (signal.aborted) throw new Error('given up')
    await new Promise<void>((resolve, reject) => {
      socket.once('secureConnect', resolve)
      socket.once('error', reject)
      socket.once('close', () => reject(new Error('closed during the handshake')))
    })
    const certificate = socket.getPeerX509Certificate()
    if (!certificate || socket.alpnProtocol !== ALPN) throw new Error('the other side is not a Godwit TLS listener')
    socket.removeAllListeners('error').removeAllListeners('close')
    socket.write(preamble)
    return { socket, hash: createHash('sha256').update(certificate.raw).digest() }
  } catch (error) {
    socket.on('error', () => {})
    socket.destroy()
    throw error
  } finally {
    signal.removeEventListener('abort', abort)
  }
}

async function connectOne(options: AddressOptions, lanes: number, settings: MuxSettings): Promise<Connection> {
  const { host, port, timeoutMs, signal } = options
  const what = `TLS to ${host}:${port}`
  const giveUp = new AbortController()
  const token = randomBytes(TOKEN_BYTES)
  const opening = Array.from({ length: lanes }, (_, i) => openSocket(options, encodePreamble(lanes, i, token), giveUp.signal))
  try {
    const opened = await within(Promise.all(opening), { ms: timeoutMs, what, code: 'CONNECT_TIMEOUT', signal })
    const [first] = opened
    if (opened.some(({ hash }) => !hash.equals(first!.hash))) throw new Error('the lanes lead to different servers')
    const made = opened.map(({ socket }) => createLane(socket, 'client', settings))
    return joinLanes(`${host}:${port}`, first!.hash, made, settings)
  } catch (error) {
    giveUp.abort()
    for (const each of opening) {
      each.then(
        ({ socket }) => {
          socket.on('error', () => {})
          socket.destroy()
        },
        () => {},
      )
    }
    if (signal.aborted) throw signal.reason
    throw error instanceof GodwitError ? error : new GodwitError('CONNECT_FAILED', `${what}: ${(error as Error).message}`, { cause: error })
  }
}

/** Reads the preamble of a lane; the bytes after it are `early`. */
async function readPreamble(socket: tls.TLSSocket): Promise<Preamble> {
  let have: Buffer = Buffer.alloc(0)
  await new Promise<void>((resolve, reject) => {
    socket.on('data', (chunk: Buffer) => {
      have = Buffer.concat([have, chunk])
      if (have.length < PREAMBLE_BYTES) return
      socket.pause()
      resolve()
    })
    socket.once('close', () => reject(new Error('closed before its preamble')))
  })
  socket.removeAllListeners('data').removeAllListeners('close')
  return decodePreamble(have)
}

/** An incomplete connection: some lanes are missing. */
type Joining = {
  lanes: (TlsLane | undefined)[]
  missing: number
  stranger: Stranger
  timer: NodeJS.Timeout
  giveBack: () => void
  leave: (() => void)[]
}

/** Assembles the lanes of each client. */
function createJoiner(
  binding: Uint8Array,
  settings: MuxSettings,
  strangers: StrangerLimits | undefined,
  onConnection: (connection: Connection) => void,
) {
  const places = createAdmission(JOINING)
  const joining = new Map<string, Joining>()
  const drop = (token: string) => {
    const entry = joining.get(token)
    if (!entry) return
    clearTimeout(entry.timer)
    joining.delete(token)
    entry.giveBack()
    for (const lane of entry.lanes) lane?.destroy()
  }
  const begin = (token: string, lanes: number, address: string): Joining => {
    const giveBack = places.enter(address)
    if (!giveBack) throw new GodwitError('LIMIT_EXCEEDED', 'too many connections are being established')
    const timer = setTimeout(drop, JOIN_MS, token)
    const entry = { lanes: Array(lanes), missing: lanes, stranger: new Stranger(strangers), timer, giveBack, leave: [] }
    joining.set(token, entry)
    return entry
  }
  return {
    /** `leave`: the peer of the socket is authenticated. */
    async onSocket(socket: tls.TLSSocket, leave: () => void): Promise<void> {
      const { lanes, index, token, early } = await within(readPreamble(socket), { ms: JOIN_MS, what: 'a preamble' })
      const entry = joining.get(token) ?? begin(token, lanes, socket.remoteAddress ?? '')
      if (entry.lanes.length !== lanes || entry.lanes[index]) {
        drop(token)
        throw new Error('a lane does not match its token')
      }
      const lane = createLane(socket, 'server', settings, { early, stranger: entry.stranger })
      entry.lanes[index] = lane
      entry.leave.push(leave)
      lane.mux.closed.then(() => drop(token))
      if (--entry.missing > 0) return
      joining.delete(token)
      entry.giveBack()
      clearTimeout(entry.timer)
      for (const each of entry.leave) each()
      const whole = entry.lanes.filter(each => each !== undefined)
      onConnection(joinLanes(endpoint(socket), binding, whole, settings, entry.stranger))
    },
    close() {
      for (const token of [...joining.keys()]) drop(token)
    },
  }
}

async function listen({ host, port, strangers: limits, signal }: ListenOptions, settings: MuxSettings): Promise<Listener> {
  signal?.throwIfAborted()
  const { keyPem, certificatePem, hash } = createServerCertificate()
  const inbox: Inbox<Connection> = createInbox(BACKLOG_CONNECTIONS)
  const live = new Set<Connection>()
  const sockets = new Set<tls.TLSSocket>()
  const joiner = createJoiner(hash, settings, limits, connection => {
    if (!inbox.push(connection)) return void connection.close('too many unaccepted connections')
    live.add(connection)
    connection.closed.then(() => live.delete(connection))
  })
  const server = tls.createServer({
    key: keyPem,
    cert: certificatePem,
    minVersion: 'TLSv1.3',
    ALPNProtocols: [ALPN],
    handshakeTimeout: JOIN_MS,
    noDelay: true,
  })
  // A slot is taken before the expensive handshake: TCP connections count.
  const strangers = createAdmission(STRANGERS)
  const leaves = new Map<string, () => void>()
  server.on('connection', socket => {
    const leave = strangers.enter(socket.remoteAddress ?? '')
    if (!leave) return void socket.destroy()
    const key = `${socket.remoteAddress}:${socket.remotePort}`
    leaves.set(key, leave)
    socket.once('close', () => {
      leave()
      if (leaves.get(key) === leave) leaves.delete(key)
    })
  })
  server.on('tlsClientError', (_error, socket) => void socket.destroy())
  server.on('secureConnection', socket => {
    sockets.add(socket)
    socket.on('close', () => sockets.delete(socket))
    socket.on('error', () => {})
    joiner.onSocket(socket, leaves.get(endpoint(socket)) ?? (() => {})).catch(() => socket.destroy())
  })
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen({ host, port }, resolve)
    })
  } catch (error) {
    throw new GodwitError('CONNECT_FAILED', `cannot listen on TCP ${host}:${port}: ${(error as Error).message}`, { cause: error })
  }
  server.on('error', () => {})
  let closing: Promise<void> | undefined
  const stop = async () => {
    inbox.end()
    joiner.close()
    const gone = new Promise<void>(resolve => server.close(() => resolve()))
    await Promise.all([...live].map(connection => connection.close('the listener closed')))
    for (const socket of sockets) socket.destroy()
    await within(gone, { ms: JOIN_MS, what: 'closing the TLS listener' })
  }
  const close = () => {
    closing ??= stop()
    return closing
  }
  signal?.addEventListener('abort', () => void close(), { once: true })
  return { address: { host, port: (server.address() as AddressInfo).port }, accept: () => inbox.next(), close }
}

/** An engine over node:tls. Listener.close() also closes its accepted connections. */
export function createTlsEngine({ connections = 4, resolve, ...options }: TlsOptions = {}): Engine {
  if (!Number.isInteger(connections) || connections < 1 || connections > LANES_MAX)
    throw new TypeError(`connections must be 1 to ${LANES_MAX}`)
  const settings = muxSettings(options)
  return {
    name: 'tls',
    available: async () => ({ ok: true, detail: `TLS 1.3 by OpenSSL ${process.versions.openssl}, ${connections} TCP connections` }),
    async listen(listening) {
      await loadTcpInfo()
      return listen(listening, settings)
    },
    async connect(connecting) {
      connecting.signal?.throwIfAborted()
      await loadTcpInfo()
      return await connectByName(connecting, { what: 'TLS', resolve, connectOne: options => connectOne(options, connections, settings) })
    },
  }
}
