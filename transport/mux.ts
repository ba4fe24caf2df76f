// Many streams over one ordered byte pipe (a lane): yamux's frames and credits. For engines whose network gives one pipe: tls, webtransport.
// Enters: bytes of the lane and calls on streams. Leaves: bytes for the lane and for streams.
// Always holds: what a peer may send unread is bounded by credit: 256 KiB for each stream (the format's own start), up to `streamWindowBytes`
// for a stream that somebody reads, while all such growth together stays below `connectionWindowBytes`. The lane itself is always read, so a
// stream that nobody reads holds up no other. What we queue on the lane is bounded too: a peer that asks but does not listen is dropped.
// Why not @chainsafe/libp2p-yamux (tried 8.0.1; 6.4 Gbit/s over TLS on loopback): it collects a frame whole before it checks the window (4 GiB
// at the word of a peer not yet authenticated), a clean end and a lost connection look the same to its streams, and pause() loses a SYN.
// The format is the same and a test runs this file against it.
import { GodwitError } from '../wire/errors.ts'
import { createByteQueue } from './byte-queue.ts'
import { createInbox } from './inbox.ts'
import { createMuxDecoder, encodeMuxFrame, FLAG, type Header, INITIAL_WINDOW_BYTES, TYPE } from './mux-frame.ts'
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

/** Data of one frame: small enough that streams take turns, large enough that headers do not count. */
const FRAME_DATA_BYTES = 64 * 1024
/** Answers (pongs, refusals, credit) queued beyond this: the peer does not read. */
const QUEUED_BYTES_MAX = 8 * 1024 * 1024

type MuxStream = {
  stream: Stream
  onFrame(header: Header): void
  onData(piece: Uint8Array): void
  /** The connection is gone. What has come may still be read, and a stream whose end has come ends as if nothing had happened. */
  lose(error: GodwitError): void
}

/** What a stream needs of its muxer. */
type Host = {
  send(type: number, flags: number, id: number, length: number, data?: Uint8Array): void
  /** Resolves when the lane has room and it is this caller's turn to send one frame; undefined: now. */
  turn(): Promise<void> | undefined
  /** Lets the next one in line have its turn, if there is room. */
  pass(): void
  /** Whether the connection's budget has room for a stream to grow by `bytes`; if so it is taken. */
  grow(bytes: number): boolean
  shrink(bytes: number): void
  over(id: number): void
  streamWindowBytes: number
}

