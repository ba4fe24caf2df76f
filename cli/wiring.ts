// Where the command line meets the rooms it starts: gateway, node, transport engines. Each is loaded when first needed.
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import type { NodeConfig } from '../edge-node/config.ts'
import type { GatewayConfig } from '../gateway/config.ts'
import type { BrokerTarget } from '../gateway/control/mqtt/client.ts'
import type { MqttOptions } from '../gateway/control/mqtt/start.ts'
import type { Mec021Listen } from '../gateway/standards/server.ts'
import { markInOneGo } from '../ops/collector.ts'
import { exists, readSecret, readText, writeFileSafely } from '../ops/files.ts'
import type { Engine } from '../transport/types.ts'
import type { GodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import { version } from './version.ts'

export type Running = { close(): Promise<void> }
type Write = (line: string) => void

const logFor = async ({ level, format }: GatewayConfig['log'], write: Write): Promise<Log> => {
  const { createLog } = await import('../ops/log.ts')
  return createLog({ level, format, write })
}

const nowSeconds = () => Math.floor(Date.now() / 1000)

/** The gateway, until close(): identity checked, store open, engines that load here listening. */
export async function runGateway(config: GatewayConfig, write: Write): Promise<Running & { adminUrl: string }> {
  const log = (await logFor(config.log, write)).child({ gateway: config.id })
  const [{ startGateway }, { openStore }, { loadIdentity }] = await Promise.all([
    import('../gateway/gateway.ts'),
    import('../ops/store.ts'),
    import('../edge-node/identity.ts'),
  ])
  const paths = { ...config.identity, revocations: config.revocations }
  const { keys, certificate, rootPublic, revocations } = await loadIdentity(paths, { role: 'gateway', id: config.id, now: nowSeconds() })
  const token = await adminToken(config.admin.tokenFile)
  const listen = await listenersOf(config, log)
  const [mqtt, mec021] = await Promise.all([mqttOf(config.mqtt), mec021Of(config.mec021)])
  const store = await openStore(join(config.stateDir, 'store'), { log })
  try {
    const gateway = await startGateway({
      identity: { keys, certificate },
      rootPublic,
      ...(revocations === undefined ? {} : { revocations: () => revocations }),
      version,
      listen,
      admin: { host: config.admin.host, port: config.admin.port, token },
      mqtt,
      services: config.services,
      policy: config.policy,
      mec021,
      strangers: config.limits && { total: config.limits.strangers, perAddress: config.limits.strangersPerAddress },
      store,
      log,
    })
    const close = async () => {
      await gateway.close()
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
async function mqttOf({ mode, tenant, commandKeys, places, ...config }: GatewayConfig['mqtt']): Promise<MqttOptions | undefined> {
  if (mode === 'off') return undefined
  const certificate = config.tls?.certificate === undefined ? undefined : await readText(config.tls.certificate)
  const key = config.tls?.key === undefined ? undefined : await readSecret(config.tls.key)
  const common = { tenant, commandKeys: Object.entries(commandKeys).map(([name, rest]) => ({ name, ...rest })), places }
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

async function mec021Of(config: GatewayConfig['mec021']): Promise<Mec021Listen | undefined> {
  if (!config) return undefined
  const { host, port, tokenFile, callbackHosts } = config
  return { host, port, callbackHosts, token: await adminToken(tokenFile) }
}

/** One listener for each engine that is not off; one that does not load is left out, and said so. */
async function listenersOf({ listen }: GatewayConfig, log: Log): Promise<{ engine: Engine; host: string; port: number }[]> {
  const { GodwitError } = await import('../wire/errors.ts')
  const listeners: { engine: Engine; host: string; port: number }[] = []
  for (const engine of await loadEngines()) {
    const port = engine.name === 'memory' ? 'off' : listen.ports[engine.name]
    if (port === 'off') continue
    const found = await engine.available()
    if (found.ok) listeners.push({ engine, host: listen.host, port })
    else log.warn('a transport engine does not load', { engine: engine.name, reason: found.reason })
  }
  if (listeners.length === 0)
    throw new GodwitError('ENGINE_UNAVAILABLE', 'no transport engine to listen with', { hint: 'see godwit doctor' })
  return listeners
}

/** The admin token, made at the first start: 256 random bits in hex, 0600. */
export async function adminToken(path: string): Promise<string> {
  if (!(await exists(path))) await writeFileSafely(path, `${randomBytes(32).toString('hex')}\n`)
  return (await readSecret(path)).trim()
}

/** All engines that a network can carry. None is loaded before its available(). */
export async function loadEngines(): Promise<Engine[]> {
  const { createEngines } = await import('../transport/select.ts')
  return createEngines()
}

export type EnrolSite = {
  config: NodeConfig
  token: string
  request: Uint8Array
  rootPublic: Uint8Array
  onPending: () => void
  signal: AbortSignal
}

/** Asks the gateway for this site's certificate until the operator has approved it. */
export async function enrolSite({ config, ...rest }: EnrolSite): Promise<{ bytes: Uint8Array }> {
  const [{ enrol }, { dialGateway }] = await Promise.all([import('../edge-node/link/enrol.ts'), import('../edge-node/dial.ts')])
  const engines = await loadEngines()
  return await enrol({ ...rest, dial: ({ signal }) => dialGateway(config, engines, signal) })
}

/** The node, until close(). Its VMs go on. */
export async function runNode(config: NodeConfig, write: Write): Promise<Running & { broken: Promise<GodwitError> }> {
  markInOneGo()
  const log = (await logFor(config.log, write)).child({ site: config.site })
  const { startNode } = await import('../edge-node/agent.ts')
  const { promise: broken, resolve: onBroken } = Promise.withResolvers<GodwitError>()
  const { close } = await startNode({ config, engines: await loadEngines(), version, log, onBroken })
  return { close, broken }
}
