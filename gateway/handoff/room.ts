// Room for a VM at its target, ahead of its migration: the questions to both nodes. Enters: what is to be moved where,
// for how long. Leaves: `prestage.*` to the nodes. Always holds: the gateway carries the VM's needs from site to site
// and cannot read them; what a target holds lapses by itself.
import type { PrestageRecord } from '../../wire/admin.ts'
import { HoldResult, NeedsResult, type SignedCommand } from '../../wire/control.ts'
import { GodwitError, hasCode } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { check } from '../../wire/schema.ts'
import type { NodeLink, Sites } from '../sites/sites.ts'

const ASK_MS = 30_000
const RELEASE_MS = 10_000

export type RoomWish = { holdMs: number; maxBytes?: number | undefined; command?: SignedCommand | undefined }

/**
 * Resolves when the target holds room. Counts the bytes of the questions in `record`. The codes of the target's
 * preflight, SITE_OFFLINE, LIMIT_EXCEEDED, NOT_AVAILABLE for nodes that cannot.
 */
export async function holdRoom(sites: Sites, record: PrestageRecord, { holdMs, maxBytes, command }: RoomWish): Promise<void> {
  const { handoffId: holdId, vm, epoch, source, target, method } = record
  const [from, to] = [linkTo(sites, source), linkTo(sites, target)]
  const facts = { holdId, vm, epoch, method }
  const certificate = (link: NodeLink) => Buffer.from(link.peer.certificateBytes).toString('base64')
  const answer = await ask(from, 'prestage.needs', {
    ...{ ...facts, target, targetCertificate: certificate(to) },
    ...(command ? { command } : {}),
  })
  const { needs } = check(NeedsResult, answer, { what: 'prestage.needs' })
  record.wireBytes += 2 * needs.length
  if (maxBytes !== undefined && record.wireBytes > maxBytes)
    throw new GodwitError('LIMIT_EXCEEDED', `the pre-staging request has ${record.wireBytes} bytes, maxBytes allows ${maxBytes}`)
  const held = await ask(to, 'prestage.hold', { ...facts, source, sourceCertificate: certificate(from), needs, holdMs })
  check(HoldResult, held, { what: 'prestage.hold' })
}

/** Not awaited: what is not released lapses. */
export function releaseRoom(sites: Sites, { handoffId, target, vm }: PrestageRecord, log: Log): void {
  ask(sites.online(target), 'prestage.release', { holdId: handoffId }, RELEASE_MS).catch(error =>
    log.debug('reservation not released; it will expire', { vm, target, error }),
  )
}

function linkTo(sites: Sites, site: string): NodeLink {
  const link = sites.online(site)
  if (!link) throw new GodwitError('SITE_OFFLINE', `site ${site} is not connected`)
  return link
}

/** A node of an earlier version does not know the question. */
async function ask(link: NodeLink | undefined, method: string, params: object, timeoutMs = ASK_MS): Promise<unknown> {
  if (!link) throw new GodwitError('SITE_OFFLINE', 'the site is not connected')
  try {
    return await link.rpc.request(method, params, { timeoutMs })
  } catch (error) {
    if (!hasCode(error, 'VERSION_UNSUPPORTED')) throw error
    throw new GodwitError('NOT_AVAILABLE', `the node of ${link.site} cannot pre-stage`, { cause: error })
  }
}
