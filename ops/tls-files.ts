// A certificate and its key from files that are checked for changes, so a renewal (ACME) needs no restart. Enters: two
// paths. Leaves: the pair, and each later pair that matches. Always holds: an unreadable or mismatched pair (a renewal
// in progress) changes nothing, and is logged once if the next check finds no better pair.
import { createHash, createPrivateKey, X509Certificate } from 'node:crypto'
import { createSecureContext } from 'node:tls'
import { GodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import { readSecret, readText } from './files.ts'

export type TlsPair = { certificate: string; key: string }
export type TlsFiles = {
  readonly pair: TlsPair
  /** Calls the listener with each new pair, until close(). One listener. */
  follow(listener: (pair: TlsPair) => void): void
  close(): void
}

const LOOK_MS = 10_000
/** Two files cannot be replaced at once: a check may happen between them. */
const FAILURES_TOLD = 2

/**
 * CONFIG_UNREADABLE for a file that cannot be read, CONFIG_INVALID for a mismatched pair. `everyMs`: interval of the
 * checks.
 */
export async function openTlsFiles(
  paths: { certificate: string; key: string },
  { log, everyMs = LOOK_MS }: { log: Log; everyMs?: number },
): Promise<TlsFiles> {
  const read = async (): Promise<TlsPair> => {
    const pair = { certificate: await readText(paths.certificate), key: await readSecret(paths.key) }
    try {
      // createSecureContext treats an empty text as no certificate, and a server without one rejects every client.
      new X509Certificate(pair.certificate)
      createPrivateKey(pair.key)
      createSecureContext({ cert: pair.certificate, key: pair.key })
    } catch (cause) {
      throw new GodwitError('CONFIG_INVALID', `${paths.certificate} and ${paths.key}: ${(cause as Error).message}`, { cause })
    }
    return pair
  }
  let pair = await read()
  let listener = (_pair: TlsPair) => {}
  let failures = 0
  const look = async () => {
    try {
      const next = await read()
      failures = 0
      if (digest(next) === digest(pair)) return
      pair = next
      listener(pair)
      log.info('TLS certificate reloaded', { certificate: paths.certificate })
    } catch (error) {
      failures += 1
      if (failures === FAILURES_TOLD)
        log.warn('TLS certificate not reloaded: the previous one stays in use', { certificate: paths.certificate, error })
    }
  }
  const timer = setInterval(() => void look(), everyMs).unref()
  return {
    get pair() {
      return pair
    },
    follow(next) {
      listener = next
    },
    close: () => clearInterval(timer),
  }
}

const digest = ({ certificate, key }: TlsPair) => createHash('sha256').update(certificate).update('\0').update(key).digest('hex')
