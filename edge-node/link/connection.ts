// Keeps one connection to the gateway open: connect, authenticate, serve until it ends, wait with jitter, repeat.
// Enters: how to connect, the node's identity. Leaves: a live connection with its RPC, or `undefined` with the last
// error. Always holds: at most one attempt at a time; a hung gateway is detected by missing heartbeats
// (transport/rpc.ts), and its connection is closed.
import { sleep, within } from '../../ops/deadline.ts'
import { createRpc, type RpcHandlers, type RpcPeer } from '../../transport/rpc.ts'
import type { Connection, EngineName, Selection } from '../../transport/types.ts'
import type { Welcome } from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { authenticateToGateway, type NodeAuthentication, verifyGateway } from './authenticate.ts'
import { backoffMs } from './backoff.ts'
import { acceptStreams, type OnStream } from './incoming.ts'

/** Connects to the gateway with the first engine that works, and returns its name. */
export type Dial = (options: {
  signal: AbortSignal
  engine?: EngineName | undefined
}) => Promise<{ connection: Connection; selection: Selection }>

const DIAL_MS = 30_000
const AUTHENTICATE_MS = 10_000

export type Live = { connection: Connection; rpc: RpcPeer; selection: Selection; welcome: Welcome; gatewayCertificate: Uint8Array }

export type KeptOptions = Omit<NodeAuthentication, 'connection'> &
  OnStream & {
    dial: Dial
    /** Only this engine; undefined: the first that works. */
    engine?: EngineName | undefined
    handlers: RpcHandlers
    /** Awaited before each attempt. */
    ready?: ((signal: AbortSignal) => Promise<void>) | undefined
    /** Runs while the connection lives; it may throw to end the connection. */
    onLive: (live: Live) => Promise<void> | void
    onDown: (error: GodwitError) => void
    heartbeat?: { heartbeatMs: number; silenceMs: number } | undefined
    backoff?: { firstMs: number; maxMs: number } | undefined
    /** 0..1, for the jitter. */
    chance: () => number
    log: Log
  }

export type KeptConnection = { live(): Live | undefined; attempts(): number; closed: Promise<void>; recheck(): void; close(): void }

/** Keeps one connection up until close(). */
export function keepConnected(options: KeptOptions): KeptConnection {
  const { log } = options
  const stop = new AbortController()
  let live: Live | undefined
  let attempts = 0

  async function connectOnce(): Promise<Live> {
    const dialled = options.dial({ signal: stop.signal, engine: options.engine })
    const { connection, selection } = await within(dialled, {
      ms: DIAL_MS,
      what: 'gateway',
      code: 'CONNECT_TIMEOUT',
      signal: stop.signal,
    }).catch(error => {
      // Close a connection that arrives after the deadline.
      dialled.then(late => late.connection.close('too late')).catch(() => {})
      throw error
    })
    try {
      const authenticated = authenticateToGateway({ ...options, connection })
      const { frames, welcome, gatewayCertificate } = await within(authenticated, {
        ms: AUTHENTICATE_MS,
        what: 'authentication with the gateway',
        code: 'CONNECT_TIMEOUT',
        signal: stop.signal,
      })
      const rpc = createRpc(frames, { handlers: options.handlers, log, ...options.heartbeat })
      return { connection, rpc, selection, welcome, gatewayCertificate }
    } catch (error) {
      connection.close('authentication failed').catch(() => {})
      throw error
    }
  }

  async function serve(mine: Live): Promise<GodwitError> {
    const accepting = acceptStreams(mine.connection, options, log)
    accepting.catch(() => {})
    const lost = mine.connection.closed.then(why => new GodwitError('CONNECTION_LOST', why.message))
    const ended = mine.rpc.closed.then(why => why ?? new GodwitError('CONNECTION_LOST', 'the gateway closed the link'))
    const gaveUp = new Promise<GodwitError>(resolve => {
      Promise.resolve(options.onLive(mine)).catch(error => resolve(toGodwitError(error)))
    })
    try {
      return await Promise.race([ended, lost, gaveUp])
    } finally {
      mine.rpc.close()
      mine.connection.close('link ended').catch(() => {})
    }
  }

  async function run(): Promise<void> {
    for (let failures = 0; !stop.signal.aborted; ) {
      try {
        await options.ready?.(stop.signal)
        attempts += 1
        live = await connectOnce()
        failures = 0
        const { engine, tried } = live.selection
        log.info('connected to the gateway', { gateway: live.welcome.gateway, engine, purpose: options.purpose, tried })
        const why = await serve(live)
        live = undefined
        // Also wait after a gateway that accepts and then closes at once.
        failures = 1
        if (!stop.signal.aborted) options.onDown(why)
        log.debug('link down', { error: why })
      } catch (thrown) {
        failures += 1
        if (!stop.signal.aborted) options.onDown(toGodwitError(thrown, 'CONNECT_FAILED'))
      }
      await sleep(backoffMs(failures, options.chance(), options.backoff), stop.signal).catch(() => {})
    }
  }
  const closed = run()
  return {
    live: () => live,
    attempts: () => attempts,
    closed,
    recheck() {
      if (!live) return
      try {
        verifyGateway(live.gatewayCertificate, options)
      } catch (error) {
        live.rpc.close(toGodwitError(error))
      }
    },
    close() {
      stop.abort(new GodwitError('CONNECTION_LOST', 'the link was closed'))
      live?.rpc.close()
      live?.connection.close('the node is shutting down').catch(() => {})
    },
  }
}
