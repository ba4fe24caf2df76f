// A gateway and nodes in one process over the memory engine, with certificates of a fresh root. Not a test itself.

import { createRoot, decodeCertificate, issueCertificate, newSerial, type Root, type SubjectRole } from '../../crypto/certificate.ts'
import { generateSiteKeys, loadSodium, type SiteKeys } from '../../crypto/identity.ts'
import type { LinkIdentity } from '../../crypto/link-auth.ts'
import { connectLink, type Dial, type Link, type LinkHandlers, type LinkOptions } from '../../edge-node/link/link.ts'
import { type Gateway, type GatewayOptions, startGateway } from '../../gateway/gateway.ts'
import { nowSeconds } from '../../ops/clock.ts'
import { eventually } from '../../ops/deadline.ts'
import { type JsonRequest, requestJson } from '../../ops/http-client.ts'
import { openStore } from '../../ops/store.ts'
import { createMemoryEngine, type MemoryEngine } from '../../transport/memory.ts'
import type { Engine, Stream } from '../../transport/types.ts'
import type { MigrationRecord } from '../../wire/admin.ts'
import type {
  CancelParams,
  HoldParams,
  HostFacts,
  Join,
  PrepareParams,
  ReleaseParams,
  SiteState,
  StartParams,
  VmFacts,
} from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { createApiChecker, readDocument } from '../support/openapi-checker.ts'
import { tempFolder } from '../support/temp-folder.ts'

await loadSodium()

export const TOKEN = 'a-test-token'
const checker = createApiChecker(readDocument('openapi-gateway.json'))
export const NOW_SECONDS = nowSeconds()
const host: HostFacts = { accelerators: ['tcg'], memoryFreeBytes: 1e9, diskFreeBytes: 1e9, vcpus: 2 }

export function identityOf(
  root: Root,
  role: SubjectRole,
  id: string,
  {
    notBefore = NOW_SECONDS - 7200,
    notAfter = NOW_SECONDS + 7200,
    keys = generateSiteKeys(),
  }: { notBefore?: number; notAfter?: number; keys?: SiteKeys } = {},
): LinkIdentity {
  const { signPublic, boxPublic } = keys
  return { keys, certificate: issueCertificate(root, { role, id, signPublic, boxPublic, notBefore, notAfter, serial: newSerial() }) }
}

export const vm = (name: string, more: Partial<VmFacts> = {}): VmFacts => ({
  name,
  state: 'running',
  epoch: 1,
  memoryBytes: 1 << 20,
  vcpus: 1,
  ...more,
})

/** A node whose handlers only write down what they were told; a test changes `vms`, `migrations` and the handlers. */
export type TestNode = {
  link: Link
  vms: VmFacts[]
  migrations: string[]
  /** What else it says of itself. */
  says: Pick<SiteState, 'handovers' | 'moved' | 'fencings'>
  prepared: PrepareParams[]
  started: StartParams[]
  cancelled: CancelParams[]
  held: HoldParams[]
  released: ReleaseParams[]
  handlers: LinkHandlers & Required<Pick<LinkHandlers, 'needs' | 'hold' | 'release' | 'predict'>>
  streams: { join: Join; stream: Stream }[]
  announce(): void
}

type NodeOptions = Partial<LinkOptions> & { vms?: VmFacts[]; migrations?: string[] }

export type World = {
  root: Root
  engine: MemoryEngine
  gateway: Gateway
  /** Of the gateway's certificate. */
  gatewaySerial: string
  port: number
  dial: Dial
  node(site: string, options?: NodeOptions): Promise<TestNode>
  api<T>(method: string, path: string, body?: unknown, more?: Partial<JsonRequest>): Promise<T>
  until(migrationId: string, good: (record: MigrationRecord) => boolean): Promise<MigrationRecord>
  restart(): Promise<void>
  stop(): Promise<void>
} & AsyncDisposable

export const dialTo =
  (engine: Engine, port: number): Dial =>
  async ({ signal }) => ({
    connection: await engine.connect({ host: '127.0.0.1', port, signal }),
    selection: { engine: engine.name, tried: [] },
  })

