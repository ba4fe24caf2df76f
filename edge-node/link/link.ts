// The node's link to the gateway: one control connection, any number of data connections, all kept up for ever.
// Enters: how to dial, who we are, what this site is (describe), what to do when told (handlers), and relay streams of other sites.
// Leaves: requests and results to the gateway, relay streams to other sites through it.
// Always holds: after every (re)connect the gateway first hears the whole site.state, then the results it has not answered; the site.state
// names every migration that is running or whose result is unanswered, so the gateway never takes a late word for a lost one.
import { randomBytes } from 'node:crypto'
import type { Revocations } from '../../crypto/certificate.ts'
import type { LinkIdentity } from '../../crypto/link-auth.ts'
import { type Clock, systemClock } from '../../ops/clock.ts'
import { sleep, within } from '../../ops/deadline.ts'
import { bulkOf, carrierOf } from '../../transport/bulk.ts'
import type { RequestOptions, RpcHandlers } from '../../transport/rpc.ts'
import type { Connection, EngineName, PathStats, Selection, Stream } from '../../transport/types.ts'
import { warmUp } from '../../transport/warm-up.ts'
import {
  CancelParams,
  HoldParams,
  type HoldResult,
  type Join,
  type MigrationProgress,
  type MigrationResult,
  NeedsParams,
  type NeedsResult,
  type Prediction,
  PredictParams,
  PrepareParams,
  ReleaseParams,
  type SiteState,
  StartParams,
} from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import { encodeFrame } from '../../wire/frame.ts'
import type { Log } from '../../wire/log.ts'
import { check, toJson, type z } from '../../wire/schema.ts'
import { FRAME } from '../../wire/types.ts'
import type { Carriers } from '../rate/carriers.ts'
import { type Dial, type Kept, type KeptOptions, keepConnected, type Live } from './connection.ts'
import type { OnRelayStream, OnServiceStream } from './incoming.ts'
import { createOutbox, type Outbox } from './outbox.ts'

export type { Dial } from './connection.ts'
export type { OnRelayStream, OnServiceStream } from './incoming.ts'

const OPEN_STREAM_MS = 10_000
const CLOSE_FLUSH_MS = 500
const DATA_CONNECTIONS_MAX = 16
const WARM_UP_EVERY_MS = 600_000

/** What the gateway may ask of a node. A thrown GodwitError is the answer. */
export type LinkHandlers = {
  prepare(params: PrepareParams): Promise<void>
  start(params: StartParams): Promise<void>
  cancel(params: CancelParams): Promise<void>
  /** See predict.ts; absent: this node cannot. */
  predict?(params: PredictParams): Promise<Prediction>
  /** See prestage.ts; absent: this node cannot. */
  needs?(params: NeedsParams): Promise<NeedsResult>
  hold?(params: HoldParams): Promise<HoldResult>
  release?(params: ReleaseParams): Promise<void>
}

export type LinkOptions = {
  dial: Dial
  identity: LinkIdentity
  rootPublic: Uint8Array
  revocations?: Revocations | undefined
  /** Name of this site: what its certificate says. */
  site: string
  gatewayId?: string
  /** This process among others of the same site: a later one replaces an earlier one. Default: the time of the call, Unix ms. */
  incarnation?: number
  version: string
  /** The site as it is now. `migrations`: those that run. */
  describe(): Promise<Pick<SiteState, 'host' | 'vms' | 'migrations' | 'handovers'>>
  handlers: LinkHandlers
  onRelayStream: OnRelayStream
  /** A user's connection to a VM; absent: none is taken. */
  onServiceStream?: OnServiceStream
  /** Told of a stream or a request of the gateway that is none. */
  onBreach?: (error: GodwitError) => void
  /** Connections beside the control one: how many, or the engine of each (undefined: whichever works). Relay streams but the first of a migration are spread
   * over those that carry bulk best (transport/bulk.ts), so they do not share a congestion window with the control channel. Default 0: all on one connection. */
  dataConnections?: number | readonly (EngineName | undefined)[]
  /** What trying out a fresh data connection may take, each way; 0: it is not tried. Default 0. */
  warmUpBytes?: number
  heartbeat?: { heartbeatMs: number; silenceMs: number }
  backoff?: { firstMs: number; maxMs: number }
  random?: (bytes: number) => Uint8Array
  chance?: () => number
  clock?: Clock
  log: Log
}

