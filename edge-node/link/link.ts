// The node's link to the gateway: one control connection, any number of data connections, all kept open. Enters: how to
// connect, the node's identity, the state of the site (describe), handlers for requests, and relay streams of other
// sites. Leaves: requests and results to the gateway, relay streams to other sites through it. Always holds: after
// every (re)connect the gateway first receives the whole site.state, then the unacknowledged results; the site.state
// contains every migration that runs or whose result is unacknowledged, so the gateway never mistakes a late result for
// a lost one.
import { randomBytes } from 'node:crypto'
import type { Revocations } from '../../crypto/certificate.ts'
import type { LinkIdentity } from '../../crypto/link-auth.ts'
import { type Clock, systemClock } from '../../ops/clock.ts'
import { sleep, within } from '../../ops/deadline.ts'
import { quietly } from '../../ops/quiet-log.ts'
import { bulkOf, carrierOf } from '../../transport/bulk.ts'
import type { RequestOptions, RpcHandlers } from '../../transport/rpc.ts'
import type { Connection, EngineName, PathStats, Selection, Stream } from '../../transport/types.ts'
import { warmUp } from '../../transport/warm-up.ts'
import {
  CancelParams,
  DATA_CONNECTIONS_MAX,
  HoldParams,
  type HoldResult,
  ImagePrepareParams,
  type Join,
  type MigrationProgress,
  type MigrationResult,
  NeedsParams,
  type NeedsResult,
  type Prediction,
  PredictParams,
  PrepareParams,
  ReleaseParams,
  RevocationsParams,
  type SiteState,
  StartParams,
} from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import { encodeFrame } from '../../wire/frame.ts'
import type { Log } from '../../wire/log.ts'
import { placingOf } from '../../wire/roles.ts'
import { check, toJson, z } from '../../wire/schema.ts'
import { FRAME } from '../../wire/types.ts'
import { checkVersion, FIRST_RANGE, VERSIONS, Version, type Versions } from '../../wire/versions.ts'
import type { Carriers } from '../rate/carriers.ts'
import { type Dial, type KeptConnection, type KeptOptions, keepConnected, type Live } from './connection.ts'
import type { OnRelayStream, OnServiceStream } from './incoming.ts'
import { createResultOutbox, type ResultOutbox } from './outbox.ts'
import { publicBody, publicError, publicPrediction, publicReport } from './privacy.ts'

export type { Dial } from './connection.ts'

const OPEN_STREAM_MS = 10_000
const CLOSE_FLUSH_MS = 500
const WARM_UP_EVERY_MS = 600_000

/** Requests of the gateway to a node. A thrown GodwitError is the answer. */
export type LinkHandlers = {
  prepare(params: PrepareParams): Promise<void>
  start(params: StartParams): Promise<void>
  cancel(params: CancelParams): Promise<void>
  /** See images/incoming.ts; absent: not supported. */
  prepareImage?(params: ImagePrepareParams): Promise<void>
  /** See predict.ts; absent: not supported. */
  predict?(params: PredictParams): Promise<Prediction>
  /** See prestage.ts; absent: not supported. */
  needs?(params: NeedsParams): Promise<NeedsResult>
  hold?(params: HoldParams): Promise<HoldResult>
  release?(params: ReleaseParams): Promise<void>
  /** See identity/trust.ts; absent: this node accepts no lists from the gateway. */
  revocations?(params: RevocationsParams): Promise<{ number: number }>
}

export type LinkOptions = {
  dial: Dial
  identity: LinkIdentity
  rootPublic: Uint8Array
  /** The current list. */
  revocations?: (() => Revocations | undefined) | undefined
  /** Name of this site in its certificate. */
  site: string
  gatewayId?: string
  /**
   * Identifies this process of the site: a later one replaces an earlier one. Default: the time of the call, Unix ms.
   */
  incarnation?: number
  version: string
  /** Versions of the protocol. Default: those of this release. */
  versions?: Versions | undefined
  /** The current state of the site. `migrations`: running ones. */
  describe(): Promise<Pick<SiteState, 'host' | 'vms' | 'migrations' | 'handovers' | 'moved' | 'fencings'>>
  handlers: LinkHandlers
  onRelayStream: OnRelayStream
  /** A user's connection to a VM; absent: none is accepted. */
  onServiceStream?: OnServiceStream
  /** Called for an invalid stream or request of the gateway. */
  onBreach?: (error: GodwitError) => void
  /**
   * Connections beside the control one: how many, or the engine of each (undefined: the first that works). All relay
   * streams of a migration except the first are distributed over the best ones for bulk data (transport/bulk.ts), so
   * they do not share a congestion window with the control channel. Default 0: all on one connection.
   */
  dataConnections?: number | readonly (EngineName | undefined)[]
  /** Limit of the warm-up of a new data connection in each direction; 0: no warm-up. Default 0. */
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
  /** Round trips to the gateway, recent and minimum; if the engine knows them. */
  rttMs?: number | undefined
  rttMinMs?: number | undefined
  rttDeviationMs?: number | undefined
  carriers?: Carriers | undefined
}
type LinkState = 'connecting' | 'online' | 'closed'
type LinkStats = { state: LinkState; attempts: number; lastError: GodwitError | null; control: PathStats | null; data: PathStats[] }

