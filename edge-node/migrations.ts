// The migrations of this node: what the gateway may ask, and where incoming relay streams belong.
// Enters: plans from the gateway (not believed further than certificates and the handshake reach), relay streams. Leaves: results, progress.
// Always holds: whatever begins here holds its VM's slot (slots.ts) until its result is known; a migration id is used once.
import { fromBase64, toBase64 } from '../crypto/bytes.ts'
import { type Certificate, decodeCertificate, verifyCertificate } from '../crypto/certificate.ts'
import type { PlanFacts } from '../ops/cost.ts'
import { sleep } from '../ops/deadline.ts'
import type { Stream } from '../transport/types.ts'
import { type Join, type MigrationResult, PHASE_COMMITTED, type Plan, type Report } from '../wire/control.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import type { Alerts } from './alerts.ts'
import type { NodeConfig } from './config.ts'
import { type Asked, createDoubts, type Doubts } from './doubts.ts'
import { type LoadedIdentity, loadRevocations } from './identity.ts'
import type { Link, LinkHandlers } from './link/link.ts'
import type { NodeMetrics } from './metrics.ts'
import { checkAccept } from './migration/accept.ts'
import { durably } from './migration/durable.ts'
import type { Journal, OwnershipRecord } from './migration/journal.ts'
import { type recover, recoverVm, type Unanswered, type Waiting } from './migration/recover.ts'
import { type SourceMigration, startSource } from './migration/source.ts'
import { startTarget, type TargetOptions } from './migration/target.ts'
import type { Predictor } from './predict.ts'
import { createSlots, type Entry, type Slots } from './slots.ts'
import { needsToJson, parseNeeds } from './vm/preflight.ts'
import type { Registry } from './vm/registry.ts'

export type MigrationsOptions = {
  config: NodeConfig
  identity: LoadedIdentity
  registry: Registry
  journal: Journal
  metrics: NodeMetrics
  /** Absent: reports have no prediction. */
  predictor?: Predictor | undefined
  alerts: Alerts
  log: Log
  onLoaded?: TargetOptions['onLoaded'] | undefined
  /** Tests only: how long a loaded target waits for its grant, a source that has relinquished for its answer (hand-over.ts), a source for LOADED, ms. */
  waits?: { grantMs?: number; answerMs?: number; loadMs?: number } | undefined
}

export type Migrations = {
  handlers: LinkHandlers
  onRelayStream(relay: Join, stream: Stream): void
  active(): string[]
  /** Of those, what this site has handed over and not heard of. */
  handovers(): Plan[]
  /** What a person may want to know of these, and end. */
  doubts: Doubts
  useLink(link: Link): void
  /** Takes up what an earlier life of this agent left (migration/recover.ts). Call it once, when the link is there. */
  takeUp(left: Awaited<ReturnType<typeof recover>>): Promise<void>
  /** Cancels what may still be cancelled and waits for the rest. */
  close(): Promise<void>
}

/** Between a hand-over that ended in doubt and its going on. */
const CLEAR_UP_MS = 5_000

export type Peer = { certificate: Certificate; bytes: Uint8Array }

