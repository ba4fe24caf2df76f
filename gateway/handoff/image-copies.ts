// Copies of images between sites. Enters: the wish of a site to send one to another site. Leaves: a session of the
// relay, and the plan that both sites are told.
// Always holds: only a connected site asks, and only as the source; the target has agreed before the session opens. The
// gateway keeps no record and learns no name: the sites find out by themselves what is missing (edge-node/images/).
import { randomBytes } from 'node:crypto'
import type { Clock } from '../../ops/clock.ts'
import { STREAMS_DEFAULT } from '../../wire/admin.ts'
import type { ImageCopyParams, ImageCopyResult, ImagePlan } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Versions } from '../../wire/versions.ts'
import type { Sessions } from '../relay/sessions.ts'
import type { NodeLink, Sites } from '../sites/sites.ts'
import { planVersion } from './plan-version.ts'

const PREPARE_MS = 20_000

type ImageCopiesOptions = {
  sites: Sites
  sessions: Sessions
  clock: Clock
  versions?: Versions | undefined
  /** Throws where the revocation list lets nothing begin. */
  checkTrust?: () => void
}

/** `image.copy`. SITE_UNKNOWN, SITE_OFFLINE, SITE_SAME, LIMIT_EXCEEDED; what the target refuses with. */
export async function copyImage(
  { sites, sessions, clock, versions, checkTrust }: ImageCopiesOptions,
  source: NodeLink,
  { target: site }: ImageCopyParams,
): Promise<ImageCopyResult> {
  checkTrust?.()
  if (site === source.site) throw new GodwitError('SITE_SAME', `the image is already at ${site}`)
  if (!sites.known(site)) throw new GodwitError('SITE_UNKNOWN', `no site '${site}'`)
  const target = sites.online(site)
  if (!target) throw new GodwitError('SITE_OFFLINE', `site ${site} is not connected`)
  const plan: ImagePlan = {
    version: planVersion({ sites, versions }, source.site, site),
    kind: 'image',
    migrationId: randomBytes(16).toString('hex'),
    source: source.site,
    target: site,
    streams: STREAMS_DEFAULT,
    compression: 'zstd',
    createdAt: clock.now(),
  }
  const sourceCertificate = Buffer.from(source.peer.certificateBytes).toString('base64')
  await target.rpc.request('image.prepare', { plan, sourceCertificate }, { timeoutMs: PREPARE_MS })
  sessions.open(plan)
  return { plan, targetCertificate: Buffer.from(target.peer.certificateBytes).toString('base64') }
}
