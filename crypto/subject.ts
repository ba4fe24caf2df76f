// The subject of certificates and requests: role, name, two public keys.
import { NAME_PATTERN } from '../wire/types.ts'
import { concatBytes, type Reader, u8, utf8 } from './bytes.ts'
import { SIGN_PUBLIC_BYTES } from './signature.ts'

export type SubjectRole = 'site' | 'gateway'

export type Subject = {
  role: SubjectRole
  /** Name of the site or gateway. */
  id: string
  /** Ed25519 and X25519, 32 bytes each. */
  signPublic: Uint8Array
  boxPublic: Uint8Array
}

const BOX_PUBLIC_BYTES = 32
const SUBJECT_ROLES: Record<SubjectRole, number> = { site: 1, gateway: 2 }

/** u8 role | u8 id length | id | signPublic | boxPublic. Throws TypeError for an invalid subject. */
export function encodeSubject({ role, id, signPublic, boxPublic }: Subject): Uint8Array {
  if (SUBJECT_ROLES[role] === undefined) throw new TypeError(`role ${role} is not site or gateway`)
  if (!NAME_PATTERN.test(id)) throw new TypeError(`'${id}' is not a name: 1..64 of a-z, 0-9, -`)
  if (signPublic.length !== SIGN_PUBLIC_BYTES || boxPublic.length !== BOX_PUBLIC_BYTES) throw new TypeError('a public key is 32 bytes')
  return concatBytes(u8(SUBJECT_ROLES[role]), u8(id.length), utf8(id), signPublic, boxPublic)
}

/** Reads what encodeSubject wrote. Throws RangeError. */
export function readSubject(reader: Reader): Subject {
  const number = reader.number(1)
  // ignoreBOM: a byte order mark would vanish, and one certificate would have two encodings.
  const id = new TextDecoder('utf-8', { ignoreBOM: true }).decode(reader.take(reader.number(1)))
  const role = (Object.keys(SUBJECT_ROLES) as SubjectRole[]).find(name => SUBJECT_ROLES[name] === number)
  if (role === undefined || !NAME_PATTERN.test(id)) throw new RangeError('bad role or id')
  return { role, id, signPublic: reader.take(SIGN_PUBLIC_BYTES), boxPublic: reader.take(BOX_PUBLIC_BYTES) }
}
