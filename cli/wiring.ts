// Connects the command line with the parts that it starts: gateway, node, transport engines. Each is loaded at the
// first use.
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import type { NodeConfig } from '../edge-node/config.ts'
import type { GatewayConfig } from '../gateway/config.ts'
import type { Mec021Listen } from '../gateway/fronts/mec021/server.ts'
import type { MqttOptions } from '../gateway/fronts/mqtt/start.ts'
import type { BrokerTarget } from '../mqtt/client.ts'
import { systemClock, unixSeconds } from '../ops/clock.ts'
import { markInOneGo } from '../ops/collector.ts'
import { exists, readSecret, readText, writeFileSafely } from '../ops/files.ts'
import type { TlsFiles } from '../ops/tls-files.ts'
import type { Engine } from '../transport/types.ts'
import type { GodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import { version } from './version.ts'

type Closeable = { close(): Promise<void> }
type Write = (line: string) => void

const logFor = async ({ level, format }: GatewayConfig['log'], write: Write): Promise<Log> => {
  const { createLog } = await import('../ops/log.ts')
  return createLog({ level, format, write })
}

/** The gateway, until close(): identity checked, store open, and all available engines listening. */
export async function runGateway(config: GatewayConfig, write: Write): Promise<Closeable & { adminUrl: string }> {
  const log = (await logFor(config.log, write)).child({ gateway: config.id })
  const [{ startGateway }, { LOCKED_MS, openStore }, { loadIdentity, renewedFile }, { openTrust }, { keepRenewed }] = await Promise.all([
    import('../gateway/gateway.ts'),
    import('../ops/store.ts'),
    import('../identity/load.ts'),
    import('../identity/trust.ts'),
    import('../identity/renewal.ts'),
  ])
  const renewed = renewedFile(config.stateDir, 'gateway')
  const identity = await loadIdentity({ ...config.identity, renewed }, { role: 'gateway', id: config.id, now: unixSeconds(systemClock) })
  const { rootPublic } = identity
  const token = await adminToken(config.admin.tokenFile)
  const listen = await listenersOf(config, log)
  const followed: TlsFiles[] = []
  const tlsOf: TlsOf = async paths => {
    if (!paths) return undefined
    const { openTlsFiles } = await import('../ops/tls-files.ts')
    const files = await openTlsFiles(paths, { log })
    followed.push(files)
    return files
  }
  const [mqtt, mec021, adminTls] = await Promise.all([mqttOf(config.mqtt), mec021Of(config.mec021, tlsOf), tlsOf(config.admin.tls)])
  const store = await openStore(join(config.stateDir, 'store'), { log, lockedMs: LOCKED_MS })
  try {
    const trust = await openTrust({ rootPublic, file: config.revocations, store, log })
    trust.verify(identity.certificate, { role: 'gateway', id: config.id })
    const gateway = await startGateway({
      identity,
      rootPublic,
      trust,
      version,
      listen,
      admin: { host: config.admin.host, port: config.admin.port, token, tls: adminTls },
      mqtt,
      services: config.services,
      policy: config.policy,
      mec021,
      strangers: config.limits && { total: config.limits.strangers, perAddress: config.limits.strangersPerAddress },
      store,
      log,
    })
    const renewal = keepRenewed({
      ...{ identity, trust, log },
      files: { configured: config.identity.certificate, renewed },
      ask: async request => gateway.renewOwn(request),
      // Nodes that connect from now on receive it; the others reconnect when the old one has expired.
      onRenewed() {},
    })
    void renewal.look()
    const close = async () => {
      renewal.close()
      for (const files of followed) files.close()
      await gateway.close()
      await trust.close()
      await store.close()
    }
    return { adminUrl: gateway.adminUrl, close }
  } catch (error) {
    await store.close()
    throw error
  }
}

const secretOf = async (path: string) => (await readSecret(path)).trim()

/** The configured MQTT side with its files read; undefined when it is off. */
async function mqttOf({
  mode,
  tenant,
  commandKeys,
  measurementKeys,
  trustBroker,
  places,
  ...config
}: GatewayConfig['mqtt']): Promise<MqttOptions | undefined> {
  if (mode === 'off') return undefined
  const certificate = config.tls?.certificate === undefined ? undefined : await readText(config.tls.certificate)
  const key = config.tls?.key === undefined ? undefined : await readSecret(config.tls.key)
  const listOf = <T>(keys: Record<string, T>) => Object.entries(keys).map(([name, rest]) => ({ name, ...rest }))
  const common = { tenant, commandKeys: listOf(commandKeys), measurementKeys: listOf(measurementKeys), trustBroker, places }
  if (mode === 'embedded') {
    const users = Object.entries(config.users).map(async ([name, { passwordFile, may }]) => ({
      name,
      may,
      password: await secretOf(passwordFile),
    }))
    const tls = certificate !== undefined && key !== undefined ? { certificate, key } : undefined
    return { ...common, broker: { mode, listen: config.listen, tls, users: await Promise.all(users) } }
  }
  const target: BrokerTarget = {
    url: config.url,
    username: config.username,
    password: config.passwordFile === undefined ? undefined : await secretOf(config.passwordFile),
    tls: { ca: config.tls?.ca === undefined ? undefined : await readText(config.tls.ca), certificate, key },
    version: config.version,
  }
  return { ...common, broker: { mode, target, clientId: config.clientId, workers: config.workers } }
}

type TlsOf = (paths: { certificate: string; key: string } | undefined) => Promise<TlsFiles | undefined>

async function mec021Of(config: GatewayConfig['mec021'], tlsOf: TlsOf): Promise<Mec021Listen | undefined> {
  if (!config) return undefined
  const { host, port, tokenFile, callbackHosts } = config
  const clients = Object.entries(config.clients).map(async ([name, { tokenFile, vms }]) => ({
    name,
    vms,
    token: await adminToken(tokenFile),
  }))
  return {
    ...{ host, port, callbackHosts, token: await adminToken(tokenFile) },
    clients: await Promise.all(clients),
    tls: await tlsOf(config.tls),
  }
}

/** One listener for each engine that is not off; an engine that cannot be loaded is skipped with a warning. */
async function listenersOf({ listen }: GatewayConfig, log: Log): Promise<{ engine: Engine; host: string; port: number }[]> {
  const { GodwitError } = await import('../wire/errors.ts')
  const listeners: { engine: Engine; host: string; port: number }[] = []
  for (const engine of await loadEngines()) {
    const port = engine.name === 'memory' ? 'off' : listen.ports[engine.name]
    if (port === 'off') continue
    const found = await engine.available()
    if (found.ok) listeners.push({ engine, host: listen.host, port })
    else log.warn('transport engine cannot be loaded', { engine: engine.name, reason: found.reason })
  }
  if (listeners.length === 0) throw new GodwitError('ENGINE_UNAVAILABLE', 'no transport engine can listen', { hint: 'see godwit doctor' })
  return listeners
}

/** The admin token, created at the first start: 256 random bits in hex, 0600. */
export async function adminToken(path: string): Promise<string> {
  if (!(await exists(path))) await writeFileSafely(path, `${randomBytes(32).toString('hex')}\n`)
  const token = (await readSecret(path)).trim()
  // An empty token would accept requests without a token.
  if (/^[\x21-\x7e]+$/.test(token)) return token
  const { GodwitError } = await import('../wire/errors.ts')
  throw new GodwitError('CONFIG_INVALID', `${path}: not a token (one line without white space)`, {
    hint: 'remove the file: the gateway writes a new one at its next start',
  })
}

/** All engines for real networks. An engine is loaded by its available(). */
export async function loadEngines(): Promise<Engine[]> {
  const { createEngines } = await import('../transport/select.ts')
  return createEngines()
}

type EnrolSite = {
  config: NodeConfig
  token: string
  request: Uint8Array
  rootPublic: Uint8Array
  onPending: () => void
  signal: AbortSignal
}

/** Requests this site's certificate from the gateway, and waits until the operator has approved it. */
export async function enrolSite({ config, ...rest }: EnrolSite): Promise<{ bytes: Uint8Array }> {
  const [{ enrol }, { dialGateway }] = await Promise.all([import('../edge-node/link/enrol.ts'), import('../edge-node/dial.ts')])
  const engines = await loadEngines()
  return await enrol({ ...rest, gatewayId: config.gateway.id, dial: ({ signal }) => dialGateway(config, engines, signal) })
}

/** The node, until close(). Its VMs keep running. */
export async function runNode(config: NodeConfig, write: Write): Promise<Closeable & { broken: Promise<GodwitError> }> {
  markInOneGo()
  const log = (await logFor(config.log, write)).child({ site: config.site })
  const { startNode } = await import('../edge-node/agent.ts')
  const { promise: broken, resolve: onBroken } = Promise.withResolvers<GodwitError>()
  const { close } = await startNode({ config, engines: await loadEngines(), version, log, onBroken })
  return { close, broken }
}
