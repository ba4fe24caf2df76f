// The interpreter of transitions.ts for a handoff's migration: performs the effects of an event in order. Enters:
// events (migrations.ts), both sites' reports. Leaves: prepare / start / cancel to the nodes, sessions of the relay,
// records on disk.
// Always holds: events of one migration are taken one after another; what must be on disk before a message is (`save`
// awaits the sync); if it cannot be written, the message is not sent and the migration is aborted.
import type { Clock } from '../../ops/clock.ts'
import type { MigrationResult, Plan, Side } from '../../wire/control.ts'
import { type ErrorBody, GodwitError, hasCode, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { Sessions } from '../relay/sessions.ts'
import type { NodeLink, Sites } from '../sites/sites.ts'
import type { Records, StoredMigration } from '../store/records.ts'
import { concludeMigration } from './conclude.ts'
import { beyondLimits } from './ended.ts'
import type { GatewayEvent } from './events.ts'
import { type Handoff, type HandoffSet, type Migrating, recordOf, storedOf } from './handoff.ts'
import { type Effect, type HandoffEventName, type HandoffState, isOver } from './transitions.ts'
import { judgeMigration, type SiteWord, wordOf } from './verdict.ts'

const PREPARE_MS = 60_000
const START_MS = 30_000
const CANCEL_MS = 10_000
const GRACE_MS = 2_000
/** In these the source has been told; before, the sites' reports mean nothing. */
const JUDGED: ReadonlySet<HandoffState> = new Set<HandoffState>(['STREAMING', 'COMMIT_SEEN', 'DONE', 'ABORTED'])

export type InterpreterOptions = {
  handoffs: HandoffSet
  sites: Sites
  sessions: Sessions
  records: Records
  clock: Clock
  log: Log
  graceMs?: number | undefined
  onEnded?: (record: StoredMigration) => void
  /** See events.ts: for those who only watch. */
  onEvent?: (event: GatewayEvent) => void
  /** The effects on room that is held for a VM (prestages.ts). */
  room: { perform(handoff: Handoff, effect: Effect, error?: GodwitError): void }
}

export class Interpreter {
  readonly #options: InterpreterOptions

  constructor(options: InterpreterOptions) {
    this.#options = options
  }

  /** Dispatches an event of our own; a failure is logged, there is nobody to tell. */
  say(handoff: Migrating, event: HandoffEventName, error?: ErrorBody): void {
    this.dispatch(handoff, event, error).catch(thrown =>
      this.#options.log.error('migration event failed', { migrationId: handoff.id, event, error: thrown }),
    )
  }

  dispatch(handoff: Migrating, event: HandoffEventName, error?: ErrorBody): Promise<void> {
    const { run } = handoff
    const mine = run.queue.then(() => this.#take(handoff, event, error))
    run.queue = mine.catch(() => {})
    return mine
  }

  /**
   * The intent of a migration. When it resolves, it is on the disk; when it rejects, the handoff is over, and no
   * migration was begun.
   */
  async move(handoff: Migrating): Promise<void> {
    const effects = this.#options.handoffs.step(handoff, 'move')
    try {
      for (const effect of effects) await this.#perform(handoff, effect)
    } catch (thrown) {
      const error = toGodwitError(thrown)
      const unwritten = this.#options.handoffs.step(handoff, 'unwritten')
      if (unwritten.length > 0) (handoff as Handoff).run = undefined
      for (const effect of unwritten) this.#options.room.perform(handoff, effect, error)
      throw error
    }
  }

  async #take(handoff: Migrating, event: HandoffEventName, error?: ErrorBody): Promise<void> {
    const { id, vm, run } = handoff
    const { handoffs, onEvent, log } = this.#options
    const before = handoff.state
    const effects = this.#step(handoff, event, error)
    const { state } = handoff
    if (state !== before) log.info('migration', { migrationId: id, vm, from: before, to: state, event })
    try {
      for (const effect of effects) await this.#perform(handoff, effect)
    } catch (thrown) {
      // The disk refused the record, or no session is free: nothing was sent that begins anything.
      const given = toGodwitError(thrown)
      log.error('migration aborted', { migrationId: id, error: given })
      for (const effect of this.#step(handoff, 'givenUp', given.toJSON())) await this.#perform(handoff, effect)
    }
    if (state !== before) run.watchers.state(state as StoredMigration['state'])
    if (handoff.state !== before) {
      onEvent?.({ event: 'migration', migration: recordOf(handoff) })
      handoffs.report(handoff)
    }
    if (isOver(handoff.state) && !isOver(before)) run.watchers.end(recordOf(handoff))
  }

  #step(handoff: Migrating, event: HandoffEventName, error: ErrorBody | undefined): Effect[] {
    const wasOver = isOver(handoff.state)
    const effects = this.#options.handoffs.step(handoff, event)
    const { record } = handoff.run
    record.updatedAt = this.#options.clock.now()
    if (isOver(handoff.state) && !wasOver) Object.assign(record, concludeMigration(record, event, error))
    return effects
  }

  async #perform(handoff: Migrating, effect: Effect): Promise<void> {
    const { sites, sessions, log, graceMs = GRACE_MS, room, onEnded } = this.#options
    const { id, state, run } = handoff
    const { plan, results } = run.record
    switch (effect) {
      case 'save':
        return this.#save(handoff)
      case 'askTarget':
        this.#ask(handoff)
        return
      case 'openSession':
        return sessions.open(plan)
      case 'tellSource':
        this.#tell(handoff)
        return
      case 'cancelSource':
        // Not awaited here: the source's result may come before its answer, and must not wait behind it.
        run.cancelling = this.#cancelSource(handoff)
        run.cancelling.catch(() => {})
        return
      case 'cancelSourceSoon':
        run.grace ??= setTimeout(() => {
          run.grace = undefined
          if (!isOver(handoff.state)) this.sendCancel(handoff, sites.online(plan.source))
        }, graceMs)
        return
      case 'cancelTarget':
        if (!results.target) this.sendCancel(handoff, sites.online(plan.target))
        return
      case 'closeSession':
        return sessions.close(id, new GodwitError(state === 'DONE' ? 'CONNECTION_LOST' : 'MIGRATION_CANCELLED', 'the migration has ended'))
      case 'alarm':
        this.#alarm(handoff)
        log.error('ALARM: owner of the VM is uncertain', {
          plan,
          source: wordsOf(results.source),
          target: wordsOf(results.target),
        })
        return
      case 'finish':
        clearTimeout(run.grace)
        onEnded?.(storedOf(handoff))
        return this.prune()
      default:
        return room.perform(handoff, effect)
    }
  }

  #alarm({ id: migrationId, vm, source: site }: Migrating): void {
    const message = 'it is not certain which site owns the VM: run godwit recover at both sites'
    this.#options.onEvent?.({ event: 'alert', alert: { kind: 'in_doubt', vm, site, migrationId, message } })
  }

  /**
   * Before anything has begun a failed write stops it. Later the VM moves with or without our record, which the
   * sites will heal.
   */
  async #save(handoff: Migrating): Promise<void> {
    try {
      await this.#options.records.saveMigration(storedOf(handoff))
    } catch (error) {
      const { results } = handoff.run.record
      const begun = handoff.state === 'COMMIT_SEEN' || isOver(handoff.state) || results.source !== undefined || results.target !== undefined
      if (!begun) throw error
      this.#options.log.error('migration record could not be written', { migrationId: handoff.id, error })
    }
  }

  async #ask(handoff: Migrating): Promise<void> {
    const { plan } = handoff.run.record
    try {
      const { source, target } = this.#bothLinks(plan)
      handoff.run.told.target = target
      const sourceCertificate = Buffer.from(source.peer.certificateBytes).toString('base64')
      await target.rpc.request('migration.prepare', { plan, sourceCertificate }, { timeoutMs: PREPARE_MS })
    } catch (thrown) {
      return this.say(handoff, 'targetRefused', toGodwitError(thrown).toJSON())
    }
    // A cancel may have come first: then this answer is late, and the table says so.
    if (handoff.state === 'PREPARING') this.say(handoff, 'targetReady')
  }

  async #tell(handoff: Migrating): Promise<void> {
    const { run } = handoff
    const { plan } = run.record
    let sent = false
    try {
      const { source, target } = this.#bothLinks(plan)
      run.told.source = source
      const targetCertificate = Buffer.from(target.peer.certificateBytes).toString('base64')
      sent = true
      const { command } = run
      await source.rpc.request('migration.start', { plan, targetCertificate, ...(command ? { command } : {}) }, { timeoutMs: START_MS })
      this.say(handoff, 'sourceAccepted')
    } catch (thrown) {
      const error = toGodwitError(thrown)
      const unsure = sent && (error.code === 'TIMEOUT' || error.code === 'CONNECTION_LOST' || error.code === 'STREAM_RESET')
      if (unsure) delete run.told.source
      this.say(handoff, unsure ? 'sourceUnsure' : 'sourceRefused', error.toJSON())
    }
  }

  #bothLinks(plan: Plan): { source: NodeLink; target: NodeLink } {
    const link = (site: string) => {
      const found = this.#options.sites.online(site)
      if (!found) throw new GodwitError('SITE_OFFLINE', `site ${site} is no longer connected`)
      if (found.peer.certificate.notAfter * 1000 < this.#options.clock.now())
        throw new GodwitError('CERT_EXPIRED', `the certificate of site ${site} has expired since it connected`)
      return found
    }
    return { source: link(plan.source), target: link(plan.target) }
  }

  async #cancelSource(handoff: Migrating): Promise<void> {
    const { id: migrationId, source: site, run } = handoff
    const source = this.#options.sites.online(site)
    if (!source) throw new GodwitError('SITE_OFFLINE', `only the source can cancel, and site ${site} is not connected`)
    try {
      await source.rpc.request('migration.cancel', { migrationId }, { timeoutMs: CANCEL_MS })
    } catch (error) {
      if (!hasCode(error, 'MIGRATION_UNKNOWN')) throw error
      // It does not know the migration (it never received it): let the places of the VM decide.
      delete run.told.source
      setImmediate(() => this.judge(handoff).catch(() => {}))
    }
  }

  sendCancel({ id: migrationId }: Migrating, link: NodeLink | undefined): void {
    link?.rpc
      .request('migration.cancel', { migrationId }, { timeoutMs: CANCEL_MS })
      .catch(error => this.#options.log.debug('cancel request failed', { migrationId, site: link.site, error }))
  }

  /** Dispatches what both sides' reports mean now. */
  async judge(handoff: Migrating): Promise<void> {
    // After the events that are queued: while STREAMING is being written the source is not told yet, and would count
    // as gone.
    await handoff.run.queue
    if (!JUDGED.has(handoff.state)) return
    const { vm, source, target } = handoff
    const vmAt = (site: string) => this.#options.sites.state(site)?.vms.find(({ name }) => name === vm)
    const verdict = judgeMigration({
      source: this.#wordOf(handoff, 'source'),
      target: this.#wordOf(handoff, 'target'),
      sourceVm: vmAt(source),
      targetVm: vmAt(target),
    })
    if (verdict !== null) await this.dispatch(handoff, verdict)
  }

  #wordOf({ id, run, ...sites }: Migrating, side: Side): SiteWord {
    const result = run.record.results[side]
    if (result) return wordOf(result)
    const site = sites[side]
    const link = this.#options.sites.online(site)
    if (!link) return 'silent'
    if (run.told[side] === link || this.#options.sites.state(site)?.migrations.includes(id)) return 'busy'
    return 'gone'
  }

  /** Forgets ended migrations beyond what is kept. */
  async prune(): Promise<void> {
    const { handoffs, records, onEvent } = this.#options
    for (const handoff of beyondLimits(handoffs.migrations().filter(({ state }) => isOver(state)))) {
      handoffs.remove(handoff)
      onEvent?.({ event: 'forgotten', migrationId: handoff.id })
      await records.dropMigration(handoff.id).catch(() => {})
    }
  }
}

const wordsOf = (result: MigrationResult | undefined) => result && { outcome: result.outcome, code: result.error?.code }
