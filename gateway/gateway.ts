// The gateway: where sites meet. It proves who they are, writes down who wants what, and splices their streams without
// being able to read them.
// Enters: listeners, an identity, a store, an admin address. Leaves: a running gateway with close().
// Always holds: it never holds a site's secret, a root's secret or a migration's key (an import rule enforces it: of
// crypto/ it uses certificates, link authentication and its own identity); losing it stops migrations, never a VM.
import { randomBytes } from 'node:crypto'
import { decodeCertificate } from '../crypto/certificate.ts'
import type { LinkIdentity } from '../crypto/link-auth.ts'
import type { Trust } from '../identity/trust.ts'
import { type Clock, systemClock, unixSeconds } from '../ops/clock.ts'
import { sleep } from '../ops/deadline.ts'
import { type HttpServer, startHttpServer } from '../ops/http.ts'
import { createMetrics, type Metrics } from '../ops/metrics.ts'
import { quietly } from '../ops/quiet-log.ts'
import type { Store } from '../ops/store.ts'
import type { TlsFiles } from '../ops/tls-files.ts'
import { WATCH_EVERY_MS } from '../ops/watchdog.ts'
import { type AdmissionLimits, createAdmission } from '../transport/admission.ts'
import type { Engine, EngineName, Listener } from '../transport/types.ts'
import type { ForgottenSite } from '../wire/admin.ts'
import { GodwitError } from '../wire/errors.ts'
import type { Alert, EnrolmentAsked } from '../wire/events.ts'
import type { Log } from '../wire/log.ts'
import type { Versions } from '../wire/versions.ts'
import { adminRoutes } from './fronts/admin.ts'
import { createEventFeed, type EventFeed } from './fronts/events.ts'
import { type Mec021Listen, type RunningMec021, startMec021 } from './fronts/mec021/server.ts'
import { type MqttOptions, type RunningMqtt, startMqtt } from './fronts/mqtt/start.ts'
import { createEvents } from './handoff/events.ts'
import { HandoffSet } from './handoff/handoff.ts'
import { type Claimed, createHomes, type Homes } from './handoff/homes.ts'
import type { FrontHost } from './handoff/host.ts'
import { copyImage } from './handoff/image-copies.ts'
import type { Measurement } from './handoff/measurements.ts'
import { Migrations } from './handoff/migrations.ts'
import { createPins } from './handoff/pins.ts'
import { Prestages } from './handoff/prestages.ts'
import type { PolicyConfig } from './policy/config.ts'
import { type RunningPolicy, startPolicy } from './policy/policy-loop.ts'
import { type RelayOptions, relayStream } from './relay/relay.ts'
import { createSessions, type Sessions } from './relay/sessions.ts'
import { type ServiceAddress, startServices, type UserServices } from './services/services.ts'
import { type AcceptOptions, acceptConnections } from './sites/accept.ts'
import { createEnrolments } from './sites/enrolments.ts'
import { rememberSites } from './sites/remember.ts'
import { createRenewals } from './sites/renewals.ts'
import { createSites, type Sites } from './sites/sites.ts'
import { watchLinks } from './sites/untrusted.ts'
import { createRecords, type Records, type StoredMigration, type StoredSite } from './store/records.ts'

/** What else the gateway has from outside of itself. */
export type GatewayHost = {
  /** The id of a handoff: 128 random bits, hex. */
  newId: () => string
  serveHttp: typeof startHttpServer
}

const GATEWAY_HOST: GatewayHost = { newId: () => randomBytes(16).toString('hex'), serveHttp: startHttpServer }

