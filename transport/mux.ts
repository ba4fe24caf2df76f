// Many streams over one ordered byte pipe (a lane), with yamux's frames and credits, for engines with one pipe: tls,
// webtransport. Enters: bytes of the lane and calls on streams. Leaves: bytes for the lane and for streams. Always
// holds: credit bounds the unread bytes of a peer: 256 KiB for each stream (the format's initial window), up to
// `streamWindowBytes` for a stream with a reader, while all growth together stays below `connectionWindowBytes`. The
// lane is always read, so an unread stream blocks no other. The queue towards the lane is bounded too: a peer that
// requests but does not read is disconnected.
// Why not @chainsafe/libp2p-yamux (tried 8.0.1; 6.4 Gbit/s over TLS on loopback): it collects a whole frame before it
// checks the window (4 GiB announced by an unauthenticated peer), its streams cannot distinguish a clean end from a
// lost connection, and pause() loses a SYN. The format is the same, and a test runs this file against it.
import { GodwitError } from '../wire/errors.ts'
import { createInbox, type Inbox } from './inbox.ts'
import { createMuxDecoder, encodeMuxFrame, FLAG, type Header, INITIAL_WINDOW_BYTES, TYPE } from './mux-frame.ts'
import { MuxStream, type StreamHost } from './mux-stream.ts'
import { Stranger, TOO_MUCH } from './stranger.ts'
import type { CloseReason, Stream } from './types.ts'

/** The functions of a pipe for the muxer. Bytes received go to Mux.push, its end to Mux.finish. */
export type Lane = {
  /** Accepts the bytes and owns the buffer; false: full, and `Mux.drained` will be called. */
  send(bytes: Uint8Array): boolean
  /** Bytes that the network has not accepted yet. */
  queuedBytes(): number
}

type MuxOptions = {
  side: 'client' | 'server'
  lane: Lane
  streamWindowBytes: number
  connectionWindowBytes: number
  /** Maximum of open streams of either side. */
  maxStreams: number
  /** Budget of an unauthenticated peer, shared by the lanes of its connection. Absent: authenticated. */
  stranger?: Stranger | undefined
  now?: () => number
}

export type Mux = {
  openStream(): Stream
  acceptStream(): Promise<Stream | null>
  /** Bytes from the lane; a protocol error ends the muxer with CONNECTION_LOST. */
  push(chunk: Uint8Array): void
  /** Call when the lane has room again. */
  drained(): void
  /** Sends a ping; the answer updates `rttMs` and `heardAt`. */
  ping(): void
  /** Sends a go-away. Nothing may be sent after it. */
  goAway(): void
  /** Ends everything; pending calls reject with CONNECTION_LOST. Idempotent. */
  finish(reason: CloseReason): void
  readonly closed: Promise<CloseReason>
  readonly rttMs: number | undefined
  /** Time of the last received bytes, by `now` (ms). */
  readonly heardAt: number
}

/** Above this queue of answers (pongs, rejections, credit) the peer counts as not reading. */
const QUEUED_BYTES_MAX = 8 * 1024 * 1024

export function createMux(options: MuxOptions): Mux {
  if (options.streamWindowBytes < INITIAL_WINDOW_BYTES) throw new TypeError(`streamWindowBytes must be at least ${INITIAL_WINDOW_BYTES}`)
  return new Muxer(options)
}

class Muxer implements Mux, StreamHost {
  readonly streamWindowBytes: number
  readonly #connectionWindowBytes: number
  readonly #maxStreams: number
  readonly #lane: Lane
  readonly #now: () => number
  readonly #stranger: Stranger
  readonly #streams = new Map<number, MuxStream>()
  readonly #inbox: Inbox<Stream>
  readonly #closed = Promise.withResolvers<CloseReason>()
  /** Lowest bit of the numbers of streams that this side opens. */
  readonly #parity: number
  readonly #decoder: { push(chunk: Uint8Array): void }
  readonly #counts = { here: 0, there: 0 }
  readonly #waiting: (() => void)[] = []
  #nextId: number
  #over: GodwitError | undefined
  #full = false
  #grownBytes = 0
  #pingSentAt: number | undefined
  #pingValue = 0
  #rttMs: number | undefined
  #heardAt: number
  /** The stream whose data the decoder delivers; undefined for an ended stream. */
  #current: MuxStream | undefined

  constructor(options: MuxOptions) {
    const { side, lane, streamWindowBytes, connectionWindowBytes, maxStreams, now = () => performance.now() } = options
    this.streamWindowBytes = streamWindowBytes
    this.#connectionWindowBytes = connectionWindowBytes
    this.#maxStreams = maxStreams
    this.#lane = lane
    this.#now = now
    this.#stranger = options.stranger ?? new Stranger(undefined)
    this.#inbox = createInbox(maxStreams)
    this.#parity = side === 'client' ? 1 : 0
    this.#nextId = side === 'client' ? 1 : 2
    this.#heardAt = now()
    this.#decoder = createMuxDecoder({ header: header => this.#onHeader(header), data: piece => this.#current?.onData(piece) })
  }

