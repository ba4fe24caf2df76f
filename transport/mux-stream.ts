// One stream of the muxer: what a reader and a writer see, and the credit both ways. It sends by its host, the muxer (mux.ts).
// Enters: frames of this stream, calls of those who read and write it. Leaves: frames for the lane, bytes for the reader.
// Always holds: what the peer has sent unread stays within the credit it was given; each failure is final; a stream whose both ends have been
// said leaves its host once, however it ended.
import { GodwitError } from '../wire/errors.ts'
import { createByteQueue } from './byte-queue.ts'
import { FLAG, type Header, INITIAL_WINDOW_BYTES, TYPE } from './mux-frame.ts'
import type { Stream } from './types.ts'

/** Data of one frame: small enough that streams take turns, large enough that headers do not count. */
const FRAME_DATA_BYTES = 64 * 1024
const CREDIT_MAX = 0xffff_ffff

/** What a stream needs of its muxer. */
export type StreamHost = {
  send(type: number, flags: number, id: number, length: number, data?: Uint8Array): void
  /** Resolves when the lane has room and it is this caller's turn to send one frame; undefined: now. */
  turn(): Promise<void> | undefined
  /** Lets the next one in line have its turn, if there is room. */
  pass(): void
  /** Whether the connection's budget has room for a stream to grow by `bytes`; if so it is taken. */
  grow(bytes: number): boolean
  shrink(bytes: number): void
  over(id: number): void
  readonly streamWindowBytes: number
}

export class MuxStream {
  readonly #id: number
  readonly #host: StreamHost
  /** What the window grows by, once, when the stream is first read and the connection has room. */
  readonly #liftBytes: number
  readonly #received = createByteQueue()
  #failure: GodwitError | undefined
  #lost: GodwitError | undefined
  /** Flag for the next frame we send: SYN when we opened it, ACK when they did. */
  #greeting: number
  #sendCredit = INITIAL_WINDOW_BYTES
  #receiveCredit = INITIAL_WINDOW_BYTES
  #owedCredit = 0
  #hasGrown = false
  #hasLeft = false
  #ended = false
  #finSent = false
  #finReceived = false
  /** Data of the frame that is coming in which has not come yet: an end that the frame says is behind it. */
  #dueBytes = 0
  #reading = false
  #order: Promise<unknown> = Promise.resolve()
  #wakeWriter: (() => void) | undefined
  #wakeReader: (() => void) | undefined

  constructor(id: number, opened: 'here' | 'there', host: StreamHost) {
    this.#id = id
    this.#host = host
    this.#liftBytes = host.streamWindowBytes - INITIAL_WINDOW_BYTES
    this.#greeting = opened === 'here' ? FLAG.syn : FLAG.ack
  }

  /** The stream as its user sees it. */
  toStream(): Stream {
    return {
      id: this.#id,
      write: bytes => this.#write(bytes),
      end: () => this.#end(),
      read: () => this.#read(),
      reset: reason => this.#reset(reason),
    }
  }

