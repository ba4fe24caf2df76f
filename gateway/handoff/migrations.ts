// The migrations of handoffs: requests, what the sites report, cancels, restarts. Each becomes an event for the table
// (transitions.ts).
// Enters: requests (admin API), site states, progress and results (nodes). Leaves: events, which interpreter.ts carries
// out; records for status.
// Always holds: a request that is refused has changed nothing; a site speaks only for its own side; after a restart
// every unfinished record is taken up again; what sites may make us remember is bounded.
import { type Overdue, Watchdog } from '../../ops/watchdog.ts'
import {
  DOWNTIME_DEFAULT_MS,
  type MigrationEvent,
  type MigrationRecord,
  type MigrationRequest,
  STREAMS_DEFAULT,
  type VmView,
} from '../../wire/admin.ts'
import type { MigrationProgress, MigrationResult, Plan } from '../../wire/control.ts'
import { PHASE_COMMITTED } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Versions } from '../../wire/versions.ts'
import type { NodeLink } from '../sites/sites.ts'
import { checkRequest } from './checks.ts'
import { HANDOFF_DEADLINES } from './deadlines.ts'
import { LEARNED_PER_SITE_MAX } from './ended.ts'
import { type Handoff, type Migrating, type MigrationRun, recordOf, storedOf } from './handoff.ts'
import type { Homes } from './homes.ts'
import { Interpreter, type InterpreterOptions } from './interpreter.ts'
import type { Moving } from './ownership.ts'
import { planVersion } from './plan-version.ts'
import { type HandoffState, isOver } from './transitions.ts'
import { wordOf } from './verdict.ts'
import { createWatchers } from './watchers.ts'

const ACTIVE_MAX = 256
/** Of those that were asked for, one site may take part in so many. */
const ACTIVE_PER_SITE_MAX = 128
/** Hand-overs that a source names and that are not on our disk, beside the others: in all. */
const LEARNED_MAX = 256
/** New results of one side of one migration; characters of a report and of a progress that are kept. */
const WORDS_MAX = 16
const REPORT_LENGTH_MAX = 128 * 1024
const PROGRESS_LENGTH_MAX = 8 * 1024
const RESTARTED = new GodwitError('MIGRATION_FAILED', 'the gateway was restarted before the migration began').toJSON()

/** `maxBytes`: beyond so many on the wire the migration is cancelled, before its switchover. */
export type MoveRequest = MigrationRequest & { maxBytes?: number | undefined }

type MigrationsOptions = InterpreterOptions & {
  homes: Pick<Homes, 'of' | 'find'>
  newId: () => string
  /** Of the protocol. Default: what this release has. */
  versions?: Versions | undefined
  /** The watchdog has found one that stands still. */
  onStuck?: (state: string, action: string) => void
  pinned?: (vm: string) => boolean
  /** Throws where the revocation list lets no migration begin. */
  checkTrust?: () => void
  /** A side has reported something new of this VM's hand-over. */
  onWord?: (vm: string) => void
}

export class Migrations {
  readonly #options: MigrationsOptions
  readonly #interpreter: Interpreter
  readonly #watchdog = new Watchdog<Migrating>((_, state) => HANDOFF_DEADLINES[state as HandoffState].ms)

  constructor(options: MigrationsOptions) {
    this.#options = options
    this.#interpreter = new Interpreter(options)
  }

