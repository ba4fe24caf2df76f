// The gateway: where sites meet. It proves who they are, writes down who wants what, and splices their streams without being able to read them.
// Enters: listeners, an identity, a store, an admin address. Leaves: a running gateway with close().
// Always holds: it never holds a site's secret, a root's secret or a migration's key (an import rule enforces it: of crypto/ it uses
// certificates, link authentication and its own identity); losing it stops migrations, never a VM.
import type { Revocations } from '../crypto/certificate.ts'
import { decodeCertificate } from '../crypto/certificate.ts'
import type { LinkIdentity } from '../crypto/link-auth.ts'
import { type Clock, systemClock } from '../ops/clock.ts'
import { sleep } from '../ops/deadline.ts'
import { type HttpServer, startHttpServer } from '../ops/http.ts'
import { createMetrics } from '../ops/metrics.ts'
import { quietly } from '../ops/quiet-log.ts'
import type { Store } from '../ops/store.ts'
import { type Admission, type AdmissionLimits, createAdmission } from '../transport/admission.ts'
import type { Engine, EngineName, Listener } from '../transport/types.ts'
import { GodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import { type AcceptOptions, acceptConnections } from './control/accept.ts'
import { adminRoutes } from './control/admin.ts'
import { createEnrolments } from './control/enrolments.ts'
import { createEvents } from './control/events.ts'
import type { ControlHost } from './control/host.ts'
import { Migrations } from './control/migrations.ts'
import type { Measurement } from './control/mqtt/measurements.ts'
import { type MqttOptions, type RunningMqtt, startMqtt } from './control/mqtt/start.ts'
import { createPins } from './control/pins.ts'
import { type RunningPolicy, startPolicy } from './control/policy-loop.ts'
import { Prestages } from './control/prestages.ts'
import { createSites } from './control/sites.ts'
import type { PolicyConfig } from './policy/config.ts'
import { type RelayOptions, relayStream } from './relay/relay.ts'
import { createSessions } from './relay/sessions.ts'
import { type ServiceAddress, type Services, startServices } from './services/services.ts'
import { type Mec021Listen, type RunningMec021, startMec021 } from './standards/server.ts'
import { createRecords, type StoredMigration, type StoredSite } from './store/records.ts'

export type GatewayOptions = {
  /** Name: what its certificate says. */
  identity: LinkIdentity
  rootPublic: Uint8Array
  revocations?: () => Revocations | undefined
  version: string
  /** One listener each; several engines may share a port number where their protocols differ (UDP, TCP). */
  listen: { engine: Engine; host: string; port: number }[]
  admin: { host: string; port: number; token: string }
  store: Store
  /** Control over MQTT; absent: off. */
  mqtt?: MqttOptions | undefined
  /** VMs follow their users; absent: they move by command only. */
  policy?: PolicyConfig | undefined
  /** What users and links were measured to have (MQTT); checked, newer ones only. It must be quick: messages wait behind it. */
  onMeasurement?: (measurement: Measurement) => void
  /** Stable addresses at which users reach services of VMs, wherever these are. */
  services?: ServiceAddress[] | undefined
  /** Tests only: how long a connection waits for its VM. */
  serviceWaitMs?: number
  /** The ETSI MEC 021 front; absent: off. */
  mec021?: Mec021Listen | undefined
  /** Connections that have not proved who they are. Default STRANGERS. */
  strangers?: AdmissionLimits | undefined
  clock?: Clock
  log: Log
  heartbeat?: { heartbeatMs: number; silenceMs: number }
  /** See relay.ts; tests only. */
  tap?: RelayOptions['tap']
  relayIdleMs?: number
  /** See migrations.ts; tests only. */
  graceMs?: number
}

export type Gateway = {
  readonly id: string
  readonly adminUrl: string
  readonly listeners: { engine: EngineName; host: string; port: number }[]
  /** For those who decide and watch: see, start, cancel, pin, listen. */
  readonly control: ControlHost
  /** The broker's address, and whether it is connected; undefined when MQTT is off. */
  readonly mqtt: { readonly url: string; readonly up: boolean } | undefined
  readonly mec021Url: string | undefined
  /** Tells the sites, ends relay streams, writes what is unfinished; the store stays the caller's to close. */
  close(): Promise<void>
}

/** A site has two connections, so a hundred sites behind one address come back at once; the rest of a crowd waits its turn (10 s at most). */
export const STRANGERS: AdmissionLimits = { total: 1024, perAddress: 256 }
/** Four connections of one place, sixteen in all. */
const WARM_UPS: AdmissionLimits = { total: 64, perAddress: 16 }
const EXPIRE_EVERY_MS = 30_000
const CLOSE_GRACE_MS = 500

/** Starts everything, or nothing: an address that is taken closes what was opened before it. */
export async function startGateway(options: GatewayOptions): Promise<Gateway> {
  const { clock = systemClock, log, version } = options
  const id = decodeCertificate(options.identity.certificate).id
  const startedAt = clock.now()
  const parts = await createParts(options, clock)
  const { sites, sessions, migrations, metrics, total } = parts
  await migrations.resume()

  const listeners: { engine: EngineName; listener: Listener }[] = []
  let admin: HttpServer | undefined
  let services: Services | undefined
  let policy: RunningPolicy | undefined
  let mqtt: RunningMqtt | undefined
  let mec021: RunningMec021 | undefined
  const control = controlHost(parts, { gatewayId: id, version, startedAt, clock })
  const expiry = setInterval(() => sessions.expire(), EXPIRE_EVERY_MS)
  const addresses = () => listeners.map(({ engine, listener }) => ({ engine, ...listener.address }))
  const describe = () => ({ id, version, startedAt, listeners: addresses(), relay: { streams: sessions.streams(), bytes: total.bytes } })

  async function close(): Promise<void> {
    clearInterval(expiry)
    policy?.close()
    parts.prestages.close()
    await Promise.all([mqtt?.close(), mec021?.close(), services?.close()])
    const why = new GodwitError('CONNECTION_LOST', 'the gateway shuts down')
    const links = sites.links()
    for (const link of links) link.rpc.close(why)
    sessions.closeAll(why)
    const gone = Promise.all(links.map(link => link.connection.closed))
    await Promise.race([gone, sleep(links.length > 0 ? CLOSE_GRACE_MS : 0)])
    await Promise.all([admin?.close(), ...listeners.map(({ listener }) => listener.close())])
    await Promise.all(links.map(link => link.connection.close('the gateway shuts down').catch(() => {})))
    await migrations.close()
  }

  try {
    for (const { engine, host, port } of options.listen)
      listeners.push({ engine: engine.name, listener: await engine.listen({ host, port }) })
    services = await startServices({ ...parts, list: options.services ?? [], waitMs: options.serviceWaitMs, log })
    const places = options.mqtt?.places
    if (options.policy) policy = startPolicy({ config: options.policy, places, host: control, metrics, log })
    const routes = adminRoutes({ ...parts, services, policy, describe })
    const { host, port, token } = options.admin
    admin = await startHttpServer({ listen: { host, port }, routes, token, log })
    const onMeasurement: GatewayOptions['onMeasurement'] = measurement => {
      policy?.measured(measurement)
      options.onMeasurement?.(measurement)
    }
    if (options.mqtt) mqtt = await startMqtt({ options: options.mqtt, host: control, metrics, onMeasurement, log })
    if (options.mec021) mec021 = await startMec021(options.mec021, control, { metrics, log })
  } catch (error) {
    await close()
    throw error
  }
  const serving = acceptOptions(options, parts, id, clock)
  for (const { engine, listener } of listeners)
    acceptConnections(listener, serving).catch(error => log.error('a listener failed', { engine, error }))
  const adminUrl = urlOf(admin)
  log.info('gateway ready', { id, listeners: addresses(), admin: adminUrl })
  return { id, adminUrl, listeners: addresses(), control, mqtt, mec021Url: mec021?.url, close }
}

type Parts = Awaited<ReturnType<typeof createParts>>

async function createParts({ store, rootPublic, log, graceMs, strangers: limits = STRANGERS }: GatewayOptions, clock: Clock) {
  const records = createRecords(store)
  const remembered: StoredSite[] = []
  for await (const site of records.sites()) remembered.push(site)
  const events = createEvents(log)
  const sites = createSites(remembered, clock, site => events.emit({ event: 'site', site }))
  const pins = await createPins(records, clock, (vm, pinned) => events.emit({ event: 'pin', vm, pinned }))
  const sessions = createSessions(clock)
  const strangers = createAdmission(limits)
  const counters = createCounters(sites, () => sessions.streams(), strangers)
  const onEnded = ({ outcome }: StoredMigration) => counters.count.migrations.inc({ outcome: outcome ?? 'failed' })
  const watched = { onEvent: events.emit, pinned: pins.has }
  const prestages = new Prestages({
    ...{ sites, clock, log, ...watched },
    migrations: () => migrations.list(),
    onEnded: outcome => counters.count.prestages.inc({ outcome }),
  })
  const preparedId: Prestages['idFor'] = (...move) => prestages.idFor(...move)
  const migrations = new Migrations({ sites, sessions, records, clock, log, graceMs, onEnded, preparedId, ...watched })
  events.subscribe(event => {
    if (event.event === 'migration') prestages.migration(event.migration)
    if (event.event === 'site' || event.event === 'pin') prestages.look()
  })
  const enrolments = createEnrolments({ records, rootPublic, clock })
  return { records, sites, sessions, strangers, migrations, prestages, enrolments, events, pins, ...counters }
}

/** What the fronts (MQTT, standards, policies) may ask. */
function controlHost(
  { sites, migrations, prestages, events, pins, total }: Parts,
  facts: Pick<ControlHost, 'gatewayId' | 'version' | 'startedAt' | 'clock'>,
): ControlHost {
  return {
    ...facts,
    events,
    pins,
    sites: sites.views,
    vms: sites.vms,
    migrations: () => migrations.list(),
    linkFacts(site) {
      const link = sites.online(site)
      if (!link) return undefined
      const { certificate, hello } = link.peer
      return { incarnation: hello.incarnation, publicKey: certificate.signPublic, rttMs: link.connection.stats().rttMs }
    },
    traffic: site => total.bySite.get(site) ?? { ingressBytes: 0, egressBytes: 0 },
    start: request => migrations.start(request),
    cancel: migrationId => migrations.cancel(migrationId),
    prestage: request => prestages.start(request),
    prestages: () => prestages.list(),
    cancelPrestage: handoffId => prestages.cancel(handoffId),
  }
}

/** What happens when a site speaks. */
function acceptOptions(options: GatewayOptions, parts: Parts, gatewayId: string, clock: Clock): AcceptOptions {
  const { identity, rootPublic, revocations, version, heartbeat, log } = options
  const { records, sites, migrations, count } = parts
  const relay = relayOptions(options, parts)
  return {
    authority: { identity, rootPublic, revocations, clock },
    gatewayId,
    version,
    sites,
    enrol: parts.enrolments.ask,
    onState(link, state, first) {
      const memory = sites.memory(link.site)
      if (memory) records.saveSite(memory).catch(error => log.warn('a site could not be written down', { site: link.site, error }))
      migrations.siteState(link, state.migrations, first)
    },
    onProgress: (link, progress) => migrations.progress(link, progress),
    onResult: (link, result) => migrations.result(link, result),
    onJoin(join, site, stream) {
      migrations.admitHandover(site, join.sessionId)
      return relayStream(join, site, stream, relay)
    },
    onRefused: code => count.refused.inc({ code }),
    strangers: parts.strangers,
    warmUps: createAdmission(WARM_UPS),
    heartbeat,
    log: quietly(log),
  }
}

function relayOptions({ tap, relayIdleMs, log }: GatewayOptions, { sessions, sites, count, total }: Parts): RelayOptions {
  return {
    sessions,
    openTo: sites.openTo,
    onBytes(direction, bytes, { source, target }) {
      total.bytes += bytes
      const [from, to] = direction === 'source-to-target' ? [source, target] : [target, source]
      trafficOf(total, from).egressBytes += bytes
      trafficOf(total, to).ingressBytes += bytes
      count.bytes.inc({ direction }, bytes)
    },
    onRefused: code => count.joins.inc({ code }),
    tap,
    idleMs: relayIdleMs,
    log,
  }
}

type Total = { bytes: number; bySite: Map<string, { ingressBytes: number; egressBytes: number }> }

/** Bounded: sites are (SITES_MAX). */
function trafficOf({ bySite }: Total, site: string): { ingressBytes: number; egressBytes: number } {
  let traffic = bySite.get(site)
  if (!traffic) {
    traffic = { ingressBytes: 0, egressBytes: 0 }
    bySite.set(site, traffic)
  }
  return traffic
}

function urlOf({ address }: HttpServer): string {
  if (!('host' in address)) throw new Error('the admin API listens on TCP')
  return `http://${address.host.includes(':') ? `[${address.host}]` : address.host}:${address.port}`
}

function createCounters(sites: ReturnType<typeof createSites>, streams: () => number, strangers: Admission) {
  const metrics = createMetrics('godwit_gateway')
  const total: Total = { bytes: 0, bySite: new Map() }
  metrics.sampled('sites_online', 'Sites that are connected.', () => sites.views().filter(site => site.online).length)
  metrics.sampled('strangers', 'Connections that have not proved who they are yet.', () => strangers.count)
  metrics.sampled('relay_streams', 'Relay streams that are open.', streams)
  const count = {
    bytes: metrics.counter('relay_bytes_total', 'Bytes relayed.', ['direction']),
    joins: metrics.counter('joins_refused_total', 'Relay streams refused, by code.', ['code']),
    refused: metrics.counter('refused_total', 'Connections and streams refused, by code.', ['code']),
    prestages: metrics.counter('prestages_total', 'Pre-stagings that have ended, by what became of them.', ['outcome']),
    migrations: metrics.counter('migrations_total', 'Migrations that have ended, by outcome.', ['outcome']),
  }
  return { metrics, count, total }
}