export function createMigrations(options: MigrationsOptions): Migrations {
  const { config, identity, registry, metrics, alerts, log } = options
  const stop = new AbortController()
  let link: Link | undefined
  const slots = createSlots((running, result) => {
    metrics.ended(running.side, result)
    link?.report(result)
    link?.announce()
    if (running.side === 'source' && result.error?.code === 'MIGRATION_DOUBT') void clearUp(running.plan)
  })
  const take = (plan: Plan, hanging: Unanswered) =>
    slots.take(plan, async () => ({ side: 'source', ...askAgain(options, hanging, () => link!, stop.signal) }))
  /** A hand-over that ended in doubt goes on for ever: the records say how, as after a restart. */
  const clearUp = async ({ vm }: Plan) => {
    while (!stop.signal.aborted) {
      try {
        await sleep(CLEAR_UP_MS, stop.signal)
        const hanging = await recoverVm({ ...options, keys: identity.keys, certificate: identity.certificate }, vm)
        for (const one of hanging) await take(one.plan, one)
        return link?.announce()
      } catch (error) {
        if (!stop.signal.aborted) log.warn('what was left in doubt cannot be cleared up yet', { vm, error })
      }
    }
  }
  const prepare: LinkHandlers['prepare'] = async ({ plan, sourceCertificate }) => {
    if (plan.target !== config.site) throw misrouted(options, plan, 'target')
    const source = verifyPeer(identity, plan.source, sourceCertificate)
    checkAccept(config.accept, plan)
    await slots.take(plan, async () => {
      await checkNew(options, plan, 'target')
      return await runTarget(options, plan, source, () => link!)
    })
    link?.announce()
    log.info('waiting for a VM', { migrationId: plan.migrationId, vm: plan.vm, from: plan.source })
  }
  const start: LinkHandlers['start'] = async ({ plan, targetCertificate }) => {
    if (plan.source !== config.site) throw misrouted(options, plan, 'source')
    const target = verifyPeer(identity, plan.target, targetCertificate)
    const { epoch } = registry.get(plan.vm)
    if (epoch !== plan.epoch) throw new GodwitError('EPOCH_STALE', `${plan.vm} is at epoch ${epoch}, the plan says ${plan.epoch}`)
    if (registry.spec(plan.vm).compression === 'off' && plan.compression !== 'off')
      throw new GodwitError('MIGRATION_STATE', `${plan.vm} forbids compression, the plan wants it`)
    await slots.take(plan, async () => {
      await checkNew(options, plan, 'source')
      const vm = await registry.beginMigration(plan.vm)
      return { side: 'source', ...runSource(options, plan, target, vm, () => link!, stop.signal) }
    })
    link?.announce()
    log.info('migration begins', { migrationId: plan.migrationId, vm: plan.vm, to: plan.target, method: plan.method })
  }
  const cancel: LinkHandlers['cancel'] = async ({ migrationId }) => {
    const running = slots.running(migrationId)
    if (!running) throw new GodwitError('MIGRATION_UNKNOWN', `no migration ${migrationId} runs here`)
    running.cancel()
  }
  return {
    handlers: { prepare: watched(alerts, 'target', prepare), start: watched(alerts, 'source', start), cancel },
    onRelayStream: (relay, stream) => route(slots, alerts, relay, stream),
    active: () => slots.ids(),
    handovers: () => slots.handovers(),
    doubts: doubtsOf(options, slots),
    useLink(to) {
      link = to
    },
    async takeUp({ unanswered, answering, waiting }) {
      for (const earlier of answering) slots.answer(earlier)
      for (const earlier of waiting) await slots.take(earlier.plan, () => waitOn(options, earlier, () => link!))
      for (const hanging of unanswered)
        await take(hanging.plan, hanging).catch(error =>
          log.error('a hand-over cannot go on', { migrationId: hanging.plan.migrationId, error }),
        )
      link?.announce()
    },
    async close() {
      const reason = new GodwitError('SITE_OFFLINE', `the node of ${config.site} is shutting down`)
      stop.abort(reason)
      await slots.close(reason)
    },
  }
}

function misrouted({ config, alerts }: MigrationsOptions, plan: Plan, side: 'source' | 'target'): GodwitError {
  const error = new GodwitError('MIGRATION_STATE', `this is ${config.site}, not ${plan[side]}`)
  alerts.raise(error, { migrationId: plan.migrationId, vm: plan.vm, side }, 'misrouted')
  return error
}

/** What a plan is refused for may be an attack: alerts.ts knows by the code. */
const watched =
  <P extends { plan: Plan }>(alerts: Alerts, side: 'source' | 'target', handler: (params: P) => Promise<void>) =>
  async (params: P): Promise<void> => {
    try {
      await handler(params)
    } catch (error) {
      const { migrationId, vm } = params.plan
      alerts.raise(toGodwitError(error), { migrationId, vm, side })
      throw error
    }
  }