  /** Resumes what is unfinished on disk; the sites' own reports correct it. Before any site can connect. */
  async resume(): Promise<void> {
    const { records, handoffs } = this.#options
    for await (const { state, ...record } of records.migrations())
      handoffs.restored(this.#add({ ...factsOf(record.plan), state }, newRun(record)))
    for (const handoff of handoffs.unfinished()) await this.#interpreter.dispatch(handoff, 'restart', RESTARTED)
    await this.#interpreter.prune()
  }

  /** Writes the intent down and sets out. Refuses with the codes of checks.ts; returns once the intent is on disk. */
  async start(request: MoveRequest): Promise<string> {
    const { handoffs, sites, homes, newId, pinned = () => false, checkTrust } = this.#options
    checkTrust?.()
    const asked = handoffs.unfinished().filter(({ run }) => !run.record.isLearned)
    if (asked.length >= ACTIVE_MAX) throw new GodwitError('LIMIT_EXCEEDED', `more than ${ACTIVE_MAX} migrations are running`)
    const vm = checkRequest(request, {
      find: homes.find,
      vms: sites.vms(),
      knownSite: sites.known,
      onlineSite: site => sites.online(site) !== undefined,
      migrationOf: name => handoffs.underWay(name, homes.of(name)),
      pinned,
    })
    checkShare(asked, [vm.site, request.to])
    const prestaged = handoffs.prestagedOf(vm.name)
    const isPrepared = prestaged?.target === request.to && prestaged.epoch === vm.epoch
    // What was prepared for this very move goes on under its id.
    const plan = this.#planOf(vm, request, isPrepared ? prestaged.id : newId())
    const run = newRun({ plan, outcome: null, results: {}, cancelled: false, updatedAt: plan.createdAt }, request)
    // In the set and in INTENT before the first await: a second request for this VM must find it.
    const handoff = isPrepared ? Object.assign(prestaged, { run }) : this.#add(factsOf(plan), run)
    await this.#interpreter.move(handoff)
    this.#interpreter.say(handoff, 'begin')
    return plan.migrationId
  }

  #planOf(vm: VmView, request: MigrationRequest, migrationId: string): Plan {
    return {
      version: planVersion(this.#options, vm.site, request.to),
      migrationId,
      vm: vm.name,
      epoch: vm.epoch,
      source: vm.site,
      target: request.to,
      method: request.method ?? 'live',
      downtimeMs: request.downtimeMs ?? DOWNTIME_DEFAULT_MS,
      ...(request.downtimeMs === undefined ? {} : { downtimeAsked: true }),
      ...(request.start ? { start: true } : {}),
      streams: request.streams ?? STREAMS_DEFAULT,
      attempt: 1,
      compression: vm.compression ?? 'zstd',
      createdAt: this.#options.clock.now(),
    }
  }

  #add(facts: Parameters<InterpreterOptions['handoffs']['add']>[0], run: MigrationRun): Migrating {
    return Object.assign(this.#options.handoffs.add(facts), { run })
  }

  /**
   * Asks for the end. MIGRATION_LATE once the VM is handed over; SITE_OFFLINE when the source, which alone can
   * agree, is away.
   */
  async cancel(migrationId: string): Promise<void> {
    const handoff = this.#get(migrationId)
    const { record } = handoff.run
    if (handoff.state === 'STREAMING') {
      const source = this.#options.sites.online(handoff.source)
      if (!source) throw new GodwitError('SITE_OFFLINE', `only the source can cancel, and site ${handoff.source} is not connected`)
    }
    const before = record.cancelled
    record.cancelled = true
    try {
      await this.#interpreter.dispatch(handoff, 'cancel')
      await handoff.run.cancelling
    } catch (error) {
      if (!isOver(handoff.state)) record.cancelled = before
      throw error
    }
  }

  /** `migration.result` of a site; idempotent. */
  async result(link: NodeLink, result: MigrationResult): Promise<void> {
    const handoff = this.#options.handoffs.migration(result.migrationId)
    if (!handoff) {
      // Our record is lost (a new database): the node's own is right, and needs nothing from us.
      const { migrationId, side, outcome, error } = result
      this.#options.log.warn('result for an unknown migration', { site: link.site, migrationId, side, outcome, code: error?.code })
      // After this answer the node does not list it any more: if we learn of the migration later, that counts.
      const state = this.#options.sites.state(link.site)
      if (state) state.migrations = state.migrations.filter(id => id !== result.migrationId)
      return
    }
    const { record, words } = handoff.run
    if (handoff[result.side] !== link.site)
      throw new GodwitError('AUTH_FAILED', `site ${link.site} is not the ${result.side} of migration ${result.migrationId}`)
    const known = record.results[result.side]
    const isNew = !known || (!isOver(handoff.state) && JSON.stringify(known) !== JSON.stringify(bounded(result)))
    if (isNew) {
      // A side may find out more, a few times; a peer whose result always differs does not fill the disk.
      words[result.side] += 1
      if (words[result.side] > WORDS_MAX) throw new GodwitError('LIMIT_EXCEEDED', `more than ${WORDS_MAX} results of one side`)
      record.results[result.side] = bounded(result)
      // Answered only when it is on the disk: the node will not send it again.
      await this.#options.records.saveMigration(storedOf(handoff))
    }
    await this.#interpreter.judge(handoff)
    this.#options.onWord?.(handoff.vm)
  }

  progress(link: NodeLink, progress: MigrationProgress): void {
    const { handoffs, onEvent, onWord } = this.#options
    const handoff = handoffs.migration(progress.migrationId)
    if (!handoff || handoff[progress.side] !== link.site || isOver(handoff.state)) return
    if (JSON.stringify(progress).length > PROGRESS_LENGTH_MAX) return
    const { run } = handoff
    run.progress = progress
    run.watchers.progress(progress)
    handoffs.report(handoff)
    this.#holdToBudget(handoff, progress)
    onEvent?.({ event: 'progress', migration: recordOf(handoff), progress })
    if (progress.side !== 'source' || progress.phase !== PHASE_COMMITTED || run.record.isHandedOver) return
    run.record.isHandedOver = true
    onWord?.(handoff.vm)
    if (handoff.state === 'STREAMING') this.#interpreter.say(handoff, 'committed')
  }

  #holdToBudget({ id: migrationId, phase, run }: Migrating, { side, wireBytes = 0 }: MigrationProgress): void {
    const { maxBytes } = run
    if (maxBytes === undefined || side !== 'source' || wireBytes <= maxBytes || phase !== 'precopy') return
    run.maxBytes = undefined
    const { log } = this.#options
    log.info('handoff cancelled: maxBytes is used up', { migrationId, maxBytes, wireBytes })
    this.cancel(migrationId).catch(error => log.warn('handoff could not be cancelled', { migrationId, error }))
  }

