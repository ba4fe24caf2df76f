// The AsyncAPI 3 document of the control plane, generated from the table of channels and its schemas. Pure:
// scripts/asyncapi.ts writes it; tests compare docs/reference/asyncapi.json with it and with real messages. Format:
// AsyncAPI 3.0.0, MQTT binding 0.2.0; payloads are JSON Schema draft 7 from the zod schemas.
import { z } from '../wire/schema.ts'
import { CHANNELS, PACKET_BYTES_MAX, PAYLOAD_BYTES_MAX, schemaName } from './channels.ts'
import { PARAMETERS, PATTERNS, parametersOf, ROOT, type TopicKind } from './topics.ts'

const BINDING = '0.2.0'

export function asyncApiDocument(): Record<string, unknown> {
  const kinds = Object.keys(PATTERNS) as TopicKind[]
  const each = <T>(of: (kind: TopicKind) => T) => Object.fromEntries(kinds.map(kind => [kind, of(kind)]))
  return {
    asyncapi: '3.0.0',
    info: {
      title: 'Godwit control over MQTT',
      version: '1.0.0',
      description:
        'Messages that a Godwit gateway sends and receives over an MQTT broker (3.1.1 or 5). Times are RFC 3339, durations ms, rates bit/s, sizes bytes, levels dBm. ' +
        'Payloads are complete; the MQTT 5 properties (Correlation Data, message expiry, content type, user properties `schema` and `traceparent`) repeat parts of them. ' +
        `Payloads have at most ${PAYLOAD_BYTES_MAX} bytes, packets at most ${PACKET_BYTES_MAX}. See docs/reference/mqtt.md.`,
      license: { name: 'Apache-2.0' },
    },
    defaultContentType: 'application/json',
    channels: each(channelOf),
    operations: Object.fromEntries(kinds.flatMap(operationsOf)),
    components: { messages: each(messageOf), schemas: each(schemaOf) },
  }
}

function channelOf(kind: TopicKind): Record<string, unknown> {
  const parameters = ['tenant', ...parametersOf(kind)].map(name => [
    name,
    { description: name === 'tenant' ? 'name of the tenant' : PARAMETERS[name as keyof typeof PARAMETERS].meaning },
  ])
  return {
    address: `${ROOT}/{tenant}/${PATTERNS[kind]}`,
    title: CHANNELS[kind].title,
    messages: { [kind]: { $ref: `#/components/messages/${kind}` } },
    parameters: Object.fromEntries(parameters),
  }
}

/** `send` and `receive` are from the gateway's view. */
function operationsOf(kind: TopicKind): [string, Record<string, unknown>][] {
  const { from, qos, retained, expirySeconds } = CHANNELS[kind]
  const mqtt = {
    qos,
    retain: retained,
    ...(expirySeconds === undefined ? {} : { messageExpiryInterval: expirySeconds }),
    bindingVersion: BINDING,
  }
  const actions = from === 'both' ? (['send', 'receive'] as const) : from === 'gateway' ? (['send'] as const) : (['receive'] as const)
  const one = (action: 'send' | 'receive'): [string, Record<string, unknown>] => [
    `${action}${kind[0]?.toUpperCase()}${kind.slice(1)}`,
    {
      action,
      channel: { $ref: `#/channels/${kind}` },
      messages: [{ $ref: `#/channels/${kind}/messages/${kind}` }],
      bindings: { mqtt },
      ...(isCommand(kind) ? { reply: { address: { location: '$message.payload#/replyTo' }, channel: { $ref: '#/channels/reply' } } } : {}),
    },
  ]
  return actions.map(one)
}

const isCommand = (kind: TopicKind): boolean => PATTERNS[kind].startsWith('cmd/')

function messageOf(kind: TopicKind): Record<string, unknown> {
  const correlation = isCommand(kind) || kind === 'reply'
  return {
    name: kind,
    title: CHANNELS[kind].title,
    contentType: 'application/json',
    payload: { $ref: `#/components/schemas/${kind}` },
    ...(correlation ? { correlationId: { location: '$message.payload#/commandId' } } : {}),
    'x-schema-name': schemaName(kind),
  }
}

function schemaOf(kind: TopicKind): Record<string, unknown> {
  const { $schema: _, ...schema } = z.toJSONSchema(CHANNELS[kind].schema, { target: 'draft-7', io: 'input' })
  return schema
}

export const asyncApiText = (): string => `${JSON.stringify(asyncApiDocument(), null, 2)}\n`