export type GatewayOptions = {
  /** Name: what its certificate says. */
  identity: LinkIdentity
  rootPublic: Uint8Array
  /**
   * Revocation lists, in force here and handed on to nodes. Absent (tests): none, and nodes that know none begin no
   * migration.
   */
  trust?: Trust | undefined
  version: string
  /** Of the protocol. Default: what this release has. */
  versions?: Versions | undefined
  /** One listener each; several engines may share a port number where their protocols differ (UDP, TCP). */
  listen: { engine: Engine; host: string; port: number }[]
  admin: { host: string; port: number; token: string /** Needed beyond loopback. */; tls?: Pick<TlsFiles, 'pair' | 'follow'> | undefined }
  store: Store
  /** Control over MQTT; absent: off. */
  mqtt?: MqttOptions | undefined
  /** VMs follow their users; absent: they move by command only. */
  policy?: PolicyConfig | undefined
  /**
   * What users and links were measured to have (MQTT); checked, newer ones only. It must be quick: messages wait behind
   * it.
   */
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
  /** Default: this machine. */
  host?: GatewayHost | undefined
  /** Which sites may meet over the relay; default: none yet. */
  sessions?: Sessions | undefined
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
  readonly control: FrontHost
  /** The broker's address, and whether it is connected; undefined when MQTT is off. */
  readonly mqtt: { readonly url: string; readonly up: boolean } | undefined
  readonly mec021Url: string | undefined
  /** The gateway's own request for its next certificate, which waits with those of the sites. */
  renewOwn(request: Uint8Array): Uint8Array | undefined
  /** Tells the sites, ends relay streams, writes what is unfinished; the store stays the caller's to close. */
  close(): Promise<void>
}

/**
 * A site has two connections, so a hundred sites behind one address come back at once; the rest of a crowd waits its
 * turn (10 s at most).
 */
const STRANGERS: AdmissionLimits = { total: 1024, perAddress: 256 }
/**
 * What one of them may open and send until then: HELLO and AUTH, or ENROL, on one stream. A first frame has 64 KiB at
 * most.
 */
const STRANGER = { streams: 2, bytes: 192 * 1024 }
/** Four connections of one place, sixteen in all. */
const WARM_UPS: AdmissionLimits = { total: 64, perAddress: 16 }
/**
 * Of one kind, a minute: a crowd of sites that comes back fits, one that comes and goes all the time does not fill the
 * log.
 */
const SITE_LINES_MAX = 600
const EXPIRE_EVERY_MS = 30_000
const CLOSE_GRACE_MS = 500

