// The topics of docs/reference/mqtt.md: one table of patterns for building, parsing, subscribing, access rules and the
// AsyncAPI document. Pure. Enters: names. Leaves: topics, or USAGE; for a peer's topic its parts, or undefined. Always
// holds: every level between slashes has the form of its kind of id, so that '+', '#', '/' or a control character of a
// peer cannot widen a topic (wildcards in client ids and user names have bypassed access lists of brokers).
import { ACTIONS, type Action, TOPIC_ROOT as ROOT, UE_KEY_PATTERN } from '../wire/command.ts'
import { GodwitError } from '../wire/errors.ts'
import { ID_PATTERN, NAME_PATTERN } from '../wire/types.ts'

export { ACTIONS, type Action, TOPIC_ROOT as ROOT } from '../wire/command.ts'

/** Allowed values of each parameter of a pattern. */
export const PARAMETERS = {
  gatewayId: { pattern: NAME_PATTERN, meaning: 'name of a gateway' },
  siteId: { pattern: NAME_PATTERN, meaning: 'name of a site' },
  peerId: { pattern: NAME_PATTERN, meaning: 'name of the site or gateway at the other end' },
  vmId: { pattern: NAME_PATTERN, meaning: 'name of a VM' },
  ueKey: { pattern: UE_KEY_PATTERN, meaning: "HMAC of the subscriber's id" },
  clientId: {
    pattern: /^[A-Za-z0-9_-]{1,64}(\.[A-Za-z0-9_-]{1,64})?$/,
    meaning: "the sender's user name, or user name, dot and any suffix",
  },
  handoffId: { pattern: ID_PATTERN, meaning: 'a handoff: the id of its migration' },
} as const satisfies Record<string, { pattern: RegExp; meaning: string }>
type Parameter = keyof typeof PARAMETERS

/** Patterns below ROOT/{tenant}/. */
export const PATTERNS = {
  gatewayState: 'gateway/{gatewayId}/state',
  gatewayProblem: 'gateway/{gatewayId}/problem',
  siteState: 'site/{siteId}/state',
  siteTelemetry: 'site/{siteId}/telemetry',
  siteLink: 'site/{siteId}/link/{peerId}',
  latency: 'ue/{ueKey}/meas/latency',
  radio: 'ue/{ueKey}/meas/radio',
  location: 'ue/{ueKey}/meas/location',
  placement: 'vm/{vmId}/placement',
  start: 'cmd/handoff/start',
  prestage: 'cmd/handoff/prestage',
  cancel: 'cmd/handoff/cancel',
  pin: 'cmd/handoff/pin',
  reply: 'reply/{clientId}',
  status: 'handoff/{handoffId}/status',
  progress: 'handoff/{handoffId}/progress',
  result: 'handoff/{handoffId}/result',
} as const
export type TopicKind = keyof typeof PATTERNS
export type Parameters = Partial<Record<Parameter, string>>
export type Topic = { kind: TopicKind; parameters: Parameters }

export const isAction = (kind: TopicKind): kind is Action => (ACTIONS as readonly string[]).includes(kind)

/** Kinds that measuring systems publish. */
export const MEASURED = ['latency', 'radio', 'location', 'siteLink'] as const satisfies readonly TopicKind[]
export type MeasuredKind = (typeof MEASURED)[number]

const parameterOf = (level: string): Parameter | undefined => (level.startsWith('{') ? (level.slice(1, -1) as Parameter) : undefined)
const TOPIC_BYTES_MAX = 512

/** Parameters of a kind of topic, in order. */
export const parametersOf = (kind: TopicKind): Parameter[] =>
  PATTERNS[kind].split('/').flatMap(level => {
    const name = parameterOf(level)
    return name ? [name] : []
  })

export type Topics = {
  readonly root: string
  /** USAGE if a parameter is missing or has the wrong form. */
  build(kind: TopicKind, parameters?: Parameters): string
  /** The parts of a Godwit topic; undefined for every other text. */
  parse(topic: string): Topic | undefined
  /** A filter for all topics of a kind. */
  filter(kind: TopicKind): string
}

/** The topics of one tenant. USAGE if it is not a name. */
export function topicsOf(tenant: string): Topics {
  if (!NAME_PATTERN.test(tenant)) throw new GodwitError('USAGE', `'${tenant}' is not a tenant: expected 1 to 64 of a-z, 0-9 and -`)
  const root = `${ROOT}/${tenant}`
  const prefix = `${root}/`
  const patterns = Object.entries(PATTERNS).map(([kind, pattern]) => ({ kind: kind as TopicKind, levels: pattern.split('/') }))
  return {
    root,
    build(kind, parameters = {}) {
      const levels = PATTERNS[kind].split('/').map(level => {
        const name = parameterOf(level)
        if (!name) return level
        const value = parameters[name] ?? ''
        if (!PARAMETERS[name].pattern.test(value)) throw new GodwitError('USAGE', `'${value}' cannot be a ${name} in a topic`)
        return value
      })
      return prefix + levels.join('/')
    },
    parse(topic) {
      if (topic.length > TOPIC_BYTES_MAX || !topic.startsWith(prefix)) return undefined
      const levels = topic.slice(prefix.length).split('/')
      for (const { kind, levels: wanted } of patterns) {
        const parameters = matched(wanted, levels)
        if (parameters) return { kind, parameters }
      }
      return undefined
    },
    filter: kind => prefix + PATTERNS[kind].replace(/\{\w+\}/g, '+'),
  }
}

function matched(wanted: string[], levels: string[]): Parameters | undefined {
  if (wanted.length !== levels.length) return undefined
  const parameters: Parameters = {}
  for (const [at, want] of wanted.entries()) {
    const level = levels[at] ?? ''
    const name = parameterOf(want)
    if (!name) {
      if (level !== want) return undefined
    } else if (PARAMETERS[name].pattern.test(level)) parameters[name] = level
    else return undefined
  }
  return parameters
}