  /** A site has reported its state. `first`: over this connection. */
  siteState(link: NodeLink, listed: string[], first: boolean): void {
    const { handoffs, homes } = this.#options
    for (const handoff of handoffs.migrations()) {
      if (handoff.source !== link.site && handoff.target !== link.site) continue
      if (!isOver(handoff.state)) this.#judge(handoff)
      // It is still at what we know to be off: it missed our cancel. Asking is safe at any time.
      else if (first && handoff.state === 'ABORTED' && listed.includes(handoff.id)) this.#interpreter.sendCancel(handoff, link)
    }
    // Of VMs whose names it has: a site's report is no reason to hold up another's VM.
    for (const plan of this.#handovers(link.site)) if (!handoffs.has(plan.migrationId) && homes.of(plan.vm) === link.site) this.#learn(plan)
  }

  /**
   * A source that has handed a VM over may meet its target, whatever became of our record or our session: only they
   * can end it.
   */
  admitHandover(site: string, migrationId: string): void {
    const plan = this.#handovers(site).find(handover => handover.migrationId === migrationId)
    if (plan) this.#options.sessions.open(plan, { isHandover: true })
  }

  /** What a site says it has handed over. */
  #handovers(site: string): Plan[] {
    return (this.#options.sites.state(site)?.handovers ?? []).filter(({ source }) => source === site)
  }

  /** Our record of it is lost (a new database, an old one): the source's own report is what we begin from. */
  #learn(plan: Plan): void {
    const { handoffs, clock, log } = this.#options
    const learned = handoffs.unfinished().filter(({ run }) => run.record.isLearned)
    const own = learned.filter(({ source }) => source === plan.source)
    if (learned.length >= LEARNED_MAX || own.length >= LEARNED_PER_SITE_MAX) return
    const { migrationId, vm, source, target } = plan
    log.warn('hand-over without a local record', { migrationId, vm, source, target })
    const begun = { plan, outcome: null, results: {}, cancelled: false, updatedAt: clock.now(), isLearned: true, isHandedOver: true }
    const handoff = this.#add({ ...factsOf(plan), state: 'COMMIT_SEEN' }, newRun(begun))
    this.#interpreter.dispatch(handoff, 'committed').catch(error => log.error('hand-over could not be resumed', { error }))
  }

  /** What is known of migrations of these VMs, for homes.ts. */
  moves(vms: ReadonlySet<string>): Map<string, Moving[]> {
    const moves = new Map<string, Moving[]>()
    for (const handoff of this.#options.handoffs.migrations())
      if (vms.has(handoff.vm)) moves.set(handoff.vm, [movingOf(handoff), ...(moves.get(handoff.vm) ?? [])])
    return moves
  }

  record(migrationId: string): MigrationRecord {
    return recordOf(this.#get(migrationId))
  }

  /** Newest first. */
  list(): MigrationRecord[] {
    return this.#options.handoffs
      .migrations()
      .map(recordOf)
      .sort((a, b) => b.createdAt - a.createdAt)
  }

  active(): number {
    return this.#options.handoffs.unfinished().length
  }

  /** Ends what cannot end any more: one of its sites has been given up. Resolves with the ids. */
  async forgetSite(site: string): Promise<string[]> {
    const ended = this.#options.handoffs.unfinished().filter(({ source, target }) => source === site || target === site)
    for (const handoff of ended) {
      const began = handoff.state === 'STREAMING' || handoff.state === 'COMMIT_SEEN'
      const error = new GodwitError(began ? 'MIGRATION_DOUBT' : 'SITE_UNKNOWN', `an operator removed site ${site}`)
      await this.#interpreter.dispatch(handoff, 'siteForgotten', error.toJSON())
      this.#options.onWord?.(handoff.vm)
    }
    return ended.map(({ id }) => id)
  }

  async *follow(migrationId: string, signal: AbortSignal): AsyncGenerator<MigrationEvent> {
    const handoff = this.#get(migrationId)
    const { run } = handoff
    const { state } = recordOf(handoff)
    yield { event: 'state', state }
    if (run.progress) yield { event: 'progress', progress: run.progress }
    if (isOver(handoff.state)) return yield { event: 'end', migration: recordOf(handoff) }
    yield* run.watchers.follow(signal)
  }

  /**
   * Ends what has stood still for too long in its state (deadlines.ts). To be called every WATCH_EVERY_MS with a
   * clock that never jumps, ms.
   */
  watch(nowMs: number): void {
    const running = this.#options.handoffs.unfinished().map(item => ({
      id: item.id,
      item,
      stage: { state: item.state, mark: markOf(item.run.progress) },
    }))
    for (const overdue of this.#watchdog.step(nowMs, running)) this.#stuck(overdue)
  }

