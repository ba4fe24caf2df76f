// A client of one NBD export: QEMU's (the disk of a running VM, with its dirty bitmaps) or qemu-nbd's (an image file).
// Enters: a connected socket, the name of the export, the contexts that are wanted. Leaves: blocks, their status, and
// writes that the server has acknowledged.
// Always holds: every request has a deadline; a connection that breaks, or a server that breaks the protocol, fails all
// requests with one error and closes the socket; a read fills all of its buffer, or fails; at most REQUESTS_MAX
// requests wait at the server.
import type { Socket } from 'node:net'
import { within } from '../../../ops/deadline.ts'
import { type ErrorCode, GodwitError } from '../../../wire/errors.ts'
import {
  broken,
  EXPORT_FLAG,
  type ExportInfo,
  type Extent,
  GREETING_BYTES,
  goOf,
  metaContextsOf,
  NBD_COMMAND,
  OPTION,
  OPTION_REPLY_HEAD_BYTES,
  OPTION_REPLY_TYPE,
  optionError,
  REQUEST_BYTES_MAX,
  type ReplyEvent,
  ReplyReader,
  readGreeting,
  readInfo,
  readMetaContext,
  readOptionReplyHead,
  writeClientFlags,
  writeOption,
  writeRequest,
} from './codec.ts'

export const ALLOCATION_CONTEXT = 'base:allocation'
export const bitmapContext = (bitmap: string): string => `qemu:dirty-bitmap:${bitmap}`

const REQUESTS_MAX = 16
/** A disk that answers nothing for so long is broken: a sector that is read again and again takes some 30 s. */
const REQUEST_MS = 60_000
const HANDSHAKE_MS = 10_000

type NbdOptions = {
  export: string
  /** Metadata contexts that the server must have: NBD_REFUSED otherwise. */
  contexts?: readonly string[]
  requestMs?: number
  handshakeMs?: number
}

export type NbdClient = {
  readonly sizeBytes: number
  readonly isReadOnly: boolean
  /** Fills `into` from `offset` on. Holes are filled with zeros. */
  read(offset: number, into: Uint8Array): Promise<void>
  /**
   * Status of a range: extents that follow each other from `offset` on, together exactly `length`, neighbours of the
   * same flags joined.
   * `length`: up to 2 GiB.
   */
  status(context: string, offset: number, length: number): Promise<Extent[]>
  write(offset: number, bytes: Uint8Array): Promise<void>
  /** Makes a range read as zeros, as a hole where the format can. `length`: up to 2 GiB. */
  zero(offset: number, length: number): Promise<void>
  /** All writes that were acknowledged are on the disk when it resolves. */
  flush(): Promise<void>
  /** Ends the connection; requests that wait fail with NBD_CLOSED. Idempotent. */
  close(): void
}

type Waiting = {
  cookie: bigint
  into?: { bytes: Uint8Array; offset: number; filled: number }
  context?: { id: number; extents: Extent[] }
  error?: GodwitError
  resolve(): void
  reject(error: GodwitError): void
}

/** Negotiates on a connected socket, and owns it from then on. NBD_PROTOCOL, NBD_REFUSED, NBD_CLOSED, TIMEOUT. */
export async function openNbd(socket: Socket, options: NbdOptions): Promise<NbdClient> {
  const { export: name, contexts = [], requestMs = REQUEST_MS, handshakeMs = HANDSHAKE_MS } = options
  try {
    const negotiated = await within(negotiate(socket, name, contexts), { ms: handshakeMs, what: `NBD export ${name}` })
    return new Client(socket, negotiated, requestMs)
  } catch (error) {
    socket.destroy()
    throw error
  }
}

type Negotiated = { info: ExportInfo & { sizeBytes: number }; contexts: Map<string, number>; rest: Buffer }

async function negotiate(socket: Socket, name: string, wanted: readonly string[]): Promise<Negotiated> {
  const input = readExactly(socket)
  readGreeting(await input.take(GREETING_BYTES))
  const contexts = new Map<string, number>()
  const info: ExportInfo = {}
  const ask = async (option: number, data: Uint8Array | undefined, onReply?: (type: number, data: Buffer) => void) => {
    socket.write(writeOption(option, data))
    for (;;) {
      const head = readOptionReplyHead(await input.take(OPTION_REPLY_HEAD_BYTES))
      const payload = await input.take(head.bytes)
      const error = optionError(head, payload)
      if (error) throw error
      if (head.option !== option) throw broken(`an unexpected answer to option ${head.option}`)
      if (head.type === OPTION_REPLY_TYPE.ACK) return
      onReply?.(head.type, payload)
    }
  }
  socket.write(writeClientFlags())
  await ask(OPTION.STRUCTURED_REPLY, undefined)
  if (wanted.length > 0)
    await ask(OPTION.SET_META_CONTEXT, metaContextsOf(name, wanted), (type, data) => {
      if (type !== OPTION_REPLY_TYPE.META_CONTEXT) return
      const context = readMetaContext(data)
      if (wanted.includes(context.name)) contexts.set(context.name, context.id)
    })
  const missing = wanted.find(context => !contexts.has(context))
  if (missing !== undefined) throw new GodwitError('NBD_REFUSED', `the NBD export ${name} has no metadata context ${missing}`)
  await ask(OPTION.GO, goOf(name), (type, data) => {
    if (type === OPTION_REPLY_TYPE.INFO) Object.assign(info, readInfo(data))
  })
  const { sizeBytes } = info
  if (sizeBytes === undefined) throw broken('the server does not send the size of the export')
  return { info: { ...info, sizeBytes }, contexts, rest: input.end() }
}

