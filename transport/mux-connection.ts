// One logical connection over one or several lanes, each with its own muxer: shared by tls and webtransport. Enters:
// connected lanes. Leaves: a Connection. Always holds: all lanes live and end together; streams are distributed round
// robin; a peer that sends nothing for `idleTimeoutMs` is lost, even if its machine never closed the connection.
import { within } from '../ops/deadline.ts'
import { createInbox } from './inbox.ts'
import { createMux, type Lane, type Mux } from './mux.ts'
import type { Stranger } from './stranger.ts'
import type { CloseReason, Connection, EngineName, PathStats, Stream } from './types.ts'

export type MuxOptions = {
  /** A peer that sends nothing for this time is lost. Default 15_000. */
  idleTimeoutMs?: number
  /** Default a third of the idle timeout. */
  keepAliveMs?: number
  /** Receive window of one stream. Default 8 MiB: 200 Mbit/s at 150 ms, 100 Mbit/s at 600 ms. */
  streamWindowBytes?: number
  /** Receive window of all streams of a lane together, beyond 256 KiB each. Default 128 MiB. */
  connectionWindowBytes?: number
  /** Maximum of open streams of either side on one lane. Default 1024. */
  maxStreams?: number
}
export type MuxSettings = Required<MuxOptions>

export function muxSettings(options: MuxOptions): MuxSettings {
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
  /** Flushes sent bytes and resolves when the peer has closed the pipe (the caller sets a deadline). */
  end(): Promise<void>
  /** Closes the pipe at once. Idempotent. */
  destroy(): void
  sentBytes(): number
  receivedBytes(): number
  /** Path statistics of the kernel, if available. */
  path?(): PathStats | undefined
}

/** A muxer on a lane, with a heartbeat that detects a lost peer. */
export function createLinkMux(side: 'client' | 'server', lane: Lane, settings: MuxSettings, stranger?: Stranger): Mux {
  const mux = createMux({ side, lane, stranger, ...settings })
  let lastTick = performance.now()
  const tick = () => {
    const now = performance.now()
    // This process did not run for a while (a long computation, a suspended machine), and received bytes are not read
    // yet: ask again.
    const stoodStill = now - lastTick > settings.keepAliveMs * 1.5
    lastTick = now
    if (!stoodStill && now - mux.heardAt > settings.idleTimeoutMs)
      mux.finish({ code: 'CONNECTION_LOST', message: 'the peer stopped responding' })
    else mux.ping()
  }
  mux.ping()
  const timer = setInterval(tick, settings.keepAliveMs)
  mux.closed.then(() => clearInterval(timer))
  return mux
}

const FAREWELL_MS = 1_000

/** The paths of the lanes combined: they share the route. */
function joined(paths: PathStats[]): PathStats {
  const sum = (of: (path: PathStats) => number | undefined) => paths.reduce((total, path) => total + (of(path) ?? 0), 0)
  const least = (of: (path: PathStats) => number | undefined) => Math.min(...paths.map(path => of(path) ?? Number.POSITIVE_INFINITY))
  if (paths.length === 0) return {}
  return {
    rttMs: least(path => path.rttMs),
    rttMinMs: least(path => path.rttMinMs),
    rttDeviationMs: least(path => path.rttDeviationMs),
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
  /** The budget that the lanes' muxers share. */
  stranger?: Stranger
}): Connection {
  const { engine, remoteAddress, binding, lanes, maxStreams, stranger } = options
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
      if (!inbox.push(stream)) stream.reset('too many unaccepted streams')
    }
  }
  const onLaneClosed = async (reason: CloseReason) => {
    // The goodbye on one lane may overtake the last data on another lane, which ends by itself shortly after.
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
    trust: () => stranger?.trust(),
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
