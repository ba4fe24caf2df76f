// The client of ops/http.ts: JSON requests, NDJSON answers, server-sent events and raw (upgraded) connections, over TCP
// or a unix socket. Always holds: every wait has a deadline or a signal; answers are bounded; an ErrorBody becomes the
// GodwitError that the server threw; an unreachable server is the caller's `unreachable` code.
import { type ClientRequest, request as httpRequest, type IncomingMessage } from 'node:http'
import { request as httpsRequest, type RequestOptions } from 'node:https'
import type { Duplex } from 'node:stream'
import { ErrorBody } from '../wire/control.ts'
import { type ErrorCode, fromBody, GodwitError } from '../wire/errors.ts'
import { parseJson } from '../wire/schema.ts'
import { withoutCredentials } from './redact.ts'
import { EVENT_STREAM, type SseEvent, SseReader } from './sse.ts'

const ANSWER_BYTES_MAX = 16 * 1024 * 1024
const LINE_BYTES_MAX = 1024 * 1024

export type HttpTarget = {
  /** `http://host:port`, `https://host:port`, or the path of a unix socket. */
  url?: string
  /** PEM: certificate authority of an https server. Default: the system's authorities. */
  ca?: string
  socketPath?: string
  token?: string
  /** Code for a server that does not answer. Default GATEWAY_UNREACHABLE for a url, NODE_UNREACHABLE for a socket. */
  unreachable?: ErrorCode
}
export type JsonRequest = HttpTarget & {
  method?: string
  path: string
  body?: unknown
  headers?: Record<string, string>
  timeoutMs?: number
  signal?: AbortSignal
}

/** One request, one JSON answer. Throws the server's error, or TIMEOUT after `timeoutMs` (default 30 s). */
export async function requestJson<T>(options: JsonRequest): Promise<T> {
  const deadline = deadlineOf(options, options.timeoutMs ?? 30_000)
  const response = await open(options, deadline)
  const text = await readText(response, options, deadline)
  if ((response.statusCode ?? 500) >= 400) throw errorOf(text, response, options)
  return parseJson(text, { what: whereOf(options) }) as T
}

/** A text response unchanged (metrics). */
export async function requestText(options: JsonRequest): Promise<string> {
  const deadline = deadlineOf(options, options.timeoutMs ?? 30_000)
  const response = await open(options, deadline)
  const text = await readText(response, options, deadline)
  if ((response.statusCode ?? 500) >= 400) throw errorOf(text, response, options)
  return text
}

/**
 * Lines of an NDJSON response as they arrive. `timeoutMs` (default 30 s) applies until the response begins; after that
 * only `signal` ends it.
 */
export async function* requestLines<T>(options: JsonRequest): AsyncGenerator<T> {
  let rest = ''
  for await (const piece of requestPieces(options)) {
    const lines = (rest + piece).split('\n')
    rest = lines.pop() ?? ''
    if (rest.length > LINE_BYTES_MAX) throw new GodwitError('LIMIT_EXCEEDED', `${whereOf(options)}: a line is too long`)
    for (const line of lines) if (line !== '') yield parseJson(line, { what: whereOf(options) }) as T
  }
}

/**
 * Events of an event stream as they arrive. `after`: the id to resume from. `silenceMs`: a server that sends nothing
 * for this time, not even a comment, counts as lost (CONNECTION_LOST).
 */
export async function* requestEvents(options: JsonRequest & { after?: string; silenceMs: number }): AsyncGenerator<SseEvent> {
  const { after, silenceMs, ...request } = options
  const headers = { accept: EVENT_STREAM, ...(after === undefined ? {} : { 'last-event-id': after }) }
  const reader = new SseReader()
  for await (const piece of requestPieces({ ...request, headers }, silenceMs)) yield* reader.push(piece)
}

/** The text of a response as it arrives. */
async function* requestPieces(options: JsonRequest, silenceMs?: number): AsyncGenerator<string> {
  const begin = new AbortController()
  const timer = setTimeout(() => begin.abort(timedOut(options)), options.timeoutMs ?? 30_000)
  const signal = options.signal ? AbortSignal.any([options.signal, begin.signal]) : begin.signal
  const response = await open(options, signal).finally(() => clearTimeout(timer))
  if ((response.statusCode ?? 500) >= 400) throw errorOf(await readText(response, options, signal), response, options)
  const silent = () => begin.abort(new GodwitError('CONNECTION_LOST', `${whereOf(options)}: nothing came for ${silenceMs} ms`))
  let silence = silenceMs === undefined ? undefined : setTimeout(silent, silenceMs)
  try {
    for await (const piece of response.setEncoding('utf8') as AsyncIterable<string>) {
      silence = silence?.refresh()
      yield piece
    }
  } catch (error) {
    throw signal.aborted ? signal.reason : broken(options, error)
  } finally {
    clearTimeout(silence)
    response.destroy()
  }
}