export type Bulk = {
  engine: EngineName
  congestion?: string | undefined
  connections: number
  sentPackets: number
  lostPackets: number
  /** Of the way to the gateway alone, of late and at the least; where the engine knows them. */
  rttMs?: number | undefined
  rttMinMs?: number | undefined
  carriers?: Carriers | undefined
}
export type LinkState = 'connecting' | 'online' | 'closed'
export type LinkStats = { state: LinkState; attempts: number; lastError: GodwitError | null; control: PathStats | null; data: PathStats[] }

export type Link = {
  readonly state: LinkState
  readonly incarnation: number
  /** The engine of the control connection and what was tried before it; null while offline. */
  readonly selection: Selection | null
  /** Waits until the gateway has taken this site's state. Rejects at once when it denies us (certificate), else after `timeoutMs`. */
  whenOnline(options?: { timeoutMs?: number; signal?: AbortSignal }): Promise<void>
  request<T>(method: string, params: unknown, options?: RequestOptions): Promise<T>
  /** Best effort; dropped while offline. */
  progress(progress: MigrationProgress): void
  /** Delivered until answered, across reconnects. */
  report(result: MigrationResult): void
  /** The site has changed: tells the gateway soon (several changes become one message). */
  announce(): void
  /** A stream to the other site of a session. SITE_OFFLINE style refusals come as STREAM_RESET on its first read. CONNECTION_LOST while offline. */
  openRelayStream(join: Join): Promise<Stream>
  /** How many data connections to keep, or the engine of each. Those that stay are not touched. `isSpread`: see bulk.ts. */
  dataConnections(wanted: number | readonly (EngineName | undefined)[], isSpread?: boolean): void
  /** What page streams would take now, and what it has sent and lost so far; null while offline. */
  bulk(): Bulk | null
  stats(): LinkStats
  readonly closed: Promise<void>
  close(): Promise<void>
}

export function connectLink(options: LinkOptions): Link {
  return new NodeLink(options)
}

class NodeLink implements Link {
  readonly incarnation: number
  readonly closed: Promise<void>
  readonly #options: LinkOptions
  readonly #control: Kept
  readonly #data: { kept: Kept; engine: EngineName | undefined }[] = []
  readonly #outbox: Outbox
  readonly #stop = new AbortController()
  readonly #closed = Promise.withResolvers<void>()
  #waiters: { resolve: () => void; reject: (error: GodwitError) => void }[] = []
  #online: Live | undefined
  #lastError: GodwitError | null = null
  #announcing: Promise<void> | undefined
  #announceAgain = false
  #warmedAtMs = Number.NEGATIVE_INFINITY
  readonly #ids = new WeakMap<Live, number>()
  #nextId = 1
  #isSpread = false

