// The client of ops/http.ts: JSON requests, NDJSON answers and raw (upgraded) connections, over TCP or a unix socket.
// Always holds: every wait has a deadline or a signal; answers are bounded; an ErrorBody becomes the GodwitError that the server threw;
// a server that is not there is the caller's `unreachable` code.
import { type IncomingMessage, type RequestOptions, request } from 'node:http'
import type { Duplex } from 'node:stream'
import { ErrorBody } from '../wire/control.ts'
import { type ErrorCode, fromBody, GodwitError } from '../wire/errors.ts'
import { parseJson } from '../wire/schema.ts'

const ANSWER_BYTES_MAX = 16 * 1024 * 1024
const LINE_BYTES_MAX = 1024 * 1024

export type HttpTarget = {
  /** `http://host:port`, or the path of a unix socket. */
  url?: string
  socketPath?: string
  token?: string
  /** Code for a server that does not answer. Default GATEWAY_UNREACHABLE for a url, NODE_UNREACHABLE for a socket. */
  unreachable?: ErrorCode
}
export type JsonRequest = HttpTarget & { method?: string; path: string; body?: unknown; timeoutMs?: number; signal?: AbortSignal }

/** One request, one JSON answer. Throws the server's error, or TIMEOUT after `timeoutMs` (default 30 s). */
export async function requestJson<T>(options: JsonRequest): Promise<T> {
  const deadline = deadlineOf(options, options.timeoutMs ?? 30_000)
  const response = await open(options, deadline)
  const text = await readText(response, options, deadline)
  if ((response.statusCode ?? 500) >= 400) throw errorOf(text, response, options)
  return parseJson(text, { what: whereOf(options) }) as T
}

/** A text answer as it is (metrics). */
export async function requestText(options: JsonRequest): Promise<string> {
  const deadline = deadlineOf(options, options.timeoutMs ?? 30_000)
  const response = await open(options, deadline)
  const text = await readText(response, options, deadline)
  if ((response.statusCode ?? 500) >= 400) throw errorOf(text, response, options)
  return text
}

/** Lines of an NDJSON answer as they come. `timeoutMs` (default 30 s) is for the answer's beginning; after that only `signal` ends it. */
export async function* requestLines<T>(options: JsonRequest): AsyncGenerator<T> {
  const begin = new AbortController()
  const timer = setTimeout(() => begin.abort(timedOut(options)), options.timeoutMs ?? 30_000)
  const signal = options.signal ? AbortSignal.any([options.signal, begin.signal]) : begin.signal
  const response = await open(options, signal).finally(() => clearTimeout(timer))
  if ((response.statusCode ?? 500) >= 400) throw errorOf(await readText(response, options, signal), response, options)
  let rest = ''
  try {
    for await (const chunk of response.setEncoding('utf8') as AsyncIterable<string>) {
      const lines = (rest + chunk).split('\n')
      rest = lines.pop() ?? ''
      if (rest.length > LINE_BYTES_MAX) throw new GodwitError('LIMIT_EXCEEDED', `${whereOf(options)}: a line is too long`)
      for (const line of lines) if (line !== '') yield parseJson(line, { what: whereOf(options) }) as T
    }
  } catch (error) {
    throw signal.aborted ? signal.reason : broken(options, error)
  } finally {
    response.destroy()
  }
}

/** Switches a request to raw bytes both ways (the console). The caller ends or destroys the socket. */
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

const whereOf = (options: JsonRequest) => `${options.method ?? 'GET'} ${options.path}`
const timedOut = (options: JsonRequest) => new GodwitError('TIMEOUT', `${whereOf(options)}: no answer in time`)

function deadlineOf(options: JsonRequest, timeoutMs: number): AbortSignal {
  const late = new AbortController()
  const timer = setTimeout(() => late.abort(timedOut(options)), timeoutMs)
  timer.unref()
  return options.signal ? AbortSignal.any([options.signal, late.signal]) : late.signal
}

function base({ url, socketPath, method = 'GET', path }: JsonRequest): RequestOptions {
  if (socketPath !== undefined) return { socketPath, path, method }
  if (url === undefined) throw new TypeError('url or socketPath is needed')
  const { protocol, hostname, port } = parseUrl(url)
  if (protocol !== 'http:') throw new GodwitError('CONFIG_INVALID', `${url}: only http:// is spoken (use an SSH tunnel for another host)`)
  return { host: hostname.replace(/^\[(.*)\]$/, '$1'), port, path, method }
}

function parseUrl(url: string): URL {
  try {
    return new URL(url)
  } catch (cause) {
    throw new GodwitError('CONFIG_INVALID', `'${url}' is no URL`, { cause })
  }
}

function headersOf({ token, body }: JsonRequest): Record<string, string> {
  return {
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
  return new GodwitError(code, `${options.socketPath ?? options.url}: ${message}`, { cause: error })
}

function errorOf(text: string, response: IncomingMessage, options: JsonRequest): GodwitError {
  try {
    return fromBody(ErrorBody.parse(JSON.parse(text)))
  } catch {
    return new GodwitError('INTERNAL', `${whereOf(options)}: status ${response.statusCode} without an error body`)
  }
}
