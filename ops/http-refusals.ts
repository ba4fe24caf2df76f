// Answers of the HTTP server to invalid requests: wrong targets, methods, and bytes that are not HTTP. Enters: bytes of
// any client. Leaves: a path and a query, or a coded error on the raw socket. Always holds: each rejection has an
// ErrorBody and ends the connection.
import { type IncomingMessage, type Server, STATUS_CODES } from 'node:http'
import type { Duplex } from 'node:stream'
import { GodwitError } from '../wire/errors.ts'

const GOODBYE_MS = 1_000

/**
 * The path and query of a request's target: `/a/b?c` or `http://host/a/b?c` (RFC 9112, section 3.2). USAGE for anything
 * else.
 */
export function targetOf(request: IncomingMessage): { pathname: string; query: URLSearchParams } {
  const { url = '' } = request
  const origin = /^https?:\/\/[^/?#]*/i.exec(url)?.[0] ?? ''
  const target = url.slice(origin.length) || (origin === '' ? '' : '/')
  if (!target.startsWith('/')) throw new GodwitError('USAGE', `the target of a ${request.method} request must be a path that begins with /`)
  const [pathname = '', ...query] = target.split('#', 1)[0]!.split('?')
  return { pathname, query: new URLSearchParams(query.join('?')) }
}

/** Writes an error to a socket without a ServerResponse, and ends it. */
export function refuse(socket: Duplex, status: number, error: GodwitError): void {
  const body = JSON.stringify(error.toJSON())
  const head = [`HTTP/1.1 ${status} ${STATUS_CODES[status] ?? 'Error'}`, 'Connection: close', 'Content-Type: application/json']
  socket.end(`${[...head, `Content-Length: ${Buffer.byteLength(body)}`].join('\r\n')}\r\n\r\n${body}`)
  // Closing with unread bytes would cause a reset, which can discard the answer: read further bytes for a moment.
  socket.resume()
  const timer = setTimeout(() => socket.destroy(), GOODBYE_MS)
  socket.once('close', () => clearTimeout(timer))
}

/** Answers requests that the parser rejects, and methods that would turn the connection into a tunnel. */
export function refuseOddRequests(server: Server): void {
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => {
    if (error.code === 'ECONNRESET' || !socket.writable) return void socket.destroy()
    const { status, refusal } = refusalOf(error)
    refuse(socket, status, refusal)
  })
  server.on('connect', (_request, socket) => refuse(socket, 405, new GodwitError('USAGE', 'CONNECT is not supported')))
  server.on('checkExpectation', (request: IncomingMessage, response) => {
    const error = new GodwitError('USAGE', `Expect: ${request.headers.expect?.slice(0, 64)} is not supported`)
    response.writeHead(417, { 'content-type': 'application/json', connection: 'close' }).end(JSON.stringify(error.toJSON()))
  })
}

function refusalOf({ code = '', message }: NodeJS.ErrnoException): { status: number; refusal: GodwitError } {
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT')
    return { status: 408, refusal: new GodwitError('TIMEOUT', 'the request was not complete in time') }
  if (code === 'HPE_HEADER_OVERFLOW')
    return { status: 431, refusal: new GodwitError('LIMIT_EXCEEDED', 'the headers of a request are too large') }
  if (code === 'HPE_CHUNK_EXTENSIONS_OVERFLOW')
    return { status: 413, refusal: new GodwitError('LIMIT_EXCEEDED', 'chunk extensions are too large') }
  return { status: 400, refusal: new GodwitError('USAGE', `not an HTTP/1.1 request: ${message.slice(0, 128)}`) }
}