function createStream(id: number, opened: 'here' | 'there', host: Host): MuxStream {
  const received = createByteQueue()
  const lifted = host.streamWindowBytes - INITIAL_WINDOW_BYTES
  let failure: GodwitError | undefined
  let lost: GodwitError | undefined
  /** Flag for the next frame we send: SYN when we opened it, ACK when they did. */
  let greeting: number = opened === 'here' ? FLAG.syn : FLAG.ack
  let sendCredit = INITIAL_WINDOW_BYTES
  let receiveCredit = INITIAL_WINDOW_BYTES
  let owedCredit = 0
  let hasGrown = false
  let ended = false
  let finSent = false
  let finReceived = false
  let reading = false
  let order: Promise<unknown> = Promise.resolve()
  let wakeWriter: (() => void) | undefined
  let wakeReader: (() => void) | undefined

  const wake = () => {
    wakeWriter?.()
    wakeReader?.()
    wakeWriter = wakeReader = undefined
  }
  const send = (type: number, flags: number, length: number, data?: Uint8Array) => {
    host.send(type, flags | greeting, id, length, data)
    greeting = 0
  }
  const leave = () => {
    if (hasGrown) host.shrink(lifted)
    hasGrown = false
    host.over(id)
  }
  const fail = (error: GodwitError) => {
    if (failure || lost || (finSent && finReceived && received.length === 0)) return
    failure = error
    received.clear()
    wake()
    leave()
  }
  const maybeOver = () => {
    if (finSent && finReceived) leave()
  }
  /** Returns credit for what was read: rarely (a quarter of the window), and more than that once, when the stream is first read. */
  const credit = (bytes: number) => {
    owedCredit += bytes
    // A stream that we opened is shown to the peer by its first write, not by its reader's credit.
    if (finReceived || greeting === FLAG.syn) return
    if (!hasGrown && host.grow(lifted)) {
      hasGrown = true
      owedCredit += lifted
    }
    const windowBytes = hasGrown ? host.streamWindowBytes : INITIAL_WINDOW_BYTES
    if (owedCredit < windowBytes / 4) return
    receiveCredit += owedCredit
    send(TYPE.window, 0, owedCredit)
    owedCredit = 0
  }
  const put = async (bytes: Uint8Array) => {
    for (let at = 0; at < bytes.length; ) {
      throwIfFailed()
      if (sendCredit === 0) {
        await new Promise<void>(resolve => (wakeWriter = resolve))
        continue
      }
      const wait = host.turn()
      if (wait) {
        await wait
        if (failure) host.pass()
        throwIfFailed()
      }
      const piece = bytes.subarray(at, at + Math.min(FRAME_DATA_BYTES, sendCredit))
      send(TYPE.data, 0, piece.length, piece)
      sendCredit -= piece.length
      at += piece.length
      if (wait) host.pass()
    }
    throwIfFailed()
  }
  const throwIfFailed = () => {
    if (failure || lost) throw failure ?? lost
  }
  const stream: Stream = {
    id,
    async write(bytes) {
      if (ended) throw new Error('write after end()')
      const mine = order.then(() => put(bytes))
      order = mine.catch(() => {})
      await mine
    },
    async end() {
      if (ended) return
      ended = true
      await order
      throwIfFailed()
      send(TYPE.window, FLAG.fin, 0)
      finSent = true
      maybeOver()
    },
    async read() {
      if (reading) throw new Error('two reads at once on one stream')
      reading = true
      try {
        credit(0)
        while (!failure && !lost && received.length === 0 && !finReceived) await new Promise<void>(resolve => (wakeReader = resolve))
        if (failure) throw failure
        const bytes = received.shift()
        if (bytes) credit(bytes.length)
        else if (!finReceived) throwIfFailed()
        return bytes ?? null
      } finally {
        reading = false
      }
    },
    reset(reason) {
      if (failure || lost || (finSent && finReceived)) return
      if (greeting !== FLAG.syn) send(TYPE.window, FLAG.rst, 0)
      fail(new GodwitError('STREAM_RESET', `stream ${id} reset${reason ? `: ${reason}` : ''}`))
    },
  }
  return {
    stream,
    lose(error) {
      lost ??= error
      wake()
      leave()
    },
    onFrame({ type, flags, length }) {
      if (flags & FLAG.rst) return fail(new GodwitError('STREAM_RESET', `stream ${id}: the peer reset it`))
      if (type === TYPE.window) {
        sendCredit = Math.min(sendCredit + length, 0xffff_ffff)
        wakeWriter?.()
        wakeWriter = undefined
      } else if (length > receiveCredit || finReceived) {
        throw new Error(`stream ${id}: ${length} bytes ${finReceived ? 'after its end' : 'beyond the window'}`)
      } else receiveCredit -= length
      if (flags & FLAG.fin) {
        finReceived = true
        wakeReader?.()
        wakeReader = undefined
        maybeOver()
      }
    },
    onData(piece) {
      if (failure) return
      received.push(piece)
      wakeReader?.()
      wakeReader = undefined
    },
  }
}

