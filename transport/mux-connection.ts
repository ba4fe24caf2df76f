// One logical connection over one or several lanes, each with its own muxer: what tls and webtransport have in common.
// Enters: lanes that are connected. Leaves: a Connection. Always holds: the lanes live and die together; streams go round robin over them;
// a peer that says nothing for `idleTimeoutMs` is lost, though its machine may never have closed anything.
import { within } from '../ops/deadline.ts'
import { createInbox } from './inbox.ts'
import { createMux, type Lane, type Mux } from './mux.ts'
import type { CloseReason, Connection, EngineName, PathStats, Stream } from './types.ts'

export type LinkOptions = {
  /** A silent peer is lost after this. Default 15_000. */
  idleTimeoutMs?: number
  /** Default a third of the idle timeout. */
  keepAliveMs?: number
  /** What the peer may send on one stream before we read. Default 8 MiB: 200 Mbit/s at 150 ms, 100 Mbit/s at 600 ms. */
  streamWindowBytes?: number
  /** What all streams of one lane together may hold beyond 256 KiB each. Default 128 MiB. */
  connectionWindowBytes?: number
  /** Streams that either side may have open at once on one lane. Default 1024. */
  maxStreams?: number
}
export type LinkSettings = Required<LinkOptions>

export function linkSettings(options: LinkOptions): LinkSettings {
  const idleTimeoutMs = options.idleTimeoutMs ?? 15_000
  return {
    idleTimeoutMs,
    keepAliveMs: options.keepAliveMs ?? Math.ceil(idleTimeoutMs / 3),
    streamWindowBytes: options.streamWindowBytes ?? 8 * 1024 * 1024,
    connectionWindowBytes: options.connectionWindowBytes ?? 128 * 1024 * 1024,
    maxStreams: options.maxStreams ?? 1024,
  }
}

/** A lane with its muxer; the engine feeds the muxer. */
export type MuxedLane = {
  mux: Mux
  /** Flushes what was sent and resolves when the peer has closed the pipe (the caller does not wait for ever). */
  end(): Promise<void>
  /** Drops the pipe at once. Idempotent. */
  destroy(): void
  sentBytes(): number
  receivedBytes(): number
  /** What the kernel knows of the pipe's path, where it tells. */
  path?(): PathStats | undefined
}

/** A muxer on a lane, with the heartbeat that notices a silent peer. */
export function createLinkMux(side: 'client' | 'server', lane: Lane, settings: LinkSettings): Mux {
  const mux = createMux({ side, lane, ...settings })
  let lastTick = performance.now()
  const tick = () => {
    const now = performance.now()
    // Our own process stood still (a long computation, a suspended machine): what has arrived meanwhile was not read yet. Ask again.
    const stoodStill = now - lastTick > settings.keepAliveMs * 1.5
    lastTick = now
    if (!stoodStill && now - mux.heardAt > settings.idleTimeoutMs) mux.finish({ code: 'CONNECTION_LOST', message: 'the peer went silent' })
    else mux.ping()
  }
  mux.ping()
  const timer = setInterval(tick, settings.keepAliveMs)
  mux.closed.then(() => clearInterval(timer))
  return mux
}

const FAREWELL_MS = 1_000

/** Paths of the lanes as one: they share the route. */
function joined(paths: PathStats[]): PathStats {
  const sum = (of: (path: PathStats) => number | undefined) => paths.reduce((total, path) => total + (of(path) ?? 0), 0)
  const least = (of: (path: PathStats) => number | undefined) => Math.min(...paths.map(path => of(path) ?? Number.POSITIVE_INFINITY))
  if (paths.length === 0) return {}
  return {
    rttMs: least(path => path.rttMs),
    rttMinMs: least(path => path.rttMinMs),
    congestionWindowBytes: sum(path => path.congestionWindowBytes),
    sentPackets: sum(path => path.sentPackets),
    lostPackets: sum(path => path.lostPackets),
    congestion: paths[0]!.congestion,
  }
}

export function createMuxConnection(options: {
  engine: EngineName
  remoteAddress: string
  binding: Uint8Array
  lanes: MuxedLane[]
  maxStreams: number
}): Connection {
  const { engine, remoteAddress, binding, lanes, maxStreams } = options
  const inbox = createInbox<Stream>(maxStreams)
  const closed = Promise.withResolvers<CloseReason>()
  let over: CloseReason | undefined
  let next = 0

  const finish = (reason: CloseReason) => {
    if (over) return
    over = reason
    inbox.end()
    for (const { mux } of lanes) mux.finish(reason)
    closed.resolve(reason)
  }
  const acceptAll = async (mux: Mux) => {
    for (let stream = await mux.acceptStream(); stream; stream = await mux.acceptStream()) {
      if (!inbox.push(stream)) stream.reset('too many streams wait')
    }
  }
  const onLaneClosed = async (reason: CloseReason) => {
    // The farewell on one lane may overtake last words on another: those end by themselves in a moment.
    const all = Promise.all(lanes.map(({ mux }) => mux.closed))
    if (reason.code === 'CLOSED') await within(all, { ms: FAREWELL_MS, what: 'the other lanes' }).catch(() => {})
    if (over) return
    finish(reason)
    for (const each of lanes) each.destroy()
  }
  for (const lane of lanes) {
    void acceptAll(lane.mux)
    void lane.mux.closed.then(onLaneClosed)
  }
  return {
    engine,
    remoteAddress,
    binding,
    lanes: lanes.length,
    openStream: async () => lanes[next++ % lanes.length]!.mux.openStream(),
    acceptStream: () => inbox.next(),
    stats(): PathStats {
      const rtts = lanes.map(({ mux }) => mux.rttMs).filter(rtt => rtt !== undefined)
      return {
        rttMs: rtts.length > 0 ? Math.min(...rtts) : undefined,
        ...joined(lanes.flatMap(lane => lane.path?.() ?? [])),
        sentBytes: lanes.reduce((sum, lane) => sum + lane.sentBytes(), 0),
        receivedBytes: lanes.reduce((sum, lane) => sum + lane.receivedBytes(), 0),
      }
    },
    async close(reason) {
      if (over) return
      for (const { mux } of lanes) mux.goAway()
      finish({ code: 'CLOSED', message: reason ?? 'closed' })
      const ended = Promise.all(lanes.map(lane => lane.end()))
      await within(ended, { ms: FAREWELL_MS, what: 'closing' }).catch(() => {})
      for (const lane of lanes) lane.destroy()
    },
    closed: closed.promise,
  }
}
