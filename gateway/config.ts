// The schema of the gateway's configuration, after file, environment and flags are merged (cli/config.ts). No IO.
import { isLoopback, TLS_NEEDED } from '../ops/loopback.ts'
import { Id } from '../wire/control.ts'
import { z } from '../wire/schema.ts'
import { parseCallbackHost } from './fronts/mec021/callback-hosts.ts'
import { MqttConfig, mqttDefaults } from './fronts/mqtt/config.ts'
import { PolicyConfig } from './policy/config.ts'

const host = z.string({ error: 'must be a host name or address' }).trim().regex(/^\S+$/, 'must be a host name or address')
const path = z.string({ error: 'must be a path' }).min(1, 'must be a path')
const isPort = (value: unknown): value is number => Number.isInteger(value) && Number(value) >= 0 && Number(value) <= 65_535
const port = z.custom<number>(isPort, 'must be a port from 0 to 65535')
/** `host:port`, `[host]:port` for IPv6; port 0: any free port. */
const address = z.string().transform((text, context) => {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:\s]+)):([0-9]{1,5})$/.exec(text)
  const host = match?.[1] ?? match?.[2]
  if (host !== undefined && isPort(Number(match?.[3]))) return { host, port: Number(match?.[3]) }
  context.addIssue({ code: 'custom', message: 'must be host:port, such as 0.0.0.0:8080' })
  return z.NEVER
})
/** `off`: this engine does not listen. 0: any free port. */
const listenPort = z.custom<number | 'off'>(value => value === 'off' || isPort(value), 'must be a port from 0 to 65535, or off')

const tlsFiles = z.strictObject({ certificate: path, key: path })
const callbackHost = z
  .string()
  .refine(text => parseCallbackHost(text) !== undefined, 'must be a host or host:port, such as app.example:8080')

/** Tokens must be encrypted on the network. */
function needsTls({ host, tls }: { host: string; tls?: object | undefined }, context: z.RefinementCtx): void {
  if (!tls && !isLoopback(host)) context.addIssue({ code: 'custom', path: ['host'], message: `is ${host}: ${TLS_NEEDED}` })
}

export const GatewayConfig = z.strictObject({
  /** Name in the gateway's certificate; nodes check it. */
  id: Id,
  stateDir: path,
  listen: z.strictObject({
    host,
    ports: z.strictObject({ quic: listenPort, tls: listenPort, webtransport: listenPort }),
  }),
  /** With tls: HTTPS. Its files are checked every 10 s. */
  admin: z.strictObject({ host, port, tokenFile: path, tls: tlsFiles.optional() }).superRefine(needsTls),
  identity: z.strictObject({ keys: path, certificate: path, root: path }),
  /**
   * File with the root's signed revocation list. It is read again after a change, and sent to the nodes; without a list
   * no migration begins.
   */
  revocations: path,
  mqtt: MqttConfig,
  /** Policy that moves VMs after their users; absent: VMs move only by command. */
  policy: PolicyConfig.optional(),
  /**
   * Stable addresses: a connection to `listen` reaches the service of the VM, wherever it runs. Not encrypted by Godwit
   * between user and VM.
   */
  services: z.array(z.strictObject({ vm: Id, service: Id, listen: address })).max(256),
  /** The ETSI MEC 021 front; absent: off. */
  mec021: z
    .strictObject({
      host,
      port,
      /** The operator's token: reads and changes all registrations. */
      tokenFile: path,
      /** Applications with their own tokens; each one sees its own registrations. vms: allowed VMs; absent: any. */
      clients: z.record(Id, z.strictObject({ tokenFile: path, vms: z.array(Id).max(1024).optional() })).default({}),
      callbackHosts: z.array(callbackHost).max(256),
      tls: tlsFiles.optional(),
    })
    .superRefine(needsTls)
    .optional(),
  limits: z
    .strictObject({
      /** Limits of unauthenticated connections, in total and from one address (an IPv6 /64). */
      strangers: z.int().min(8).max(65_536),
      strangersPerAddress: z.int().min(4).max(65_536),
    })
    .optional(),
  log: z.strictObject({ level: z.enum(['debug', 'info', 'warn', 'error']), format: z.enum(['json', 'text']) }),
})
export type GatewayConfig = z.output<typeof GatewayConfig>

/** The same number for UDP (quic) and TCP (tls); webtransport needs its own for both. */
const DEFAULT_PORTS = { quic: 7443, tls: 7443, webtransport: 7444 }
const DEFAULT_ADMIN_PORT = 7445

/** Defaults of fields that the file may omit. */
export const gatewayDefaults = ({ configDir, stateDir }: { configDir: string; stateDir: string }) => ({
  id: 'gateway',
  stateDir: `${stateDir}/gateway`,
  listen: { host: '0.0.0.0', ports: { ...DEFAULT_PORTS } },
  admin: { host: '127.0.0.1', port: DEFAULT_ADMIN_PORT, tokenFile: `${stateDir}/gateway/admin.token` },
  identity: { keys: `${configDir}/gateway.keys`, certificate: `${configDir}/gateway.cert`, root: `${configDir}/root.pub` },
  revocations: `${configDir}/revocations`,
  services: [],
  mqtt: mqttDefaults,
  limits: { strangers: 1024, strangersPerAddress: 256 },
  log: { level: 'info', format: 'json' },
})
