// A whole Godwit for end-to-end tests: a root, a gateway, and sites with real agents and real QEMUs, in this process or
// in processes of their own.
// Enters: an engine by name, names of sites. Leaves: a running lab. Always holds: when it is disposed, every QEMU of
// its folders is dead and the folders are gone, also after kill -9 of an agent; every wait has a deadline, and one that
// passes shows the end of the lab's log; no secret of the lab stands in a log, an answer or a command line
// (secrets.ts), or the lab's end is an error.
import { execFileSync } from 'node:child_process'
import { createWriteStream } from 'node:fs'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createRoot, type Root } from '../../crypto/certificate.ts'
import { encodeKeys } from '../../crypto/identity.ts'
import { killLeftover } from '../../edge-node/vm/runtime-folder.ts'
import { type Gateway, type GatewayOptions, startGateway } from '../../gateway/gateway.ts'
import type { RelayOptions } from '../../gateway/relay/relay.ts'
import type { ServiceAddress } from '../../gateway/services/services.ts'
import { openTrust } from '../../identity/trust.ts'
import { eventually } from '../../ops/deadline.ts'
import { exists } from '../../ops/files.ts'
import { type HttpTarget, type JsonRequest, requestJson, requestText } from '../../ops/http-client.ts'
import { createLog } from '../../ops/log.ts'
import { openStore } from '../../ops/store.ts'
import { createMemoryEngine } from '../../transport/memory.ts'
import { createEngines } from '../../transport/select.ts'
import type { Engine, EngineName } from '../../transport/types.ts'
import type { MigrationRecord, MigrationRequest } from '../../wire/admin.ts'
import type { Log } from '../../wire/log.ts'
import { identityOf } from '../gateway/fixture.ts'
import { guestMissing } from './guest.ts'
import { createSite, type LabSite, type SiteOptions } from './lab-site.ts'
import { measureForGood } from './qemu-abilities.ts'
import { listFileOf } from './revocations.ts'
import { checkSecrets, commandLines, type Secret, type Text } from './secrets.ts'
import { tempFolder } from './temp-folder.ts'
import { createValve, type Valve } from './valve.ts'

export type { LabSite } from './lab-site.ts'

export const GATEWAY_ID = 'gateway'
export const TOKEN = 'lab-token-0123456789abcdef'
const QEMU_MAJOR_MIN = 9
const MIGRATION_MS = 90_000
const LOG_LINES_MAX = 400

const ABILITIES_CACHE = fileURLToPath(new URL('../../.cache/test-qemu-abilities.json', import.meta.url))

/** Why no lab can run here (for `skip`), or undefined. */
export function labMissing(): string | undefined {
  const missing = guestMissing()
  if (missing) return missing
  const text = execFileSync('qemu-system-x86_64', ['--version'], { encoding: 'utf8', timeout: 10_000 })
  const major = Number(/version ([0-9]+)/.exec(text)?.[1] ?? 0)
  return major >= QEMU_MAJOR_MIN ? undefined : `QEMU ${major} is installed, ${QEMU_MAJOR_MIN} is needed: run node scripts/setup.js`
}

export type LabOptions = {
  /** `memory` (default) carries bytes inside this process only. */
  engine?: EngineName
  sites?: (string | [name: string, options: SiteOptions])[]
  /** See gateway/relay/relay.ts. */
  tap?: RelayOptions['tap']
  /** See gateway/services. */
  services?: ServiceAddress[]
  /** Stands between the gateway and its connections (hostile-relay.ts). */
  wrap?: (engine: Engine) => Engine
  /** Further options of the gateway. */
  gateway?: Partial<GatewayOptions>
  /** Another way to keep a gateway (a process of its own); the valve and `lab.gateway` are not for it. */
  keeper?: (place: { dir: string; root: Root; token: string }) => Promise<GatewayKeeper>
}

export type GatewayKeeper = {
  /** Throws where the gateway is none of this process. */
  gateway(): Gateway
  readonly relayPort: number
  readonly adminUrl: string
  start(): Promise<void>
  stop(): Promise<void>
}

export type Lab = AsyncDisposable & {
  readonly dir: string
  readonly root: Root
  readonly gateway: Gateway
  readonly valve: Valve
  /** Where nodes find the gateway. */
  readonly door: { engine: Engine; port: number }
  /** Where `godwit` finds it. */
  readonly target: HttpTarget & { tokenFile: string }
  site(name: string): LabSite
  sites(): LabSite[]
  addSite(name: string, options?: SiteOptions): Promise<LabSite>
  api<T>(method: string, path: string, body?: unknown, more?: Partial<JsonRequest>): Promise<T>
  /** Asks for a migration; gives its id. */
  begin(request: MigrationRequest): Promise<string>
  /** The record when `good` first holds for it; the end of it unless told. */
  until(migrationId: string, good?: (record: MigrationRecord) => boolean, ms?: number): Promise<MigrationRecord>
  /** From begin to end. */
  migrate(request: MigrationRequest): Promise<MigrationRecord>
  stopGateway(): Promise<void>
  startGateway(): Promise<void>
  /** Loses all connections at once (memory engine only). */
  sever(): void
  logTail(): string
}

