// Where the command line meets the rooms it starts: gateway, node, transport engines. Each is loaded when first needed.
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import type { NodeConfig } from '../edge-node/config.ts'
import type { GatewayConfig } from '../gateway/config.ts'
import { exists, readSecret, writeFileSafely } from '../ops/files.ts'
import type { Connection, Engine, EngineName, Selection } from '../transport/types.ts'
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
  const store = await openStore(join(config.stateDir, 'store'), { log })
  try {
    const gateway = await startGateway({
      identity: { keys, certificate },
      rootPublic,
      ...(revocations === undefined ? {} : { revocations: () => revocations }),
      version,
      listen,
      admin: { host: config.admin.host, port: config.admin.port, token },
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

/** All engines a network can carry, in the order `auto` prefers them. None is loaded before its available(). */
export async function loadEngines(): Promise<Engine[]> {
  const [{ createQuicEngine }, { createTlsEngine }, { createWebTransportEngine }] = await Promise.all([
    import('../transport/quic.ts'),
    import('../transport/tls.ts'),
    import('../transport/webtransport.ts'),
  ])
  return [createQuicEngine(), createTlsEngine(), createWebTransportEngine()]
}

/** Asks the gateway for this site's certificate until the operator has approved it. */
export async function enrolSite(o: {
  config: NodeConfig
  token: string
  request: Uint8Array
  rootPublic: Uint8Array
  onPending: () => void
  signal: AbortSignal
}): Promise<{ bytes: Uint8Array }> {
  const { enrol } = await import('../edge-node/link/enrol.ts')
  const { config, ...rest } = o
  return await enrol({ ...rest, dial: ({ signal }) => dialGateway(config, signal) })
}

async function dialGateway(
  { gateway, transport }: NodeConfig,
  signal: AbortSignal,
): Promise<{ connection: Connection; selection: Selection }> {
  const { GodwitError } = await import('../wire/errors.ts')
  const tried: Selection['tried'] = []
  for (const engine of await loadEngines()) {
    const port = gateway.ports[engine.name as Exclude<EngineName, 'memory'>]
    if (port === 'off' || (transport !== 'auto' && transport !== engine.name)) continue
    const startMs = performance.now()
    try {
      const connection = await engine.connect({ host: gateway.host, port, timeoutMs: 5000, signal })
      return { connection, selection: { engine: engine.name, tried } }
    } catch (error) {
      tried.push({
        engine: engine.name,
        outcome: error instanceof Error ? error.message : String(error),
        tookMs: performance.now() - startMs,
      })
    }
  }
  throw new GodwitError(
    'CONNECT_FAILED',
    `gateway ${gateway.host}: ${tried.map(({ engine, outcome }) => `${engine}: ${outcome}`).join('; ') || 'no engine to try'}`,
  )
}

/** The node, until close(). The agent reads its identity and connects by itself. */
export async function runNode(config: NodeConfig, write: Write): Promise<Running> {
  const log = (await logFor(config.log, write)).child({ site: config.site })
  const agent = '../edge-node/agent.ts'
  const { startNode } = (await import(agent)) as typeof import('../edge-node/agent.ts')
  return await startNode({ config, engines: await loadEngines(), version, log })
}