/** For what the channel itself finds wrong, when it is found: the migration may outlive it. */
const onBreach =
  ({ alerts }: MigrationsOptions, { migrationId, vm }: Plan, side: 'source' | 'target') =>
  (error: GodwitError): void =>
    alerts.raise(error, { migrationId, vm, side })

const doubtsOf = ({ config, identity, registry, journal, log }: MigrationsOptions, slots: Slots): Doubts =>
  createDoubts({
    ...{ site: config.site, rootPublic: identity.rootPublic, registry, journal, log },
    asked: migrationId => slots.running(migrationId)?.asked?.(),
    stopAsking: vm => slots.abandon(vm),
  })

/** A stream that the gateway has brought, to the migration that it names. */
function route(slots: Slots, alerts: Alerts, relay: Join, stream: Stream): void {
  const target = slots.target(relay.sessionId)
  const answering = relay.index === 0 ? slots.answering(relay.sessionId) : undefined
  if (target) target.target.accept(relay.index, relay.attempt, stream)
  else if (answering) answering.rejoin(relay.attempt, stream)
  else {
    const error = new GodwitError('MIGRATION_UNKNOWN', `a relay stream of migration ${relay.sessionId}, which is not here`)
    alerts.raise(error, { migrationId: relay.sessionId, index: relay.index, attempt: relay.attempt }, 'misrouted')
    stream.reset('no such migration here')
  }
}

/** The certificate of the site that a plan names, as another node showed it to the gateway. CERT_*. */
export function verifyPeer(identity: LoadedIdentity, site: string, text: string): Peer {
  const bytes = fromBase64(text)
  const now = nowSeconds()
  const revocations = identity.revocations === undefined ? {} : { revocations: identity.revocations }
  return { bytes, certificate: verifyCertificate(bytes, { rootPublic: identity.rootPublic, now, role: 'site', id: site, ...revocations }) }
}

const nowSeconds = () => Math.floor(Date.now() / 1000)

async function runTarget(options: MigrationsOptions, plan: Plan, source: Peer, link: () => Link, earlier?: Waiting): Promise<Entry> {
  const target = startTarget(
    targetOptions(options, plan, source, progress => link().progress(progress), earlier?.last),
    earlier?.loaded,
  )
  const done = target.done.then(() => undefined)
  return { side: 'target', target, cancel: reason => target.cancel(reason), result: conclude(plan, 'target', done, options) }
}

/** A VM that an earlier life of this agent had loaded: it waits for its grant. */
const waitOn = (options: MigrationsOptions, earlier: Waiting, link: () => Link): Promise<Entry> => {
  const { plan, sourceCertificate: bytes } = earlier
  return runTarget(options, plan, { bytes, certificate: decodeCertificate(bytes) }, link, earlier)
}

function targetOptions(
  options: MigrationsOptions,
  plan: Plan,
  source: Peer,
  onProgress: TargetOptions['onProgress'],
  last?: OwnershipRecord,
): TargetOptions {
  const { identity, registry, log } = options
  return {
    plan,
    keys: identity.keys,
    sourceCertificate: source.bytes,
    targetCertificate: identity.certificate,
    peerBoxPublic: source.certificate.boxPublic,
    async reserve({ needs: json }) {
      const needs = parseNeeds(json)
      if (needs.spec.name !== plan.vm) throw new GodwitError('MIGRATION_STATE', `${needs.spec.name} is offered, the plan says ${plan.vm}`)
      if (needs.method !== plan.method) throw new GodwitError('MIGRATION_STATE', `offered ${needs.method}, the plan says ${plan.method}`)
      await registry.checkIncoming(needs)
      return await registry.reserveIncoming(needs.spec, plan.epoch + 1, needs.accelerator)
    },
    drop: () => registry.dropIncoming(plan.vm),
    commit: epoch => registry.commitIncoming(plan.vm, epoch),
    record: options.journal.recorder(plan, 'target', source.bytes, last),
    onBreach: onBreach(options, plan, 'target'),
    onProgress,
    log: log.child({ migrationId: plan.migrationId }),
    // The source decides, so the target waits longer than a source that is set up alike.
    sourceAwayMs: 1500 * options.config.limits.reconnectSeconds,
    grantPatienceMs: options.waits?.grantMs,
    ...(options.onLoaded ? { onLoaded: options.onLoaded } : {}),
  }
}

