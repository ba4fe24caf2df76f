// Bodies of HTTP requests: the gateway's admin API, its MEC 021 front, the node's API (whose VM specification is YAML).
// They are read like in ops/http.ts and passed to the code behind the routes.
import { concatBytes } from '../../crypto/bytes.ts'
import { nodeRoutes } from '../../edge-node/api.ts'
import { parseSpec, specToYaml } from '../../edge-node/vm/spec.ts'
import { Mec021 } from '../../gateway/fronts/mec021/mec021.ts'
import type { RequestContext } from '../../ops/http.ts'
import { EnrolmentUpload, MigrationRequest, PinRequest, TokenRequest } from '../../wire/admin.ts'
import { check, parseJson, type z } from '../../wire/schema.ts'
import { demand, type Target } from '../target.ts'

const ADMIN: readonly z.ZodType[] = [MigrationRequest, PinRequest, TokenRequest, EnrolmentUpload]
const mec = () => new Mec021({ clock: { now: () => 1_800_000_000_000 }, base: () => 'http://gw/amsi/v1', callbackHosts: ['127.0.0.1'] })

/** The node's routes, with a registry that only reads the specification. */
const registry = {
  async create(text: string) {
    const spec = parseSpec(text)
    demand(specToYaml(parseSpec(specToYaml(spec))) === specToYaml(spec), 'a specification reads otherwise the second time')
    return {}
  },
  start: async () => ({}),
  stop: async () => ({}),
}
const { routes } = nodeRoutes({ registry, describe: async () => ({}) } as never)
const posts = ['/v1/vms', '/v1/vms/:name/start', '/v1/vms/:name/stop'].map(
  path => routes.find(route => route.method === 'POST' && route.path === path)!,
)

const CLIENT = { name: 'fuzz', isOperator: false }

const KINDS: readonly ((body: unknown) => unknown)[] = [
  ...ADMIN.map(schema => (body: unknown) => check(schema, body, { what: 'body', code: 'CONFIG_INVALID' })),
  body => {
    const service = mec()
    const made = service.register(CLIENT, body) as { appMobilityServiceId: string }
    JSON.stringify(service.update(CLIENT, made.appMobilityServiceId, body))
  },
  body => JSON.stringify(mec().subscribe(CLIENT, body)),
  ...posts.map(
    route => (body: unknown) => route.handle({ params: { name: 'web-1' }, json: async () => body } as unknown as RequestContext),
  ),
]

const seed = (kind: number, body: unknown) => concatBytes(Uint8Array.of(kind), Buffer.from(JSON.stringify(body)))
const associateId = { type: 1, value: '10.1.0.7' }
const NODE = ADMIN.length + 2

export const bodies: Target = {
  name: 'bodies',
  what: 'wire/admin.ts, gateway/fronts/mec021/mec021.ts, edge-node/api.ts, vm/spec.ts: bodies of HTTP requests',
  codes: ['CONFIG_INVALID', 'FRAME_MALFORMED', 'VM_SPEC_INVALID', 'NOT_AVAILABLE', 'LIMIT_EXCEEDED'],
  testRuns: 1500,
  // The YAML library needs about 550 bytes for each bracket of a specification; specifications have at most 256 KiB,
  // and come from root of this host.
  memoryBytes: 32 * 1024 * 1024,
  bytesMax: 8192,
  jsonAt: 1,
  words: ['name: ', 'memory: 64MiB', '- &a [*a]', '<<: *a', '!!js/function', '"spec"', '127.0.0.1', 'http://', '\\u0000'],
  seeds: () => [
    seed(0, { vm: 'web-1', to: 'bergen', method: 'live', downtimeMs: 300, streams: 4 }),
    seed(1, { pinned: true }),
    seed(2, { site: 'oslo' }),
    seed(3, { certificate: 'AAAA' }),
    seed(4, {
      serviceConsumerId: { appInstanceId: 'vm-1' },
      deviceInformation: [{ associateId, appMobilityServiceLevel: 3 }],
      expiryTime: 60,
    }),
    seed(5, {
      subscriptionType: 'MobilityProcedureSubscription',
      callbackReference: 'http://127.0.0.1:9/callback',
      filterCriteria: { appInstanceId: 'vm-1', associateId: [associateId], mobilityStatus: [1, 2] },
    }),
    seed(NODE, { spec: 'name: web-1\nmemory: 64MiB\nkernel: vmlinuz\nnics: [{type: user}]\nservices: [{name: http, port: 80}]\n' }),
    seed(NODE, { spec: 'name: x\nvcpus: 2\nmemory: 1GiB\ndisks:\n  - {file: a.img, mode: readonly, format: raw}\npolicy: {a: [1]}\n' }),
    seed(NODE + 1, { force: true }),
    seed(NODE + 2, { force: false, timeoutMs: 10 }),
  ],
  hostile: () => ({
    'a billion laughs': seed(NODE, {
      spec: `name: &a0 lol\n${Array.from({ length: 12 }, (_, i) => `k${i}: &a${i + 1} [${Array(10).fill(`*a${i}`).join(', ')}]`).join('\n')}\n`,
    }),
    'deep YAML': seed(NODE, { spec: '['.repeat(30_000) }),
    'deep JSON': concatBytes(Uint8Array.of(NODE), Buffer.from(`{"spec":${'['.repeat(100_000)}`)),
  }),
  async run(input) {
    const kind = KINDS[(input[0] ?? 0) % KINDS.length]!
    await kind(parseJson(input.subarray(1), { what: 'body', code: 'CONFIG_INVALID' }))
  },
}