  /** Throws an Error when the peer breaks the protocol. */
  onFrame({ type, flags, length }: Header): void {
    if (flags & FLAG.rst) {
      // It crossed the last end on its way: what has come is whole.
      if (this.#finSent && this.#finReceived) return
      this.#fail(new GodwitError('STREAM_RESET', `stream ${this.#id}: the peer reset it`))
      return
    }
    if (type === TYPE.window) {
      this.#sendCredit = Math.min(this.#sendCredit + length, CREDIT_MAX)
      this.#wakeTheWriter()
    } else if (length > this.#receiveCredit || this.#finReceived) {
      throw new Error(`stream ${this.#id}: ${length} bytes ${this.#finReceived ? 'after its end' : 'beyond the window'}`)
    } else {
      this.#receiveCredit -= length
      this.#dueBytes = length
    }
    if (flags & FLAG.fin) {
      this.#finReceived = true
      this.#wakeTheReader()
      this.#maybeOver()
    }
  }

  onData(piece: Uint8Array): void {
    if (this.#failure) return
    this.#dueBytes -= piece.length
    this.#received.push(piece)
    this.#wakeTheReader()
  }

  /** The connection is gone. What has come may still be read, and a stream whose end has come ends as if nothing had happened. */
  lose(error: GodwitError): void {
    this.#lost ??= error
    this.#wakeTheWriter()
    this.#wakeTheReader()
    this.#leave()
  }

  async #write(bytes: Uint8Array): Promise<void> {
    if (this.#ended) throw new Error('write after end()')
    const mine = this.#order.then(() => this.#put(bytes))
    this.#order = mine.catch(() => {})
    await mine
  }

  async #put(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      this.#throwIfFailed()
      if (this.#sendCredit === 0) {
        await new Promise<void>(resolve => (this.#wakeWriter = resolve))
        continue
      }
      const wait = this.#host.turn()
      if (wait) {
        await wait
        if (this.#failure) this.#host.pass()
        this.#throwIfFailed()
      }
      const piece = bytes.subarray(at, at + Math.min(FRAME_DATA_BYTES, this.#sendCredit))
      this.#send(TYPE.data, 0, piece.length, piece)
      this.#sendCredit -= piece.length
      at += piece.length
      if (wait) this.#host.pass()
    }
    this.#throwIfFailed()
  }

  async #end(): Promise<void> {
    if (this.#ended) return
    this.#ended = true
    await this.#order
    this.#throwIfFailed()
    this.#send(TYPE.window, FLAG.fin, 0)
    this.#finSent = true
    this.#maybeOver()
  }

  async #read(): Promise<Uint8Array | null> {
    if (this.#reading) throw new Error('two reads at once on one stream')
    this.#reading = true
    try {
      this.#credit(0)
      while (!this.#failure && !this.#lost && this.#received.length === 0 && !this.#isWhole)
        await new Promise<void>(resolve => (this.#wakeReader = resolve))
      if (this.#failure) throw this.#failure
      const bytes = this.#received.shift()
      if (bytes) this.#credit(bytes.length)
      else if (!this.#isWhole) this.#throwIfFailed()
      this.#maybeOver()
      return bytes ?? null
    } finally {
      this.#reading = false
    }
  }

  /** Returns credit for what was read: rarely (a quarter of the window), and more than that once, when the stream is first read. */
  #credit(bytes: number): void {
    this.#owedCredit += bytes
    // A stream that we opened is shown to the peer by its first write, not by its reader's credit.
    if (this.#finReceived || this.#greeting === FLAG.syn) return
    if (!this.#hasGrown && !this.#hasLeft && this.#host.grow(this.#liftBytes)) {
      this.#hasGrown = true
      this.#owedCredit += this.#liftBytes
    }
    const windowBytes = this.#hasGrown ? this.#host.streamWindowBytes : INITIAL_WINDOW_BYTES
    if (this.#owedCredit < windowBytes / 4) return
    this.#receiveCredit += this.#owedCredit
    this.#send(TYPE.window, 0, this.#owedCredit)
    this.#owedCredit = 0
  }

  #reset(reason?: string): void {
    if (this.#failure || this.#lost) return
    if (this.#greeting !== FLAG.syn && !(this.#finSent && this.#finReceived)) this.#send(TYPE.window, FLAG.rst, 0)
    this.#fail(new GodwitError('STREAM_RESET', `stream ${this.#id} reset${reason ? `: ${reason}` : ''}`))
  }

  #fail(error: GodwitError): void {
    if (this.#failure || this.#lost || this.#isOver) return
    this.#failure = error
    this.#received.clear()
    this.#wakeTheWriter()
    this.#wakeTheReader()
    this.#leave()
  }

  #send(type: number, flags: number, length: number, data?: Uint8Array): void {
    this.#host.send(type, flags | this.#greeting, this.#id, length, data)
    this.#greeting = 0
  }

  /** All that the peer sends has come. */
  get #isWhole(): boolean {
    return this.#finReceived && this.#dueBytes === 0
  }

  /** Both ends are said and all is read. Before that its unread bytes count: it keeps its place and its share of the connection's budget. */
  get #isOver(): boolean {
    return this.#finSent && this.#isWhole && this.#received.length === 0
  }

  #maybeOver(): void {
    if (this.#isOver) this.#leave()
  }

  /** Once: its number may be another stream's by the second time, if the peer uses numbers again. */
  #leave(): void {
    if (this.#hasLeft) return
    this.#hasLeft = true
    if (this.#hasGrown) this.#host.shrink(this.#liftBytes)
    this.#host.over(this.#id)
  }

  #throwIfFailed(): void {
    if (this.#failure || this.#lost) throw this.#failure ?? this.#lost
  }

  #wakeTheWriter(): void {
    this.#wakeWriter?.()
    this.#wakeWriter = undefined
  }

  #wakeTheReader(): void {
    this.#wakeReader?.()
    this.#wakeReader = undefined
  }
}