  #stuck({ item: handoff, state, forMs, times }: Overdue<Migrating>): void {
    const { sites, log } = this.#options
    const { id: migrationId, vm, run } = handoff
    const { action } = HANDOFF_DEADLINES[state as HandoffState]
    const seconds = Math.round(forMs / 1000)
    const error = new GodwitError('MIGRATION_STUCK', `the migration made no progress in state ${state} for ${seconds} s`)
    this.#options.onStuck?.(state, action)
    log.error('migration stuck', { migrationId, vm, state, seconds, times, action, code: error.code })
    const alert = { kind: 'stuck', vm, site: handoff.source, migrationId, message: error.message }
    this.#options.onEvent?.({ event: 'alert', alert })
    if (action === 'report') return
    if (action === 'abort') this.#interpreter.say(handoff, 'targetRefused', error.toJSON())
    else if (action === 'cancel')
      for (const site of [handoff.source, handoff.target]) this.#interpreter.sendCancel(handoff, sites.online(site))
    else this.#meetAgain(run.record.plan)
    this.#judge(handoff)
  }

  #judge(handoff: Migrating): void {
    this.#interpreter.judge(handoff).catch(error => this.#options.log.error('evaluating a migration failed', { error }))
  }

  /** The next look tries again where the source has all the sessions that it may have. */
  #meetAgain(plan: Plan): void {
    try {
      this.#options.sessions.open(plan, { isHandover: true })
    } catch (error) {
      this.#options.log.warn('sites cannot reconnect: no free session', { migrationId: plan.migrationId, error })
    }
  }

  /**
   * Ends timers and waits for what is being written. Unfinished migrations stay unfinished: the next start takes
   * them up.
   */
  async close(): Promise<void> {
    const all = this.#options.handoffs.migrations()
    for (const { run } of all) clearTimeout(run.grace)
    await Promise.all(all.map(({ run }) => run.queue))
  }

  #get(migrationId: string): Migrating {
    const handoff = this.#options.handoffs.migration(migrationId)
    if (!handoff) throw new GodwitError('MIGRATION_UNKNOWN', `no migration '${migrationId}'`)
    return handoff
  }
}

function checkShare(asked: Handoff[], sites: string[]): void {
  for (const site of sites) {
    const own = asked.filter(({ source, target }) => source === site || target === site)
    if (own.length >= ACTIVE_PER_SITE_MAX)
      throw new GodwitError('LIMIT_EXCEEDED', `site ${site} already takes part in ${ACTIVE_PER_SITE_MAX} migrations`)
  }
}

/** A result without a report that is too long to keep: the outcome matters. */
function bounded(result: MigrationResult): MigrationResult {
  const { report, ...bare } = result
  return report && JSON.stringify(report).length > REPORT_LENGTH_MAX ? bare : result
}

/** Differs once the source has said that something has arrived. */
const markOf = (progress: MigrationProgress | undefined): string =>
  progress ? `${progress.side}/${progress.phase}/${progress.round ?? 0}/${progress.wireBytes ?? 0}/${progress.bytesSent ?? 0}` : ''

const factsOf = ({ migrationId: id, vm, epoch, source, target }: Plan) => ({ id, vm, epoch, source, target })

const newRun = (record: MigrationRun['record'], { command, maxBytes }: Pick<MoveRequest, 'command' | 'maxBytes'> = {}): MigrationRun => ({
  record,
  command,
  maxBytes,
  words: { source: 0, target: 0 },
  watchers: createWatchers(),
  progress: undefined,
  told: {},
  cancelling: Promise.resolve(),
  queue: Promise.resolve(),
  grace: undefined,
})

function movingOf(handoff: Migrating): Moving {
  const { plan, state, outcome, error, results, isHandedOver } = storedOf(handoff)
  return {
    ...{ plan, state, outcome, isDoubt: error?.code === 'MIGRATION_DOUBT' },
    bySource: isHandedOver === true || results.source?.outcome === 'completed',
    byTarget: results.target?.outcome === 'completed',
    isDenied: results.source !== undefined && wordOf(results.source) === 'failed',
  }
}
