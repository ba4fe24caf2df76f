// A small JSON server over HTTP or HTTPS, on TCP or a unix socket: for the gateway's admin API and the node's API.
// Enters: requests. Leaves: JSON responses; every error as an ErrorBody with a status that fits its code. The client is
// in http-client.ts. Always holds: with a token, only `open` routes work without it, and the comparison takes the same
// time for every wrong token; bodies are bounded; a handler's bug is answered with INTERNAL and never shows a stack; a
// client cannot cause log lines at level error; without TLS the server listens on loopback only.
import { createHash, timingSafeEqual } from 'node:crypto'
import { chmod, rm } from 'node:fs/promises'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import { connect, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { ERRORS, type ErrorCode, EXIT, GodwitError, toGodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import { parseJson } from '../wire/schema.ts'
import { refuse, refuseOddRequests, targetOf } from './http-refusals.ts'
import { OpenStreams, type StreamingAnswer, type StreamOptions } from './http-stream.ts'
import { isLoopback, TLS_NEEDED } from './loopback.ts'
import { placeOf } from './place.ts'
import type { TlsFiles, TlsPair } from './tls-files.ts'

const BODY_BYTES_MAX = 1024 * 1024
const TIMEOUTS = { headersMs: 10_000, requestMs: 30_000, checkEveryMs: 2_000 }
const CONNECTIONS_MAX = 256
/** Limit for one address (IPv6: one /64) other than this machine. */
const CONNECTIONS_PER_ADDRESS = 64

export type RequestContext = {
  /**
   * The client whose token the request has (HttpServerOptions.tokens); undefined on an open route, or without tokens.
   */
  client: string | undefined
  params: Record<string, string>
  query: URLSearchParams
  /** The other end of the connection: an IP address, '' on a unix socket. */
  address: string
  headers: IncomingMessage['headers']
  /** Aborted when the client disconnects, or when the server ends a streaming response. */
  signal: AbortSignal
  /** The body as JSON; CONFIG_INVALID (400) if it is invalid. An empty body is undefined. */
  json(): Promise<unknown>
  /** Starts a response that is written in parts (http-stream.ts). */
  stream(options: StreamOptions): StreamingAnswer
  /** Starts an NDJSON response. `line` waits for a slow client, and rejects when the client has disconnected. */
  ndjson(): { line(value: unknown): Promise<void>; end(): void }
  /** Sends a response that is not JSON. */
  text(body: string, contentType?: string): void
}

export type HttpReply = { status?: number; body?: unknown; headers?: Record<string, string> }
export type Route = {
  method: 'GET' | 'POST' | 'PUT' | 'DELETE'
  /** `/v1/vms/:name`; a parameter is one segment, decoded. */
  path: string
  /** Does not require the token. */
  open?: boolean
  handle(context: RequestContext): Promise<HttpReply | undefined> | HttpReply | undefined
}
export type UpgradeRoute = {
  path: string
  /** Receives the socket after the switch to raw bytes. */
  handle(context: { params: Record<string, string>; query: URLSearchParams }): Promise<(socket: Duplex) => void>
}

type HttpServerOptions = {
  listen: { host: string; port: number } | { socketPath: string }
  routes: Route[]
  upgrades?: UpgradeRoute[]
  /** Bearer token; without one the permissions of the unix socket (0600) protect the API. */
  token?: string
  /** Several tokens, each with a client's name, instead of `token`. */
  tokens?: ReadonlyMap<string, string>
  /** HTTPS. Required beyond loopback. */
  tls?: Pick<TlsFiles, 'pair' | 'follow'> | undefined
  /** Deadlines of the headers and of a whole request, ms. Default 10_000 and 30_000. */
  timeouts?: { headersMs: number; requestMs: number; checkEveryMs: number }
  log: Log
}
export type HttpServer = { address: { host: string; port: number } | { socketPath: string }; close(): Promise<void> }

/** Starts the server. CONFIG_INVALID if the address is in use; a stale unix socket is replaced. */
export async function startHttpServer(options: HttpServerOptions): Promise<HttpServer> {
  const { listen, routes, upgrades = [], token, tls, log } = options
  if ('host' in listen && !tls && !isLoopback(listen.host)) throw new GodwitError('CONFIG_INVALID', `HTTP on ${listen.host}: ${TLS_NEEDED}`)
  const clientOf = tokenCheck(options.tokens ?? (token === undefined ? undefined : new Map([['', token]])))
  const table = routes.map(route => ({ route, match: matcher(route.path) }))
  const upgradeTable = upgrades.map(route => ({ route, match: matcher(route.path) }))
  const server = createServerFor(options, (request, response) => {
    answer(request, response).catch(error => {
      log.error('request failed', { error })
      response.destroy()
    })
  })
  refuseOddRequests(server)
  boundConnections(server)
  const raw = new Set<Duplex>()
  const streams = new OpenStreams()

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      const { pathname, query } = targetOf(request)
      const client = clientOf(request)
      const fits = table.flatMap(({ route, match }) => {
        const params = match(pathname)
        return params ? [{ route, params }] : []
      })
      const found = fits.find(({ route }) => route.method === request.method)
      if (!found?.route.open && client === undefined) throw new GodwitError('TOKEN_INVALID', 'a valid bearer token is required')
      if (!found)
        return sendError(
          response,
          fits.length > 0 ? 405 : 404,
          new GodwitError('USAGE', `no route ${request.method} ${pathname.slice(0, 256)}`),
        )
      const reply = await found.route.handle(contextOf(request, response, streams, { client, params: found.params, query }))
      if (!response.headersSent) sendJson(response, reply?.status ?? 200, reply?.body ?? {}, reply?.headers)
    } catch (thrown) {
      const error = toGodwitError(thrown)
      if (error.code === 'INTERNAL') log.error('request failed', { method: request.method, error })
      if (response.headersSent) response.destroy()
      else sendError(response, statusOf(error), error)
    }
  }
  server.on('upgrade', (request, socket, head) => {
    upgrade(request, socket, head).catch(thrown => {
      const error = toGodwitError(thrown)
      refuse(socket, statusOf(error), error)
    })
  })
  async function upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    socket.on('error', () => socket.destroy())
    // HTTP sockets stay half-open: without this, a socket would stay for ever after its client has disconnected.
    socket.on('end', () => socket.end())
    raw.add(socket)
    socket.once('close', () => raw.delete(socket))
    if (clientOf(request) === undefined) throw new GodwitError('TOKEN_INVALID', 'a valid bearer token is required')
    const { pathname, query } = targetOf(request)
    for (const { route, match } of upgradeTable) {
      const params = match(pathname)
      if (!params) continue
      const take = await route.handle({ params, query })
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n')
      if (head.length > 0) socket.unshift(head)
      return take(socket)
    }
    throw new GodwitError('USAGE', `no route ${pathname.slice(0, 256)}`)
  }

  if ('socketPath' in listen) await removeStaleSocket(listen.socketPath)
  await new Promise<void>((resolve, reject) => {
    const where = 'socketPath' in listen ? listen.socketPath : `${listen.host}:${listen.port}`
    server.once('error', cause => reject(new GodwitError('CONFIG_INVALID', `cannot listen on ${where}: ${cause.message}`, { cause })))
    if ('socketPath' in listen) {
      // Other users must never have access to the socket, not even between bind and chmod.
      const before = process.umask(0o177)
      server.listen(listen.socketPath, resolve)
      process.umask(before)
    } else server.listen(listen.port, listen.host, resolve)
  })
  if ('socketPath' in listen) await chmod(listen.socketPath, 0o600)
  const bound = server.address()
  return {
    address: typeof bound === 'object' && bound ? { host: bound.address, port: bound.port } : listen,
    close: () => closeServer(server, streams, raw),
  }
}

