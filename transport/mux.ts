// Many streams over one ordered byte pipe (a lane): yamux's frames and credits. For engines whose network gives one pipe: tls, webtransport.
// Enters: bytes of the lane and calls on streams. Leaves: bytes for the lane and for streams.
// Always holds: what a peer may send unread is bounded by credit: 256 KiB for each stream (the format's own start), up to `streamWindowBytes`
// for a stream that somebody reads, while all such growth together stays below `connectionWindowBytes`. The lane itself is always read, so a
// stream that nobody reads holds up no other. What we queue on the lane is bounded too: a peer that asks but does not listen is dropped.
// Why not @chainsafe/libp2p-yamux (tried 8.0.1; 6.4 Gbit/s over TLS on loopback): it collects a frame whole before it checks the window (4 GiB
// at the word of a peer not yet authenticated), a clean end and a lost connection look the same to its streams, and pause() loses a SYN.
// The format is the same and a test runs this file against it.
import { GodwitError } from '../wire/errors.ts'
import { createInbox, type Inbox } from './inbox.ts'
import { createMuxDecoder, encodeMuxFrame, FLAG, type Header, INITIAL_WINDOW_BYTES, TYPE } from './mux-frame.ts'
import { MuxStream, type StreamHost } from './mux-stream.ts'
import type { CloseReason, Stream } from './types.ts'

/** What the muxer needs of a pipe. Bytes received go to Mux.push, its end to Mux.finish. */
export type Lane = {
  /** Takes the bytes (the buffer is the lane's from now on); false: full, and `Mux.drained` will be called. */
  send(bytes: Uint8Array): boolean
  /** Bytes sent but not yet taken by the network. */
  queuedBytes(): number
}

export type MuxOptions = {
  side: 'client' | 'server'
  lane: Lane
  streamWindowBytes: number
  connectionWindowBytes: number
  /** Streams that either side may have open at once. */
  maxStreams: number
  now?: () => number
}

export type Mux = {
  openStream(): Stream
  acceptStream(): Promise<Stream | null>
  /** Bytes from the lane; a protocol error ends the muxer with CONNECTION_LOST. */
  push(chunk: Uint8Array): void
  /** The lane has room again. */
  drained(): void
  /** Asks the peer for a sign of life; the answer shows in `rttMs` and `heardAt`. */
  ping(): void
  /** Says farewell (go away). Nothing may be sent after it. */
  goAway(): void
  /** Ends everything; pending calls reject with CONNECTION_LOST. Idempotent. */
  finish(reason: CloseReason): void
  readonly closed: Promise<CloseReason>
  readonly rttMs: number | undefined
  /** When the last bytes came, on `now`'s clock (ms). */
  readonly heardAt: number
}

/** Answers (pongs, refusals, credit) queued beyond this: the peer does not read. */
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
  /** Whose data the decoder is delivering; undefined for a stream that is gone. */
  #current: MuxStream | undefined

  constructor({ side, lane, streamWindowBytes, connectionWindowBytes, maxStreams, now = () => performance.now() }: MuxOptions) {
    this.streamWindowBytes = streamWindowBytes
    this.#connectionWindowBytes = connectionWindowBytes
    this.#maxStreams = maxStreams
    this.#lane = lane
    this.#now = now
    this.#inbox = createInbox(maxStreams)
    this.#parity = side === 'client' ? 1 : 0
    this.#nextId = side === 'client' ? 1 : 2
    this.#heardAt = now()
    this.#decoder = createMuxDecoder({ header: header => this.#onHeader(header), data: piece => this.#current?.onData(piece) })
  }

  openStream(): Stream {
    if (this.#over) throw this.#over
    if (this.#counts.here >= this.#maxStreams) throw new GodwitError('LIMIT_EXCEEDED', `more than ${this.#maxStreams} streams on one lane`)
    if (this.#nextId > 0xffff_fffd) throw new GodwitError('LIMIT_EXCEEDED', 'stream numbers are used up: connect anew')
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
      this.#decoder.push(chunk)
    } catch (error) {
      this.finish({ code: 'CONNECTION_LOST', message: `the peer broke the protocol: ${(error as Error).message}` })
    }
  }

  drained(): void {
    this.#full = false
    // One at a time: who has sent its frame goes to the end of the line and passes the turn on.
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

  // --- What streams ask of it ---

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
    if (this.#grownBytes + bytes > this.#connectionWindowBytes) return false
    this.#grownBytes += bytes
    return true
  }

  shrink(bytes: number): void {
    this.#grownBytes -= bytes
  }

  over(id: number): void {
    if (this.#streams.delete(id)) this.#counts[(id & 1) === this.#parity ? 'here' : 'there']--
  }

  // --- What the peer says ---

  #onHeader(header: Header): void {
    if (this.#over) return
    this.#current = undefined
    if (header.id === 0) {
      if (header.type === TYPE.data || header.type === TYPE.window) throw new Error('data without a stream')
      this.#onSession(header)
      return
    }
    if (header.type > TYPE.window) throw new Error(`frame type ${header.type} on stream ${header.id}`)
    // Frames of a stream that we reset are still on their way: they are passed over.
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
          : { code: 'CONNECTION_LOST', message: `the peer went away: ${length}` },
      )
    }
  }

  #accept(id: number): MuxStream | undefined {
    if ((id & 1) === this.#parity || this.#streams.has(id)) throw new Error(`the peer may not open stream ${id}`)
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
