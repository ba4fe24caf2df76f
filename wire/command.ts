// The signed commands that move VMs (docs/reference/mqtt.md). The gateway receives them over MQTT and over its admin
// API; a node with its own command keys checks them again (edge-node/release.ts). Pure. Always holds: commands are
// strict (a mistyped field is an error); the signature covers the topic, which contains tenant and action.
import { Id, MigrationId } from './control.ts'
import { z } from './schema.ts'

export const TOPIC_ROOT = 'godwit/v1'
export const ACTIONS = ['start', 'prestage', 'cancel', 'pin'] as const
export type Action = (typeof ACTIONS)[number]
/** The topic that a command is signed for. */
export const commandTopic = (tenant: string, action: Action): string => `${TOPIC_ROOT}/${tenant}/cmd/handoff/${action}`

export const UE_KEY_PATTERN = /^[A-Za-z0-9_-]{1,128}$/
const count = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER)
const text = (max: number) => z.string().max(max)
export const Time = z.iso.datetime({ offset: true }).max(40)
export const Traceparent = z.string().regex(/^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/)
export const UeKey = z.string().regex(UE_KEY_PATTERN)
export const Base64 = (bytes: number) =>
  z
    .string()
    .max(Math.ceil(bytes / 3) * 4)
    .regex(/^[A-Za-z0-9+/]+={0,2}$/)

export const PublicKey = z.string().regex(/^[A-Za-z0-9+/]{43}=$/, 'must be 32 bytes in base64, as godwit mqtt keygen prints them')
/**
 * Keys that may sign commands, by name, with the allowed actions: the same form at the gateway (mqtt.commandKeys) and
 * at a node.
 */
export const CommandKeys = z.record(
  Id,
  z.strictObject({
    publicKey: PublicKey,
    actions: z.array(z.enum(ACTIONS)).min(1),
  }),
)

export const KeyName = Id
/** Of a command, or of a measurement. */
export const Signature = z.strictObject({
  alg: z.literal('Ed25519'),
  key: KeyName,
  value: Base64(64).meta({ description: 'over the topic, a line feed, and the canonical JSON (RFC 8785) of the payload without sig' }),
})
export type Signature = z.infer<typeof Signature>

export const CommandId = z.string().regex(/^[A-Za-z0-9_-]{8,64}$/, 'expected 8 to 64 of A-Z, a-z, 0-9, _ and -')
const Constraints = z.strictObject({
  maxDowntimeMs: z.number().int().min(1).max(3_600_000).optional(),
  maxBytes: count.min(1).optional().meta({ description: 'the migration is cancelled if it sends more before the switchover' }),
})
const command = {
  commandId: CommandId,
  vmId: Id,
  ueKey: UeKey.optional(),
  fromSite: Id.optional(),
  reason: z.string().min(1).max(256),
  expectedEpoch: count.meta({ description: 'epoch of the placement that the sender read' }),
  notAfter: Time,
  replyTo: text(256).optional().meta({ description: 'a reply topic of this tenant' }),
  traceparent: Traceparent.optional(),
  sig: Signature,
}
export const COMMANDS = {
  start: z.strictObject({
    ...command,
    toSite: Id,
    method: z.enum(['live', 'cold']).optional(),
    start: z.boolean().optional().meta({ description: 'a stopped VM starts at the target (default: it stays stopped)' }),
    constraints: Constraints.optional(),
  }),
  prestage: z.strictObject({ ...command, toSite: Id, constraints: Constraints.optional() }),
  cancel: z.strictObject({ ...command, handoffId: MigrationId.optional() }),
  pin: z.strictObject({ ...command, pinned: z.boolean() }),
}
export type Command = { [A in keyof typeof COMMANDS]: { action: A } & z.infer<(typeof COMMANDS)[A]> }[keyof typeof COMMANDS]
