// The keys that sign commands: Ed25519 (RFC 8032) by node:crypto, for the gateway's crypto room is about links and certificates.
// Enters: raw 32-byte keys in base64. Leaves: signatures, verdicts. The secret key's file says what it is.
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign, verify } from 'node:crypto'
import { GodwitError } from '../../../wire/errors.ts'
import { checkJson, z } from '../../../wire/schema.ts'
import { signedText } from './canonical.ts'
import { KeyName } from './schemas.ts'
import type { Action, Topics } from './topics.ts'

const Raw = z.string().regex(/^[A-Za-z0-9+/]{43}=$/, 'expected 32 bytes in base64')
/** The file that `godwit mqtt keygen` writes. */
const KeyFile = z.strictObject({ kind: z.literal('godwit-command-key'), name: KeyName, publicKey: Raw, secretKey: Raw })
export type CommandKey = z.infer<typeof KeyFile>

const SPKI_PREFIX = Buffer.from('302a300506032b6570032100', 'hex')
const PKCS8_PREFIX = Buffer.from('302e020100300506032b657004220420', 'hex')

export function generateCommandKey(name: string): CommandKey {
  const { publicKey, privateKey } = generateKeyPairSync('ed25519')
  const raw = (key: Buffer) => key.subarray(-32).toString('base64')
  const spki = publicKey.export({ type: 'spki', format: 'der' })
  const pkcs8 = privateKey.export({ type: 'pkcs8', format: 'der' })
  return { kind: 'godwit-command-key', name, publicKey: raw(spki), secretKey: raw(pkcs8) }
}

export const encodeCommandKey = (key: CommandKey): string => `${JSON.stringify(key, null, 2)}\n`
/** CONFIG_INVALID when the text is no command key. */
export const decodeCommandKey = (text: string, what: string): CommandKey => checkJson(KeyFile, text, { what, code: 'CONFIG_INVALID' })

/** A public key from its base64. CONFIG_INVALID. */
export function publicKeyOf(base64: string): KeyObject {
  const raw = Buffer.from(base64, 'base64')
  if (raw.length !== 32) throw new GodwitError('CONFIG_INVALID', 'a command key is 32 bytes in base64')
  return createPublicKey({ key: Buffer.concat([SPKI_PREFIX, raw]), format: 'der', type: 'spki' })
}

/** The payload with its signature for this topic. */
export function signCommand<T extends object>(key: CommandKey, topics: Topics, action: Action, payload: T) {
  const secret = createPrivateKey({
    key: Buffer.concat([PKCS8_PREFIX, Buffer.from(key.secretKey, 'base64')]),
    format: 'der',
    type: 'pkcs8',
  })
  const bytes = Buffer.from(signedText(topics.build(action), payload as Record<string, unknown>))
  return { ...payload, sig: { alg: 'Ed25519' as const, key: key.name, value: sign(null, bytes, secret).toString('base64') } }
}

/** Whether this key signed this payload for this topic. */
export function verifyCommand(key: KeyObject, topic: string, payload: Record<string, unknown>, signature: string): boolean {
  const bytes = Buffer.from(signature, 'base64')
  return bytes.length === 64 && verify(null, Buffer.from(signedText(topic, payload)), key, bytes)
}
