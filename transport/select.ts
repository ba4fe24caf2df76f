// Which engine carries a connection, and listening with several at once. Enters: where the gateway listens for each engine, and what is preferred.
// Leaves: one connection and the story of how it was chosen, or one error that tells what was tried.
// Always holds: no connection is left behind: what comes second is closed.
import { sleep } from '../ops/deadline.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'
import { createInbox } from './inbox.ts'
import { createQuicEngine } from './quic.ts'
import { createTlsEngine } from './tls.ts'
import type { Connection, Engine, EngineName, Listener, Selection } from './types.ts'
import { createWebTransportEngine } from './webtransport.ts'

/** The order of 'auto': QUIC fills lossless long paths and loses no time to head-of-line blocking; TLS passes where UDP does not; WebTransport where only HTTPS does. */
export const AUTO_ORDER: readonly EngineName[] = ['quic', 'tls', 'webtransport']

/** How long an engine may take to connect. A blocked UDP port is silent, so QUIC's must not be long. */
const DEADLINE_MS: Record<EngineName, number> = { quic: 5_000, tls: 8_000, webtransport: 10_000, memory: 1_000 }
/** After this the next engine starts as well, and the first to connect wins (RFC 8305's idea). */
const STAGGER_MS = 1_500
const BACKLOG_CONNECTIONS = 256

/** The engines that cross a network, with the same link options for each. */
export function createEngines(
  options: { idleTimeoutMs?: number; streamWindowBytes?: number; connectionWindowBytes?: number } = {},
): Engine[] {
  return [createQuicEngine(options), createTlsEngine(options), createWebTransportEngine(options)]
}

export type Endpoint = { host: string; port: number }

export type SelectOptions = {
  /** One engine by name and nothing else, or the first of AUTO_ORDER that connects. */
  prefer: 'auto' | EngineName
  engines: Engine[]
  /** Where the gateway listens; an engine without an endpoint is not tried. */
  endpoints: Partial<Record<EngineName, Endpoint>>
  /** Milliseconds each engine may take. */
  deadlinesMs?: Partial<Record<EngineName, number>>
  staggerMs?: number
  signal?: AbortSignal
}

type Attempt = { engine: EngineName; outcome: string; tookMs: number }

/** Connects. Rejects with the first tried engine's error (CONNECT_*, ENGINE_UNAVAILABLE) and all outcomes in its message, or with the signal's reason. */
export async function selectEngine(options: SelectOptions): Promise<{ connection: Connection; selection: Selection }> {
  const { prefer, engines, endpoints, deadlinesMs = {}, staggerMs = STAGGER_MS, signal } = options
  signal?.throwIfAborted()
  const names = prefer === 'auto' ? AUTO_ORDER : [prefer]
  const candidates = names.flatMap(name => engines.filter(engine => engine.name === name && endpoints[name]))
  if (candidates.length === 0) throw new GodwitError('CONFIG_INVALID', `no address to connect to by ${names.join(', ')}`)
  const tried: Attempt[] = []
  const errors: GodwitError[] = []
  const stop = new AbortController()
  const onAbort = () => stop.abort(signal?.reason)
  signal?.addEventListener('abort', onAbort, { once: true })
  let winner: Connection | undefined

  const attempt = async (engine: Engine): Promise<void> => {
    const { name } = engine
    const startedAt = performance.now()
    const record: Attempt = { engine: name, outcome: 'given up', tookMs: 0 }
    tried.push(record)
    try {
      const availability = await engine.available()
      if (!availability.ok) throw new GodwitError('ENGINE_UNAVAILABLE', availability.reason)
      const connection = await engine.connect({
        ...endpoints[name]!,
        timeoutMs: deadlinesMs[name] ?? DEADLINE_MS[name],
        signal: stop.signal,
      })
      if (winner || stop.signal.aborted) return await connection.close('another engine was first')
      winner = connection
      record.outcome = 'connected'
      stop.abort(new GodwitError('CONNECT_FAILED', `given up: ${name} was first`))
    } catch (error) {
      const mine = toGodwitError(error, 'CONNECT_FAILED')
      if (!stop.signal.aborted) errors.push(mine)
      record.outcome = stop.signal.aborted ? 'given up' : `${mine.code}: ${mine.message}`
    } finally {
      record.tookMs = Math.round(performance.now() - startedAt)
    }
  }
  try {
    const running: Promise<void>[] = []
    for (const engine of candidates) {
      if (stop.signal.aborted) break
      const mine = attempt(engine)
      running.push(mine)
      await Promise.race([mine, sleep(staggerMs, stop.signal).catch(() => {})])
    }
    // The losers end by the aborted signal; whoever is still on its way closes itself.
    if (!stop.signal.aborted) {
      const stopped = new Promise<void>(resolve => stop.signal.addEventListener('abort', () => resolve(), { once: true }))
      await Promise.race([Promise.all(running), stopped])
    }
  } finally {
    signal?.removeEventListener('abort', onAbort)
  }
  if (winner) return { connection: winner, selection: { engine: winner.engine, tried } }
  signal?.throwIfAborted()
  const [first] = errors
  const story = tried.map(({ engine, outcome }) => `${engine}: ${outcome}`).join('; ')
  throw new GodwitError(first?.code ?? 'CONNECT_FAILED', story, { cause: first })
}

export type MultiListener = {
  listeners: { engine: EngineName; address: Endpoint }[]
  /** Engines that cannot load here, and why. */
  skipped: { engine: EngineName; reason: string }[]
  /** Next inbound connection by whichever engine, or null when closed. */
  accept(): Promise<Connection | null>
  close(): Promise<void>
}

/** Listens with each engine that has a port. An engine that cannot load is skipped; none left is ENGINE_UNAVAILABLE; a taken port is CONNECT_FAILED. */
export async function listenAll(options: {
  host: string
  ports: Partial<Record<EngineName, number>>
  engines: Engine[]
  signal?: AbortSignal
}): Promise<MultiListener> {
  const { host, ports, engines, signal } = options
  const opened: { name: EngineName; listener: Listener }[] = []
  const skipped: MultiListener['skipped'] = []
  const inbox = createInbox<Connection>(BACKLOG_CONNECTIONS)
  const close = async () => {
    const waiting = inbox.end()
    await Promise.all([
      ...waiting.map(connection => connection.close('the listener closed')),
      ...opened.map(({ listener }) => listener.close()),
    ])
  }
  try {
    for (const engine of engines) {
      const port = ports[engine.name]
      if (port === undefined) continue
      const availability = await engine.available()
      if (availability.ok) opened.push({ name: engine.name, listener: await engine.listen({ host, port, ...(signal ? { signal } : {}) }) })
      else skipped.push({ engine: engine.name, reason: availability.reason })
    }
    if (opened.length === 0) {
      throw new GodwitError(
        'ENGINE_UNAVAILABLE',
        `nothing to listen with: ${skipped.map(it => `${it.engine}: ${it.reason}`).join('; ') || 'no ports'}`,
      )
    }
  } catch (error) {
    await close()
    throw error
  }
  const acceptAll = async (listener: Listener) => {
    for (let connection = await listener.accept(); connection; connection = await listener.accept()) {
      if (!inbox.push(connection)) void connection.close('too many connections wait')
    }
  }
  // All of them end by the signal or by close(); the merged inbox ends with them.
  void Promise.all(opened.map(({ listener }) => acceptAll(listener))).then(() => inbox.end())
  return {
    listeners: opened.map(({ name, listener }) => ({ engine: name, address: listener.address })),
    skipped,
    accept: () => inbox.next(),
    close,
  }
}
