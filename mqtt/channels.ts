// Each kind of topic with its schema and its delivery: quality of service, retained or not, expiry. Pure. Always holds:
// the gateway publishes everything by this table; expiries are MQTT 5 properties if the broker supports them, and every
// payload has its own time, so MQTT 3.1.1 loses nothing.
import type { z } from '../wire/schema.ts'
import * as schemas from './schemas.ts'
import type { TopicKind } from './topics.ts'

type Channel = {
  schema: z.ZodType
  /** Who publishes. `both`: the gateway for its own links, measuring systems for others. */
  from: 'gateway' | 'outside' | 'both'
  qos: 0 | 1
  retained: boolean
  /** Seconds; undefined: does not expire. */
  expirySeconds?: number
  title: string
}

const DAY_SECONDS = 86_400
const HEALTH = { from: 'gateway', qos: 1, retained: true } as const

export const CHANNELS: Record<TopicKind, Channel> = {
  gatewayState: { ...HEALTH, schema: schemas.GatewayState, title: 'state of a gateway: online, or offline by its Will' },
  gatewayProblem: {
    from: 'gateway',
    qos: 0,
    retained: false,
    schema: schemas.GatewayProblem,
    expirySeconds: 60,
    title: 'a rejected command, for operators',
  },
  siteState: { ...HEALTH, schema: schemas.SiteStateMessage, title: 'state of a site: online or offline, sent by its gateway' },
  siteTelemetry: {
    from: 'gateway',
    qos: 0,
    retained: false,
    schema: schemas.SiteTelemetry,
    expirySeconds: 15,
    title: 'free resources of a site',
  },
  siteLink: {
    from: 'both',
    qos: 0,
    retained: true,
    schema: schemas.SiteLink,
    expirySeconds: 60,
    title: 'a network path between two sites, or a site and the gateway',
  },
  latency: { from: 'outside', qos: 0, retained: false, schema: schemas.Latency, expirySeconds: 10, title: 'latency of a user to a VM' },
  radio: { from: 'outside', qos: 0, retained: false, schema: schemas.Radio, expirySeconds: 10, title: 'radio measurements of a user' },
  location: { from: 'outside', qos: 0, retained: false, schema: schemas.Location, expirySeconds: 30, title: 'location of a user' },
  placement: { ...HEALTH, schema: schemas.Placement, title: 'site of a VM' },
  start: {
    from: 'outside',
    qos: 1,
    retained: false,
    schema: schemas.COMMANDS.start,
    expirySeconds: 30,
    title: 'start the handoff of a VM',
  },
  prestage: {
    from: 'outside',
    qos: 1,
    retained: false,
    schema: schemas.COMMANDS.prestage,
    expirySeconds: 30,
    title: 'prepare the handoff of a VM',
  },
  cancel: {
    from: 'outside',
    qos: 1,
    retained: false,
    schema: schemas.COMMANDS.cancel,
    expirySeconds: 30,
    title: 'cancel the handoff of a VM',
  },
  pin: {
    from: 'outside',
    qos: 1,
    retained: false,
    schema: schemas.COMMANDS.pin,
    expirySeconds: 30,
    title: 'pin a VM to its site, or unpin it',
  },
  reply: { from: 'gateway', qos: 1, retained: false, schema: schemas.Reply, expirySeconds: 60, title: 'the outcome of a command' },
  status: { ...HEALTH, schema: schemas.Status, expirySeconds: DAY_SECONDS, title: 'the phase of a handoff' },
  progress: {
    from: 'gateway',
    qos: 0,
    retained: false,
    schema: schemas.Progress,
    expirySeconds: 5,
    title: 'the progress of a handoff, once a second',
  },
  result: { from: 'gateway', qos: 1, retained: false, schema: schemas.Result, title: 'the outcome of a handoff (CloudEvent)' },
}

/** Names the schema of a message: the `schema` user property (MQTT 5). */
export const schemaName = (kind: TopicKind): string => `godwit/v1/${kind}`

/** Payloads larger than this are rejected unread, bytes. */
export const PAYLOAD_BYTES_MAX = 16 * 1024
/**
 * Larger MQTT packets end the connection at the embedded broker; an MQTT 5 broker does not send them to the gateway,
 * bytes.
 */
export const PACKET_BYTES_MAX = 64 * 1024