/** Streams end in order; other requests are aborted. */
async function closeServer(server: AnyServer, streams: OpenStreams, raw: Iterable<Duplex>): Promise<void> {
  const closed = new Promise<void>(resolve => server.close(() => resolve()))
  await streams.end()
  server.closeAllConnections()
  for (const socket of raw) socket.destroy()
  await closed
}

const STATUS_OF_CODE: Partial<Record<ErrorCode, number>> = {
  TOKEN_INVALID: 401,
  LIMIT_EXCEEDED: 429,
  VM_UNKNOWN: 404,
  SITE_UNKNOWN: 404,
  MIGRATION_UNKNOWN: 404,
  RESOURCE_UNKNOWN: 404,
  COMMAND_MALFORMED: 400,
  COMMAND_TOO_LARGE: 413,
  NOT_AVAILABLE: 501,
}
const STATUS_OF_EXIT: Partial<Record<number, number>> = {
  [EXIT.usage]: 400,
  [EXIT.refused]: 409,
  [EXIT.denied]: 403,
  [EXIT.timeout]: 504,
  [EXIT.unreachable]: 503,
}

/** The HTTP status that fits an error's code. */
export const statusOf = ({ code }: { code: ErrorCode }): number => STATUS_OF_CODE[code] ?? STATUS_OF_EXIT[ERRORS[code].exit] ?? 500

type Handler = (request: IncomingMessage, response: ServerResponse) => void
type AnyServer = ReturnType<typeof createServer>

/** A renewed certificate applies to new connections. */
function createServerFor(
  { tls, timeouts: { headersMs, requestMs, checkEveryMs } = TIMEOUTS }: HttpServerOptions,
  answer: Handler,
): AnyServer {
  const timeouts = {
    headersTimeout: headersMs,
    requestTimeout: requestMs,
    connectionsCheckingInterval: checkEveryMs,
    requireHostHeader: false,
  }
  if (!tls) return createServer(timeouts, answer)
  const contextOf = ({ certificate, key }: TlsPair) => ({ cert: certificate, key, minVersion: 'TLSv1.3' as const })
  const server = createTlsServer({ ...timeouts, ...contextOf(tls.pair), handshakeTimeout: headersMs }, answer)
  tls.follow(pair => server.setSecureContext(contextOf(pair)))
  server.on('tlsClientError', (_error, socket) => void socket.destroy())
  return server
}

