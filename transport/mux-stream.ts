// One stream of the muxer: the interface for its reader and writer, and the credit in both directions. It sends through
// its host, the muxer (mux.ts). Enters: frames of this stream, calls of its reader and writer. Leaves: frames for the
// lane, bytes for the reader. Always holds: unread bytes of the peer stay within the granted credit; each failure is
// final; a stream with both ends finished leaves its host once, however it ended.
import { GodwitError } from '../wire/errors.ts'
import { createByteQueue } from './byte-queue.ts'
import { FLAG, type Header, INITIAL_WINDOW_BYTES, TYPE } from './mux-frame.ts'
import type { Stream } from './types.ts'

/** Data of one frame: small enough for fairness between streams, large enough to make headers negligible. */
const FRAME_DATA_BYTES = 64 * 1024
const CREDIT_MAX = 0xffff_ffff

/** The muxer's functions for a stream. */
export type StreamHost = {
  send(type: number, flags: number, id: number, length: number, data?: Uint8Array): void
  /** Resolves when the lane has room and this caller may send one frame; undefined: now. */
  turn(): Promise<void> | undefined
  /** Lets the next waiting caller send, if there is room. */
  pass(): void
  /** Reserves `bytes` of the connection's budget for a larger window; false if there is no room. */
  grow(bytes: number): boolean
  shrink(bytes: number): void
  over(id: number): void
  readonly streamWindowBytes: number
}

export class MuxStream {
  readonly #id: number
  readonly #host: StreamHost
  /** Growth of the window at the first read, once, if the connection has room. */
  readonly #liftBytes: number
  readonly #received = createByteQueue()
  #failure: GodwitError | undefined
  #lost: GodwitError | undefined
  /** Flag for the next frame: SYN if this side opened the stream, ACK if the peer did. */
  #greeting: number
  #sendCredit = INITIAL_WINDOW_BYTES
  #receiveCredit = INITIAL_WINDOW_BYTES
  #owedCredit = 0
  #hasGrown = false
  #hasLeft = false
  #ended = false
  #finSent = false
  #finReceived = false
  /** Missing data of the frame that is being received: the frame's end flag applies after it. */
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

  /** The stream for its user. */
  toStream(): Stream {
    return {
      id: this.#id,
      write: bytes => this.#write(bytes),
      end: () => this.#end(),
      read: () => this.#read(),
      reset: reason => this.#reset(reason),
    }
  }

  /** Throws an Error if the peer violates the protocol. */
  onFrame({ type, flags, length }: Header): void {
    if (flags & FLAG.rst) {
      // It crossed our last frame in transit: the received data is complete.
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

  /** The connection is lost. Received bytes can still be read, and a stream whose end was received ends normally. */
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

  /** Returns credit for read bytes, after a quarter of the window each time; the first read also grows the window. */
  #credit(bytes: number): void {
    this.#owedCredit += bytes
    // The first write announces an own stream to the peer, not the credit of its reader.
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

  /** All data of the peer has been received. */
  get #isWhole(): boolean {
    return this.#finReceived && this.#dueBytes === 0
  }

  /**
   * Both ends are finished and everything is read. Before that, unread bytes count, so the stream keeps its slot and
   * its share of the connection's budget.
   */
  get #isOver(): boolean {
    return this.#finSent && this.#isWhole && this.#received.length === 0
  }

  #maybeOver(): void {
    if (this.#isOver) this.#leave()
  }

  /** Only once: later the peer may use the number for another stream. */
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
