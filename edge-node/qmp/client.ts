// A QMP connection: commands with ids, events, and an end that rejects all waiting calls. Enters: a unix socket (or any
// duplex). Leaves: answers, events, coded errors (QEMU_COMMAND, QEMU_TIMEOUT, QEMU_EXITED). Always holds: every command
// settles (answer, timeout, abort or end of the connection); an answer after its timeout is ignored.
import type { Duplex } from 'node:stream'
import { sleep, within } from '../../ops/deadline.ts'
import { GodwitError, hasCode, toGodwitError } from '../../wire/errors.ts'
import { type Log, silentLog } from '../../wire/log.ts'
import { encodeCommand, QmpDecoder, type QmpObject } from './codec.ts'
import { connectUnix } from './socket.ts'

/**
 * An asynchronous message of QEMU, e.g. STOP, RESUME, MIGRATION, SHUTDOWN. `atMs` is QEMU's own wall clock, Unix ms.
 */
type QmpEvent = { event: string; data: QmpObject; atMs: number }
type QmpVersion = { major: number; minor: number; micro: number }
export type ExecuteOptions = { timeoutMs?: number; signal?: AbortSignal | undefined }
type QmpListener = (event: QmpEvent) => void

/** Default deadline of a command, ms. */
const COMMAND_TIMEOUT_MS = 10_000
const MAX_COMMANDS_IN_FLIGHT = 256

type Pending = { resolve: (value: unknown) => void; reject: (error: Error) => void; command: string }

export class QmpClient {
  /** The version in QEMU's greeting. */
  version: QmpVersion = { major: 0, minor: 0, micro: 0 }
  /** Settles when the connection has ended, with the reason if it was an error; never rejects. */
  readonly closed: Promise<Error | undefined>

  readonly #stream: Duplex
  readonly #log: Log
  readonly #decoder: QmpDecoder
  readonly #pending = new Map<number, Pending>()
  readonly #listeners = new Map<string, Set<QmpListener>>()
  readonly #waiters = new Set<(reason: Error | undefined) => void>()
  readonly #greeted: Promise<QmpObject>
  #greet: (greeting: QmpObject) => void = () => {}
  #close: (reason: Error | undefined) => void = () => {}
  #nextId = 1
  #ended = false