/** Limits in total and for one address; a proxy on this machine has many clients, so this machine has no limit. */
function boundConnections(server: AnyServer): void {
  server.maxConnections = CONNECTIONS_MAX
  const open = new Map<string, number>()
  server.on('connection', (socket: Socket) => {
    const address = socket.remoteAddress
    if (address === undefined || isLoopback(address)) return
    const place = placeOf(address)
    const count = (open.get(place) ?? 0) + 1
    open.set(place, count)
    socket.once('close', () => {
      const left = (open.get(place) ?? 1) - 1
      if (left > 0) open.set(place, left)
      else open.delete(place)
    })
    if (count > CONNECTIONS_PER_ADDRESS) socket.destroy()
  })
}

/**
 * Finds the client of a request by its token. Compares digests, so the time shows neither a token's length nor a common
 * prefix; without tokens the name is ''.
 */
function tokenCheck(tokens: ReadonlyMap<string, string> | undefined): (request: IncomingMessage) => string | undefined {
  if (tokens === undefined) return () => ''
  const digest = (text: string) => createHash('sha256').update(text).digest()
  const expected = [...tokens].map(([client, token]) => ({ client, digest: digest(`Bearer ${token}`) }))
  return request => {
    const given = digest(request.headers.authorization ?? '')
    // All tokens are compared, so the time does not show which one matches.
    return expected.filter(each => timingSafeEqual(given, each.digest)).at(0)?.client
  }
}

function matcher(path: string): (pathname: string) => Record<string, string> | undefined {
  const wanted = path.split('/')
  return pathname => {
    const parts = pathname.split('/')
    if (parts.length !== wanted.length) return undefined
    const params: Record<string, string> = {}
    for (const [at, want] of wanted.entries()) {
      const part = parts[at] ?? ''
      if (!want.startsWith(':')) {
        if (part !== want) return undefined
        continue
      }
      try {
        params[want.slice(1)] = decodeURIComponent(part)
      } catch {
        return undefined
      }
    }
    return params
  }
}

function contextOf(
  request: IncomingMessage,
  response: ServerResponse,
  streams: OpenStreams,
  facts: Pick<RequestContext, 'client' | 'params' | 'query'>,
): RequestContext {
  const gone = new AbortController()
  response.once('close', () => gone.abort(new GodwitError('CONNECTION_LOST', 'the client closed the connection')))
  const stream = (options: StreamOptions) => streams.begin(response, gone, options)
  return {
    ...facts,
    address: request.socket.remoteAddress ?? '',
    headers: request.headers,
    signal: gone.signal,
    async json() {
      const body = await readBody(request)
      return body.length === 0 ? undefined : parseJson(body, { what: 'request body', code: 'CONFIG_INVALID' })
    },
    stream,
    ndjson() {
      const answer = stream({ contentType: 'application/x-ndjson' })
      return { line: value => answer.write(`${JSON.stringify(value)}\n`), end: answer.end }
    },
    text(body, contentType = 'text/plain; charset=utf-8') {
      response.writeHead(200, { 'content-type': contentType })
      response.end(body)
    },
  }
}

async function readBody(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = []
  let bytes = 0
  try {
    for await (const chunk of request as AsyncIterable<Buffer>) {
      bytes += chunk.length
      if (bytes > BODY_BYTES_MAX) throw new GodwitError('LIMIT_EXCEEDED', `a request body is larger than ${BODY_BYTES_MAX} bytes`)
      chunks.push(chunk)
    }
    return Buffer.concat(chunks)
  } catch (error) {
    // The body was incomplete or not HTTP: an error of the client.
    throw toGodwitError(error, 'CONNECTION_LOST')
  }
}

function sendJson(response: ServerResponse, status: number, body: unknown, headers: Record<string, string> = {}): void {
  response.writeHead(status, { 'content-type': 'application/json', 'cache-control': 'no-store', ...headers })
  response.end(status === 204 ? undefined : `${JSON.stringify(body)}\n`)
}

function sendError(response: ServerResponse, status: number, error: GodwitError): void {
  // Do not read a pending body (too large, or not used) to its end: close the connection.
  response.setHeader('connection', 'close')
  sendJson(response, status, error.toJSON())
}

/** A socket file without a process is removed; if a process answers: CONFIG_INVALID. */
async function removeStaleSocket(path: string): Promise<void> {
  const alive = await new Promise<boolean>(resolve => {
    const probe = connect(path)
    probe.once('connect', () => {
      probe.destroy()
      resolve(true)
    })
    probe.once('error', () => resolve(false))
  })
  if (alive) throw new GodwitError('CONFIG_INVALID', `${path} is in use by a running process`)
  await rm(path, { force: true })
}
