// The record of what the root signed: one line of JSON for each certificate, in the file `issued` beside root.key.
// Enters: certificates as they are signed. Leaves: all serials of a key. Always holds: revoking one certificate of a
// key revokes the key, because earlier and later certificates are valid for the same keys.
import { appendFile, readFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { GodwitError } from '../wire/errors.ts'
import type { Issued } from './signing.ts'

type Line = Pick<Issued, 'role' | 'id' | 'fingerprint' | 'serial' | 'notAfter'>

const fileOf = (rootKey: string): string => join(dirname(rootKey), 'issued')

/**
 * Written before the certificate is returned: a certificate missing here could not be revoked with its key.
 * CONFIG_UNREADABLE.
 */
export async function recordIssued(rootKey: string, { role, id, fingerprint, serial, notAfter }: Line): Promise<void> {
  try {
    await appendFile(fileOf(rootKey), `${JSON.stringify({ role, id, fingerprint, serial, notAfter })}\n`, { mode: 0o600 })
  } catch (cause) {
    throw new GodwitError('CONFIG_UNREADABLE', `${fileOf(rootKey)}: cannot be written, so the certificate was not issued`, { cause })
  }
}

/** All readable lines; none if the file does not exist. */
export async function readIssued(rootKey: string): Promise<Line[]> {
  const text = await readFile(fileOf(rootKey), 'utf8').catch(() => '')
  return text.split('\n').flatMap(line => {
    try {
      return line === '' ? [] : [JSON.parse(line) as Line]
    } catch {
      return []
    }
  })
}

/** These serials, and all others of their keys that have not expired. `now`: Unix ms. */
export function withTheirKeys(serials: Iterable<string>, issued: Line[], now: number): Set<string> {
  const all = new Set(serials)
  const keys = new Set(issued.filter(({ serial }) => all.has(serial)).map(({ fingerprint }) => fingerprint))
  for (const { fingerprint, serial, notAfter } of issued) if (keys.has(fingerprint) && Date.parse(notAfter) >= now) all.add(serial)
  return all
}