/** Starts everything, or nothing: an address that is taken closes what was opened before it. */
export async function startGateway(options: GatewayOptions): Promise<Gateway> {
  const { clock = systemClock, host: outside = GATEWAY_HOST, log, version } = options
  const id = decodeCertificate(options.identity.certificate).id
  const startedAt = clock.now()
  const parts = await createParts(options, clock)
  const { sites, sessions, migrations, metrics, total } = parts
  await migrations.resume()
  const feed = createFeed(parts, clock)

  const listeners: { engine: EngineName; listener: Listener }[] = []
  let admin: HttpServer | undefined
  let services: UserServices | undefined
  let policy: RunningPolicy | undefined
  let mqtt: RunningMqtt | undefined
  let mec021: RunningMec021 | undefined
  const control = controlHost(parts, { gatewayId: id, version, startedAt, clock })
  const expiry = setInterval(() => sessions.expire(), EXPIRE_EVERY_MS)
  const watching = watchStuck(parts, log)
  const addresses = () => listeners.map(({ engine, listener }) => ({ engine, ...listener.address }))
  const handshakes = () => listeners.reduce((sum, { listener }) => sum + (listener.handshakes?.() ?? 0), 0)
  metrics.sampled('quic_handshakes', 'QUIC handshakes in progress; above 1024 new ones wait.', handshakes)
  const describe = () => ({ id, version, startedAt, listeners: addresses(), relay: { streams: sessions.streams(), bytes: total.bytes } })

  async function close(): Promise<void> {
    clearInterval(expiry)
    parts.linkTrust.close()
    policy?.close()
    clearInterval(watching)
    parts.prestages.close()
    await Promise.all([mqtt?.close(), mec021?.close(), services?.close()])
    const why = new GodwitError('CONNECTION_LOST', 'the gateway is shutting down')
    const links = sites.links()
    for (const link of links) link.rpc.close(why)
    sessions.closeAll(why)
    const gone = Promise.all(links.map(link => link.connection.closed))
    await Promise.race([gone, sleep(links.length > 0 ? CLOSE_GRACE_MS : 0)])
    await Promise.all([admin?.close(), ...listeners.map(({ listener }) => listener.close())])
    await Promise.all(links.map(link => link.connection.close('the gateway is shutting down').catch(() => {})))
    feed.close()
    await migrations.close()
    await parts.remember.close()
    await parts.homes.saved()
  }

  try {
    for (const { engine, host, port } of options.listen)
      listeners.push({ engine: engine.name, listener: await engine.listen({ host, port, strangers: STRANGER }) })
    services = await startServices({ ...parts, list: options.services ?? [], waitMs: options.serviceWaitMs, log })
    const places = options.mqtt?.places
    if (options.policy) policy = startPolicy({ config: options.policy, places, host: control, metrics, log })
    const routes = adminRoutes({ ...parts, trust: options.trust, services, policy, feed, describe })
    const { host, port, token, tls } = options.admin
    admin = await outside.serveHttp({ listen: { host, port }, routes, token, tls, log })
    const onMeasurement: GatewayOptions['onMeasurement'] = measurement => {
      policy?.measured(measurement)
      options.onMeasurement?.(measurement)
    }
    const hasPolicy = policy !== undefined
    if (options.mqtt) mqtt = await startMqtt({ options: options.mqtt, host: control, metrics, onMeasurement, hasPolicy, log })
    if (options.mec021) mec021 = await startMec021(options.mec021, control, { metrics, log })
  } catch (error) {
    await close()
    throw error
  }
  const serving = acceptOptions(options, parts, id, clock)
  for (const { engine, listener } of listeners)
    acceptConnections(listener, serving).catch(error => log.error('listener failed', { engine, error }))
  const adminUrl = urlOf(admin, options.admin.tls ? 'https' : 'http')
  log.info('gateway ready', { id, listeners: addresses(), admin: adminUrl })
  return {
    id,
    adminUrl,
    listeners: addresses(),
    control,
    mqtt,
    mec021Url: mec021?.url,
    renewOwn: request => renewOwn(options, parts, request),
    close,
  }
}

function renewOwn({ identity }: GatewayOptions, { renewals }: Parts, request: Uint8Array): Uint8Array | undefined {
  const reply = renewals.ask(decodeCertificate(identity.certificate), Buffer.from(request).toString('base64'))
  return reply.status === 'issued' ? new Uint8Array(Buffer.from(reply.certificate, 'base64')) : undefined
}

type Parts = Awaited<ReturnType<typeof createParts>>

/** What one of them breaks must not end the gateway. */
function watchStuck({ migrations, prestages }: Parts, log: Log): NodeJS.Timeout {
  return setInterval(() => {
    for (const watched of [migrations, prestages]) {
      try {
        watched.watch(performance.now())
      } catch (error) {
        log.error('watchdog failed', { error })
      }
    }
  }, WATCH_EVERY_MS)
}