/** Reads exact numbers of bytes during the negotiation; end() gives what came beyond it. */
function readExactly(socket: Socket) {
  let kept = Buffer.alloc(0)
  let wake = () => {}
  let end: GodwitError | undefined
  const onData = (piece: Buffer) => {
    kept = Buffer.concat([kept, piece])
    wake()
  }
  const onEnd = () => {
    end = new GodwitError('NBD_CLOSED', 'the NBD server closed the connection during the negotiation')
    wake()
  }
  socket.on('data', onData).once('close', onEnd)
  return {
    async take(count: number): Promise<Buffer> {
      while (kept.length < count) {
        if (end) throw end
        await new Promise<void>(resolve => {
          wake = resolve
        })
      }
      const taken = kept.subarray(0, count)
      kept = kept.subarray(count)
      return taken
    },
    end(): Buffer {
      socket.off('data', onData).off('close', onEnd)
      return kept
    },
  }
}

class Client implements NbdClient {
  readonly sizeBytes: number
  readonly isReadOnly: boolean
  readonly #socket: Socket
  readonly #contexts: Map<string, number>
  readonly #canZero: boolean
  readonly #canFlush: boolean
  readonly #requestMs: number
  readonly #replies = new ReplyReader()
  readonly #waiting = new Map<bigint, Waiting>()
  readonly #queue: (() => void)[] = []
  #cookies = 0n
  #end: GodwitError | undefined

  constructor(socket: Socket, { info, contexts, rest }: Negotiated, requestMs: number) {
    const flags = info.flags ?? 0
    this.sizeBytes = info.sizeBytes
    this.isReadOnly = (flags & EXPORT_FLAG.READ_ONLY) !== 0
    this.#canZero = (flags & EXPORT_FLAG.WRITE_ZEROES) !== 0
    this.#canFlush = (flags & EXPORT_FLAG.FLUSH) !== 0
    this.#socket = socket
    this.#contexts = contexts
    this.#requestMs = requestMs
    socket.on('data', (piece: Buffer) => this.#receive(piece))
    socket.once('close', () => this.#fail(new GodwitError('NBD_CLOSED', 'the NBD server closed the connection')))
    socket.on('error', () => {}) // a 'close' follows
    if (rest.length > 0) this.#receive(rest)
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    for (let at = 0; at < into.length; at += REQUEST_BYTES_MAX) {
      const bytes = into.subarray(at, at + REQUEST_BYTES_MAX)
      await this.#request(NBD_COMMAND.READ, { offset: offset + at, length: bytes.length }, waiting => {
        waiting.into = { bytes, offset: offset + at, filled: 0 }
      })
    }
  }