  constructor(options: LinkOptions) {
    this.#options = options
    this.incarnation = options.incarnation ?? (options.clock ?? systemClock).now()
    this.closed = this.#closed.promise
    this.#outbox = createOutbox(result => this.request('migration.result', result), options.log, this.#stop.signal)
    this.#control = keepConnected({
      ...this.#shared('control'),
      handlers: handlersOf(options.handlers, options.onBreach),
      onLive: live => this.#up(live),
      onDown: error => this.#down(error),
    })
    this.dataConnections(options.dataConnections ?? 0)
  }

  get state(): LinkState {
    if (this.#stop.signal.aborted) return 'closed'
    return this.#online ? 'online' : 'connecting'
  }

  get selection(): Selection | null {
    return this.#online?.selection ?? null
  }

  async whenOnline({ timeoutMs = 30_000, signal }: { timeoutMs?: number; signal?: AbortSignal } = {}): Promise<void> {
    if (this.#online) return
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const waiter = { resolve, reject }
    this.#waiters.push(waiter)
    try {
      await within(promise, { ms: timeoutMs, what: 'gateway', code: 'GATEWAY_UNREACHABLE', signal })
    } catch (error) {
      promise.catch(() => {})
      throw this.#lastError ?? error
    } finally {
      this.#waiters = this.#waiters.filter(other => other !== waiter)
    }
  }

  async request<T>(method: string, params: unknown, options?: RequestOptions): Promise<T> {
    return this.#live().rpc.request<T>(method, params, options)
  }

  progress(progress: MigrationProgress): void {
    this.#online?.rpc.notify('migration.progress', progress)
  }

  report(result: MigrationResult): void {
    this.#outbox.add(result)
  }

  announce(): void {
    this.#announceAgain = true
    this.#announcing ??= this.#announceLoop().finally(() => {
      this.#announcing = undefined
    })
  }

  async openRelayStream(join: Join): Promise<Stream> {
    const { connection } = carrierOf(join.index, this.#live(), this.#dataLive(), this.#isSpread)
    const opening = connection.openStream()
    const stream = await within(opening, { ms: OPEN_STREAM_MS, what: `stream ${join.index} to the gateway` }).catch(error => {
      opening.then(late => late.reset('too late')).catch(() => {})
      throw error
    })
    await stream.write(encodeFrame(FRAME.JOIN, toJson(join)))
    return stream
  }

  bulk(): Bulk | null {
    const bulk = bulkOf(this.#dataLive(), this.#isSpread)
    const all = bulk.length > 0 || !this.#online ? bulk : [this.#online]
    const [first] = all
    if (!first) return null
    const stats = all.map(({ connection }) => connection.stats())
    const sum = (of: (each: PathStats) => number | undefined) => stats.reduce((total, each) => total + (of(each) ?? 0), 0)
    const packets = { sentPackets: sum(each => each.sentPackets), lostPackets: sum(each => each.lostPackets) }
    const { congestion, rttMs, rttMinMs } = stats[0] ?? {}
    const carriers = { ids: all.map(live => this.#idOf(live)), congestion }
    return { engine: first.connection.engine, congestion, rttMs, rttMinMs, connections: all.length, carriers, ...packets }
  }

  #idOf(live: Live): number {
    const id = this.#ids.get(live) ?? this.#nextId++
    this.#ids.set(live, id)
    return id
  }

  #dataLive(): Live[] {
    return this.#data.flatMap(({ kept }) => kept.live() ?? [])
  }

  dataConnections(wanted: number | readonly (EngineName | undefined)[], isSpread = false): void {
    this.#isSpread = isSpread
    const engines = typeof wanted === 'number' ? new Array<undefined>(Math.min(wanted, DATA_CONNECTIONS_MAX)).fill(undefined) : wanted
    const missing = this.#stop.signal.aborted ? [] : engines.slice(0, DATA_CONNECTIONS_MAX)
    const stay = this.#data.splice(0).filter(data => {
      const at = missing.indexOf(data.engine)
      if (at < 0) data.kept.close()
      else missing.splice(at, 1)
      return at >= 0
    })
    this.#data.push(...stay, ...missing.map(engine => ({ kept: this.#keepData(engine), engine })))
  }

  #keepData(engine: EngineName | undefined): Kept {
    return keepConnected({
      ...this.#shared('data'),
      engine,
      handlers: {},
      onLive: ({ connection }) => void this.#warmUp(connection),
      onDown: error => this.#options.log.debug('data connection down', { engine, error }),
    })
  }

  /** Only BBR remembers. A link that comes and goes is not tried each time. */
  async #warmUp(connection: Connection): Promise<void> {
    const { warmUpBytes = 0, log } = this.#options
    const nowMs = performance.now()
    if (warmUpBytes === 0 || connection.stats().congestion !== 'bbr' || nowMs - this.#warmedAtMs < WARM_UP_EVERY_MS) return
    this.#warmedAtMs = nowMs
    try {
      const bytes = await warmUp(connection, warmUpBytes)
      log.debug('a data connection is warm', { bytes, tookMs: Math.round(performance.now() - nowMs) })
    } catch (error) {
      log.debug('a data connection stays cold', { error })
    }
  }

  stats(): LinkStats {
    return {
      state: this.state,
      attempts: this.#control.attempts(),
      lastError: this.#lastError,
      control: this.#online?.connection.stats() ?? null,
      data: this.#data.flatMap(({ kept }) => kept.live()?.connection.stats() ?? []),
    }
  }

  async close(): Promise<void> {
    // A result that the gateway does not hear is one that it has to guess.
    if (this.#online && !this.#stop.signal.aborted) await Promise.race([this.#outbox.flush(), sleep(CLOSE_FLUSH_MS)])
    if (!this.#stop.signal.aborted) {
      this.#stop.abort(new GodwitError('CONNECTION_LOST', 'the link was closed'))
      const all = [this.#control, ...this.#data.map(({ kept }) => kept)]
      for (const kept of all) kept.close()
      for (const waiter of this.#waiters) waiter.reject(new GodwitError('CONNECTION_LOST', 'the link was closed'))
      await Promise.all(all.map(kept => kept.closed))
      this.#online = undefined
      this.#closed.resolve()
    }
    await this.closed
  }

  #shared(purpose: 'control' | 'data'): Omit<KeptOptions, 'handlers' | 'onLive' | 'onDown'> {
    const {
      dial,
      identity,
      rootPublic,
      revocations,
      gatewayId,
      onRelayStream,
      onServiceStream,
      onBreach,
      heartbeat,
      backoff,
      log,
      random = randomBytes,
    } = this.#options
    const { clock = systemClock, chance = Math.random } = this.#options
    return {
      purpose,
      incarnation: this.incarnation,
      dial,
      identity,
      rootPublic,
      revocations,
      gatewayId,
      onRelayStream,
      onServiceStream,
      onBreach,
      heartbeat,
      backoff,
      log,
      random,
      clock,
      chance,
    }
  }

  #live(): Live {
    if (!this.#online) throw new GodwitError('CONNECTION_LOST', 'the gateway is not connected')
    return this.#online
  }

  async #up(live: Live): Promise<void> {
    this.#announceAgain = false
    await live.rpc.request('site.state', await this.#siteState())
    this.#online = live
    if (this.#announceAgain) this.announce()
    this.#lastError = null
    for (const waiter of this.#waiters) waiter.resolve()
    await this.#outbox.flush()
  }

  #down(error: GodwitError): void {
    if (this.#online) this.#options.log.warn('the gateway is gone', { error })
    else this.#options.log.info('the gateway cannot be reached', { error })
    this.#online = undefined
    this.#lastError = error
    const denied = [
      'CERT_UNTRUSTED',
      'CERT_EXPIRED',
      'CERT_REVOKED',
      'CERT_MALFORMED',
      'AUTH_FAILED',
      'SITE_DUPLICATE',
      'VERSION_UNSUPPORTED',
    ]
    if (denied.includes(error.code)) for (const waiter of this.#waiters) waiter.reject(error)
  }

  async #announceLoop(): Promise<void> {
    while (this.#announceAgain && this.#online) {
      this.#announceAgain = false
      try {
        await this.#online.rpc.request('site.state', await this.#siteState())
      } catch (error) {
        // Offline: the next connect announces anyway.
        this.#options.log.debug('site.state was not taken', { error })
      }
    }
  }

  async #siteState(): Promise<SiteState> {
    const { site, version, describe } = this.#options
    const { host, vms, migrations, handovers } = await describe()
    return {
      site,
      incarnation: this.incarnation,
      version,
      host,
      vms,
      migrations: [...new Set([...migrations, ...this.#outbox.migrationIds()])],
      ...(handovers?.length ? { handovers } : {}),
    }
  }
}

function handlersOf(handlers: LinkHandlers, onBreach: LinkOptions['onBreach']): RpcHandlers {
  const checked = <S extends z.ZodType>(schema: S, params: unknown, what: string): z.output<S> => {
    try {
      return check(schema, params, { what })
    } catch (error) {
      onBreach?.(toGodwitError(error))
      throw error
    }
  }
  const { needs, hold, release, predict } = handlers
  return {
    ...(predict ? { 'migration.predict': params => predict(checked(PredictParams, params, 'migration.predict')) } : {}),
    ...(needs ? { 'prestage.needs': params => needs(checked(NeedsParams, params, 'prestage.needs')) } : {}),
    ...(hold ? { 'prestage.hold': params => hold(checked(HoldParams, params, 'prestage.hold')) } : {}),
    ...(release ? { 'prestage.release': params => release(checked(ReleaseParams, params, 'prestage.release')) } : {}),
    'migration.prepare': params => handlers.prepare(checked(PrepareParams, params, 'migration.prepare')),
    'migration.start': params => handlers.start(checked(StartParams, params, 'migration.start')),
    'migration.cancel': params => handlers.cancel(checked(CancelParams, params, 'migration.cancel')),
  }
}
