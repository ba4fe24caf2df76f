// The memory engine: connections inside one process, for tests and the simulator. Each instance has its own registry of
// host:port. Enters: bytes written at one end. Leaves: the same bytes at the other end, in order, after at least one
// microtask. Always holds: a direction of a stream buffers at most `bufferBytes`; a connection has at most `maxStreams`
// open streams per side; a stream is visible to the peer only after its first write or its end, as with QUIC.
import { createHash, randomBytes } from 'node:crypto'
import { GodwitError } from '../wire/errors.ts'
import { BACKLOG_CONNECTIONS, createInbox, type Inbox } from './inbox.ts'
import type { CloseReason, Connection, Engine, Listener, PathStats, Stream } from './types.ts'

type MemoryOptions = {
  /** Buffer of one direction of a stream, after which its writer waits. Default 256 KiB. */
  bufferBytes?: number
  /** Maximum of open streams of one side of a connection. Default 1024. */
  maxStreams?: number
}

export type MemoryEngine = Engine & {
  /** Ends every connection at once, like an unplugged cable: both ends get CONNECTION_LOST. Listeners stay. */
  sever(): void
}

/**
 * A writer and a reader that only wait for each other's promises would starve timers and IO, so some writes wait for
 * the event loop.
 */
const WRITES_PER_TURN = 16
const lost = (message: string) => new GodwitError('CONNECTION_LOST', message)

/** One direction of a stream. */
type Pipe = {
  write(bytes: Uint8Array): Promise<void>
  read(): Promise<Uint8Array | null>
  end(): void
  fail(error: GodwitError): void
  /** Whether its reader has read the end, or it has failed. */
  done(): boolean
}

function createPipe(limitBytes: number, onDone: () => void): Pipe {
  const chunks: Uint8Array[] = []
  let buffered = 0
  let state: 'open' | 'ended' | 'drained' | 'failed' = 'open'
  let failure: GodwitError | undefined
  let wakeReader: (() => void) | undefined
  let wakeWriter: (() => void) | undefined
  let turn: Promise<unknown> = Promise.resolve()
  let untilYield = WRITES_PER_TURN

  const wake = () => {
    wakeReader?.()
    wakeWriter?.()
    wakeReader = wakeWriter = undefined
  }
  const settle = (next: 'drained' | 'failed') => {
    if (state === 'drained' || state === 'failed') return
    state = next
    onDone()
  }
  async function put(bytes: Uint8Array): Promise<void> {
    if (--untilYield === 0) {
      untilYield = WRITES_PER_TURN
      await new Promise<void>(resolve => setImmediate(resolve))
    }
    for (let at = 0; at < bytes.length; ) {
      if (failure) throw failure
      if (state !== 'open') throw new Error('write after end()')
      const room = Math.min(limitBytes - buffered, bytes.length - at)
      if (room > 0) {
        chunks.push(bytes.slice(at, at + room))
        buffered += room
        at += room
        wakeReader?.()
        wakeReader = undefined
      }
      if (buffered >= limitBytes) await new Promise<void>(resolve => (wakeWriter = resolve))
    }
    if (failure) throw failure
  }
  return {
    write(bytes) {
      const mine = turn.then(() => put(bytes))
      turn = mine.catch(() => {})
      return mine
    },
    async read() {
      if (wakeReader) throw new Error('two reads at once on one stream')
      while (!failure && chunks.length === 0 && state === 'open') await new Promise<void>(resolve => (wakeReader = resolve))
      if (failure) throw failure
      const chunk = chunks.shift()
      if (chunk === undefined) {
        settle('drained')
        return null
      }
      buffered -= chunk.length
      wakeWriter?.()
      wakeWriter = undefined
      return chunk
    },
    end() {
      if (state === 'open') state = 'ended'
      wake()
    },
    fail(error) {
      if (state === 'drained' || failure) return
      failure = error
      chunks.length = buffered = 0
      settle('failed')
      wake()
    },
    done: () => state === 'drained' || state === 'failed',
  }
}

type End = {
  connection: Connection
  inbox: Inbox<Stream>
  streams: Set<{ fail(error: GodwitError): void }>
  finish(reason: CloseReason): void
}

/** Opens a stream from one end to the other; `announce` makes it visible to the peer. */
function createStreamPair(id: number, bufferBytes: number, announce: (theirs: Stream) => boolean, onClosed: () => void) {
  let open = 2
  const oneDone = () => {
    if (--open === 0) onClosed()
  }
  const forth = createPipe(bufferBytes, oneDone)
  const back = createPipe(bufferBytes, oneDone)
  const fail = (error: GodwitError) => {
    forth.fail(error)
    back.fail(error)
  }
  const side = (out: Pipe, into: Pipe): Stream => ({
    id,
    write: bytes => out.write(bytes),
    async end() {
      out.end()
    },
    read: () => into.read(),
    reset: reason => fail(new GodwitError('STREAM_RESET', `stream ${id} reset${reason ? `: ${reason}` : ''}`)),
  })
  const theirs = side(back, forth)
  const mine = side(forth, back)
  let announced = false
  const show = () => {
    if (announced) return
    announced = true
    if (!announce(theirs)) fail(new GodwitError('STREAM_RESET', 'the peer accepts no more streams'))
  }
  const opener: Stream = {
    ...mine,
    write(bytes) {
      show()
      return mine.write(bytes)
    },
    end() {
      show()
      return mine.end()
    },
  }
  return { opener, fail }
}

