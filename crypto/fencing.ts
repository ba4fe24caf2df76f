// Fencing statements: the offline root states that a site is cut off from a VM (its host is powered off), so that
// another site may take the VM over without its agreement. Pure. Enters: bytes from a file. Leaves: a Fencing, or a
// GodwitError (FENCING_INVALID). Always holds: a statement is for one VM at one epoch, at one site, for one other site;
// a takeover raises the epoch by two, so a statement is valid once.
import { GodwitError } from '../wire/errors.ts'
import { NAME_PATTERN } from '../wire/types.ts'
import { concatBytes, field, Reader, u64, utf8 } from './bytes.ts'
import type { Root } from './certificate.ts'
import { KEY_ID_BYTES, keyId } from './identity.ts'
import { SIGNATURE_BYTES, signMessage, verifyMessage } from './signature.ts'
import { equalBytes } from './sodium.ts'

export type Fencing = {
  /** The site that can no longer run the VM. */
  site: string
  vm: string
  /** The epoch at which that site may have owned the VM. */
  epoch: number
  /** The site that may take the VM over. */
  for: string
  /** Who checked that the site is off, and how; for the record. */
  by: string
  /** Unix seconds. */
  issuedAt: number
}

const LABEL = 'godwit/1 fencing'
const MAGIC = utf8('GWF1')
const BY_BYTES_MAX = 512

/** Canonical bytes and the root's signature. Throws TypeError for invalid claims. */
export function issueFencing(root: Root, { site, vm, epoch, for: owner, by, issuedAt }: Fencing): Uint8Array {
  for (const name of [site, vm, owner]) if (!NAME_PATTERN.test(name)) throw new TypeError(`'${name}' is not a name: 1..64 of a-z, 0-9, -`)
  if (site === owner) throw new TypeError('the fenced site and the site that takes over must differ')
  if (by.trim() === '' || utf8(by).length > BY_BYTES_MAX)
    throw new TypeError(`the text of who checked it, and how, must have 1 to ${BY_BYTES_MAX} bytes`)
  const texts = [site, vm, owner, by].map(text => field(utf8(text)))
  const body = concatBytes(MAGIC, keyId(root.signPublic), ...texts, u64(epoch), u64(issuedAt))
  return concatBytes(body, signMessage(root.signSecret, LABEL, body))
}

/**
 * The statement, if the trusted root signed it. Throws FENCING_INVALID. The caller compares it with the VM and its
 * epoch.
 */
export function verifyFencing(bytes: Uint8Array, { rootPublic }: { rootPublic: Uint8Array }): Fencing {
  const { fencing, body, signature, issuerId } = decode(bytes)
  if (!equalBytes(issuerId, keyId(rootPublic)) || !verifyMessage(rootPublic, LABEL, body, signature))
    throw new GodwitError('FENCING_INVALID', 'the fencing statement is not signed by the trusted root')
  return fencing
}

function decode(bytes: Uint8Array): { fencing: Fencing; body: Uint8Array; signature: Uint8Array; issuerId: Uint8Array } {
  try {
    const reader = new Reader(bytes)
    if (!equalBytes(reader.take(MAGIC.length), MAGIC)) throw new RangeError('not a fencing statement')
    const issuerId = reader.take(KEY_ID_BYTES)
    const text = () => new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(reader.take(reader.number(2)))
    const [site, vm, owner, by] = [text(), text(), text(), text()] as const
    if (![site, vm, owner].every(name => NAME_PATTERN.test(name)) || site === owner) throw new RangeError('a bad name')
    const [epoch, issuedAt] = [reader.number(8), reader.number(8)]
    const body = bytes.slice(0, reader.offset)
    const signature = reader.take(SIGNATURE_BYTES)
    reader.end()
    return { fencing: { site, vm, epoch, for: owner, by, issuedAt }, body, signature, issuerId }
  } catch (error) {
    if (!(error instanceof RangeError || error instanceof TypeError)) throw error
    throw new GodwitError('FENCING_INVALID', `the fencing statement cannot be read: ${error.message}`, { cause: error })
  }
}
