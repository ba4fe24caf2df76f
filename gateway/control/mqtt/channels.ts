// Each kind of topic with its schema and its delivery: quality of service, retained or not, how long a message is worth anything. Pure.
// Always holds: what the gateway publishes is published by this table; expiries are MQTT 5 properties where the broker knows them, and every
// payload carries its own time, so that MQTT 3.1.1 loses nothing.
import type { z } from '../../../wire/schema.ts'
import * as schemas from './schemas.ts'
import type { TopicKind } from './topics.ts'

export type Channel = {
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
  gatewayState: { ...HEALTH, schema: schemas.GatewayState, title: 'birth and death of a gateway (its Will)' },
  gatewayProblem: {
    from: 'gateway',
    qos: 0,
    retained: false,
    schema: schemas.GatewayProblem,
    expirySeconds: 60,
    title: 'a command that was not accepted, for operators',
  },
  siteState: { ...HEALTH, schema: schemas.SiteState, title: 'birth and death of a site, said by its gateway' },
  siteTelemetry: {
    from: 'gateway',
    qos: 0,
    retained: false,
    schema: schemas.SiteTelemetry,
    expirySeconds: 15,
    title: 'what is free at a site',
  },
  siteLink: { from: 'both', qos: 0, retained: true, schema: schemas.SiteLink, expirySeconds: 60, title: 'a path between two places' },
  latency: { from: 'outside', qos: 0, retained: false, schema: schemas.Latency, expirySeconds: 10, title: 'latency of a user to a VM' },
  radio: { from: 'outside', qos: 0, retained: false, schema: schemas.Radio, expirySeconds: 10, title: 'radio measurements of a user' },
  location: { from: 'outside', qos: 0, retained: false, schema: schemas.Location, expirySeconds: 30, title: 'where a user is' },
  placement: { ...HEALTH, schema: schemas.Placement, title: 'where a VM is' },
  start: { from: 'outside', qos: 1, retained: false, schema: schemas.COMMANDS.start, expirySeconds: 30, title: 'move a VM' },
  prestage: { from: 'outside', qos: 1, retained: false, schema: schemas.COMMANDS.prestage, expirySeconds: 30, title: 'prepare a move' },
  cancel: { from: 'outside', qos: 1, retained: false, schema: schemas.COMMANDS.cancel, expirySeconds: 30, title: 'end a move' },
  pin: {
    from: 'outside',
    qos: 1,
    retained: false,
    schema: schemas.COMMANDS.pin,
    expirySeconds: 30,
    title: 'keep a VM where it is, or let it go',
  },
  reply: { from: 'gateway', qos: 1, retained: false, schema: schemas.Reply, expirySeconds: 60, title: 'what became of a command' },
  status: { ...HEALTH, schema: schemas.Status, expirySeconds: DAY_SECONDS, title: 'the phase of a handoff' },
  progress: {
    from: 'gateway',
    qos: 0,
    retained: false,
    schema: schemas.Progress,
    expirySeconds: 5,
    title: 'how far a handoff is, once a second',
  },
  result: { from: 'gateway', qos: 1, retained: false, schema: schemas.Result, title: 'how a handoff ended (CloudEvent)' },
}

/** Names the schema of a message: the `schema` user property (MQTT 5). */
export const schemaName = (kind: TopicKind): string => `godwit/v1/${kind}`

/** Payloads larger than this are refused unread, bytes. */
export const PAYLOAD_BYTES_MAX = 16 * 1024
/** MQTT packets larger than this end the connection where we are the broker, and are not sent to us where the broker speaks MQTT 5, bytes. */
export const PACKET_BYTES_MAX = 64 * 1024
