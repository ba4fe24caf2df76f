// The migrations of this node: the orders of the gateway, and the routing of relay streams. Enters: plans from the
// gateway (trusted no further than certificates and the handshake reach), relay streams. Leaves: results, progress.
// Always holds: whatever begins here holds its VM's slot (slots.ts) until its result is known; a migration id is used
// once.
//
// run-source.ts and run-target.ts carry a migration out, asking.ts goes on with a hand-over that was not answered,
// watch-slots.ts ends what may not go on.
import { verifySite } from '../identity/peer.ts'
import type { Stream } from '../transport/types.ts'
import type { Join, MigrationResult, Plan, PrepareParams, Side, StartParams } from '../wire/control.ts'
import { GodwitError, toGodwitError } from '../wire/errors.ts'
import { isControl } from '../wire/roles.ts'
import type { Alerts } from './alerts.ts'
import { createAsking } from './asking.ts'
import { createDoubts, type Doubts } from './doubts.ts'
import type { Evidence } from './evidence.ts'
import { createKnownFiles } from './known-files.ts'
import type { Link, LinkHandlers } from './link/link.ts'
import type { NodeMetrics } from './metrics.ts'
import { checkAccept } from './migration/accept.ts'
import type { Left } from './migration/recover.ts'
import type { Release } from './release.ts'
import { runSource } from './run-source.ts'
import { runTarget, waitOn } from './run-target.ts'
import type { RunOptions } from './runs.ts'
import { createSlots, type RunningMigration, type Slots } from './slots.ts'
import { watchSlots } from './watch-slots.ts'

export type NodeMigrationsOptions = Omit<RunOptions, 'known' | 'link' | 'stop'> & {
  metrics: NodeMetrics
  /** What a gateway without records gets to know of VMs that have moved. */
  evidence: Evidence
  /** Whether a VM may leave. */
  release: Release
}

export type NodeMigrations = {
  handlers: LinkHandlers
  onRelayStream(relay: Join, stream: Stream): void
  active(): string[]
  /** Of those, the hand-overs of this site that are not answered. */
  handovers(): Plan[]
  /** What a person may want to know of these, and end. */
  doubts: Doubts
  useLink(link: Link): void
  /** Takes up what an earlier life of this agent left (migration/recover.ts). Call it once, when the link is there. */
  takeUp(left: Left): Promise<void>
  /** Cancels what may still be cancelled and waits for the rest. */
  close(): Promise<void>
}

type Options = NodeMigrationsOptions & RunOptions

export function createMigrations(given: NodeMigrationsOptions): NodeMigrations {
  const stop = new AbortController()
  let link: Link | undefined
  const options: Options = { ...given, known: createKnownFiles(), link: () => link!, stop: stop.signal }
  const { config, metrics, evidence, log } = options
  const ended = (running: RunningMigration, result: MigrationResult) => {
    metrics.ended(running.side, result)
    const { vm, target, epoch } = running.plan
    if (running.side === 'source' && result.outcome === 'completed') evidence.noteMoved({ vm, target, epoch: epoch + 1 })
    link?.report(result)
    link?.announce()
    if (running.side === 'source' && result.error?.code === 'MIGRATION_DOUBT') void asking.clearUp(running.plan)
  }
  const slots = createSlots(ended)
  const asking = createAsking(options, slots)
  const unwatch = watchSlots(options, slots)
  return {
    handlers: handlersOf(options, slots),
    onRelayStream: (relay, stream) => route(slots, options.alerts, relay, stream),
    active: () => slots.ids(),
    handovers: () => slots.handovers(),
    doubts: doubtsOf(options, slots),
    useLink(to) {
      link = to
    },
    async takeUp({ unanswered, answering, waiting }) {
      for (const earlier of answering) slots.answer(earlier)
      for (const earlier of waiting) await slots.take(earlier.plan, 'target', () => waitOn(options, earlier))
      for (const hanging of unanswered)
        await asking
          .take(hanging)
          .catch(error => log.error('hand-over could not continue', { migrationId: hanging.plan.migrationId, error }))
      link?.announce()
    },
    async close() {
      unwatch()
      const reason = new GodwitError('SITE_OFFLINE', `the node of ${config.site} is shutting down`)
      stop.abort(reason)
      await slots.close(reason)
    },
  }
}