function createEnd(remoteAddress: string, binding: Uint8Array, limits: Required<MemoryOptions>, peer: () => End): End {
  const inbox = createInbox<Stream>(limits.maxStreams)
  const streams: End['streams'] = new Set()
  const closed = Promise.withResolvers<CloseReason>()
  const traffic = { sent: 0, received: 0 }
  let over: CloseReason | undefined
  let nextId = 0

  const finish = (reason: CloseReason) => {
    if (over) return
    over = reason
    for (const stream of streams) stream.fail(lost(reason.message))
    streams.clear()
    inbox.end()
    closed.resolve(reason)
  }
  const counted = (stream: Stream): Stream => ({
    ...stream,
    async write(bytes) {
      await stream.write(bytes)
      traffic.sent += bytes.length
    },
    async read() {
      const bytes = await stream.read()
      traffic.received += bytes?.length ?? 0
      return bytes
    },
  })
  const connection: Connection = {
    engine: 'memory',
    remoteAddress,
    binding,
    async openStream() {
      if (over) throw lost(over.message)
      if (streams.size >= limits.maxStreams)
        throw new GodwitError('LIMIT_EXCEEDED', `more than ${limits.maxStreams} streams on one connection`)
      const pair = createStreamPair(
        nextId++,
        limits.bufferBytes,
        theirs => peer().inbox.push(theirs),
        () => streams.delete(pair),
      )
      streams.add(pair)
      return counted(pair.opener)
    },
    async acceptStream() {
      const stream = await inbox.next()
      return stream && counted(stream)
    },
    stats: (): PathStats => ({ rttMs: 0, sentBytes: traffic.sent, receivedBytes: traffic.received }),
    async close(reason) {
      const why: CloseReason = { code: 'CLOSED', message: reason ?? 'closed' }
      finish(why)
      peer().finish(why)
    },
    closed: closed.promise,
  }
  return { connection, inbox, streams, finish }
}

/** An engine whose listeners and connections live in this process only. */
export function createMemoryEngine({ bufferBytes = 256 * 1024, maxStreams = 1024 }: MemoryOptions = {}): MemoryEngine {
  const listeners = new Map<string, { inbox: Inbox<Connection>; accepted: Set<Connection>; binding: Uint8Array }>()
  const live = new Set<End>()
  const keyOf = (host: string, port: number) => `${host === 'localhost' ? '127.0.0.1' : host === '::' ? '0.0.0.0' : host}:${port}`
  let nextPort = 40_000
  let nextClient = 1

  return {
    name: 'memory',
    available: async () => ({ ok: true, detail: 'in this process' }),
    async listen({ host, port, signal }): Promise<Listener> {
      signal?.throwIfAborted()
      const address = { host, port: port || nextPort++ }
      const key = keyOf(host, address.port)
      if (listeners.has(key)) throw new GodwitError('CONNECT_FAILED', `${key} is in use`)
      const entry = {
        inbox: createInbox<Connection>(BACKLOG_CONNECTIONS),
        accepted: new Set<Connection>(),
        binding: createHash('sha256').update(randomBytes(32)).digest(),
      }
      listeners.set(key, entry)
      const close = async () => {
        listeners.delete(key)
        entry.inbox.end()
        await Promise.all([...entry.accepted].map(connection => connection.close('the listener closed')))
      }
      signal?.addEventListener('abort', close, { once: true })
      return { address, accept: () => entry.inbox.next(), close }
    },
    async connect({ host, port, signal }): Promise<Connection> {
      signal?.throwIfAborted()
      const entry = listeners.get(keyOf(host, port)) ?? listeners.get(keyOf('0.0.0.0', port))
      if (!entry) throw new GodwitError('CONNECT_FAILED', `nothing listens on ${host}:${port}`)
      const limits = { bufferBytes, maxStreams }
      const ends: { client: End; server: End } = {
        client: createEnd(`${host}:${port}`, entry.binding, limits, () => ends.server),
        server: createEnd(`memory:${nextClient++}`, entry.binding, limits, () => ends.client),
      }
      if (!entry.inbox.push(ends.server.connection))
        throw new GodwitError('CONNECT_FAILED', `${host}:${port} has too many unaccepted connections`)
      entry.accepted.add(ends.server.connection)
      ends.server.connection.closed.then(() => entry.accepted.delete(ends.server.connection))
      for (const end of [ends.client, ends.server]) {
        live.add(end)
        end.connection.closed.then(() => live.delete(end))
      }
      return ends.client.connection
    },
    sever() {
      for (const end of live) end.finish({ code: 'CONNECTION_LOST', message: 'severed' })
    },
  }
}
