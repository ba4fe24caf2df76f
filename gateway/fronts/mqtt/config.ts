// The `mqtt` part of gateway.yaml. No IO here: files are named, cli/wiring.ts reads them.

import { MEASURED } from '../../../mqtt/topics.ts'
import { CommandKeys, PublicKey as publicKey } from '../../../wire/command.ts'
import { Id } from '../../../wire/control.ts'
import { z } from '../../../wire/schema.ts'
import { RIGHTS } from './access.ts'

const path = z.string({ error: 'must be a path' }).min(1, 'must be a path')
const port = z.custom<number>(
  value => Number.isInteger(value) && Number(value) >= 0 && Number(value) <= 65_535,
  'must be a port from 0 to 65535',
)
const isBrokerUrl = (text: string) => /^mqtts?:\/\/[^/@]+$/.test(text) && URL.canParse(text)

export const MqttConfig = z
  .strictObject({
    /** embedded: a broker of our own (MQTT 3.1.1). external: somebody else's, by url (3.1.1 or 5). */
    mode: z.enum(['off', 'embedded', 'external']),
    /** Topics begin with godwit/v1/TENANT. */
    tenant: Id,
    /** embedded: where it listens. */
    listen: z.strictObject({ host: z.string().min(1), port }),
    /** embedded: who may connect. Passwords are files that only the gateway may read. */
    users: z.record(Id, z.strictObject({ passwordFile: path, may: z.array(z.enum(RIGHTS)).min(1) })),
    /** external. */
    url: z
      .string()
      .refine(url => !url.includes('@'), {
        error: 'must not contain a user name or a password: use mqtt.username and mqtt.passwordFile',
        abort: true,
      })
      .refine(isBrokerUrl, 'must be mqtt://host:port or mqtts://host:port')
      .optional(),
    version: z.enum(['auto', '5', '3.1.1']),
    clientId: z
      .string()
      .regex(/^[A-Za-z0-9_-]{1,64}$/, 'must be 1 to 64 of A-Z, a-z, 0-9, _ and -')
      .optional(),
    /**
     * external: more connections that share users' measurements (`$share/gw-ID/...`), for more than one carries. Order
     * is restored by `seq`.
     */
    workers: z.number().int().min(0).max(16).default(0),
    username: z.string().min(1).max(256).optional(),
    passwordFile: path.optional(),
    /**
     * external: ca to check the broker, certificate and key to be known by. embedded: certificate and key to be the
     * broker with.
     */
    tls: z.strictObject({ ca: path.optional(), certificate: path.optional(), key: path.optional() }).optional(),
    /** Who may command. Keys of `godwit mqtt keygen`. */
    commandKeys: CommandKeys,
    /** Who may sign measurements: keys of `godwit mqtt keygen --for measurement`. */
    measurementKeys: z.record(
      Id,
      z.strictObject({
        publicKey,
        kinds: z
          .array(z.enum(MEASURED))
          .min(1)
          .default([...MEASURED]),
      }),
    ),
    /** external: measurements without a signature count as well, also for the policy. */
    trustBroker: z.boolean(),
    /** What no node knows about its site. */
    places: z.record(
      Id,
      z.strictObject({
        geo: z.strictObject({ lat: z.number().min(-90).max(90), lon: z.number().min(-180).max(180) }).optional(),
        zones: z.array(z.string().max(64)).max(64).default([]),
      }),
    ),
  })
  .superRefine(({ mode, url, tls, listen }, context) => {
    const fault = (at: string[], message: string) => context.addIssue({ code: 'custom', path: at, message })
    if (mode === 'external' && url === undefined) fault(['url'], 'is required in mode external')
    if ((tls?.certificate === undefined) !== (tls?.key === undefined)) fault(['tls'], 'certificate and key must be set together')
    const isLocal = ['127.0.0.1', '::1', 'localhost'].includes(listen.host)
    if (mode === 'embedded' && !isLocal && tls?.certificate === undefined)
      fault(['tls'], 'a broker that listens beyond this machine needs certificate and key, so that passwords are encrypted')
  })
export type MqttConfig = z.output<typeof MqttConfig>

export const DEFAULT_MQTT_PORT = 1883

export const mqttDefaults = {
  mode: 'off',
  tenant: 'main',
  listen: { host: '127.0.0.1', port: DEFAULT_MQTT_PORT },
  users: {},
  version: 'auto',
  commandKeys: {},
  measurementKeys: {},
  trustBroker: false,
  places: {},
}

/** Fields that name files; `*` stands for every name. */
export const MQTT_PATHS = ['users.*.passwordFile', 'passwordFile', 'tls.ca', 'tls.certificate', 'tls.key']
