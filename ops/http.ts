// A small JSON server over HTTP, on TCP or a unix socket: the gateway's admin API and the node's API.
// Enters: requests. Leaves: JSON answers; every error as an ErrorBody with a status that fits its code. The client is in http-client.ts.
// Always holds: with a token, nothing but `open` routes is answered without it, and the comparison takes the same time for every wrong
// token; bodies are bounded; a handler's bug answers INTERNAL and never tells a stack.
import { createHash, timingSafeEqual } from 'node:crypto'
import { chmod, rm } from 'node:fs/promises'
import { createServer, type IncomingMessage, type ServerResponse, STATUS_CODES } from 'node:http'
import { connect } from 'node:net'
import type { Duplex } from 'node:stream'
import { EXIT, GodwitError, toGodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import { parseJson } from '../wire/schema.ts'

export const BODY_BYTES_MAX = 1024 * 1024
const HEADERS_TIMEOUT_MS = 10_000
const REQUEST_TIMEOUT_MS = 30_000
const CONNECTIONS_MAX = 256

export type RequestContext = {
  params: Record<string, string>
  query: URLSearchParams
  /** Aborted when the client goes away. */
  signal: AbortSignal
  /** The body as JSON; CONFIG_INVALID (400) when it is none. An empty body is undefined. */
  json(): Promise<unknown>
  /** Starts an NDJSON answer. `line` waits while the client reads slowly, and rejects when it has gone. */
  ndjson(): { line(value: unknown): Promise<void>; end(): void }
  /** Answers something that is not JSON. */
  text(body: string, contentType?: string): void
}

export type Reply = { status?: number; body?: unknown; headers?: Record<string, string> }
export type Route = {
  method: 'GET' | 'POST' | 'PUT' | 'DELETE'
  /** `/v1/vms/:name`; a parameter is one segment, decoded. */
  path: string
  /** Answered without the token. */
  open?: boolean
  handle(context: RequestContext): Promise<Reply | undefined> | Reply | undefined
}
export type UpgradeRoute = {
  path: string
  /** Takes the socket over once it has been switched to raw bytes. */
  handle(context: { params: Record<string, string>; query: URLSearchParams }): Promise<(socket: Duplex) => void>
}

export type HttpServerOptions = {
  listen: { host: string; port: number } | { socketPath: string }
  routes: Route[]
  upgrades?: UpgradeRoute[]
  /** Bearer token; without one the socket's permissions (0600) are the guard. */
  token?: string
  log: Log
}
export type HttpServer = { address: { host: string; port: number } | { socketPath: string }; close(): Promise<void> }

/** Starts the server. CONFIG_INVALID when the address is taken; a stale unix socket is replaced, a live one is not. */
export async function startHttpServer({ listen, routes, upgrades = [], token, log }: HttpServerOptions): Promise<HttpServer> {
  const allowed = tokenCheck(token)
  const table = routes.map(route => ({ route, match: matcher(route.path) }))
  const upgradeTable = upgrades.map(route => ({ route, match: matcher(route.path) }))
  const server = createServer({ headersTimeout: HEADERS_TIMEOUT_MS, requestTimeout: REQUEST_TIMEOUT_MS }, (request, response) => {
    answer(request, response).catch(error => {
      log.error('request failed', { error })
      response.destroy()
    })
  })
  server.maxConnections = CONNECTIONS_MAX
  const raw = new Set<Duplex>()

  async function answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    try {
      const url = new URL(request.url ?? '/', 'http://local')
      const fits = table.flatMap(({ route, match }) => {
        const params = match(url.pathname)
        return params ? [{ route, params }] : []
      })
      const found = fits.find(({ route }) => route.method === request.method)
      if (!found?.route.open && !allowed(request)) throw new GodwitError('TOKEN_INVALID', 'a valid bearer token is needed')
      if (!found)
        return sendError(response, fits.length > 0 ? 405 : 404, new GodwitError('USAGE', `no ${request.method} ${url.pathname} here`))
      const reply = await found.route.handle(contextOf(request, response, found.params, url.searchParams))
      if (!response.headersSent) sendJson(response, reply?.status ?? 200, reply?.body ?? {}, reply?.headers)
    } catch (thrown) {
      const error = toGodwitError(thrown)
      if (error.code === 'INTERNAL') log.error('request failed', { method: request.method, error })
      if (response.headersSent) response.destroy()
      else sendError(response, statusOf(error), error)
    }
  }
  server.on('upgrade', (request, socket, head) => {
    upgrade(request, socket, head).catch(error => refuseUpgrade(socket, toGodwitError(error)))
  })
  async function upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): Promise<void> {
    socket.on('error', () => socket.destroy())
    // HTTP sockets stay half-open: without this, one whose client has gone would stay for ever.
    socket.on('end', () => socket.end())
    raw.add(socket)
    socket.once('close', () => raw.delete(socket))
    if (!allowed(request)) throw new GodwitError('TOKEN_INVALID', 'a valid bearer token is needed')
    const url = new URL(request.url ?? '/', 'http://local')
    for (const { route, match } of upgradeTable) {
      const params = match(url.pathname)
      if (!params) continue
      const take = await route.handle({ params, query: url.searchParams })
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n')
      if (head.length > 0) socket.unshift(head)
      return take(socket)
    }
    throw new GodwitError('USAGE', `no ${url.pathname} here`)
  }

  if ('socketPath' in listen) await removeStaleSocket(listen.socketPath)
  await new Promise<void>((resolve, reject) => {
    const where = 'socketPath' in listen ? listen.socketPath : `${listen.host}:${listen.port}`
    server.once('error', cause => reject(new GodwitError('CONFIG_INVALID', `cannot listen on ${where}: ${cause.message}`, { cause })))
    if ('socketPath' in listen) {
      // The socket must never be open to others, not even between bind and chmod.
      const before = process.umask(0o177)
      server.listen(listen.socketPath, resolve)
      process.umask(before)
    } else server.listen(listen.port, listen.host, resolve)
  })
  if ('socketPath' in listen) await chmod(listen.socketPath, 0o600)
  const bound = server.address()
  return {
    address: typeof bound === 'object' && bound ? { host: bound.address, port: bound.port } : listen,
    close: () =>
      new Promise(resolve => {
        server.close(() => resolve())
        server.closeAllConnections()
        for (const socket of raw) socket.destroy()
      }),
  }
}