export const isEnded = ({ outcome }: MigrationRecord): boolean => outcome !== null

/** What QEMU can do here takes seconds to measure where /dev/kvm hangs, and does not change while the host is up. */
export async function abilitiesText(): Promise<string> {
  await measureForGood(ABILITIES_CACHE)
  return readFile(ABILITIES_CACHE, 'utf8')
}

function engineOf(name: EngineName): { gateway: Engine; node: Engine; port: 'quic' | 'tls' | 'webtransport'; sever(): void } {
  if (name !== 'memory') {
    const engine = createEngines().find(candidate => candidate.name === name)!
    const sever = () => {
      throw new TypeError('only the memory engine can be severed')
    }
    return { gateway: engine, node: engine, port: name, sever }
  }
  const memory = createMemoryEngine()
  // A node's configuration knows no memory engine: it passes under the name of another.
  return { gateway: memory, node: { ...memory, name: 'quic' }, port: 'quic', sever: () => memory.sever() }
}

export async function openLab({ engine = 'memory', sites = ['a', 'b'], ...options }: LabOptions = {}): Promise<Lab> {
  const folder = await tempFolder()
  const dir = folder.path
  const root = createRoot()
  const carrier = engineOf(engine)
  const valve = createValve()
  const lines: string[] = []
  const all = new Map<string, LabSite>()
  const file = createWriteStream(join(dir, 'lab.log'))
  const write = (line: string) => {
    file.write(line)
    // The end of it is for people: debug lines would push out what they look for.
    if (line.slice(13, 18) !== 'debug') void (lines.push(line) > LOG_LINES_MAX && lines.shift())
  }
  const log = createLog({ format: 'text', level: 'debug', write })
  const logTail = () => lines.slice(-60).join('')
  const abilities = await abilitiesText()
  const tokenFile = join(dir, 'admin.token')
  await writeFile(tokenFile, TOKEN, { mode: 0o600 })
  const { tap, services, gateway: more, wrap = (same: Engine) => same } = options
  const keeper = options.keeper
    ? await options.keeper({ dir, root, token: TOKEN })
    : createGatewayKeeper({ dir, root, engine: wrap(valve.wrap(carrier.gateway)), log, more: { tap, services, ...more } })

  const lab: Lab = {
    ...{ dir, root, valve, logTail, sever: carrier.sever },
    get gateway() {
      return keeper.gateway()
    },
    get door() {
      return { engine: carrier.node, port: keeper.relayPort }
    },
    get target() {
      return { url: keeper.adminUrl, token: TOKEN, tokenFile }
    },
    site: name => all.get(name)!,
    sites: () => [...all.values()],
    async addSite(name, options = {}) {
      const own = { name, dir: join(dir, name), root, abilities, engine: carrier.node, port: carrier.port, gatewayPort: lab.door.port, log }
      const site = await createSite(own, options)
      all.set(name, site)
      if (options.isStopped !== true) await site.start()
      return site
    },
    api: (method, path, body, more = {}) => requestJson({ ...lab.target, method, path, body, timeoutMs: 10_000, ...more }),
    begin: async request => (await lab.api<{ migrationId: string }>('POST', '/v1/migrations', request)).migrationId,
    async until(migrationId, good = isEnded, ms = MIGRATION_MS) {
      const look = async () => {
        const record = await lab.api<MigrationRecord>('GET', `/v1/migrations/${migrationId}`)
        if (good(record)) return record
        if (isEnded(record)) throw new Error(`migration ${migrationId} has ended, with ${JSON.stringify(record)}`)
        return undefined
      }
      return await eventually(look, { ms, everyMs: 10, what: `migration ${migrationId}` }).catch(error => {
        throw new Error(`${error.message}; the log:\n${logTail()}`)
      })
    },
    migrate: async request => await lab.until(await lab.begin(request)),
    stopGateway: keeper.stop,
    startGateway: keeper.start,
    async [Symbol.asyncDispose]() {
      valve.open()
      const texts = [...(await answersOf(lab.target, [...all.values()])), ...(await commandLines(dir))]
      await Promise.all([...all.values()].map(site => site.stop().catch(() => {})))
      await keeper.stop().catch(() => {})
      await Promise.all([...all.keys()].map(name => killAll(join(dir, name))))
      await new Promise<void>(resolve => file.end(() => resolve()))
      try {
        await checkSecrets(dir, { secrets: [secretOfRoot(root)], texts })
      } finally {
        await folder[Symbol.asyncDispose]()
      }
    },
  }
  try {
    await keeper.start()
    for (const site of sites) await (typeof site === 'string' ? lab.addSite(site) : lab.addSite(...site))
    return lab
  } catch (error) {
    await lab[Symbol.asyncDispose]()
    throw error
  }
}