export type Link = {
  readonly state: LinkState
  readonly incarnation: number
  /** The engine of the control connection and the attempts before it; null while offline. */
  readonly selection: Selection | null
  /**
   * Waits until the gateway has accepted this site's state. Rejects at once if it rejects the certificate, else after
   * `timeoutMs`.
   */
  whenOnline(options?: { timeoutMs?: number; signal?: AbortSignal }): Promise<void>
  request<T>(method: string, params: unknown, options?: RequestOptions): Promise<T>
  /** Best effort; dropped while offline. */
  progress(progress: MigrationProgress): void
  /** Sent until acknowledged, across reconnects. */
  report(result: MigrationResult): void
  /** The site has changed: sends its state soon (several changes become one message). */
  announce(): void
  /**
   * A stream to the other site of a session. Rejections such as SITE_OFFLINE appear as STREAM_RESET on its first read.
   * CONNECTION_LOST while offline.
   */
  openRelayStream(join: Join): Promise<Stream>
  /** How many data connections to keep, or the engine of each. Existing ones stay. `isSpread`: see bulk.ts. */
  dataConnections(wanted: number | readonly (EngineName | undefined)[], isSpread?: boolean): void
  /** The connections for page streams now, with their sent and lost packets; null while offline. */
  bulk(): Bulk | null
  stats(): LinkStats
  /** Reopens all connections, with the current certificate. */
  reconnect(): void
  /** Closes connections to a gateway whose certificate has expired or was revoked. */
  recheck(): void
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
  readonly #control: KeptConnection
  readonly #data: { kept: KeptConnection; engine: EngineName | undefined }[] = []
  readonly #outbox: ResultOutbox
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
    this.#outbox = createResultOutbox(result => this.request('migration.result', result), options.log, this.#stop.signal)
    this.#control = keepConnected({
      ...this.#shared('control'),
      handlers: guarded(handlersOf(options), quietly(options.log)),
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
    const { error, report } = result
    this.#outbox.add({ ...result, ...(error ? { error: publicBody(error) } : {}), ...(report ? { report: publicReport(report) } : {}) })
  }

  announce(): void {
    this.#announceAgain = true
    this.#announcing ??= this.#announceLoop().finally(() => {
      this.#announcing = undefined
    })
  }

  async openRelayStream(join: Join): Promise<Stream> {
    const { connection } = carrierOf(placingOf(join.index), this.#live(), this.#dataLive(), this.#isSpread)
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
    const { congestion, rttMs, rttMinMs, rttDeviationMs } = stats[0] ?? {}
    const carriers = { ids: all.map(live => this.#idOf(live)), congestion }
    return { engine: first.connection.engine, congestion, rttMs, rttMinMs, rttDeviationMs, connections: all.length, carriers, ...packets }
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

  #keepData(engine: EngineName | undefined): KeptConnection {
    return keepConnected({
      ...this.#shared('data'),
      engine,
      handlers: {},
      // The gateway accepts data connections only from a site with a control connection.
      ready: signal => this.#untilOnline(signal),
      onLive: ({ connection }) => void this.#warmUp(connection),
      onDown: error => this.#options.log.debug('data connection down', { engine, error }),
    })
  }

  async #untilOnline(signal: AbortSignal): Promise<void> {
    while (!this.#online && !signal.aborted) await this.whenOnline({ signal }).catch(() => {})
  }

  /** Only BBR keeps the learned rate. A flapping link is not warmed up each time. */
  async #warmUp(connection: Connection): Promise<void> {
    const { warmUpBytes = 0, log } = this.#options
    const nowMs = performance.now()
    if (warmUpBytes === 0 || connection.stats().congestion !== 'bbr' || nowMs - this.#warmedAtMs < WARM_UP_EVERY_MS) return
    this.#warmedAtMs = nowMs
    try {
      const bytes = await warmUp(connection, warmUpBytes)
      log.debug('data connection warmed up', { bytes, tookMs: Math.round(performance.now() - nowMs) })
    } catch (error) {
      log.debug('warm-up of a data connection failed', { error })
    }
  }

  reconnect(): void {
    for (const kept of [this.#control, ...this.#data.map(({ kept }) => kept)]) kept.live()?.rpc.close()
  }

  recheck(): void {
    for (const kept of [this.#control, ...this.#data.map(({ kept }) => kept)]) kept.recheck()
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
    // Without a result the gateway has to guess the outcome.
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
      versions,
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
      versions,
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
    if (this.#online) this.#options.log.warn('gateway disconnected', { error })
    else this.#options.log.info('gateway not reachable', { error })
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
        // Offline: the next connection announces the state anyway.
        this.#options.log.debug('site.state rejected', { error })
      }
    }
  }

  async #siteState(): Promise<SiteState> {
    const { site, version, versions = VERSIONS, describe } = this.#options
    const { min, max } = versions.migration
    const { host, vms, migrations, handovers, moved, fencings } = await describe()
    return {
      site,
      incarnation: this.incarnation,
      version,
      ...(min === FIRST_RANGE.min && max === FIRST_RANGE.max ? {} : { migrationVersions: { min, max } }),
      host,
      vms,
      migrations: [...new Set([...migrations, ...this.#outbox.migrationIds()])],
      ...(handovers?.length ? { handovers } : {}),
      ...(moved?.length ? { moved } : {}),
      ...(fencings?.length ? { fencings } : {}),
    }
  }
}

/** The full text of a rejection stays in this node's log. */
function guarded(handlers: RpcHandlers, log: Log): RpcHandlers {
  const guard =
    (method: string, handler: RpcHandlers[string]): RpcHandlers[string] =>
    async (params, context) => {
      try {
        return await handler(params, context)
      } catch (error) {
        log.info('request of the gateway rejected', { method, error })
        throw publicError(error)
      }
    }
  return Object.fromEntries(Object.entries(handlers).map(([method, handler]) => [method, guard(method, handler)]))
}

/** The version of a plan is read first, because another version may have another format. */
const Planned = z.object({ plan: z.object({ version: Version }) })

function handlersOf({ handlers, onBreach, site, versions = VERSIONS }: LinkOptions): RpcHandlers {
  /** What fails here cannot come from an honest gateway. */
  const honest = <T>(judge: () => T): T => {
    try {
      return judge()
    } catch (error) {
      onBreach?.(toGodwitError(error))
      throw error
    }
  }
  const checked = <S extends z.ZodType>(schema: S, params: unknown, what: string): z.output<S> =>
    honest(() => check(schema, params, { what }))
  // This site has announced the versions that it supports (site.state).
  const planned = <S extends z.ZodType>(schema: S, params: unknown, what: string): z.output<S> => {
    const { data } = Planned.safeParse(params)
    const mine = { name: `site ${site}`, range: versions.migration }
    if (data) honest(() => checkVersion('migration', { by: 'the gateway', version: data.plan.version }, mine))
    return checked(schema, params, what)
  }
  const { needs, hold, release, predict, revocations, prepareImage } = handlers
  return {
    ...(predict
      ? { 'migration.predict': async params => publicPrediction(await predict(checked(PredictParams, params, 'migration.predict'))) }
      : {}),
    ...(prepareImage ? { 'image.prepare': params => prepareImage(planned(ImagePrepareParams, params, 'image.prepare')) } : {}),
    ...(needs ? { 'prestage.needs': params => needs(checked(NeedsParams, params, 'prestage.needs')) } : {}),
    ...(hold ? { 'prestage.hold': params => hold(checked(HoldParams, params, 'prestage.hold')) } : {}),
    ...(release ? { 'prestage.release': params => release(checked(ReleaseParams, params, 'prestage.release')) } : {}),
    ...(revocations ? { 'trust.revocations': params => revocations(checked(RevocationsParams, params, 'trust.revocations')) } : {}),
    'migration.prepare': params => handlers.prepare(planned(PrepareParams, params, 'migration.prepare')),
    'migration.start': params => handlers.start(planned(StartParams, params, 'migration.start')),
    'migration.cancel': params => handlers.cancel(checked(CancelParams, params, 'migration.cancel')),
  }
}