  constructor(stream: Duplex, { log = silentLog, maxLineBytes }: { log?: Log; maxLineBytes?: number } = {}) {
    this.#stream = stream
    this.#log = log
    this.#decoder = new QmpDecoder(maxLineBytes)
    this.closed = new Promise(resolve => {
      this.#close = resolve
    })
    this.#greeted = new Promise(resolve => {
      this.#greet = resolve
    })
    stream.on('data', (chunk: Buffer) => this.#receive(chunk))
    stream.on('error', error => this.#end(error))
    stream.on('end', () => this.#end())
    stream.on('close', () => this.#end())
  }

  get ended(): boolean {
    return this.#ended
  }

  /** Waits for the greeting and leaves negotiation mode. Must come before any command. */
  async open({ timeoutMs = COMMAND_TIMEOUT_MS, signal }: ExecuteOptions = {}): Promise<this> {
    const gone = this.closed.then(reason => {
      throw this.#exited('while greeting', reason)
    })
    const greeting = await within(Promise.race([this.#greeted, gone]), {
      ms: timeoutMs,
      what: 'QMP greeting',
      code: 'QEMU_TIMEOUT',
      signal,
    })
    this.version = versionOf(greeting)
    await this.execute('qmp_capabilities', undefined, { timeoutMs, signal })
    return this
  }

  /**
   * The `return` member of QEMU's answer. QEMU_COMMAND if QEMU rejects it, QEMU_TIMEOUT after `timeoutMs`, QEMU_EXITED
   * if the connection ends first; an aborted signal rejects with its reason. After a timeout or an abort QEMU may still
   * execute the command.
   */
  async execute<T = QmpObject>(
    command: string,
    args?: QmpObject,
    { timeoutMs = COMMAND_TIMEOUT_MS, signal }: ExecuteOptions = {},
  ): Promise<T> {
    signal?.throwIfAborted()
    if (this.#ended) throw this.#exited(`before ${command}`)
    if (this.#pending.size >= MAX_COMMANDS_IN_FLIGHT)
      throw new GodwitError('LIMIT_EXCEEDED', `${MAX_COMMANDS_IN_FLIGHT} QMP commands are already pending`)
    const id = this.#nextId++
    const answer = new Promise<unknown>((resolve, reject) => this.#pending.set(id, { resolve, reject, command }))
    try {
      this.#stream.write(encodeCommand(id, command, args))
      return (await within(answer, { ms: timeoutMs, what: `QMP ${command}`, code: 'QEMU_TIMEOUT', signal })) as T
    } finally {
      this.#pending.delete(id)
      answer.catch(() => {}) // rejected after a timeout, without a listener
    }
  }

  /** Calls `listener` for each event of this name ('*': every event). Returns the function that removes it. */
  on(event: string, listener: QmpListener): () => void {
    const listeners = this.#listeners.get(event) ?? new Set()
    this.#listeners.set(event, listeners.add(listener))
    return () => listeners.delete(listener)
  }

  /**
   * The next event of this name or that satisfies the predicate. QEMU_TIMEOUT after `ms`, QEMU_EXITED if the connection
   * ends first.
   */
  async waitFor(
    want: string | ((event: QmpEvent) => boolean),
    { ms, signal }: { ms: number; signal?: AbortSignal | undefined },
  ): Promise<QmpEvent> {
    const name = typeof want === 'string' ? want : 'event'
    let off = () => {}
    let waiter: (reason: Error | undefined) => void = () => {}
    const seen = new Promise<QmpEvent>((resolve, reject) => {
      off = this.on(typeof want === 'string' ? want : '*', event => {
        if (typeof want === 'string' || want(event)) resolve(event)
      })
      waiter = reason => reject(this.#exited(`before the ${name} event`, reason))
      if (this.#ended) waiter(undefined)
      this.#waiters.add(waiter)
    })
    try {
      return await within(seen, { ms, what: `QMP ${name}`, code: 'QEMU_TIMEOUT', signal })
    } finally {
      off()
      this.#waiters.delete(waiter)
      seen.catch(() => {})
    }
  }

  /** Ends the connection; QEMU keeps running. */
  close(): void {
    this.#end()
  }

  #receive(chunk: Buffer): void {
    if (this.#ended) return
    try {
      for (const object of this.#decoder.push(chunk)) this.#dispatch(object)
    } catch (error) {
      this.#end(toGodwitError(error))
    }
  }

  #dispatch(object: QmpObject): void {
    if ('QMP' in object) this.#greet(asObject(object.QMP))
    else if (typeof object.event === 'string') this.#emit(object.event, object)
    else this.#settle(object)
  }

  #settle(object: QmpObject): void {
    const pending = this.#pending.get(Number(object.id))
    if (!pending) {
      this.#log.debug('QMP answer without a pending command', { id: String(object.id) })
      return
    }
    if ('error' in object) {
      const error = asObject(object.error)
      pending.reject(new GodwitError('QEMU_COMMAND', `${pending.command}: ${String(error.desc ?? error.class ?? 'refused')}`))
    } else pending.resolve(object.return)
  }

  #emit(name: string, object: QmpObject): void {
    const time = asObject(object.timestamp)
    const atMs = Number(time.seconds ?? 0) * 1000 + Number(time.microseconds ?? 0) / 1000
    const event = { event: name, data: asObject(object.data), atMs }
    for (const key of [name, '*'])
      for (const listener of [...(this.#listeners.get(key) ?? [])]) {
        try {
          listener(event)
        } catch (error) {
          this.#log.error('listener of a QMP event failed', { event: name, error })
        }
      }
  }

  #end(reason?: Error): void {
    if (this.#ended) return
    this.#ended = true
    this.#stream.destroy()
    for (const pending of this.#pending.values()) pending.reject(this.#exited(`during ${pending.command}`, reason))
    for (const waiter of this.#waiters) waiter(reason)
    this.#close(reason)
  }

  #exited(when: string, cause?: Error): GodwitError {
    return new GodwitError('QEMU_EXITED', `the connection to QEMU ended ${when}${cause ? `: ${cause.message}` : ''}`, { cause })
  }
}

type QmpConnectOptions = { path: string; timeoutMs?: number; signal?: AbortSignal | undefined; log?: Log }

/** Connects to QEMU's QMP socket, with retries until it listens or the deadline passes (QEMU_TIMEOUT). */
export async function connectQmp({ path, timeoutMs = 10_000, signal, log = silentLog }: QmpConnectOptions): Promise<QmpClient> {
  const end = performance.now() + timeoutMs
  for (;;) {
    const leftMs = Math.max(1, end - performance.now())
    try {
      const client = new QmpClient(await connectUnix(path, leftMs, { signal }), { log })
      try {
        return await client.open({ timeoutMs: leftMs, signal })
      } catch (error) {
        client.close()
        throw error
      }
    } catch (error) {
      signal?.throwIfAborted()
      if (hasCode(error, 'QEMU_UNTRUSTED')) throw error
      if (performance.now() >= end) throw new GodwitError('QEMU_TIMEOUT', `${path}: no QMP within ${timeoutMs} ms`, { cause: error })
    }
    await sleep(20, signal)
  }
}

const asObject = (value: unknown): QmpObject => (typeof value === 'object' && value !== null ? (value as QmpObject) : {})

function versionOf(greeting: QmpObject): QmpVersion {
  const qemu = asObject(asObject(greeting.version).qemu)
  return { major: Number(qemu.major ?? 0), minor: Number(qemu.minor ?? 0), micro: Number(qemu.micro ?? 0) }
}