  async status(context: string, offset: number, length: number): Promise<Extent[]> {
    const id = this.#contexts.get(context)
    if (id === undefined) throw new TypeError(`metadata context ${context} was not negotiated`)
    const all: Extent[] = []
    for (let done = 0; done < length; ) {
      const found: Extent[] = []
      await this.#request(NBD_COMMAND.BLOCK_STATUS, { offset: offset + done, length: length - done }, waiting => {
        waiting.context = { id, extents: found }
      })
      // The last extent may reach beyond what was asked for; a server may also answer for less.
      const before = done
      for (const extent of found) {
        const part = Math.min(extent.length, length - done)
        if (part > 0) append(all, { length: part, flags: extent.flags })
        done += part
      }
      if (done === before) throw this.#fail(broken('an empty block status'))
    }
    return all
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; at += REQUEST_BYTES_MAX) {
      const part = bytes.subarray(at, at + REQUEST_BYTES_MAX)
      await this.#request(NBD_COMMAND.WRITE, { offset: offset + at, length: part.length, data: part })
    }
  }

  async zero(offset: number, length: number): Promise<void> {
    if (this.#canZero) return await this.#request(NBD_COMMAND.WRITE_ZEROES, { offset, length })
    const zeros = new Uint8Array(Math.min(length, 1024 * 1024))
    for (let at = 0; at < length; at += zeros.length) await this.write(offset + at, zeros.subarray(0, length - at))
  }

  async flush(): Promise<void> {
    if (this.#canFlush) await this.#request(NBD_COMMAND.FLUSH, { offset: 0, length: 0 })
  }

  close(): void {
    if (!this.#end && this.#socket.writable)
      this.#socket.end(writeRequest({ command: NBD_COMMAND.DISCONNECT, cookie: 0n, offset: 0, length: 0 }))
    this.#fail(new GodwitError('NBD_CLOSED', 'the NBD connection was closed by this node'))
  }

  async #request(
    command: number,
    { offset, length, data }: { offset: number; length: number; data?: Uint8Array },
    prepare?: (waiting: Waiting) => void,
  ): Promise<void> {
    if (offset < 0 || offset + length > this.sizeBytes)
      throw new GodwitError('NBD_REFUSED', `bytes ${offset} to ${offset + length} of an export of ${this.sizeBytes} bytes`)
    if (this.isReadOnly && (command === NBD_COMMAND.WRITE || command === NBD_COMMAND.WRITE_ZEROES))
      throw new GodwitError('NBD_REFUSED', 'the export is read-only')
    while (this.#waiting.size >= REQUESTS_MAX && !this.#end) await new Promise<void>(resolve => this.#queue.push(resolve))
    if (this.#end) throw this.#end
    const cookie = ++this.#cookies
    const answered = new Promise<void>((resolve, reject) => {
      const waiting: Waiting = { cookie, resolve, reject }
      prepare?.(waiting)
      this.#waiting.set(cookie, waiting)
    })
    answered.catch(() => {})
    this.#socket.cork()
    this.#socket.write(writeRequest({ command, cookie, offset, length }))
    if (data) this.#socket.write(data)
    this.#socket.uncork()
    try {
      await within(answered, { ms: this.#requestMs, what: `NBD command ${command}` })
    } catch (error) {
      // After a deadline nobody may write into the caller's buffer.
      if (this.#waiting.has(cookie)) this.#fail(error as GodwitError)
      throw error
    }
  }

  #receive(piece: Uint8Array): void {
    if (this.#end) return
    try {
      this.#replies.push(piece, event => this.#take(event))
    } catch (error) {
      this.#fail(error as GodwitError)
    }
  }

  #take(event: ReplyEvent): void {
    const waiting = this.#waiting.get(event.cookie)
    if (!waiting) throw broken('a reply without a request')
    if (event.type === 'error') waiting.error ??= diskError(event)
    else if (event.type === 'status') {
      // A server answers for every context that was negotiated.
      const isKnown = waiting.context && [...this.#contexts.values()].includes(event.context)
      if (!waiting.context || !isKnown) throw broken('a block status that was not requested')
      if (event.context === waiting.context.id) waiting.context.extents.push(...event.extents)
    } else if (event.type === 'data') fill(waiting, event.offset, event.bytes)
    else if (event.type === 'hole') fill(waiting, event.offset, event.length)
    else this.#answer(waiting)
  }

  #answer(waiting: Waiting): void {
    const { into, error } = waiting
    if (!error && into && into.filled !== into.bytes.length) throw broken(`the server sent ${into.filled} of ${into.bytes.length} bytes`)
    this.#waiting.delete(waiting.cookie)
    this.#queue.shift()?.()
    if (error) waiting.reject(error)
    else waiting.resolve()
  }

  #fail(error: GodwitError): GodwitError {
    if (this.#end) return this.#end
    this.#end = error
    this.#socket.destroySoon()
    for (const waiting of this.#waiting.values()) waiting.reject(error)
    this.#waiting.clear()
    for (const wake of this.#queue.splice(0)) wake()
    return error
  }
}

/**
 * Read data, or a hole of that many bytes, into the buffer of its request. Each byte comes once: a server that sends
 * one twice would hide one that is missing.
 */
function fill({ into }: Waiting, offset: number, what: Buffer | number): void {
  const length = typeof what === 'number' ? what : what.length
  if (!into) throw broken('data that was not requested')
  const at = offset - into.offset
  if (at < 0 || at + length > into.bytes.length) throw broken('data outside the requested range')
  if (typeof what === 'number') into.bytes.fill(0, at, at + length)
  else into.bytes.set(what, at)
  into.filled += length
}

function append(extents: Extent[], extent: Extent): void {
  const last = extents.at(-1)
  if (last?.flags === extent.flags) last.length += extent.length
  else extents.push(extent)
}

const ENOSPC = 28
const EPERM = 1
function diskError({ errno, text }: { errno: number; text: string }): GodwitError {
  const code: ErrorCode = errno === ENOSPC ? 'DISK_FULL' : errno === EPERM ? 'NBD_REFUSED' : 'DISK_IO'
  return new GodwitError(code, `the disk returned error ${errno}${text ? `: ${text}` : ''}`)
}