function runSource(
  options: MigrationsOptions,
  plan: Plan,
  target: Peer,
  vm: Awaited<ReturnType<Registry['beginMigration']>>,
  link: () => Link,
  stop: AbortSignal,
): Omit<Entry, 'side'> {
  const { identity, registry, log } = options
  const { limits } = options.config
  const asking = createAsking()
  let source: SourceMigration | undefined
  let cancelled: GodwitError | undefined
  const migrate = async () => {
    const needs = await registry.needs(plan.vm, plan.method)
    let contentBytes: number | undefined
    const expected = expect(options, plan, ({ memoryBytes, zeroShare }) => {
      contentBytes = memoryBytes * (1 - zeroShare)
    })
    if (cancelled) throw cancelled
    source = startSource({
      plan,
      offer: { type: 'OFFER', needs: needsToJson(needs) },
      qmp: vm.qmp,
      qemuExited: vm.exited,
      keys: identity.keys,
      sourceCertificate: identity.certificate,
      targetCertificate: target.bytes,
      peerBoxPublic: target.certificate.boxPublic,
      openStream: (index, attempt) => link().openRelayStream({ sessionId: plan.migrationId, index, attempt }),
      record: options.journal.recorder(plan, 'source', target.bytes),
      onBreach: onBreach(options, plan, 'source'),
      onProgress(progress) {
        link().progress(progress)
        // From here the two sites must be able to meet, also over a gateway that has forgotten us.
        if (progress.phase === PHASE_COMMITTED) link().announce()
      },
      dir: vm.runDir,
      stop,
      patience: { reconnectMs: 1000 * limits.reconnectSeconds, switchoverMs: 1000 * limits.switchoverSeconds },
      patienceMs: options.waits?.answerMs,
      onUnanswered: asking.unanswered,
      loadTimeoutMs: options.waits?.loadMs,
      checkPeer: async () => {
        const revocations = await loadRevocations(options.config.revocations, identity.rootPublic, nowSeconds())
        verifyPeer({ ...identity, revocations: revocations ?? identity.revocations }, plan.target, toBase64(target.bytes))
      },
      transport: link().bulk()?.engine ?? 'unknown',
      bulk: () => link().bulk(),
      contentBytes: () => contentBytes,
      log: log.child({ migrationId: plan.migrationId }),
    })
    const report = await source.done
    options.predictor?.learn(report)
    return { ...report, prediction: await expected }
  }
  const settle = async () => {
    try {
      return await migrate()
    } finally {
      const fate = source?.fate() ?? 'here'
      await endMigration(options, plan, fate === 'here' ? 'kept' : fate, source?.epoch(), stop)
    }
  }
  const cancel = (reason = new GodwitError('MIGRATION_CANCELLED')) => {
    cancelled = reason
    source?.cancel(reason)
  }
  return { cancel, isAsking: () => source?.fate() === 'doubt', asked: asking.asked, result: conclude(plan, 'source', settle(), options) }
}

/**
 * The registry hears how it ended. The journal has decided already: a disk that refuses this record changes nothing of it, and the next start of the agent
 * makes up for it (recover.ts).
 */
async function endMigration(
  { registry, log }: MigrationsOptions,
  { vm, migrationId }: Plan,
  outcome: 'moved' | 'kept' | 'doubt',
  epoch: number | undefined,
  stop: AbortSignal,
): Promise<void> {
  await durably(() => registry.endMigration(vm, outcome, epoch), log, stop).catch(error =>
    log.error('the end of a migration could not be written down', { vm, migrationId, outcome, error }),
  )
}

