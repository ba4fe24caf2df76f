// Trust of open links. Enters: the sites' links, the current revocation list, the clock. Leaves: closed links, lists
// sent to nodes. Always holds: a link whose certificate has expired or was revoked ends at the next check
// (LOOK_EVERY_MS, or at once with a new list), with the code that the site would get if it connected now; its relay
// streams end with it.
import type { Revocations } from '../../crypto/certificate.ts'
import type { Trust } from '../../identity/trust.ts'
import { type Clock, unixSeconds } from '../../ops/clock.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { NodeLink, Sites } from './sites.ts'

const LOOK_EVERY_MS = 2_000
const LIST_MS = 10_000
/**
 * A site that rejected the list (a clock that is behind, a full disk) receives it again after this number of checks.
 */
const AGAIN_LOOKS = 15

type LinkTrustOptions = {
  sites: Pick<Sites, 'links'>
  /** Absent: only expiry is checked. */
  trust: Trust | undefined
  clock: Clock
  onEnded: (code: string) => void
  log: Log
}

type LinkTrust = {
  /** Ends links that are no longer trusted. */
  look(): void
  /** Sends the newest list to a newly connected site. */
  greet(link: NodeLink): void
  close(): void
}

type Offer = { state: 'sent' | 'taken' | 'refused'; looks: number }

export function watchLinks({ sites, trust, clock, onEnded, log }: LinkTrustOptions): LinkTrust {
  let sent = trust?.list()?.number
  const offers = new WeakMap<NodeLink, Offer>()
  const look = () => {
    const now = unixSeconds(clock)
    const list = trust?.list()
    for (const link of sites.links()) {
      const why = distrust(link, now, list)
      if (!why) continue
      log.warn('link closed: certificate is no longer valid', { site: link.site, purpose: link.peer.hello.purpose, error: why })
      onEnded(why.code)
      link.rpc.close(why)
    }
    const isNew = list?.number !== sent
    sent = list?.number
    for (const link of sites.links()) if (isNew || isDue(link)) greet(link)
  }
  const isDue = (link: NodeLink): boolean => {
    const offer = offers.get(link)
    if (offer?.state !== 'refused') return false
    offer.looks += 1
    return offer.looks >= AGAIN_LOOKS
  }
  const greet = (link: NodeLink) => {
    const list = trust?.signed()
    if (!list || link.peer.hello.purpose !== 'control') return
    const offer: Offer = { state: 'sent', looks: 0 }
    const isFirst = !offers.has(link)
    offers.set(link, offer)
    link.rpc.request('trust.revocations', { list: Buffer.from(list).toString('base64') }, { timeoutMs: LIST_MS }).then(
      () => {
        offer.state = 'taken'
      },
      error => {
        offer.state = 'refused'
        if (isFirst) log.info('site rejected the revocation list', { site: link.site, error })
      },
    )
  }
  const timer = setInterval(look, LOOK_EVERY_MS)
  timer.unref()
  const unwatch = trust?.watch(look)
  return {
    look,
    greet,
    close() {
      clearInterval(timer)
      unwatch?.()
    },
  }
}

function distrust({ peer: { certificate } }: NodeLink, now: number, list: Revocations | undefined): GodwitError | undefined {
  const who = `the certificate of ${certificate.role} ${certificate.id}`
  if (list?.serials.has(certificate.serial)) return new GodwitError('CERT_REVOKED', `${who} was revoked (list ${list.number})`)
  if (now > certificate.notAfter) return new GodwitError('CERT_EXPIRED', `${who} has expired`)
  return undefined
}
