// The interpreter of transitions.ts: takes requests and the sites' words, performs the effects in order.
// Enters: requests (admin API), site states, progress and results (nodes). Leaves: prepare / start / cancel to the nodes, records on disk.
// Always holds: events of one migration are taken one after another; what must be on disk before a message is (`save` awaits the sync);
// if it cannot be written, the message is not sent and the migration is aborted; after a restart every unfinished record is taken up again.
import { randomBytes } from 'node:crypto'
import type { Clock } from '../../ops/clock.ts'
import { DOWNTIME_DEFAULT_MS, type MigrationEvent, type MigrationRecord, type MigrationRequest, STREAMS_DEFAULT } from '../../wire/admin.ts'
import type { MigrationProgress, MigrationResult, Plan, Side } from '../../wire/control.ts'
import { PHASE_COMMITTED } from '../../wire/control.ts'
import { type ErrorBody, GodwitError, hasCode, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { Sessions } from '../relay/sessions.ts'
import type { Records, StoredMigration } from '../store/records.ts'
import { checkRequest } from './checks.ts'
import { conclude } from './conclude.ts'
import type { GatewayEvent } from './events.ts'
import type { SiteLink, Sites } from './sites.ts'
import { type Effect, isOver, type MigrationEventName, step } from './transitions.ts'
import { judge, type Word, wordOf } from './verdict.ts'
import { createWatchers, type Watchers } from './watchers.ts'

export const ACTIVE_MAX = 256
/** Ended migrations that are kept for `godwit status`. */
export const ENDED_MAX = 1000
const PREPARE_MS = 60_000
const START_MS = 30_000
const CANCEL_MS = 10_000
const GRACE_MS = 2_000
const RESTARTED = new GodwitError('MIGRATION_FAILED', 'the gateway was restarted before the migration had begun').toJSON()

type Migration = {
  record: StoredMigration
  watchers: Watchers
  progress: MigrationProgress | undefined
  /** The link over which each side was told: as long as it lives, the side's own result is what counts. */
  told: { source?: SiteLink; target?: SiteLink }
  cancelling: Promise<void>
  queue: Promise<unknown>
  grace: NodeJS.Timeout | undefined
}

export type MigrationsOptions = {
  sites: Sites
  sessions: Sessions
  records: Records
  clock: Clock
  log: Log
  graceMs?: number | undefined
  onEnded?: (record: StoredMigration) => void
  /** See events.ts: for those who only watch. */
  onEvent?: (event: GatewayEvent) => void
  pinned?: (vm: string) => boolean
  /** The id under which this very move was prepared, if it was (prestages.ts). */
  preparedId?: (vm: string, to: string, epoch: number) => string | undefined
}

export class Migrations {
  readonly #options: MigrationsOptions
  readonly #all = new Map<string, Migration>()

  constructor(options: MigrationsOptions) {
    this.#options = options
  }

  /** Takes up what the disk says was unfinished; the sites' own words will correct it. Before any site can connect. */
  async resume(): Promise<void> {
    for await (const record of this.#options.records.migrations()) this.#all.set(record.plan.migrationId, newMigration(record))
    for (const migration of this.#all.values()) if (!isOver(migration.record.state)) await this.#dispatch(migration, 'restart', RESTARTED)
    await this.#prune()
  }

  /** Writes the intent down and sets out. Refuses with the codes of checks.ts; returns once the intent is on disk. */
  async start(request: MigrationRequest): Promise<string> {
    const { sites, records, pinned = () => false, preparedId = () => undefined } = this.#options
    const active = [...this.#all.values()].filter(({ record }) => !isOver(record.state))
    if (active.length >= ACTIVE_MAX) throw new GodwitError('LIMIT_EXCEEDED', `more than ${ACTIVE_MAX} migrations at once`)
    const vm = checkRequest(request, {
      vms: sites.vms(),
      knownSite: sites.known,
      onlineSite: site => sites.online(site) !== undefined,
      migrationOf: name => active.find(({ record }) => record.plan.vm === name)?.record.plan.migrationId,
      pinned,
    })
    const plan: Plan = {
      version: 1,
      migrationId: preparedId(vm.name, request.to, vm.epoch) ?? randomBytes(16).toString('hex'),
      vm: vm.name,
      epoch: vm.epoch,
      source: vm.site,
      target: request.to,
      method: request.method ?? 'live',
      downtimeMs: request.downtimeMs ?? DOWNTIME_DEFAULT_MS,
      ...(request.downtimeMs === undefined ? {} : { downtimeAsked: true }),
      streams: request.streams ?? STREAMS_DEFAULT,
      attempt: 1,
      compression: vm.compression ?? 'zstd',
      createdAt: this.#options.clock.now(),
    }
    const migration = newMigration({ plan, state: 'INTENT', outcome: null, results: {}, cancelled: false, updatedAt: plan.createdAt })
    // In the map before the first await: a second request for this VM must find it.
    this.#all.set(plan.migrationId, migration)
    try {
      await records.saveMigration(migration.record)
    } catch (error) {
      this.#all.delete(plan.migrationId)
      throw error
    }
    this.#say(migration, 'begin')
    return plan.migrationId
  }

  /** Asks for the end. MIGRATION_LATE once the VM is handed over; SITE_OFFLINE when the source, which alone can say, is away. */
  async cancel(migrationId: string): Promise<void> {
    const migration = this.#get(migrationId)
    const { record } = migration
    if (record.state === 'STREAMING') {
      const source = this.#options.sites.online(record.plan.source)
      if (!source) throw new GodwitError('SITE_OFFLINE', `site ${record.plan.source} decides, and is not connected`)
    }
    const before = record.cancelled
    record.cancelled = true
    try {
      await this.#dispatch(migration, 'cancel')
      await migration.cancelling
    } catch (error) {
      if (!isOver(record.state)) record.cancelled = before
      throw error
    }
  }

  /** `migration.result` of a site; idempotent. */
  async result(link: SiteLink, result: MigrationResult): Promise<void> {
    const migration = this.#all.get(result.migrationId)
    if (!migration) {
      // Our record is lost (a new database): the node's own is right, and needs nothing from us.
      this.#options.log.warn('a result of an unknown migration', { site: link.site, ...result })
      // Answered, it is not the node's business any more, whatever its last state says: should we learn of the migration later, that counts.
      const state = this.#options.sites.state(link.site)
      if (state) state.migrations = state.migrations.filter(id => id !== result.migrationId)
      return
    }
    const { record } = migration
    if (record.plan[result.side] !== link.site)
      throw new GodwitError('AUTH_FAILED', `site ${link.site} is not the ${result.side} of migration ${result.migrationId}`)
    if (!isOver(record.state) || !record.results[result.side]) {
      record.results[result.side] = result
      // Answered only when it is on the disk: the node will not say it again.
      await this.#options.records.saveMigration(record)
    }
    await this.#judge(migration)
  }

  progress(link: SiteLink, progress: MigrationProgress): void {
    const migration = this.#all.get(progress.migrationId)
    if (!migration || migration.record.plan[progress.side] !== link.site || isOver(migration.record.state)) return
    migration.progress = progress
    migration.watchers.progress(progress)
    this.#options.onEvent?.({ event: 'progress', migration: viewOf(migration), progress })
    if (progress.side === 'source' && progress.phase === PHASE_COMMITTED && migration.record.state === 'STREAMING')
      this.#say(migration, 'committed')
  }

  /** A site has said what it is. `first`: over this connection. */
  siteState(link: SiteLink, listed: string[], first: boolean): void {
    for (const migration of this.#all.values()) {
      const { plan, state } = migration.record
      if (plan.source !== link.site && plan.target !== link.site) continue
      if (!isOver(state)) this.#judge(migration).catch(error => this.#options.log.error('judging failed', { error }))
      // It is still at what we know to be off: it missed our word for it. Asking is safe at any time.
      else if (first && state === 'ABORTED' && listed.includes(plan.migrationId)) this.#sendCancel(migration, link)
    }
    // Of VMs that it has: a site's word is no reason to hold up another's VM.
    const vms = new Set(this.#options.sites.state(link.site)?.vms.map(({ name }) => name))
    for (const plan of this.#handovers(link.site)) if (!this.#all.has(plan.migrationId) && vms.has(plan.vm)) this.#learn(plan)
  }

  /** A source that has handed a VM over may meet its target, whatever became of our record or our session: only they can end it. */
  admitHandover(site: string, migrationId: string): void {
    const plan = this.#handovers(site).find(handover => handover.migrationId === migrationId)
    if (plan) this.#options.sessions.open(plan)
  }

  /** What a site says it has handed over. */
  #handovers(site: string): Plan[] {
    return (this.#options.sites.state(site)?.handovers ?? []).filter(({ source }) => source === site)
  }

  /** Our record of it is lost (a new database, an old one): the source's own word is what we begin from. */
  #learn(plan: Plan): void {
    if (this.active() >= ACTIVE_MAX) return
    const { clock, log } = this.#options
    log.warn('a hand-over that is not on our disk', {
      migrationId: plan.migrationId,
      vm: plan.vm,
      source: plan.source,
      target: plan.target,
    })
    const migration = newMigration({ plan, state: 'COMMIT_SEEN', outcome: null, results: {}, cancelled: false, updatedAt: clock.now() })
    this.#all.set(plan.migrationId, migration)
    this.#dispatch(migration, 'committed').catch(error => log.error('a hand-over could not be taken up', { error }))
  }

  record(migrationId: string): MigrationRecord {
    return viewOf(this.#get(migrationId))
  }

  /** Newest first. */
  list(): MigrationRecord[] {
    return [...this.#all.values()].map(viewOf).sort((a, b) => b.createdAt - a.createdAt)
  }

  active(): number {
    return [...this.#all.values()].filter(({ record }) => !isOver(record.state)).length
  }

  async *follow(migrationId: string, signal: AbortSignal): AsyncGenerator<MigrationEvent> {
    const migration = this.#get(migrationId)
    yield { event: 'state', state: migration.record.state }
    if (migration.progress) yield { event: 'progress', progress: migration.progress }
    if (isOver(migration.record.state)) return yield { event: 'end', migration: viewOf(migration) }
    yield* migration.watchers.follow(signal)
  }

  /** Ends timers and waits for what is being written. Unfinished migrations stay unfinished: the next start takes them up. */
  async close(): Promise<void> {
    for (const migration of this.#all.values()) clearTimeout(migration.grace)
    await Promise.all([...this.#all.values()].map(migration => migration.queue))
  }

  #get(migrationId: string): Migration {
    const migration = this.#all.get(migrationId)
    if (!migration) throw new GodwitError('MIGRATION_UNKNOWN', `no migration '${migrationId}'`)
    return migration
  }

  /** Dispatches an event of our own; a failure is logged, there is nobody to tell. */
  #say(migration: Migration, event: MigrationEventName, error?: ErrorBody): void {
    this.#dispatch(migration, event, error).catch(thrown =>
      this.#options.log.error('a migration event failed', { migrationId: migration.record.plan.migrationId, event, error: thrown }),
    )
  }

  #dispatch(migration: Migration, event: MigrationEventName, error?: ErrorBody): Promise<void> {
    const mine = migration.queue.then(() => this.#take(migration, event, error))
    migration.queue = mine.catch(() => {})
    return mine
  }

  async #take(migration: Migration, event: MigrationEventName, error?: ErrorBody): Promise<void> {
    const { record, watchers } = migration
    const before = record.state
    const { state, effects } = step(before, event)
    record.state = state
    record.updatedAt = this.#options.clock.now()
    if (isOver(state) && !isOver(before)) Object.assign(record, conclude(record, event, error))
    if (state !== before) {
      this.#options.log.info('migration', { migrationId: record.plan.migrationId, vm: record.plan.vm, from: before, to: state, event })
    }
    try {
      for (const effect of effects) await this.#perform(migration, effect)
    } catch (thrown) {
      await this.#giveUp(migration, toGodwitError(thrown))
    }
    if (state !== before) watchers.state(state)
    if (record.state !== before) this.#options.onEvent?.({ event: 'migration', migration: viewOf(migration) })
    if (isOver(record.state) && !isOver(before)) watchers.end(viewOf(migration))
  }

  /** The disk refused the record, or there is no room for a session: nothing was sent that begins anything. */
  async #giveUp(migration: Migration, error: GodwitError): Promise<void> {
    const { record } = migration
    this.#options.log.error('a migration was given up', { migrationId: record.plan.migrationId, error })
    Object.assign(record, { state: 'ABORTED', outcome: 'failed', error: error.toJSON() })
    await this.#options.records.saveMigration(record).catch(() => {})
    for (const effect of ['closeSession', 'cancelTarget', 'finish'] as const) await this.#perform(migration, effect)
  }

  async #perform(migration: Migration, effect: Effect): Promise<void> {
    const { sites, sessions, log, graceMs = GRACE_MS } = this.#options
    const { record } = migration
    const { plan } = record
    switch (effect) {
      case 'save':
        return this.#save(migration)
      case 'askTarget':
        this.#ask(migration)
        return
      case 'openSession':
        return sessions.open(plan)
      case 'tellSource':
        this.#tell(migration)
        return
      case 'cancelSource':
        // Not awaited here: the source's result may come before its answer, and must not wait behind it.
        migration.cancelling = this.#cancelSource(migration)
        migration.cancelling.catch(() => {})
        return
      case 'cancelSourceSoon':
        migration.grace ??= setTimeout(() => {
          migration.grace = undefined
          if (!isOver(record.state)) this.#sendCancel(migration, sites.online(plan.source))
        }, graceMs)
        return
      case 'cancelTarget':
        if (!record.results.target) this.#sendCancel(migration, sites.online(plan.target))
        return
      case 'closeSession':
        return sessions.close(
          plan.migrationId,
          new GodwitError(record.state === 'DONE' ? 'CONNECTION_LOST' : 'MIGRATION_CANCELLED', 'the migration has ended'),
        )
      case 'alarm':
        log.error('ALARM: it is not certain which site owns the VM', { plan, results: record.results })
        return
      case 'finish':
        clearTimeout(migration.grace)
        this.#options.onEnded?.(record)
        return this.#prune()
    }
  }

  /** Before anything has begun a failed write stops it. Later the VM moves with or without our record, which the sites will heal. */
  async #save({ record }: Migration): Promise<void> {
    try {
      await this.#options.records.saveMigration(record)
    } catch (error) {
      const begun =
        record.state === 'COMMIT_SEEN' || isOver(record.state) || record.results.source !== undefined || record.results.target !== undefined
      if (!begun) throw error
      this.#options.log.error('a migration record could not be written', { migrationId: record.plan.migrationId, error })
    }
  }

  async #ask(migration: Migration): Promise<void> {
    const { plan } = migration.record
    try {
      const { source, target } = this.#bothLinks(plan)
      migration.told.target = target
      const sourceCertificate = Buffer.from(source.peer.certificateBytes).toString('base64')
      await target.rpc.request('migration.prepare', { plan, sourceCertificate }, { timeoutMs: PREPARE_MS })
    } catch (thrown) {
      return this.#say(migration, 'targetRefused', toGodwitError(thrown).toJSON())
    }
    // A cancel may have come first: then this word is late, and the table says so.
    if (migration.record.state === 'PREPARING') this.#say(migration, 'targetReady')
  }

  async #tell(migration: Migration): Promise<void> {
    const { plan } = migration.record
    let sent = false
    try {
      const { source, target } = this.#bothLinks(plan)
      migration.told.source = source
      const targetCertificate = Buffer.from(target.peer.certificateBytes).toString('base64')
      sent = true
      await source.rpc.request('migration.start', { plan, targetCertificate }, { timeoutMs: START_MS })
      this.#say(migration, 'sourceAccepted')
    } catch (thrown) {
      const error = toGodwitError(thrown)
      const unsure = sent && (error.code === 'TIMEOUT' || error.code === 'CONNECTION_LOST' || error.code === 'STREAM_RESET')
      if (unsure) delete migration.told.source
      this.#say(migration, unsure ? 'sourceUnsure' : 'sourceRefused', error.toJSON())
    }
  }

  #bothLinks(plan: Plan): { source: SiteLink; target: SiteLink } {
    const link = (site: string) => {
      const found = this.#options.sites.online(site)
      if (!found) throw new GodwitError('SITE_OFFLINE', `site ${site} is not connected any more`)
      if (found.peer.certificate.notAfter * 1000 < this.#options.clock.now())
        throw new GodwitError('CERT_EXPIRED', `the certificate of site ${site} has expired since it connected`)
      return found
    }
    return { source: link(plan.source), target: link(plan.target) }
  }

  async #cancelSource(migration: Migration): Promise<void> {
    const { plan } = migration.record
    const source = this.#options.sites.online(plan.source)
    if (!source) throw new GodwitError('SITE_OFFLINE', `site ${plan.source} decides, and is not connected`)
    try {
      await source.rpc.request('migration.cancel', { migrationId: plan.migrationId }, { timeoutMs: CANCEL_MS })
    } catch (error) {
      if (!hasCode(error, 'MIGRATION_UNKNOWN')) throw error
      // It does not know the migration (it never heard of it): let the places of the VM decide.
      delete migration.told.source
      setImmediate(() => this.#judge(migration).catch(() => {}))
    }
  }

  #sendCancel({ record }: Migration, link: SiteLink | undefined): void {
    const { migrationId } = record.plan
    link?.rpc
      .request('migration.cancel', { migrationId }, { timeoutMs: CANCEL_MS })
      .catch(error => this.#options.log.debug('cancel was not taken', { migrationId, site: link.site, error }))
  }

  /** What both sides' words mean now. */
  async #judge(migration: Migration): Promise<void> {
    // Behind what is under way: while STREAMING is being written the source has not been told yet, and would count as gone.
    await migration.queue
    const { record } = migration
    if (record.state === 'INTENT' || record.state === 'PREPARING') return
    const { sites } = this.#options
    const vmAt = (site: string) => sites.state(site)?.vms.find(vm => vm.name === record.plan.vm)
    const verdict = judge({
      source: this.#wordOf(migration, 'source'),
      target: this.#wordOf(migration, 'target'),
      sourceVm: vmAt(record.plan.source),
      targetVm: vmAt(record.plan.target),
    })
    if (verdict !== null) await this.#dispatch(migration, verdict)
  }

  #wordOf({ record, told }: Migration, side: Side): Word {
    const result = record.results[side]
    if (result) return wordOf(result)
    const site = record.plan[side]
    const link = this.#options.sites.online(site)
    if (!link) return 'silent'
    if (told[side] === link || this.#options.sites.state(site)?.migrations.includes(record.plan.migrationId)) return 'busy'
    return 'gone'
  }

  async #prune(): Promise<void> {
    const ended = [...this.#all.values()]
      .filter(({ record }) => isOver(record.state))
      .sort((a, b) => a.record.updatedAt - b.record.updatedAt)
    for (const { record } of ended.slice(0, Math.max(0, ended.length - ENDED_MAX))) {
      this.#all.delete(record.plan.migrationId)
      this.#options.onEvent?.({ event: 'forgotten', migrationId: record.plan.migrationId })
      await this.#options.records.dropMigration(record.plan.migrationId).catch(() => {})
    }
  }
}

const newMigration = (record: StoredMigration): Migration => ({
  record,
  watchers: createWatchers(),
  progress: undefined,
  told: {},
  cancelling: Promise.resolve(),
  queue: Promise.resolve(),
  grace: undefined,
})

function viewOf({ record, progress }: Migration): MigrationRecord {
  const { plan, state, outcome, error, report, updatedAt } = record
  const { migrationId, vm, source, target, method, createdAt } = plan
  const optional = { ...(error ? { error } : {}), ...(report ? { report } : {}), ...(progress ? { progress } : {}) }
  return { migrationId, vm, source, target, method, state, outcome, plan, createdAt, updatedAt, ...optional }
}