  openStream(): Stream {
    if (this.#over) throw this.#over
    if (this.#counts.here >= this.#maxStreams) throw new GodwitError('LIMIT_EXCEEDED', `more than ${this.#maxStreams} streams on one lane`)
    if (this.#nextId > 0xffff_fffd) throw new GodwitError('LIMIT_EXCEEDED', 'stream numbers are used up: connect again')
    const stream = this.#add(this.#nextId, 'here')
    this.#nextId += 2
    return stream.toStream()
  }

  acceptStream(): Promise<Stream | null> {
    return this.#inbox.next()
  }

  push(chunk: Uint8Array): void {
    if (this.#over) return
    this.#heardAt = this.#now()
    try {
      if (!this.#stranger.maySend(chunk.length)) throw new Error(TOO_MUCH)
      this.#decoder.push(chunk)
    } catch (error) {
      this.finish({ code: 'CONNECTION_LOST', message: `the peer violated the protocol: ${(error as Error).message}` })
    }
  }

  drained(): void {
    this.#full = false
    // One frame at a time: after a frame the sender goes to the end of the queue.
    this.pass()
  }

  ping(): void {
    if (this.#pingSentAt !== undefined) return
    this.#pingSentAt = this.#now()
    this.send(TYPE.ping, FLAG.syn, 0, ++this.#pingValue)
  }

  goAway(): void {
    this.send(TYPE.goAway, 0, 0, 0)
  }

  finish(reason: CloseReason): void {
    if (this.#over) return
    this.#over = new GodwitError('CONNECTION_LOST', reason.message)
    this.#inbox.end()
    for (const stream of [...this.#streams.values()]) stream.lose(this.#over)
    for (const wakeUp of this.#waiting.splice(0)) wakeUp()
    this.#closed.resolve(reason)
  }

  get closed(): Promise<CloseReason> {
    return this.#closed.promise
  }

  get rttMs(): number | undefined {
    return this.#rttMs
  }

  get heardAt(): number {
    return this.#heardAt
  }

  // --- Calls of streams ---

  send(type: number, flags: number, id: number, length: number, data?: Uint8Array): void {
    if (this.#over) return
    if (!data && this.#lane.queuedBytes() > QUEUED_BYTES_MAX) {
      this.finish({ code: 'CONNECTION_LOST', message: 'the peer does not read' })
    } else if (!this.#lane.send(encodeMuxFrame(type, flags, id, length, data))) this.#full = true
  }

  turn(): Promise<void> | undefined {
    if (this.#over || (!this.#full && this.#waiting.length === 0)) return undefined
    return new Promise<void>(resolve => this.#waiting.push(resolve))
  }

  pass(): void {
    if (!this.#full) this.#waiting.shift()?.()
  }

  grow(bytes: number): boolean {
    if (!this.#stranger.isTrusted || this.#grownBytes + bytes > this.#connectionWindowBytes) return false
    this.#grownBytes += bytes
    return true
  }

  shrink(bytes: number): void {
    this.#grownBytes -= bytes
  }

  over(id: number): void {
    if (this.#streams.delete(id)) this.#counts[(id & 1) === this.#parity ? 'here' : 'there']--
  }

  // --- Frames of the peer ---

  #onHeader(header: Header): void {
    if (this.#over) return
    this.#current = undefined
    if (header.id === 0) {
      if (header.type === TYPE.data || header.type === TYPE.window) throw new Error('data without a stream')
      this.#onSession(header)
      return
    }
    if (header.type > TYPE.window) throw new Error(`frame type ${header.type} on stream ${header.id}`)
    // Frames of a stream that this side reset may still arrive: ignore them.
    this.#current = header.flags & FLAG.syn ? this.#accept(header.id) : this.#streams.get(header.id)
    this.#current?.onFrame(header)
  }

  #onSession({ type, flags, length }: Header): void {
    if (type === TYPE.ping && flags & FLAG.syn) this.send(TYPE.ping, FLAG.ack, 0, length)
    else if (type === TYPE.ping && this.#pingSentAt !== undefined && length === this.#pingValue) {
      this.#rttMs = this.#now() - this.#pingSentAt
      this.#pingSentAt = undefined
    } else if (type === TYPE.goAway) {
      this.finish(
        length === 0
          ? { code: 'CLOSED', message: 'closed by the peer' }
          : { code: 'CONNECTION_LOST', message: `the peer closed the connection: ${length}` },
      )
    }
  }

  #accept(id: number): MuxStream | undefined {
    if ((id & 1) === this.#parity || this.#streams.has(id)) throw new Error(`the peer may not open stream ${id}`)
    if (!this.#stranger.mayOpen()) throw new Error(TOO_MUCH)
    const made = this.#counts.there < this.#maxStreams ? this.#add(id, 'there') : undefined
    if (made && this.#inbox.push(made.toStream())) return made
    if (made) this.over(id)
    this.send(TYPE.window, FLAG.rst, id, 0)
    return undefined
  }

  #add(id: number, opened: 'here' | 'there'): MuxStream {
    const stream = new MuxStream(id, opened, this)
    this.#streams.set(id, stream)
    this.#counts[opened]++
    return stream
  }
}
