// The gateway's configuration as it must be once file, environment and flags are merged (cli/config.ts does that). No IO here.
import { Id } from '../wire/control.ts'
import { z } from '../wire/schema.ts'
import { MqttConfig, mqttDefaults } from './control/mqtt/config.ts'
import { PolicyConfig } from './policy/config.ts'

const path = z.string({ error: 'must be a path' }).min(1, 'must be a path')
const isPort = (value: unknown): value is number => Number.isInteger(value) && Number(value) >= 0 && Number(value) <= 65_535
const port = z.custom<number>(isPort, 'must be a port from 0 to 65535')
/** `host:port`, `[host]:port` for IPv6; port 0: any free one. */
const address = z.string().transform((text, context) => {
  const match = /^(?:\[([0-9a-fA-F:]+)\]|([^:\s]+)):([0-9]{1,5})$/.exec(text)
  const host = match?.[1] ?? match?.[2]
  if (host !== undefined && isPort(Number(match?.[3]))) return { host, port: Number(match?.[3]) }
  context.addIssue({ code: 'custom', message: 'must be host:port, such as 0.0.0.0:8080' })
  return z.NEVER
})
/** `off`: this engine does not listen. 0: any free port. */
const listenPort = z.custom<number | 'off'>(value => value === 'off' || isPort(value), 'must be a port from 0 to 65535, or off')

export const GatewayConfig = z.strictObject({
  /** Name in the gateway's certificate; nodes insist on it. */
  id: Id,
  stateDir: path,
  listen: z.strictObject({
    host: z.string().min(1),
    ports: z.strictObject({ quic: listenPort, tls: listenPort, webtransport: listenPort }),
  }),
  admin: z.strictObject({ host: z.string().min(1), port, tokenFile: path }),
  identity: z.strictObject({ keys: path, certificate: path, root: path }),
  /** File with the root's signed revocation list; absent: none is used. */
  revocations: path.optional(),
  mqtt: MqttConfig,
  /** VMs follow their users; absent: they move by command only. */
  policy: PolicyConfig.optional(),
  /** Stable addresses: a connection to `listen` reaches the service of the VM, wherever it runs. Not encrypted by Godwit between user and VM. */
  services: z.array(z.strictObject({ vm: Id, service: Id, listen: address })).max(256),
  /** The ETSI MEC 021 front; absent: there is none. */
  mec021: z.strictObject({ host: z.string().min(1), port, tokenFile: path, callbackHosts: z.array(z.string().min(1)).max(256) }).optional(),
  limits: z
    .strictObject({
      /** Connections that have not proved who they are, at once, and of them from one address (an IPv6 /64). */
      strangers: z.int().min(8).max(65_536),
      strangersPerAddress: z.int().min(4).max(65_536),
    })
    .optional(),
  log: z.strictObject({ level: z.enum(['debug', 'info', 'warn', 'error']), format: z.enum(['json', 'text']) }),
})
export type GatewayConfig = z.output<typeof GatewayConfig>

/** One number for UDP (quic) and TCP (tls); webtransport needs both of its own. */
export const DEFAULT_PORTS = { quic: 7443, tls: 7443, webtransport: 7444 }
export const DEFAULT_ADMIN_PORT = 7445

/** What the file may leave out. */
export const gatewayDefaults = ({ configDir, stateDir }: { configDir: string; stateDir: string }) => ({
  id: 'gateway',
  stateDir: `${stateDir}/gateway`,
  listen: { host: '0.0.0.0', ports: { ...DEFAULT_PORTS } },
  admin: { host: '127.0.0.1', port: DEFAULT_ADMIN_PORT, tokenFile: `${stateDir}/gateway/admin.token` },
  identity: { keys: `${configDir}/gateway.keys`, certificate: `${configDir}/gateway.cert`, root: `${configDir}/root.pub` },
  services: [],
  mqtt: mqttDefaults,
  limits: { strangers: 1024, strangersPerAddress: 256 },
  log: { level: 'info', format: 'json' },
})