async function createParts(options: GatewayOptions, clock: Clock) {
  const { store, identity, rootPublic, trust, versions, log, graceMs, strangers: limits = STRANGERS } = options
  const { newId } = options.host ?? GATEWAY_HOST
  const records = createRecords(store)
  const remembered: StoredSite[] = []
  for await (const site of records.sites()) remembered.push(site)
  const events = createEvents(log)
  const sites = createSites(remembered, clock, site => events.emit({ event: 'site', site }))
  const counters = createCounters(
    sites,
    () => sessions.streams(),
    () => strangers.count,
  )
  const homes = await createHomes({
    ...{ sites, records, rootPublic, clock, log: quietly(log) },
    moves: vms => migrations.moves(vms),
    onChange(changed) {
      for (const site of changed) events.emit({ event: 'site', site })
    },
    onMove: change => events.emit({ event: 'home', change }),
    onAlarm(alarm) {
      counters.count.alerts.inc({ kind: alarm.kind })
      events.emit({ event: 'alert', alert: alertOf(alarm) })
    },
  })
  // First of all listeners: the others see who owns what now.
  events.subscribe(event => {
    if (event.event === 'site') homes.look(event.site)
    if (event.event === 'migration') homes.look(undefined, [event.migration.vm])
  })
  const pins = await createPins(records, clock, (vm, pinned) => events.emit({ event: 'pin', vm, pinned }))
  const { sessions = createSessions(clock) } = options
  const strangers = createAdmission(limits)
  trustMetrics(counters.metrics, { identity, trust, clock })
  const onEnded = ({ outcome }: StoredMigration) => counters.count.migrations.inc({ outcome: outcome ?? 'failed' })
  const watched = { onEvent: events.emit, pinned: pins.has }
  const linkTrust = watchLinks({ sites, trust, clock, onEnded: code => counters.count.refused.inc({ code }), log })
  const onStuck = (state: string, action: string) => counters.count.stuck.inc({ state, action })
  const handoffs = new HandoffSet(events.emit)
  const prestages = new Prestages({
    ...{ handoffs, sites, homes, clock, newId, log, ...watched },
    onEnded: outcome => counters.count.prestages.inc({ outcome }),
    onStuck,
  })
  const onWord = (vm: string) => homes.look(undefined, [vm])
  const migrations = new Migrations({
    ...{ handoffs, sites, sessions, records, homes, clock, newId, log: quietly(log), graceMs, onEnded, onStuck, onWord, ...watched },
    room: prestages,
    checkTrust: () => trust?.requireFresh(),
    versions,
  })
  events.subscribe(event => {
    if (event.event === 'migration' && event.migration.outcome === null) prestages.moves(event.migration.vm)
    if (event.event === 'site' || event.event === 'pin') prestages.look()
  })
  const onRequest = (enrolment: EnrolmentAsked) => events.emit({ event: 'enrolment', enrolment })
  const enrolments = createEnrolments({ records, rootPublic, clock, onRequest })
  const renewals = createRenewals({ rootPublic, clock })
  const forgetSite = (site: string) => giveUp({ sites, homes, records, migrations, log }, site)
  const remember = rememberSites({ sites, records, log: quietly(log) })
  return {
    remember,
    forgetSite,
    records,
    sites,
    homes,
    sessions,
    strangers,
    linkTrust,
    handoffs,
    migrations,
    prestages,
    enrolments,
    renewals,
    events,
    pins,
    ...counters,
  }
}

type GiveUp = { sites: Sites; homes: Homes; records: Records; migrations: Migrations; log: Log }

async function giveUp({ sites, homes, records, migrations, log }: GiveUp, site: string): Promise<ForgottenSite> {
  // A site that never came may have names (its VMs were handed to it, or somebody says so): they can be freed.
  if (sites.known(site) || !homes.holds(site)) sites.forget(site)
  await records.dropSite(site)
  const ended = await migrations.forgetSite(site)
  const vms = await homes.release(site)
  log.info('site removed by an operator', { site, vms: vms.length, migrations: ended })
  return { site, vms, migrations: ended }
}

function alertOf({ kind, vm, site, epoch, home }: Claimed): Alert {
  const owner = home === null ? 'no site' : `site ${home}`
  return { kind, vm, site, migrationId: null, message: `site ${site} claims VM ${vm} at epoch ${epoch}; it belongs to ${owner}` }
}

/** After the migrations are taken up: readers find these in the state that they read first. */
function createFeed({ events, sites, migrations, metrics }: Parts, clock: Clock): EventFeed {
  const feed = createEventFeed({
    events,
    sites: sites.views().map(({ site }) => site),
    migrations: migrations.list(),
    siteNow(site) {
      const view = sites.view(site)
      return view && { view, vms: (sites.state(site) ?? sites.memory(site))?.vms ?? [] }
    },
    now: () => clock.now(),
    boot: crypto.randomUUID().slice(0, 8),
  })
  metrics.sampled('event_readers', 'Connected readers of the feed of events.', () => feed.readers)
  return feed
}