export function createMux({
  side,
  lane,
  streamWindowBytes,
  connectionWindowBytes,
  maxStreams,
  now = () => performance.now(),
}: MuxOptions): Mux {
  if (streamWindowBytes < INITIAL_WINDOW_BYTES) throw new TypeError(`streamWindowBytes must be at least ${INITIAL_WINDOW_BYTES}`)
  const streams = new Map<number, MuxStream>()
  const inbox = createInbox<Stream>(maxStreams)
  const closed = Promise.withResolvers<CloseReason>()
  const parity = side === 'client' ? 1 : 0
  const counts = { here: 0, there: 0 }
  const waiting: (() => void)[] = []
  let nextId = side === 'client' ? 1 : 2
  let over: GodwitError | undefined
  let full = false
  let grownBytes = 0
  let pingSentAt: number | undefined
  let pingValue = 0
  let rttMs: number | undefined
  let heardAt = now()
  /** Whose data the decoder is delivering; undefined for a stream that is gone. */
  let current: MuxStream | undefined

  const finish = (reason: CloseReason) => {
    if (over) return
    over = new GodwitError('CONNECTION_LOST', reason.message)
    inbox.end()
    for (const stream of [...streams.values()]) stream.lose(over)
    for (const wakeUp of waiting.splice(0)) wakeUp()
    closed.resolve(reason)
  }
  const send: Host['send'] = (type, flags, id, length, data) => {
    if (over) return
    if (!data && lane.queuedBytes() > QUEUED_BYTES_MAX) return finish({ code: 'CONNECTION_LOST', message: 'the peer does not read' })
    if (!lane.send(encodeMuxFrame(type, flags, id, length, data))) full = true
  }
  const host: Host = {
    send,
    streamWindowBytes,
    turn: () => ((full || waiting.length > 0) && !over ? new Promise<void>(resolve => waiting.push(resolve)) : undefined),
    pass() {
      if (!full) waiting.shift()?.()
    },
    grow(bytes) {
      if (grownBytes + bytes > connectionWindowBytes) return false
      grownBytes += bytes
      return true
    },
    shrink(bytes) {
      grownBytes -= bytes
    },
    over(id) {
      if (streams.delete(id)) counts[(id & 1) === parity ? 'here' : 'there']--
    },
  }
  const add = (id: number, opened: 'here' | 'there') => {
    const made = createStream(id, opened, host)
    streams.set(id, made)
    counts[opened]++
    return made
  }
  const accept = (id: number): MuxStream | undefined => {
    if ((id & 1) === parity || streams.has(id)) throw new Error(`the peer may not open stream ${id}`)
    const made = counts.there < maxStreams ? add(id, 'there') : undefined
    if (made && inbox.push(made.stream)) return made
    if (made) host.over(id)
    send(TYPE.window, FLAG.rst, id, 0)
    return undefined
  }
  const onSession = ({ type, flags, length }: Header) => {
    if (type === TYPE.ping && flags & FLAG.syn) send(TYPE.ping, FLAG.ack, 0, length)
    else if (type === TYPE.ping && pingSentAt !== undefined && length === pingValue) {
      rttMs = now() - pingSentAt
      pingSentAt = undefined
    } else if (type === TYPE.goAway) {
      finish(
        length === 0
          ? { code: 'CLOSED', message: 'closed by the peer' }
          : { code: 'CONNECTION_LOST', message: `the peer went away: ${length}` },
      )
    }
  }
  const decoder = createMuxDecoder({
    header(header) {
      if (over) return
      current = undefined
      if (header.id === 0) {
        if (header.type === TYPE.data || header.type === TYPE.window) throw new Error('data without a stream')
        return onSession(header)
      }
      if (header.type > TYPE.window) throw new Error(`frame type ${header.type} on stream ${header.id}`)
      // Frames of a stream that we reset are still on their way: they are passed over.
      current = header.flags & FLAG.syn ? accept(header.id) : streams.get(header.id)
      current?.onFrame(header)
    },
    data: piece => current?.onData(piece),
  })
  return {
    openStream() {
      if (over) throw over
      if (counts.here >= maxStreams) throw new GodwitError('LIMIT_EXCEEDED', `more than ${maxStreams} streams on one lane`)
      if (nextId > 0xffff_fffd) throw new GodwitError('LIMIT_EXCEEDED', 'stream numbers are used up: connect anew')
      const { stream } = add(nextId, 'here')
      nextId += 2
      return stream
    },
    acceptStream: () => inbox.next(),
    push(chunk) {
      if (over) return
      heardAt = now()
      try {
        decoder.push(chunk)
      } catch (error) {
        finish({ code: 'CONNECTION_LOST', message: `the peer broke the protocol: ${(error as Error).message}` })
      }
    },
    drained() {
      full = false
      // One at a time: who has sent its frame goes to the end of the line and passes the turn on.
      host.pass()
    },
    ping() {
      if (pingSentAt !== undefined) return
      pingSentAt = now()
      send(TYPE.ping, FLAG.syn, 0, ++pingValue)
    },
    goAway: () => send(TYPE.goAway, 0, 0, 0),
    finish,
    closed: closed.promise,
    get rttMs() {
      return rttMs
    },
    get heardAt() {
      return heardAt
    },
  }
}