type KeeperOptions = { dir: string; root: Root; engine: Engine; more: Partial<GatewayOptions>; log: Log }

/**
 * A closed QUIC listener keeps its port until its last handshake has ended, the idle timeout of 15 s at most
 * (transport/quic.ts). A gateway that is stopped and started within one process finds it in use where a client was
 * connecting; one that is a process of its own never does.
 */
const PORT_HELD_MS = 30_000
const isPortHeld = (error: unknown): boolean => error instanceof Error && /in use/i.test(error.message)

/** A gateway that can be stopped and started again on the same port, with the same store and identity. */
function createGatewayKeeper({ dir, root, engine, more, log }: KeeperOptions): GatewayKeeper {
  const identity = identityOf(root, 'gateway', GATEWAY_ID)
  const keys = writeFile(join(dir, 'gateway.keys'), encodeKeys(identity.keys), { mode: 0o600 })
  let running: { gateway: Gateway; stop(): Promise<void> } | undefined
  const ports = { relay: 0, admin: 0 }
  const gateway = () => {
    if (!running) throw new Error('the gateway of the lab is stopped')
    return running.gateway
  }
  return {
    gateway,
    get relayPort() {
      return ports.relay
    },
    /** Also while the gateway is stopped: who asks then is refused. */
    get adminUrl() {
      return `http://127.0.0.1:${ports.admin}`
    },
    async start() {
      await keys
      const store = await openStore(join(dir, 'gateway-store'))
      const file = join(dir, 'revocations')
      if (!(await exists(file))) await writeFile(file, listFileOf(root))
      const trust = await openTrust({ rootPublic: root.signPublic, file, store, log, lookEveryMs: 200 })
      const starting = () =>
        startGateway({
          identity,
          rootPublic: root.signPublic,
          trust,
          version: 'lab',
          listen: [{ engine, host: '127.0.0.1', port: ports.relay }],
          admin: { host: '127.0.0.1', port: ports.admin, token: TOKEN },
          store,
          ...more,
          log: log.child({ who: 'gateway' }),
        }).catch(error => (ports.relay !== 0 && isPortHeld(error) ? undefined : Promise.reject(error)))
      const gateway = await eventually(starting, { ms: PORT_HELD_MS, everyMs: 200, what: `UDP port ${ports.relay} free again` }).catch(
        async error => {
          await trust.close()
          await store.close()
          throw error
        },
      )
      ports.relay = gateway.listeners[0]!.port
      ports.admin = Number(new URL(gateway.adminUrl).port)
      const stop = async () => {
        await gateway.close()
        await trust.close()
        await store.close()
      }
      running = { gateway, stop }
    },
    async stop() {
      const last = running
      running = undefined
      await last?.stop()
    },
  }
}

/** libsodium keeps the public half behind the seed. */
export const secretOfRoot = (root: Root): Secret => ({ name: 'the secret of the root', value: root.signSecret.subarray(0, 32) })

/** What the gateway and the nodes tell whoever may ask. */
export async function answersOf(target: HttpTarget, sites: LabSite[]): Promise<Text[]> {
  const ask = async (where: string, options: HttpTarget, path: string): Promise<Text> => {
    const text = await requestText({ ...options, path, timeoutMs: 5_000 }).catch(() => '')
    return { where: `${path} of ${where}`, text }
  }
  const gateway = ['/metrics', '/v1/status', '/v1/migrations', '/v1/enrolments'].map(path => ask('the gateway', target, path))
  const nodes = sites.flatMap(({ name, socketPath }) =>
    ['/metrics', '/v1/host', '/v1/vms'].map(path => ask(`node ${name}`, { socketPath }, path)),
  )
  return await Promise.all([...gateway, ...nodes])
}

/** Kills every QEMU that a site's folder knows of. */
async function killAll(siteDir: string): Promise<void> {
  const vms = join(siteDir, 'state', 'vms')
  for (const name of await readdir(vms).catch(() => [])) await killLeftover(join(vms, name))
}