/** What the fronts (MQTT, standards, policies) may ask. */
function controlHost(
  { sites, homes, handoffs, migrations, prestages, events, pins, total }: Parts,
  facts: Pick<FrontHost, 'gatewayId' | 'version' | 'startedAt' | 'clock'>,
): FrontHost {
  return {
    ...facts,
    events,
    pins,
    sites: sites.views,
    find: homes.find,
    vms: homes.vms,
    migrations: () => migrations.list(),
    linkFacts(site) {
      const link = sites.online(site)
      if (!link) return undefined
      const { certificate, hello } = link.peer
      return { incarnation: hello.incarnation, publicKey: certificate.signPublic, rttMs: link.connection.stats().rttMs }
    },
    traffic: site => total.bySite.get(site) ?? { ingressBytes: 0, egressBytes: 0 },
    start: request => migrations.start(request),
    prestage: request => prestages.start(request),
    handoffs: () => handoffs.views(),
    cancel: async id => (handoffs.migration(id) ? migrations.cancel(id) : prestages.cancel(id)),
  }
}

/** What happens when a site speaks. */
function acceptOptions(options: GatewayOptions, parts: Parts, gatewayId: string, clock: Clock): AcceptOptions {
  const { identity, rootPublic, trust, version, heartbeat, log } = options
  const { sites, migrations, count } = parts
  const relay = relayOptions(options, parts)
  return {
    authority: { identity, rootPublic, revocations: trust?.list, versions: options.versions, clock },
    gatewayId,
    version,
    sites,
    enrol: parts.enrolments.ask,
    renew: (certificate, { request }) => parts.renewals.ask(certificate, request),
    copyImage: (link, params) =>
      copyImage(
        { sites, sessions: parts.sessions, clock, versions: options.versions, checkTrust: () => trust?.requireFresh() },
        link,
        params,
      ),
    async onState(link, state, first) {
      if (first) parts.linkTrust.greet(link)
      parts.remember.changed(link.site)
      migrations.siteState(link, state.migrations, first)
      await parts.homes.saved()
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
    log: quietly(log, undefined, { infoMax: SITE_LINES_MAX }),
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
    log: quietly(log),
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

function urlOf({ address }: HttpServer, scheme: 'http' | 'https'): string {
  if (!('host' in address)) throw new Error('the admin API listens on TCP')
  return `${scheme}://${address.host.includes(':') ? `[${address.host}]` : address.host}:${address.port}`
}

function trustMetrics(metrics: Metrics, { identity, trust, clock }: Pick<GatewayOptions, 'identity' | 'trust'> & { clock: Clock }): void {
  const left = () => decodeCertificate(identity.certificate).notAfter - unixSeconds(clock)
  metrics.sampled('certificate_expires_in_seconds', "Seconds until the gateway's certificate expires; negative: expired.", left)
  const age = () => trust?.ageSeconds() ?? -1
  metrics.sampled('revocation_list_age_seconds', 'Age of the current revocation list; -1: no list.', age)
}

function createCounters(sites: ReturnType<typeof createSites>, streams: () => number, strangers: () => number) {
  const metrics = createMetrics('godwit_gateway')
  const total: Total = { bytes: 0, bySite: new Map() }
  metrics.sampled('sites_online', 'Connected sites.', () => sites.views().filter(site => site.online).length)
  metrics.sampled('strangers', 'Connections that are not authenticated yet.', strangers)
  metrics.sampled('relay_streams', 'Open relay streams.', streams)
  const count = {
    alerts: metrics.counter('alerts_total', 'Alerts (possible attacks, and conflicts for an operator), by kind.', ['kind']),
    bytes: metrics.counter('relay_bytes_total', 'Bytes relayed.', ['direction']),
    joins: metrics.counter('joins_refused_total', 'Relay streams rejected, by error code.', ['code']),
    refused: metrics.counter('refused_total', 'Connections and streams rejected, by error code.', ['code']),
    prestages: metrics.counter('prestages_total', 'Pre-stagings that ended, by outcome.', ['outcome']),
    stuck: metrics.counter('stuck_total', 'Migrations and pre-stagings that exceeded the deadline of their state.', ['state', 'action']),
    migrations: metrics.counter('migrations_total', 'Migrations that ended, by outcome.', ['outcome']),
  }
  return { metrics, count, total }
}
