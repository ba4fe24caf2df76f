// Chooses the engine of a connection. Enters: the gateway's endpoint for each engine, and the preference. Leaves: one
// connection with the list of attempts, or one error that lists them. Always holds: later connections are closed.
import { sleep } from '../ops/deadline.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'
import type { Resolve } from './connect-by-name.ts'
import { createQuicEngine } from './quic.ts'
import { createTlsEngine } from './tls.ts'
import type { Connection, Engine, EngineName, Selection } from './types.ts'
import { createWebTransportEngine } from './webtransport.ts'

/**
 * The order of 'auto': QUIC fills lossless long paths and has no head-of-line blocking; TLS works where UDP is blocked;
 * WebTransport where only HTTPS passes.
 */
const AUTO_ORDER: readonly EngineName[] = ['quic', 'tls', 'webtransport']

/** How long an engine may take to connect. A blocked UDP port does not answer, so QUIC's must be short. */
const DEADLINE_MS: Record<EngineName, number> = { quic: 5_000, tls: 8_000, webtransport: 10_000, memory: 1_000 }
/** After this the next engine starts as well, and the first to connect wins (RFC 8305's idea). */
const STAGGER_MS = 1_500

/** The engines that cross a network, with the same link options for each. */
export function createEngines(
  options: { idleTimeoutMs?: number; streamWindowBytes?: number; connectionWindowBytes?: number; resolve?: Resolve } = {},
): Engine[] {
  return [createQuicEngine(options), createTlsEngine(options), createWebTransportEngine(options)]
}

type Endpoint = { host: string; port: number }

type SelectOptions = {
  /** One engine by name, or the first of AUTO_ORDER that connects. */
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

/**
 * Connects. Rejects with the first tried engine's error (CONNECT_*, ENGINE_UNAVAILABLE) and all outcomes in its
 * message, or with the signal's reason.
 */
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
      if (winner || stop.signal.aborted) return await connection.close('another engine connected first')
      winner = connection
      record.outcome = 'connected'
      stop.abort(new GodwitError('CONNECT_FAILED', `given up: ${name} connected first`))
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
    // The aborted signal ends the other attempts; a late connection closes itself.
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
