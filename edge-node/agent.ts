// The node: a site's VMs, its link to the gateway, and the migrations it takes part in. Enters: a configuration and transport engines.
// Leaves: a running node with close(). Always holds: its VMs outlive it; one migration slot for a VM; a peer is believed only with a certificate
// of our root for the very site that the plan names; the gateway is believed in nothing that could cost a VM.
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { type HttpServer, startHttpServer } from '../ops/http.ts'
import { openStore, type Store } from '../ops/store.ts'
import type { Engine } from '../transport/types.ts'
import type { HostFacts, VmFacts } from '../wire/control.ts'
import { GodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import { type Alerts, createAlerts } from './alerts.ts'
import { nodeRoutes } from './api.ts'
import type { NodeConfig } from './config.ts'
import { dataEngines, dialGateway } from './dial.ts'
import { type LoadedIdentity, loadIdentity } from './identity.ts'
import { connectLink, type Link } from './link/link.ts'
import { watchSpread } from './link/spread.ts'
import { createNodeMetrics } from './metrics.ts'
import { createJournal, type Journal } from './migration/journal.ts'
import { loadedVms, recover } from './migration/recover.ts'
import { createMigrations, type Migrations, type MigrationsOptions } from './migrations.ts'
import { createPredictor, type Predictor } from './predict.ts'
import { createPrestage } from './prestage.ts'
import { createServices, type Services } from './services.ts'
import { confinementProblem, DEFAULT_USERS, type UserRange } from './vm/confine.ts'
import { openRegistry, type Registry } from './vm/registry.ts'

export type NodeOptions = {
  config: NodeConfig
  engines: Engine[]
  version: string
  log: Log
  /** The program to run VMs with; default qemu-system-x86_64 of the PATH. For hosts that keep it elsewhere, and for tests. */
  qemuBinary?: string | undefined
  /** For tests: called with the loaded, still paused VM before LOADED is sent. */
  onLoaded?: Parameters<typeof createMigrations>[0]['onLoaded']
  /** For tests: called before a state is written (it may throw, as a disk that refuses), and when it is durable, before what follows from it. */
  onRecord?: ((side: 'source' | 'target', state: string, when: 'before' | 'after') => void | Promise<void>) | undefined
  /** The state database takes no more writes: this process cannot go on. VMs do; the next node reads what was written and decides. */
  onBroken?: ((error: GodwitError) => void) | undefined
  /** For tests: shorter waits. */
  waits?: MigrationsOptions['waits']
}

export type Node = {
  readonly registry: Registry
  readonly link: Link
  /** Ends what this process does; VMs go on. Migrations end with their VMs running at the source. */
  close(): Promise<void>
}

/** Starts everything, or nothing. CONFIG_*, CERT_*, STORE_LOCKED. The gateway need not be there: the node keeps trying. */
export async function startNode(options: NodeOptions): Promise<Node> {
  const { config, engines, version, log, qemuBinary, onLoaded, onRecord, waits, onBroken } = options
  const identity = await loadIdentity(
    { ...config.identity, revocations: config.revocations },
    { role: 'site', id: config.site, now: nowSeconds() },
  )
  await mkdir(config.stateDir, { recursive: true, mode: 0o700 })
  await mkdir(config.runDir, { recursive: true, mode: 0o755 })
  const store = await openStore(join(config.stateDir, 'store'), { log, onBroken })
  const undo: (() => Promise<unknown>)[] = [() => store.close()]
  const close = async () => {
    for (const step of undo.splice(0).reverse()) await step().catch(error => log.warn('while closing', { error }))
  }
  try {
    const { stateDir, imagesDir } = config
    const journal = createJournal({ store, keys: identity.keys, now: Date.now, log })
    const loaded = await loadedVms(journal)
    const registry = await openRegistry({
      ...{ stateDir, imagesDir, memoryReserveBytes: config.limits.memoryReserve, qemuBinary, store, log },
      keepIncoming: name => loaded.has(name),
      users: vmUsers(config, log),
    })
    undo.push(() => registry.close())
    const metrics = createNodeMetrics(registry)
    const alerts = createAlerts({ log, count: metrics.alert })
    const left = await recover({ journal, registry, keys: identity.keys, certificate: identity.certificate, log })
    let link: Link | undefined
    const predictor = createPredictor({
      running: name => registry.machine(name),
      linkStats: () => link?.stats().control ?? null,
      now: Date.now,
    })
    const migrations = createMigrations({
      config,
      identity,
      registry,
      journal: watched(journal, onRecord),
      metrics,
      predictor,
      alerts,
      log,
      onLoaded,
      waits,
    })
    const services = createServices({ registry, log })
    const linked = startLink({
      config,
      engines,
      version,
      identity,
      registry,
      migrations,
      services,
      predictor,
      alerts,
      log,
      incarnation: await nextIncarnation(store),
    })
    link = linked
    undo.push(() => linked.close())
    const spread = watchSpread(linked, dataEngines(config, engines), log)
    undo.push(async () => spread.stop())
    undo.push(() => migrations.close())
    await migrations.takeUp(left)
    const api = await startApi({ config, registry, doubts: migrations.doubts, link, version, metrics, predictor, log })
    undo.push(() => api.close())
    log.info('node is up', { version, vms: registry.list().length })
    return { registry, link, close }
  } catch (error) {
    await close()
    throw error
  }
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

/** The range of users that the configuration means here. CONFIG_INVALID when it asks for what cannot be. */
function vmUsers({ qemu }: NodeConfig, log: Log): UserRange | undefined {
  const users = qemu?.users ?? 'auto'
  if (users === 'off') return undefined
  const problem = confinementProblem(users === 'auto' ? DEFAULT_USERS : users)
  if (problem === undefined) return users === 'auto' ? DEFAULT_USERS : users
  if (users !== 'auto') throw new GodwitError('CONFIG_INVALID', `qemu.users: ${problem}`)
  if (process.getuid?.() === 0) log.warn('QEMUs run as root: no VM has a user of its own', { why: problem })
  return undefined
}

/** The gateway takes a later life of this node for the node: later also where the clock has been set back meanwhile. */
async function nextIncarnation(store: Store): Promise<number> {
  const next = Math.max(Date.now(), ((await store.get<number>('agent', 'incarnation')) ?? 0) + 1)
  await store.put('agent', 'incarnation', next, { sync: true })
  return next
}

const nowSeconds = () => Math.floor(Date.now() / 1000)

type Parts = {
  config: NodeConfig
  engines: Engine[]
  version: string
  incarnation: number
  identity: LoadedIdentity
  registry: Registry
  migrations: Migrations
  services: Services
  predictor: Predictor
  alerts: Alerts
  log: Log
}

function startLink({
  config,
  engines,
  version,
  incarnation,
  identity,
  registry,
  migrations,
  services,
  predictor,
  alerts,
  log,
}: Parts): Link {
  const link = connectLink({
    dial: ({ signal, engine }) => dialGateway(config, engines, signal, engine),
    identity,
    rootPublic: identity.rootPublic,
    revocations: identity.revocations,
    site: config.site,
    gatewayId: config.gateway.id,
    incarnation,
    version,
    describe: async () => ({
      host: await hostFacts(registry),
      vms: vmFacts(registry),
      migrations: migrations.active(),
      handovers: migrations.handovers(),
    }),
    handlers: { ...migrations.handlers, ...createPrestage({ config, identity, registry, log }), predict: predictor.predict },
    onRelayStream: (relay, stream) => migrations.onRelayStream(relay, stream),
    onServiceStream: (request, frames) => void services.onServiceStream(request, frames),
    onBreach: error => alerts.raise(error, {}, 'protocol_breach'),
    dataConnections: dataEngines(config, engines),
    warmUpBytes: config.limits.warmUp,
    log,
  })
  migrations.useLink(link)
  registry.onChange(() => link.announce())
  return link
}

function startApi(
  o: Pick<Parts, 'config' | 'registry' | 'version' | 'predictor' | 'log'> & {
    doubts: Migrations['doubts']
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
  const { routes, upgrades } = nodeRoutes({ registry: o.registry, doubts: o.doubts, describe, metrics: o.metrics, predictor: o.predictor })
  return startHttpServer({ listen: { socketPath: o.config.api.socket }, routes, upgrades, log: o.log })
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
