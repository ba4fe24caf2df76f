// JSON RPC in both directions over one stream: requests with answers, notifications without, heartbeats. Enters: method
// calls, frames RPC / PING / PONG / ERROR. Leaves: answers, or coded errors. Always holds: every request ends (answer,
// deadline, signal or end of the link); outstanding requests, running handlers and queued bytes are bounded;
// `silenceMs` without data ends the link (a hung peer keeps its connection open); a malformed frame ends the link with
// its code; an unknown method or a handler's error fails only that call.
import { ErrorBody } from '../wire/control.ts'
import { fromBody, GodwitError, toGodwitError } from '../wire/errors.ts'
import { FRAME_HEADER_BYTES } from '../wire/frame.ts'
import type { Log } from '../wire/log.ts'
import { checkJson, toJson, z } from '../wire/schema.ts'
import { allow, FRAME, FRAME_LIMITS } from '../wire/types.ts'
import { createFrameStream, type FrameStream } from './frames.ts'
import type { Stream } from './types.ts'

export const REQUESTS_MAX = 64
const QUEUED_BYTES_MAX = 4 * 1024 * 1024
/** Notifications are dropped when this much waits to be written. */
const NOTIFY_QUEUED_BYTES_MAX = 256 * 1024
const REQUEST_TIMEOUT_MS = 30_000
const HEARTBEAT_MS = 5_000
const SILENCE_MS = 15_000
const CLOSE_GRACE_MS = 1_000
/** Limit for a frame of 1 MiB, which is 18 KiB/s; a slower peer is disconnected. */
const FRAME_MS = 60_000

type RpcContext = { signal: AbortSignal }
export type RpcHandlers = Record<string, (params: unknown, context: RpcContext) => Promise<unknown>>
export type RequestOptions = { timeoutMs?: number; signal?: AbortSignal }

export type RpcPeer = {
  request<T>(method: string, params: unknown, options?: RequestOptions): Promise<T>
  /** Best effort: dropped when the link is slow or gone. */
  notify(method: string, params: unknown): void
  /** Resolves (never rejects) when the link has ended: null for a clean end by either side, otherwise the error. */
  readonly closed: Promise<GodwitError | null>
  /** Ends the link; an error is sent to the peer. */
  close(error?: GodwitError): void
}

export type RpcOptions = {
  handlers: RpcHandlers
  onNotify?: (method: string, params: unknown) => void
  log: Log
  heartbeatMs?: number
  silenceMs?: number
  /** How long one frame may take to arrive. Default 60 s. */
  frameMs?: number
}

const Id = z.number().int().positive().max(Number.MAX_SAFE_INTEGER)
const Method = z.string().min(1).max(64)
const Message = z.union([
  z.strictObject({ id: Id, method: Method, params: z.unknown() }),
  z.strictObject({ id: Id, result: z.unknown() }),
  z.strictObject({ id: Id, error: ErrorBody }),
  z.strictObject({ method: Method, params: z.unknown() }),
])
const ALLOWED = allow('RPC', 'PING', 'PONG', 'ERROR')
const EMPTY = new Uint8Array(0)

type Waiting = { resolve: (value: unknown) => void; reject: (error: unknown) => void }
type Reply = { result: unknown } | { error: GodwitError }

/** Runs RPC on a stream (also after its first frames were read) until either side ends it. */
export function createRpc(on: Stream | FrameStream, options: RpcOptions): RpcPeer {
  return new Rpc('next' in on ? on : createFrameStream(on), options)
}

class Rpc implements RpcPeer {
  readonly #frames: FrameStream
  readonly #options: RpcOptions
  readonly #over = new AbortController()
  readonly #closed = Promise.withResolvers<GodwitError | null>()
  readonly #waiting = new Map<number, Waiting>()
  readonly #heart: NodeJS.Timeout
  #running = 0
  #lastId = 0
  #queuedBytes = 0
  #pongQueued = false
  #lastWrite: Promise<void> = Promise.resolve()

