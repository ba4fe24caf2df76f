// How long this site keeps warm copies (disks/copies.ts). Enters: copies, the trust, the time. Leaves: fewer copies.
// Always holds: a copy is removed when it is older than the configuration allows, and when the certificate of the site
// that its VM left for, or came from, is revoked.
import type { Trust } from '../identity/trust.ts'
import type { Log } from '../wire/log.ts'
import type { Copies } from './disks/copies.ts'

const LOOK_MS = 600_000
const DAY_MS = 86_400_000

type KeepOptions = { copies: Copies; trust: Pick<Trust, 'list' | 'watch'>; days: number; now: () => number; log: Log }

/** Looks at once, every 10 minutes, and after each new revocation list. */
export async function keepCopies({ copies, trust, days, now, log }: KeepOptions): Promise<{ close(): void }> {
  await copies.clear()
  let number: number | undefined
  const look = async () => {
    await copies.removeOlder(now() - days * DAY_MS)
    const list = trust.list()
    if (list) await copies.removeOf(list.serials)
  }
  const lookSoon = () => void look().catch(error => log.warn('warm copies could not be looked at', { error }))
  // It also tells of the passing of time, every 2 s.
  const unwatch = trust.watch(() => {
    if (trust.list()?.number === number) return
    number = trust.list()?.number
    lookSoon()
  })
  const timer = setInterval(lookSoon, LOOK_MS)
  timer.unref()
  await look()
  return {
    close() {
      unwatch()
      clearInterval(timer)
    },
  }
}
