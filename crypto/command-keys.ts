// The keys that sign commands and measurements: Ed25519 (RFC 8032) by node:crypto, for gateway, nodes and the command
// line. Enters: raw 32-byte keys in base64. Leaves: signatures, verdicts. The file of a secret key names its kind.
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign, verify } from 'node:crypto'
import { signedText } from '../wire/canonical.ts'
import { type Action, commandTopic, KeyName } from '../wire/command.ts'
import { GodwitError } from '../wire/errors.ts'
import { checkJson, z } from '../wire/schema.ts'

const Raw = z.string().regex(/^[A-Za-z0-9+/]{43}=$/, 'expected 32 bytes in base64')
/** The kind of a key: it never signs messages of the other kind. */
type KeyUse = 'command' | 'measurement'
const kindOf = (use: KeyUse) => `godwit-${use}-key` as const
/** The file that `godwit mqtt keygen` writes. */
const KeyFile = z.strictObject({
  kind: z.enum([kindOf('command'), kindOf('measurement')]),
  name: KeyName,
  publicKey: Raw,
  secretKey: Raw,
})
export type CommandKey = z.infer<typeof KeyFile>

const SPKI_PREFIX = Buffer.from('302a300506032b6570032100', 'hex')
const PKCS8_PREFIX = Buffer.from('302e020100300506032b657004220420', 'hex')

export function generateCommandKey(name: string, use: KeyUse = 'command'): CommandKey {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519')
  const raw = (key: Buffer) => key.subarray(-32).toString('base64')
  const spki = publicKey.export({ type: 'spki', format: 'der' })
  const pkcs8 = privateKey.export({ type: 'pkcs8', format: 'der' })
  return { kind: kindOf(use), name, publicKey: raw(spki), secretKey: raw(pkcs8) }
}

export const encodeCommandKey = (key: CommandKey): string => `${JSON.stringify(key, null, 2)}\n`
/** CONFIG_INVALID if the text is not a key for this use. */
export function decodeCommandKey(text: string, what: string, use: KeyUse = 'command'): CommandKey {
  const key = checkJson(KeyFile, text, { what, code: 'CONFIG_INVALID' })
  if (key.kind === kindOf(use)) return key
  throw new GodwitError('CONFIG_INVALID', `${what}: not a key for ${use}s`, {
    hint: `create one with godwit mqtt keygen --for ${use}`,
  })
}

/** A public key from its base64. CONFIG_INVALID. */
export function publicKeyOf(base64: string): KeyObject {
  const raw = Buffer.from(base64, 'base64')
  if (raw.length !== 32) throw new GodwitError('CONFIG_INVALID', 'an Ed25519 public key is 32 bytes in base64')
  return createPublicKey({ key: Buffer.concat([SPKI_PREFIX, raw]), format: 'der', type: 'spki' })
}

const secrets = new WeakMap<CommandKey, KeyObject>()

function secretOf(key: CommandKey): KeyObject {
  const known = secrets.get(key)
  if (known) return known
  const der = Buffer.concat([PKCS8_PREFIX, Buffer.from(key.secretKey, 'base64')])
  const secret = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' })
  secrets.set(key, secret)
  return secret
}

/** The payload with its signature for this topic. */
export function signPayload<T extends object>(key: CommandKey, topic: string, payload: T) {
  const secret = secretOf(key)
  const bytes = Buffer.from(signedText(topic, payload as Record<string, unknown>))
  return { ...payload, sig: { alg: 'Ed25519' as const, key: key.name, value: sign(null, bytes, secret).toString('base64') } }
}

/** A measurement with the current time and a signature. */
export const signMeasurement = <T extends object>(key: CommandKey, topic: string, payload: T, nowMs: number) =>
  signPayload(key, topic, datedMeasurement(payload, nowMs))

/** A link has its own field for the time; all others have `at`. */
export function datedMeasurement<T extends object>(payload: T, nowMs: number) {
  const now = new Date(nowMs).toISOString()
  return { ...payload, ...('sampledAt' in payload ? { sampledAt: now } : { at: now }) }
}

/** The topic that a tenant's commands are signed for. */
export type CommandTopics = { build(action: Action): string }
export const commandTopicsOf = (tenant: string): CommandTopics => ({ build: action => commandTopic(tenant, action) })

/** A command with its signature. */
export const signCommand = <T extends object>(key: CommandKey, topics: CommandTopics, action: Action, payload: T) =>
  signPayload(key, topics.build(action), payload)

/** Whether this key signed this payload for this topic. */
export function verifySignature(key: KeyObject, topic: string, payload: Record<string, unknown>, signature: string): boolean {
  const bytes = Buffer.from(signature, 'base64')
  return bytes.length === 64 && verify(null, Buffer.from(signedText(topic, payload)), key, bytes)
}
