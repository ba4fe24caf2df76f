// The node: a site's VMs, its link to the gateway, and the migrations it takes part in. Enters: a configuration and
// transport engines.
// Leaves: a running node with close(). Always holds: its VMs outlive it; one migration slot for a VM; a peer is
// believed only with a certificate of our root for the very site that the plan names; the gateway is believed in
// nothing that could cost a VM.
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fromBase64, toBase64 } from '../crypto/bytes.ts'
import { type LoadedIdentity, renewedFile } from '../identity/load.ts'
import type { Trust } from '../identity/trust.ts'
import { type Clock, systemClock, unixSeconds } from '../ops/clock.ts'
import type { HttpServer } from '../ops/http.ts'
import type { Store } from '../ops/store.ts'
import type { Engine } from '../transport/types.ts'
import { type HostFacts, RenewReply, type VmFacts } from '../wire/control.ts'
import { GodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import { type Alerts, createAlerts } from './alerts.ts'
import { nodeRoutes } from './api.ts'
import type { NodeConfig } from './config.ts'
import { dataEngines, dialGateway } from './dial.ts'
import { createEvidence, type Evidence } from './evidence.ts'
import { createImageCopies, type ImageCopies } from './image-copies.ts'
import { keepCopies } from './keep-copies.ts'
import { connectLink, type Link } from './link/link.ts'
import { watchSpread } from './link/spread.ts'
import { createNodeMetrics, type TrustFacts } from './metrics.ts'
import { createJournal, type Journal } from './migration/journal.ts'
import { loadedVms, recoverMigrations } from './migration/recover.ts'
import { createMigrations, type NodeMigrations, type NodeMigrationsOptions } from './migrations.ts'
import { type NodeHost, nodeHost } from './node-host.ts'
import { type CostPredictor, createCostPredictor } from './predict.ts'
import { createPrestage } from './prestage.ts'
import { openRegistry, type Registry } from './registry/registry.ts'
import { createRelease, type Release } from './release.ts'
import { createServices, type GuestServices } from './services.ts'
import { confinementProblem, DEFAULT_USERS, type UserRange } from './vm/confine.ts'
import { type GuestFilter, openGuestFilter } from './vm/guest-filter.ts'

export type NodeOptions = {
  config: NodeConfig
  engines: Engine[]
  version: string
  log: Log
  /** Default: this machine. */
  host?: NodeHost | undefined
  /**
   * The program to run VMs with; default qemu-system-x86_64 of the PATH. For hosts that keep it elsewhere, and for
   * tests.
   */
  qemuBinary?: string | undefined
  /** For tests: called with the loaded, still paused VM before LOADED is sent. */
  onLoaded?: Parameters<typeof createMigrations>[0]['onLoaded']
  /**
   * For tests: called before a state is written (it may throw, as a disk that refuses), and when it is durable, before
   * what follows from it.
   */
  onRecord?: ((side: 'source' | 'target', state: string, when: 'before' | 'after') => void | Promise<void>) | undefined
  /**
   * The state database takes no more writes: this process cannot go on. VMs do; the next node reads what was written
   * and decides.
   */
  onBroken?: ((error: GodwitError) => void) | undefined
  /** Default: the system's. What trust depends on goes by it. */
  clock?: Clock | undefined
  /** For tests: shorter waits. */
  waits?: NodeMigrationsOptions['waits']
}

export type Node = {
  readonly registry: Registry
  readonly link: Link
  /** Ids of the migrations that take up a place here: for a moment longer than the gateway knows of them. */
  active(): string[]
  /** What the gateway may order here, as its link calls it. */
  readonly orders: NodeMigrations['handlers']
  /** Ends what this process does; VMs go on. Migrations end with their VMs running at the source. */
  close(): Promise<void>
}

/**
 * Starts everything, or nothing. CONFIG_*, CERT_*, STORE_LOCKED. The gateway need not be there: the node keeps trying.
 */
export async function startNode(options: NodeOptions): Promise<Node> {
  const { host = nodeHost, config, engines, version, log, qemuBinary, onLoaded, onRecord, waits, onBroken } = options
  const renewed = renewedFile(config.stateDir, 'site')
  const identity = await host.loadIdentity(
    { ...config.identity, renewed },
    { role: 'site', id: config.site, now: unixSeconds(systemClock) },
  )
  await host.vms.files.makeFolder(config.stateDir, 0o700)
  await host.vms.files.makeFolder(config.runDir, 0o755)
  const store = await host.openStore(join(config.stateDir, 'store'), { log, onBroken })
  const undo: (() => Promise<unknown>)[] = [() => store.close()]
  const close = async () => {
    for (const step of undo.splice(0).reverse()) await step().catch(error => log.warn('shutdown step failed', { error }))
  }
  try {
    const trust = await trustOf(options, identity, store)
    undo.push(() => trust.close())
    const { stateDir, imagesDir } = config
    const journal = createJournal({ store, keys: identity.keys, certificate: () => identity.certificate, now: Date.now, log })
    const loaded = await loadedVms(journal)
    const users = vmUsers(config, log)
    const filter = users && (await guestFilter(log))
    undo.push(async () => filter?.close())
    const folders = { stateDir, imagesDir, sharedDir: sharedFolder(config, log) }
    const registry = await openRegistry({
      ...{ vmHost: host.vms, ...folders, memoryReserveBytes: config.limits.memoryReserve, qemuBinary, store, log },
      keepIncoming: name => loaded.has(name),
      users,
      filter,
    })
    undo.push(() => registry.close())
    const kept = await keepCopies({ copies: registry.copies, trust, days: config.limits.copyDays, now: Date.now, log })
    undo.push(async () => kept.close())
    const metrics = createNodeMetrics(registry, trustFacts(options, identity, trust))
    const alerts = createAlerts({ log, count: metrics.alert })
    const release = await createRelease({ config, store, alerts, now: Date.now })
    const left = await recoverMigrations({ journal, registry, keys: identity.keys, certificate: identity.certificate, log })
    let link: Link | undefined
    const predictor = createCostPredictor({
      running: name => (registry.get(name).state === 'stopped' ? undefined : registry.machine(name)),
      measure: host.measureMemory,
      diskBytes: name => registry.travellingBytes(name),
      linkStats: () => link?.stats().control ?? null,
      now: Date.now,
    })
    const evidence = createEvidence(await journal.last())
    const copies = createImageCopies({ config, identity, trust, registry, alerts, link: () => link!, log })
    undo.push(() => copies.close())
    const sendImage: NodeMigrationsOptions['sendImage'] = (...asked) => copies.outgoing.ensure(...asked)
    const migrations = createMigrations({
      ...{ config, identity, trust, registry, metrics, predictor, alerts, evidence, release, sendImage, log, onLoaded, waits },
      memoryPath: host.memoryPath,
      journal: watched(journal, onRecord),
    })
    const services = createServices({ registry, log })
    const parts = {
      ...{ config, engines, version, identity, trust, registry, migrations, copies, services },
      ...{ predictor, alerts, evidence, release, log },
    }
    const linked = startLink({ ...parts, clock: options.clock, incarnation: await nextIncarnation(store) })
    link = linked
    undo.push(() => linked.close())
    const spread = watchSpread(linked, dataEngines(config, engines), log)
    undo.push(async () => spread.stop())
    undo.push(() => migrations.close())
    const renewal = renewCertificate(options, { identity, trust, link, migrations })
    undo.push(async () => renewal.close())
    await migrations.takeUp(left)
    const api = await startApi(host, { config, registry, copies, doubts: migrations.doubts, link, version, metrics, predictor, log })
    undo.push(() => api.close())
    log.info('node ready', { version, vms: registry.list().length })
    return { registry, link, active: migrations.active, orders: migrations.handlers, close }
  } catch (error) {
    await close()
    throw error
  }
}

/** What this node trusts. CERT_REVOKED where that is not this node itself. */
async function trustOf(
  { host = nodeHost, config, clock, log }: NodeOptions,
  { rootPublic, certificate }: LoadedIdentity,
  store: Store,
): Promise<Trust> {
  const trust = await host.openTrust({ rootPublic, file: config.revocations, store, clock, log })
  trust.verify(certificate, { role: 'site', id: config.site })
  return trust
}

const trustFacts = ({ clock = systemClock }: NodeOptions, identity: LoadedIdentity, trust: Trust): TrustFacts => ({
  expiresInSeconds: () => identity.claims.notAfter - unixSeconds(clock),
  listAgeSeconds: trust.ageSeconds,
})

/**
 * The certificate renews itself while nothing is transferred. A hand-over in doubt may wait for weeks: it is not waited
 * for, and keeps its own certificate.
 */
function renewCertificate(
  { host = nodeHost, config, clock, log }: NodeOptions,
  { identity, trust, link, migrations }: { identity: LoadedIdentity; trust: Trust; link: Link; migrations: NodeMigrations },
) {
  const files = { configured: config.identity.certificate, renewed: renewedFile(config.stateDir, 'site') }
  const renewal = host.keepRenewed({
    ...{ identity, trust, files, clock, log },
    isBusy: () => migrations.active().length > migrations.handovers().length,
    async ask(request) {
      const reply = RenewReply.parse(await link.request('trust.renew', { request: toBase64(request) }))
      return reply.status === 'issued' ? fromBase64(reply.certificate) : undefined
    },
    onRenewed: () => link.reconnect(),
  })
  link.whenOnline().then(renewal.look, () => {})
  return renewal
}

/** The journal, with a test looking on. */
const watched = (journal: Journal, onRecord: NodeOptions['onRecord']): Journal => ({
  ...journal,
  recorder(plan, side, ...rest) {
    const record = journal.recorder(plan, side, ...rest)
    return async (state, ...more) => {
      await onRecord?.(side, state, 'before')
      await record(state, ...more)
      await onRecord?.(side, state, 'after')
    }
  },
})

async function guestFilter(log: Log): Promise<GuestFilter | undefined> {
  const filter = await openGuestFilter({ log })
  if (typeof filter !== 'string') return filter
  log.warn('QEMUs can use the host network', { why: filter })
  return undefined
}

/** Where the shared disks are. A mount may come later: until then only VMs that have one cannot start. */
function sharedFolder({ sharedDir }: NodeConfig, log: Log): string | undefined {
  if (sharedDir !== undefined && !existsSync(sharedDir))
    log.warn('shared folder is missing: VMs with a shared disk cannot start', { sharedDir })
  return sharedDir
}

/** The range of users that the configuration means here. CONFIG_INVALID when it asks for what cannot be. */
function vmUsers({ qemu }: NodeConfig, log: Log): UserRange | undefined {
  const users = qemu?.users ?? 'auto'
  const isRoot = process.getuid?.() === 0
  if (users === 'off') {
    if (isRoot) log.warn('QEMUs run as root, without a user for each VM', { why: 'qemu.users is off' })
    return undefined
  }
  const problem = confinementProblem(users === 'auto' ? DEFAULT_USERS : users)
  if (problem === undefined) return users === 'auto' ? DEFAULT_USERS : users
  if (users !== 'auto') throw new GodwitError('CONFIG_INVALID', `qemu.users: ${problem}`)
  if (isRoot) log.warn('QEMUs run as root, without a user for each VM', { why: problem })
  return undefined
}

/** The gateway takes a later life of this node for the node: later also where the clock has been set back meanwhile. */
async function nextIncarnation(store: Store): Promise<number> {
  const next = Math.max(Date.now(), ((await store.get<number>('agent', 'incarnation')) ?? 0) + 1)
  await store.put('agent', 'incarnation', next, { sync: true })
  return next
}

type Parts = {
  config: NodeConfig
  engines: Engine[]
  version: string
  incarnation: number
  identity: LoadedIdentity
  trust: Trust
  clock: Clock | undefined
  registry: Registry
  migrations: NodeMigrations
  copies: ImageCopies
  services: GuestServices
  predictor: CostPredictor
  alerts: Alerts
  evidence: Evidence
  release: Release
  log: Log
}

function startLink({
  config,
  engines,
  version,
  incarnation,
  identity,
  trust,
  clock = systemClock,
  registry,
  migrations,
  copies,
  services,
  predictor,
  alerts,
  evidence,
  release,
  log,
}: Parts): Link {
  const isHere = (vm: string) => registry.list().some(({ name }) => name === vm)
  const link = connectLink({
    dial: ({ signal, engine }) => dialGateway(config, engines, signal, engine),
    identity,
    rootPublic: identity.rootPublic,
    revocations: trust.list,
    clock,
    site: config.site,
    gatewayId: config.gateway.id,
    incarnation,
    version,
    describe: async () => ({
      host: await hostFacts(registry),
      vms: vmFacts(registry),
      migrations: migrations.active(),
      handovers: migrations.handovers(),
      moved: evidence.moved(isHere),
      fencings: evidence.fencings(isHere),
    }),
    handlers: {
      ...migrations.handlers,
      ...createPrestage({ config, identity, trust, registry, release, log }),
      prepareImage: params => copies.incoming.prepare(params),
      predict: predictor.predict,
      revocations: async ({ list }) => ({ number: await trust.offer(fromBase64(list)) }),
    },
    onRelayStream(relay, stream) {
      if (!copies.incoming.accept(relay, stream)) migrations.onRelayStream(relay, stream)
    },
    onServiceStream: (request, frames) => void services.onServiceStream(request, frames),
    onBreach: error => alerts.raise(error, {}, 'protocol_breach'),
    dataConnections: dataEngines(config, engines),
    warmUpBytes: config.limits.warmUp,
    log,
  })
  migrations.useLink(link)
  trust.watch(() => link.recheck())
  registry.onChange(() => link.announce())
  return link
}

function startApi(
  { serveHttp }: NodeHost,
  o: Pick<Parts, 'config' | 'registry' | 'copies' | 'version' | 'predictor' | 'log'> & {
    doubts: NodeMigrations['doubts']
    link: Link
    metrics: ReturnType<typeof createNodeMetrics>
  },
): Promise<HttpServer> {
  const describe = async () => ({
    site: o.config.site,
    version: o.version,
    gateway: { selection: o.link.selection, ...o.link.stats() },
    ...(await hostFacts(o.registry)),
  })
  const { registry, copies, doubts, metrics, predictor } = o
  const { routes, upgrades } = nodeRoutes({ registry, copies: copies.outgoing, doubts, describe, metrics, predictor })
  return serveHttp({ listen: { socketPath: o.config.api.socket }, routes, upgrades, log: o.log })
}

async function hostFacts(registry: Registry): Promise<HostFacts> {
  const { qemuVersion, accelerators, memoryFreeBytes, diskFreeBytes, vcpus } = await registry.hostInfo()
  return { ...(qemuVersion === undefined ? {} : { qemuVersion }), accelerators: [...accelerators], memoryFreeBytes, diskFreeBytes, vcpus }
}

const vmFacts = (registry: Registry): VmFacts[] =>
  registry.list().map(({ name, state, epoch, memoryBytes, vcpus }) => {
    const { compression, services, policy } = registry.spec(name)
    const wishes = { services: services.map(service => service.name), ...(policy ? { policy } : {}) }
    return { name, state, epoch, memoryBytes, vcpus, compression, ...wishes }
  })
