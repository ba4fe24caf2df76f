// Who may say and read what at the embedded broker. Pure; an external broker has its own lists (docs/reference/mqtt.md
// shows Mosquitto's).
// Always holds: nobody but the gateway may publish what the gateway says; a user reads only replies to its own name; a
// subscription may be wider than what one may read, for each message is judged again when it is handed out.
import type { TopicKind, Topics } from '../../../mqtt/topics.ts'

/**
 * measure: publish measurements. command: send commands, read replies. observe: read all but commands, replies and
 * measurements.
 */
export const RIGHTS = ['measure', 'command', 'observe'] as const
type Right = (typeof RIGHTS)[number]
export type UserRights = { name: string; may: readonly Right[] }

const PUBLISH: Partial<Record<TopicKind, Right>> = {
  latency: 'measure',
  radio: 'measure',
  location: 'measure',
  siteLink: 'measure',
  start: 'command',
  prestage: 'command',
  cancel: 'command',
  pin: 'command',
}
const READ: Partial<Record<TopicKind, Right[]>> = {
  gatewayState: ['observe', 'command'],
  gatewayProblem: ['observe'],
  siteState: ['observe', 'command'],
  siteTelemetry: ['observe'],
  siteLink: ['observe'],
  placement: ['observe', 'command'],
  status: ['observe', 'command'],
  progress: ['observe', 'command'],
  result: ['observe', 'command'],
  reply: ['command'],
}

export function mayPublish(topics: Topics, { may }: UserRights, topic: string): boolean {
  const kind = topics.parse(topic)?.kind
  const needed = kind && PUBLISH[kind]
  return needed !== undefined && may.includes(needed)
}

export function mayRead(topics: Topics, { name, may }: UserRights, topic: string): boolean {
  const found = topics.parse(topic)
  if (!found || !READ[found.kind]?.some(right => may.includes(right))) return false
  // A user name has no dot: what stands before it is the user's own.
  return found.kind !== 'reply' || found.parameters.clientId?.split('.')[0] === name
}

/** A filter below the tenant's root; what comes of it is judged message by message. */
export const maySubscribe = (topics: Topics, filter: string): boolean => filter.startsWith(`${topics.root}/`) && filter.length <= 512