/** An id is used once: a plan that comes again, from whomever, finds no second beginning of what has ended here. */
async function checkNew({ journal }: MigrationsOptions, { migrationId }: Plan, side: 'source' | 'target'): Promise<void> {
  if (await journal.knows(migrationId, side)) throw new GodwitError('MIGRATION_STATE', `migration ${migrationId} has been here before`)
}

/** What this migration will take, to stand beside what it took. Measured while it begins; null where it cannot be, or nothing is known of the path. */
async function expect(
  { predictor, log }: MigrationsOptions,
  { vm, target, downtimeMs, method }: Plan,
  onFacts: (facts: PlanFacts) => void,
): Promise<Report['prediction']> {
  try {
    const prediction = await predictor?.predict({ vm, target, downtimeMs })
    if (prediction) onFacts(prediction.facts)
    if (!prediction || prediction.pathFrom === 'an assumption') return null
    const name = method === 'cold' ? 'cold' : prediction.recommended === 'cold' ? 'live' : prediction.recommended
    const found = prediction.methods.find(each => each.method === name)
    return found ? { totalMs: found.totalMs, downtimeMs: found.downtimeMs, wireBytes: found.wireBytes } : null
  } catch (error) {
    log.debug('nothing was predicted', { vm, error })
    return null
  }
}

/** A hand-over that an earlier life of this agent began: it can only go forward, or be refused. */
function askAgain(options: MigrationsOptions, hanging: Unanswered, link: () => Link, stop: AbortSignal): Omit<Entry, 'side'> {
  const { plan } = hanging
  const asking = createAsking()
  const abandoned = new AbortController()
  const asked = async () => {
    const openStream = (index: number, attempt: number) => link().openRelayStream({ sessionId: plan.migrationId, index, attempt })
    const fate = await hanging.ask(openStream, AbortSignal.any([stop, abandoned.signal]), asking.unanswered)
    if (fate === 'kept') throw new GodwitError('MIGRATION_REFUSED', 'the target gave the VM back')
    return undefined
  }
  const cancel = () => {
    throw new GodwitError('MIGRATION_LATE')
  }
  options.log.warn('a hand-over is not answered: asking the target', { migrationId: plan.migrationId, vm: plan.vm, target: plan.target })
  const hearing = asked().catch(error => {
    const { code, message } = toGodwitError(error)
    throw code === 'MIGRATION_REFUSED'
      ? error
      : new GodwitError('MIGRATION_DOUBT', `handed over to ${plan.target}, which has not answered: ${message}`, { cause: error })
  })
  const abandon = () => abandoned.abort(new GodwitError('MIGRATION_DOUBT', 'a person has ended the asking'))
  return { cancel, isAsking: () => true, asked: asking.asked, abandon, result: conclude(plan, 'source', hearing, options) }
}

/** Keeps count of meetings without an answer. */
function createAsking(): { unanswered(error: GodwitError): void; asked(): Asked | undefined } {
  let asked: Asked | undefined
  return {
    unanswered(error) {
      const now = Date.now()
      asked = { times: (asked?.times ?? 0) + 1, firstAt: asked?.firstAt ?? now, lastAt: now, said: error.toJSON() }
    },
    asked: () => asked,
  }
}

/** A migration's end as its result. */
async function conclude(
  plan: Plan,
  side: 'source' | 'target',
  done: Promise<MigrationResult['report'] | undefined>,
  options: MigrationsOptions,
): Promise<MigrationResult> {
  const { migrationId } = plan
  try {
    const report = await done
    options.log.info('migration completed', { migrationId, vm: plan.vm, side })
    return { migrationId, side, outcome: 'completed', ...(report ? { report } : {}) }
  } catch (thrown) {
    const error = toGodwitError(thrown)
    const outcome = error.code === 'MIGRATION_CANCELLED' ? 'cancelled' : 'failed'
    options.alerts.raise(error, { migrationId, vm: plan.vm, side })
    options.log.warn('migration ended without moving the VM', { migrationId, vm: plan.vm, side, error })
    return { migrationId, side, outcome, error: error.toJSON() }
  }
}