/** Switches a request to raw bytes in both directions (the console). The caller ends or destroys the socket. */
export async function requestUpgrade(options: JsonRequest): Promise<Duplex> {
  const deadline = deadlineOf(options, options.timeoutMs ?? 10_000)
  return new Promise((resolve, reject) => {
    const sent = request({ ...base(options), headers: { ...headersOf(options), connection: 'Upgrade', upgrade: 'raw' }, signal: deadline })
    sent.once('upgrade', (_response, socket, head) => {
      if (head.length > 0) socket.unshift(head)
      resolve(socket)
    })
    sent.once('response', response => {
      readText(response, options, deadline).then(text => reject(errorOf(text, response, options)), reject)
    })
    sent.once('error', error => reject(deadline.aborted ? deadline.reason : broken(options, error)))
    sent.end()
  })
}

/** OpenSSL's and Node's codes for a certificate that is not trusted, or for another name. */
const CERTIFICATE_FAULTS = /CERT|SELF_SIGNED|ISSUER|ALTNAME/

const whereOf = (options: JsonRequest) => `${options.method ?? 'GET'} ${options.path}`
const timedOut = (options: JsonRequest) => new GodwitError('TIMEOUT', `${whereOf(options)}: no answer in time`)

function deadlineOf(options: JsonRequest, timeoutMs: number): AbortSignal {
  const late = new AbortController()
  const timer = setTimeout(() => late.abort(timedOut(options)), timeoutMs)
  timer.unref()
  return options.signal ? AbortSignal.any([options.signal, late.signal]) : late.signal
}

function base({ url, ca, socketPath, method = 'GET', path }: JsonRequest): RequestOptions {
  if (socketPath !== undefined) return { socketPath, path, method }
  if (url === undefined) throw new TypeError('url or socketPath is required')
  const { protocol, hostname, port } = parseUrl(url)
  if (protocol !== 'http:' && protocol !== 'https:')
    throw new GodwitError('CONFIG_INVALID', `${withoutCredentials(url)}: expected http://host:port or https://host:port`)
  const host = hostname.replace(/^\[(.*)\]$/, '$1')
  return { protocol, host, port, path, method, ...(ca === undefined ? {} : { ca }) }
}

const request = (options: RequestOptions): ClientRequest => (options.protocol === 'https:' ? httpsRequest(options) : httpRequest(options))

function parseUrl(url: string): URL {
  try {
    return new URL(url)
  } catch (cause) {
    throw new GodwitError('CONFIG_INVALID', `'${withoutCredentials(url)}' is not a URL`, { cause })
  }
}

/** Not allowed in a header, and never part of a token. */
const NO_TOKEN = /[^\x21-\x7e]/

function headersOf({ token, body, headers }: JsonRequest): Record<string, string> {
  if (token !== undefined && (token === '' || NO_TOKEN.test(token)))
    throw new GodwitError('USAGE', `the token ${token === '' ? 'is empty' : 'contains white space or another invalid character'}`, {
      hint: 'use the one line that the gateway wrote (see --token-file, GODWIT_TOKEN)',
    })
  return {
    ...headers,
    ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
    ...(body === undefined ? {} : { 'content-type': 'application/json' }),
  }
}

function open(options: JsonRequest, signal: AbortSignal): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const sent = request({ ...base(options), headers: headersOf(options), signal, agent: false })
    sent.once('response', resolve)
    sent.once('error', error => reject(signal.aborted ? signal.reason : broken(options, error)))
    sent.end(options.body === undefined ? undefined : JSON.stringify(options.body))
  })
}

async function readText(response: IncomingMessage, options: JsonRequest, signal: AbortSignal): Promise<string> {
  const chunks: Buffer[] = []
  let bytes = 0
  try {
    for await (const chunk of response as AsyncIterable<Buffer>) {
      bytes += chunk.length
      if (bytes > ANSWER_BYTES_MAX) throw new GodwitError('LIMIT_EXCEEDED', `${whereOf(options)}: the answer is too long`)
      chunks.push(chunk)
    }
  } catch (error) {
    throw signal.aborted ? signal.reason : broken(options, error)
  }
  return Buffer.concat(chunks).toString('utf8')
}

function broken(options: JsonRequest, error: unknown): GodwitError {
  if (error instanceof GodwitError) return error
  const code = options.unreachable ?? (options.socketPath === undefined ? 'GATEWAY_UNREACHABLE' : 'NODE_UNREACHABLE')
  const message = error instanceof Error ? error.message : String(error)
  const isUntrusted = CERTIFICATE_FAULTS.test(String((error as NodeJS.ErrnoException).code))
  const hint = isUntrusted
    ? { hint: 'give the certificate authority of the gateway with --gateway-ca, and connect by a name in its certificate' }
    : {}
  return new GodwitError(code, `${options.socketPath ?? options.url}: ${message}`, { cause: error, ...hint })
}

function errorOf(text: string, response: IncomingMessage, options: JsonRequest): GodwitError {
  try {
    const error = fromBody(ErrorBody.parse(JSON.parse(text)))
    if (error.code !== 'USAGE' || (response.statusCode !== 404 && response.statusCode !== 405)) return error
    // Requests of this version are valid, so the server has another version.
    const server = options.socketPath === undefined ? 'gateway' : 'node'
    const hint = `use the godwit command and the ${server} of the same release, or check the address of the ${server}`
    return new GodwitError('VERSION_UNSUPPORTED', `the ${server} does not know ${whereOf(options)}`, { cause: error, hint })
  } catch {
    return new GodwitError('INTERNAL', `${whereOf(options)}: status ${response.statusCode} without an error body`)
  }
}
