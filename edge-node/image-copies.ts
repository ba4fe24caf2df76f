// Copies of images between this site and others, both ways, with this node's identity, rules and link. Enters: the
// parts of the node. Leaves: what the link, the API and migrations ask for.
import type { LoadedIdentity } from '../identity/load.ts'
import type { Trust } from '../identity/trust.ts'
import type { Log } from '../wire/log.ts'
import type { Alerts } from './alerts.ts'
import type { NodeConfig } from './config.ts'
import { IncomingCopies } from './images/incoming.ts'
import { OutgoingCopies } from './images/outgoing.ts'
import type { Link } from './link/link.ts'
import { checkAcceptImage } from './migration/accept.ts'
import type { Registry } from './registry/registry.ts'

type ImageCopiesOptions = {
  config: NodeConfig
  identity: LoadedIdentity
  trust: Trust
  registry: Registry
  alerts: Alerts
  /** There before the first copy begins. */
  link: () => Link
  log: Log
}

export type ImageCopies = { incoming: IncomingCopies; outgoing: OutgoingCopies; close(): Promise<void> }

export function createImageCopies({ config, identity, trust, registry, alerts, link, log }: ImageCopiesOptions): ImageCopies {
  const { site, accept } = config
  const shared = { site, identity, trust, images: registry.images, log }
  const incoming = new IncomingCopies({
    ...shared,
    checkAccept: source => checkAcceptImage(accept, { source, target: site }),
    onProgress: registry.imports.arriving,
    onBreach: error => alerts.raise(error, { side: 'target' }),
  })
  const outgoing = new OutgoingCopies({ ...shared, link, onBreach: error => alerts.raise(error, { side: 'source' }) })
  return {
    incoming,
    outgoing,
    async close() {
      await Promise.all([incoming.close(), outgoing.close()])
    },
  }
}