/** The orders of the gateway. A plan that is refused may be an attack: alerts.ts decides by the code. */
function handlersOf(options: Options, slots: Slots): LinkHandlers {
  const { alerts } = options
  return {
    prepare: watched(alerts, 'target', params => prepare(options, slots, params)),
    start: watched(alerts, 'source', params => start(options, slots, params)),
    async cancel({ migrationId }) {
      const running = await slots.begun(migrationId)
      if (!running) throw new GodwitError('MIGRATION_UNKNOWN', `migration ${migrationId} does not run at this site`)
      running.cancel()
    },
  }
}

const watched =
  <P extends { plan: Plan }>(alerts: Alerts, side: Side, handler: (params: P) => Promise<void>) =>
  async (params: P): Promise<void> => {
    try {
      await handler(params)
    } catch (error) {
      const { migrationId, vm } = params.plan
      alerts.raise(toGodwitError(error), { migrationId, vm, side })
      throw error
    }
  }

/** At the target: waits for the source of this plan. */
async function prepare(options: Options, slots: Slots, { plan, sourceCertificate }: PrepareParams): Promise<void> {
  const { config, trust, link, log } = options
  if (plan.target !== config.site) throw misrouted(options, plan, 'target')
  const source = await verifySite(trust, plan.source, sourceCertificate)
  checkAccept(config.accept, plan)
  await slots.take(plan, 'target', async () => {
    await checkNew(options, plan, 'target')
    return await runTarget(options, plan, source)
  })
  link().announce()
  log.info('incoming migration', { migrationId: plan.migrationId, vm: plan.vm, from: plan.source })
}

/** At the source: begins to move the VM. */
async function start(options: Options, slots: Slots, { plan, targetCertificate, command }: StartParams): Promise<void> {
  const { config, trust, registry, release, link, log } = options
  if (plan.source !== config.site) throw misrouted(options, plan, 'source')
  const target = await verifySite(trust, plan.target, targetCertificate)
  await slots.take(plan, 'source', async () => {
    // The slot may have waited for the end of an earlier migration, which changes the epoch.
    const { epoch, state } = registry.get(plan.vm)
    if (epoch !== plan.epoch) throw new GodwitError('EPOCH_STALE', `${plan.vm} is at epoch ${epoch}, the plan has epoch ${plan.epoch}`)
    if (registry.spec(plan.vm).compression === 'off' && plan.compression !== 'off')
      throw new GodwitError('MIGRATION_STATE', `${plan.vm} forbids compression, but the plan uses it`)
    await release.check({ ...plan, action: 'start', command })
    await checkNew(options, plan, 'source')
    if (state !== 'stopped' || plan.method === 'live') return runSource(options, plan, target, await registry.beginMigration(plan.vm))
    await registry.beginStopped(plan.vm)
    return runSource(options, plan, target, undefined)
  })
  link().announce()
  log.info('outgoing migration', { migrationId: plan.migrationId, vm: plan.vm, to: plan.target, method: plan.method })
}

function misrouted({ config, alerts }: Options, plan: Plan, side: Side): GodwitError {
  const error = new GodwitError('MIGRATION_STATE', `this is ${config.site}, not ${plan[side]}`)
  alerts.raise(error, { migrationId: plan.migrationId, vm: plan.vm, side }, 'misrouted')
  return error
}

/** An id is used once: a plan that comes again, from whomever, does not begin a second time here. */
async function checkNew({ journal }: Options, { migrationId }: Plan, side: Side): Promise<void> {
  if (await journal.knows(migrationId, side)) throw new GodwitError('MIGRATION_STATE', `migration ${migrationId} already ran at this site`)
}

/** A relay stream from the gateway, to the migration that it names. */
function route(slots: Slots, alerts: Alerts, relay: Join, stream: Stream): void {
  const target = slots.target(relay.sessionId)
  const answering = isControl(relay.index) ? slots.answering(relay.sessionId) : undefined
  if (target) target.target.accept(relay.index, relay.attempt, stream)
  else if (answering) answering.rejoin(relay.attempt, stream)
  else {
    const error = new GodwitError('MIGRATION_UNKNOWN', `relay stream of migration ${relay.sessionId}, which is unknown at this site`)
    alerts.raise(error, { migrationId: relay.sessionId, index: relay.index, attempt: relay.attempt }, 'misrouted')
    stream.reset('unknown migration')
  }
}

const doubtsOf = ({ config, identity, registry, journal, evidence, log }: Options, slots: Slots): Doubts =>
  createDoubts({
    ...{ site: config.site, rootPublic: identity.rootPublic, registry, journal, log },
    asked: migrationId => slots.running(migrationId)?.asked?.(),
    stopAsking: vm => slots.abandon(vm),
    onFenced: evidence.noteFencing,
  })