/** The HTTP status that fits an error's code. */
export function statusOf(error: GodwitError): number {
  if (error.code === 'TOKEN_INVALID') return 401
  if (error.code === 'LIMIT_EXCEEDED') return 429
  if (error.code === 'VM_UNKNOWN' || error.code === 'SITE_UNKNOWN' || error.code === 'MIGRATION_UNKNOWN') return 404
  if (error.code === 'RESOURCE_UNKNOWN') return 404
  if (error.code === 'COMMAND_MALFORMED') return 400
  if (error.code === 'COMMAND_TOO_LARGE') return 413
  if (error.code === 'NOT_AVAILABLE') return 501
  if (error.exitCode === EXIT.usage) return 400
  if (error.exitCode === EXIT.refused) return 409
  if (error.exitCode === EXIT.denied) return 403
  if (error.exitCode === EXIT.timeout) return 504
  if (error.exitCode === EXIT.unreachable) return 503
  return 500
}

/** Compares digests, so neither the token's length nor a common prefix shows in the time taken. */
function tokenCheck(token: string | undefined): (request: IncomingMessage) => boolean {
  if (token === undefined) return () => true
  const digest = (text: string) => createHash('sha256').update(text).digest()
  const expected = digest(`Bearer ${token}`)
  return request => timingSafeEqual(digest(request.headers.authorization ?? ''), expected)
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
  params: Record<string, string>,
  query: URLSearchParams,
): RequestContext {
  const gone = new AbortController()
  response.once('close', () => gone.abort(new GodwitError('CONNECTION_LOST', 'the client went away')))
  return {
    params,
    query,
    signal: gone.signal,
    async json() {
      const body = await readBody(request)
      return body.length === 0 ? undefined : parseJson(body, { what: 'request body', code: 'CONFIG_INVALID' })
    },
    ndjson() {
      response.writeHead(200, { 'content-type': 'application/x-ndjson', 'cache-control': 'no-store' })
      response.flushHeaders()
      return {
        async line(value) {
          gone.signal.throwIfAborted()
          if (response.write(`${JSON.stringify(value)}\n`)) return
          await new Promise<void>((resolve, reject) => {
            const done = () => {
              gone.signal.removeEventListener('abort', onGone)
              resolve()
            }
            const onGone = () => {
              response.off('drain', done)
              reject(gone.signal.reason)
            }
            response.once('drain', done)
            gone.signal.addEventListener('abort', onGone, { once: true })
          })
        },
        end: () => response.end(),
      }
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
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length
    if (bytes > BODY_BYTES_MAX) throw new GodwitError('LIMIT_EXCEEDED', `a request body is larger than ${BODY_BYTES_MAX} bytes`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

function sendJson(response: ServerResponse, status: number, body: unknown, headers: Record<string, string> = {}): void {
  response.writeHead(status, { 'content-type': 'application/json', 'cache-control': 'no-store', ...headers })
  response.end(status === 204 ? undefined : `${JSON.stringify(body)}\n`)
}

function sendError(response: ServerResponse, status: number, error: GodwitError): void {
  // A body that is still coming (too large, or never wanted) must not be read to its end: close instead.
  response.setHeader('connection', 'close')
  sendJson(response, status, error.toJSON())
}

function refuseUpgrade(socket: Duplex, error: GodwitError): void {
  const status = statusOf(error)
  const body = JSON.stringify(error.toJSON())
  socket.end(
    `HTTP/1.1 ${status} ${STATUS_CODES[status] ?? 'Error'}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  )
}

/** A socket file whose process is gone is removed; one that answers belongs to a running process: CONFIG_INVALID. */
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