  constructor(frames: FrameStream, options: RpcOptions) {
    this.#frames = frames
    this.#options = options
    this.#heart = setInterval(() => this.#beat(), options.heartbeatMs ?? HEARTBEAT_MS)
    this.#receive().then(
      reason => this.#finish(reason),
      thrown => this.close(toGodwitError(thrown)),
    )
  }

  get closed(): Promise<GodwitError | null> {
    return this.#closed.promise
  }

  request<T>(method: string, params: unknown, { timeoutMs = REQUEST_TIMEOUT_MS, signal }: RequestOptions = {}): Promise<T> {
    return new Promise((resolve, reject) => {
      this.#over.signal.throwIfAborted()
      signal?.throwIfAborted()
      if (this.#waiting.size >= REQUESTS_MAX) throw new GodwitError('LIMIT_EXCEEDED', `more than ${REQUESTS_MAX} requests outstanding`)
      const payload = toJson({ id: this.#lastId + 1, method, params })
      if (payload.length > FRAME_LIMITS.RPC) throw new GodwitError('LIMIT_EXCEEDED', `the request ${method} is too large`)
      if (this.#queuedBytes > QUEUED_BYTES_MAX) throw new GodwitError('LIMIT_EXCEEDED', 'the peer does not read its requests')
      const id = ++this.#lastId
      const settle = () => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', onAbort)
        this.#waiting.delete(id)
      }
      const fail = (error: unknown) => {
        settle()
        reject(error)
      }
      const onAbort = () => fail(signal?.reason)
      const timer = setTimeout(() => fail(new GodwitError('TIMEOUT', `${method}: no answer within ${timeoutMs} ms`)), timeoutMs)
      signal?.addEventListener('abort', onAbort, { once: true })
      this.#waiting.set(id, {
        resolve: value => {
          settle()
          resolve(value as T)
        },
        reject: fail,
      })
      this.#send(FRAME.RPC, payload).catch(fail)
    })
  }

  notify(method: string, params: unknown): void {
    if (this.#over.signal.aborted || this.#queuedBytes > NOTIFY_QUEUED_BYTES_MAX) return
    const payload = toJson({ method, params })
    if (payload.length <= FRAME_LIMITS.RPC) this.#send(FRAME.RPC, payload).catch(() => {})
    else this.#options.log.warn('notification is too large', { method, bytes: payload.length })
  }

  close(error?: GodwitError): void {
    if (this.#over.signal.aborted) return
    if (error) this.#send(FRAME.ERROR, toJson(error)).catch(() => {})
    this.#finish(error ?? null)
  }

  async #receive(): Promise<GodwitError | null> {
    for (;;) {
      const frame = await this.#frames.next(ALLOWED)
      if (frame === null || this.#over.signal.aborted) return null
      if (frame.type === FRAME.RPC) this.#onMessage(frame.payload)
      else if (frame.type === FRAME.PING) this.#pong()
      else if (frame.type === FRAME.ERROR) return fromBody(checkJson(ErrorBody, frame.payload, { what: 'ERROR frame' }))
    }
  }

  #onMessage(payload: Uint8Array): void {
    const message = checkJson(Message, payload, { what: 'RPC frame' })
    if ('method' in message) {
      if (!('id' in message)) this.#notified(message.method, message.params)
      else this.#answer(message.id, message.method, message.params)
      return
    }
    if (message.id > this.#lastId) throw new GodwitError('FRAME_MALFORMED', `an answer to request ${message.id}, which was never sent`)
    const waiter = this.#waiting.get(message.id)
    if ('error' in message) waiter?.reject(fromBody(message.error))
    else waiter?.resolve(message.result)
  }

  #notified(method: string, params: unknown): void {
    try {
      this.#options.onNotify?.(method, params)
    } catch (error) {
      this.#options.log.warn('notification rejected', { method, error })
    }
  }

  async #answer(id: number, method: string, params: unknown): Promise<void> {
    // Answers to a peer that does not read would accumulate.
    if (this.#queuedBytes > QUEUED_BYTES_MAX) return this.close(new GodwitError('LIMIT_EXCEEDED', 'the peer does not read its answers'))
    const reply = await this.#call(method, params)
    let payload = toJson({ id, ...reply })
    if (payload.length > FRAME_LIMITS.RPC) {
      this.#options.log.error('answer is too large', { method, bytes: payload.length })
      payload = toJson({ id, error: new GodwitError('LIMIT_EXCEEDED', `the answer to ${method} is too large`) })
    }
    await this.#send(FRAME.RPC, payload).catch(() => {})
  }

  async #call(method: string, params: unknown): Promise<Reply> {
    const { handlers, log } = this.#options
    const handler = Object.hasOwn(handlers, method) ? handlers[method] : undefined
    if (!handler) return { error: new GodwitError('VERSION_UNSUPPORTED', `unknown method '${method}'`) }
    if (this.#running >= REQUESTS_MAX) return { error: new GodwitError('LIMIT_EXCEEDED', `more than ${REQUESTS_MAX} requests in progress`) }
    this.#running += 1
    try {
      return { result: (await handler(params, { signal: this.#over.signal })) ?? null }
    } catch (thrown) {
      const error = toGodwitError(thrown)
      if (error.code === 'INTERNAL') log.error('request handler failed', { method, error })
      return { error }
    } finally {
      this.#running -= 1
    }
  }

  #beat(): void {
    const silentMs = performance.now() - this.#frames.heardAt()
    if (silentMs >= (this.#options.silenceMs ?? SILENCE_MS))
      this.#finish(new GodwitError('CONNECTION_LOST', `no data from the peer for ${Math.round(silentMs)} ms`))
    else if (performance.now() - (this.#frames.beganAt() ?? Number.POSITIVE_INFINITY) >= (this.#options.frameMs ?? FRAME_MS))
      this.close(new GodwitError('TIMEOUT', 'a frame was not complete in time'))
    else if (this.#queuedBytes <= NOTIFY_QUEUED_BYTES_MAX) this.#send(FRAME.PING, EMPTY).catch(() => {})
  }

  /** At most one PONG is queued, however many PINGs arrive. */
  #pong(): void {
    if (this.#pongQueued) return
    this.#pongQueued = true
    const sent = () => {
      this.#pongQueued = false
    }
    this.#send(FRAME.PONG, EMPTY).then(sent, sent)
  }

  async #send(type: number, payload: Uint8Array): Promise<void> {
    const bytes = payload.length + FRAME_HEADER_BYTES
    this.#queuedBytes += bytes
    const written = this.#frames.write(type, payload)
    this.#lastWrite = written.catch(() => {})
    try {
      await written
    } finally {
      this.#queuedBytes -= bytes
    }
  }

  #finish(reason: GodwitError | null): void {
    if (this.#over.signal.aborted) return
    const error = reason ?? new GodwitError('CONNECTION_LOST', 'the link was closed')
    this.#over.abort(error)
    clearInterval(this.#heart)
    for (const { reject } of [...this.#waiting.values()]) reject(error)
    // The last frame (ERROR) should still arrive: half-close first, then reset if the peer does not read it in time.
    this.#lastWrite.then(() => this.#frames.stream.end()).catch(() => {})
    setTimeout(() => this.#frames.stream.reset('closed'), CLOSE_GRACE_MS).unref()
    this.#closed.resolve(reason)
  }
}