/** Starts a gateway; everything it and its nodes opened is closed with it. */
export async function world(options: Partial<GatewayOptions> & { carrier?: Engine; root?: Root } = {}): Promise<World> {
  const folder = await tempFolder()
  const root = options.root ?? createRoot()
  const memory = createMemoryEngine()
  const engine = options.carrier ?? memory
  const identity = identityOf(root, 'gateway', 'gw')
  const links: Link[] = []
  let port = 0
  let store: Awaited<ReturnType<typeof openStore>>
  let gateway: Gateway
  const start = async () => {
    store = await openStore(folder.path)
    gateway = await startGateway({
      identity,
      rootPublic: root.signPublic,
      version: 'test',
      listen: [{ engine, host: '127.0.0.1', port }],
      admin: { host: '127.0.0.1', port: 0, token: TOKEN },
      store,
      log: silentLog,
      graceMs: 30,
      ...options,
    })
    port = gateway.listeners[0]?.port ?? 0
  }
  const stop = async () => {
    await gateway.close()
    await store.close()
  }
  await start()
  const dial: Dial = options => dialTo(engine, port)(options)
  // Every answer and every error is what docs/reference/openapi-gateway.json says.
  const api = async <T>(method: string, path: string, body?: unknown, more: Partial<JsonRequest> = {}) => {
    try {
      const answer = await requestJson<T>({ url: gateway.adminUrl, token: TOKEN, method, path, body, timeoutMs: 5_000, ...more })
      checker.answer(method, path, answer)
      return answer
    } catch (error) {
      if (error instanceof GodwitError && error.code !== 'GATEWAY_UNREACHABLE') checker.error(method, path, error.code)
      throw error
    }
  }

  return {
    root,
    engine: memory,
    gatewaySerial: decodeCertificate(identity.certificate).serial,
    get gateway() {
      return gateway
    },
    get port() {
      return port
    },
    dial,
    api,
    async node(site, options = {}) {
      const node = connectNode(root, dial, site, options)
      links.push(node.link)
      await node.link.whenOnline({ timeoutMs: 5_000 })
      return node
    },
    until: (migrationId, good) =>
      eventually(
        async () => {
          const record = await api<MigrationRecord>('GET', `/v1/migrations/${migrationId}`)
          return good(record) ? record : undefined
        },
        { ms: 5_000, everyMs: 10, what: `migration ${migrationId}` },
      ),
    async restart() {
      await stop()
      await start()
    },
    stop,
    async [Symbol.asyncDispose]() {
      await Promise.all(links.map(link => link.close()))
      await stop().catch(() => {})
      await folder[Symbol.asyncDispose]()
    },
  }
}

function connectNode(root: Root, dial: Dial, site: string, { vms = [], migrations = [], ...more }: NodeOptions): TestNode {
  const node = createNode(vms, migrations)
  node.link = connectLink({
    dial,
    identity: identityOf(root, 'site', site),
    rootPublic: root.signPublic,
    site,
    version: 'test',
    describe: async () => ({ host, vms: node.vms, migrations: node.migrations, ...node.says }),
    handlers: {
      prepare: params => node.handlers.prepare(params),
      start: params => node.handlers.start(params),
      cancel: params => node.handlers.cancel(params),
      needs: params => node.handlers.needs(params),
      predict: params => node.handlers.predict(params),
      hold: params => node.handlers.hold(params),
      release: params => node.handlers.release(params),
    },
    onRelayStream: (join, stream) => node.streams.push({ join, stream }),
    backoff: { firstMs: 10, maxMs: 50 },
    log: silentLog,
    ...more,
  })
  return node
}

function createNode(vms: VmFacts[], migrations: string[]): TestNode {
  const node: TestNode = {
    link: undefined as unknown as Link,
    vms,
    migrations,
    says: {},
    prepared: [],
    started: [],
    cancelled: [],
    held: [],
    released: [],
    streams: [],
    handlers: {
      async prepare(params) {
        node.prepared.push(params)
      },
      async start(params) {
        node.started.push(params)
      },
      async cancel(params) {
        node.cancelled.push(params)
      },
      predict: async ({ vm: name, target }) => ({ vm: name, target, methods: [], recommended: 'live', reason: 'a test' }),
      needs: async () => ({ needs: 'c2VhbGVk' }),
      async hold(params) {
        node.held.push(params)
        return { memoryBytes: 1 << 20 }
      },
      async release(params) {
        node.released.push(params)
      },
    },
    announce: () => node.link.announce(),
  }
  return node
}

/** A report with nothing in it, for results. */
export const emptyReport = (migrationId: string) => ({
  migrationId,
  vm: 'vm-1',
  source: 'a',
  target: 'b',
  method: 'live' as const,
  outcome: 'completed' as const,
  startedAt: 1,
  totalMs: 2,
  downtimeMs: null,
  downtimeParts: { finalPagesMs: 1, deviceStateMs: null, loadMs: null, commitMs: null, resumeMs: null },
  guestBytes: 1,
  pagesZero: 0,
  pagesDuplicate: 0,
  pagesUnchanged: 0,
  pagesCompressed: 0,
  pagesRaw: 0,
  bytesZero: 0,
  bytesDuplicate: 0,
  bytesUnchanged: 0,
  bytesCompressed: 0,
  bytesRaw: 0,
  wireBytes: 1,
  ratio: 1,
  rounds: 1,
  transport: 'memory',
  streams: 1,
  notes: [],
})
