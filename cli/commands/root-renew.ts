// godwit root renew: for a timer on the machine with root.key. It approves renewals by one rule (crypto/renewal.ts) and
// signs the revocation list again, over the gateway's admin API. This machine connects out; nothing connects to it.

import { join } from 'node:path'
import type { Root } from '../../crypto/certificate.ts'
import { nowSeconds } from '../../ops/clock.ts'
import type { RenewalView, RevocationsView } from '../../wire/admin.ts'
import { EXIT, toGodwitError } from '../../wire/errors.ts'
import { DAY_MS } from '../../wire/units.ts'
import { askGateway } from '../client.ts'
import { command, gatewayOptions, shared } from '../command.ts'
import type { Io } from '../io.ts'
import { readIssued, recordIssued, withTheirKeys } from '../issued.ts'
import { json, table } from '../output.ts'
import { defaultPaths } from '../paths.ts'
import { certify, loadCrypto, readRoot } from '../signing.ts'

/** A list of this age is signed again. */
const LIST_DAYS = 7

type Flags = { gateway?: string | undefined; 'token-file'?: string | undefined }
type Place = { io: Io; flags: Flags; root: Root; rootPath: string; listPath: string }
type Row = { role: string; id: string; outcome: 'renewed' | 'refused' | 'waits'; notAfter: string; reason: string }

export const rootRenew = command({
  name: 'root renew',
  summary: 'approve renewal requests by rule, and sign the revocation list again',
  details:
    'Run it once a day by a timer, on the machine with root.key. A request is approved if its key signed it within the last week and its certificate is valid, of this root, not ' +
    'revoked (nor any other of the same key) and past half of its validity. The new certificate has the same name and keys. A revocation list older than ' +
    `${LIST_DAYS} days gets a new number and date and is sent to the gateway. Exit code 6 if a request was rejected.`,
  options: {
    root: { kind: 'path', value: 'FILE', help: "the root's secret key (default: root.key in the configuration folder)" },
    list: { kind: 'path', value: 'FILE', help: 'the revocation list (default: revocations in the configuration folder)' },
    'valid-for': { kind: 'duration', value: 'TIME', help: 'validity of a new certificate (default 30d)' },
    json: shared.json,
    ...gatewayOptions,
  },
  examples: ['godwit root renew --gateway http://127.0.0.1:7445 --token-file admin.token'],
  run: async ({ options, io }) => {
    const { configDir } = defaultPaths(io)
    const rootPath = options.root ?? join(configDir, 'root.key')
    const place: Place = {
      io,
      flags: options,
      root: await readRoot(rootPath),
      rootPath,
      listPath: options.list ?? join(configDir, 'revocations'),
    }
    const list = await freshList(place)
    const { renewals } = await askGateway<{ renewals: RenewalView[] }>(io, options, { path: '/v1/renewals' })
    const rows: Row[] = []
    for (const view of renewals)
      if (view.status === 'pending') rows.push(await renew(place, view, list.serials, options['valid-for'] ?? 30 * DAY_MS))
    const shown = rows.map(({ role, id, outcome, notAfter, reason }) => [role, id, outcome, notAfter, reason])
    const { number, isNew } = list
    if (options.json) io.out(json({ renewals: rows, revocations: { number, isNew } }))
    else
      io.out(
        `${table(['ROLE', 'NAME', 'OUTCOME', 'VALID UNTIL', 'REASON'], shown, 'nothing to renew')}revocation list ${number}${isNew ? ', new' : ''}\n`,
      )
    return rows.some(({ outcome }) => outcome === 'refused') ? EXIT.denied : EXIT.ok
  },
})

async function renew({ io, flags, root, rootPath }: Place, view: RenewalView, serials: Set<string>, validMs: number): Promise<Row> {
  const { role, id } = view
  try {
    const { verifyRenewal } = await import('../../crypto/renewal.ts')
    const now = nowSeconds()
    const revocations = { number: 0, issuedAt: now, serials }
    const bytes = new Uint8Array(Buffer.from(view.request, 'base64'))
    const claims = verifyRenewal(bytes, { rootPublic: root.signPublic, now, revocations })
    const issued = await certify(root, claims, validMs)
    await recordIssued(rootPath, issued)
    const body = { certificate: Buffer.from(issued.bytes).toString('base64') }
    await askGateway(io, flags, { method: 'PUT', path: `/v1/renewals/${claims.role}/${encodeURIComponent(claims.id)}`, body })
    return { role: claims.role, id: claims.id, outcome: 'renewed', notAfter: issued.notAfter, reason: '' }
  } catch (thrown) {
    const { code, message } = toGodwitError(thrown)
    return { role, id, outcome: 'refused', notAfter: new Date(view.notAfter * 1000).toISOString(), reason: `${code}: ${message}` }
  }
}

/**
 * The newer list of file and gateway, with all serials of revoked keys. An old list gets a new number and date; the
 * gateway receives a list that it does not have.
 */
async function freshList({ io, flags, root, rootPath, listPath }: Place) {
  const { certificate, files } = await loadCrypto()
  const now = nowSeconds()
  const read = (bytes: Uint8Array) =>
    certificate.verifyRevocations(bytes, { rootPublic: root.signPublic, now, maxAgeSeconds: Number.POSITIVE_INFINITY })
  const own = (await files.exists(listPath)) ? read(await files.readArmored(listPath, 'REVOCATIONS')) : undefined
  const { list: text } = await askGateway<RevocationsView>(io, flags, { path: '/v1/revocations' })
  const theirs = text === null ? undefined : read(new Uint8Array(Buffer.from(text, 'base64')))
  const number = Math.max(own?.number ?? 0, theirs?.number ?? 0)
  const known = [...(own?.serials ?? []), ...(theirs?.serials ?? [])]
  const serials = withTheirKeys(known, await readIssued(rootPath), now * 1000)
  const newest = (own?.number ?? 0) >= (theirs?.number ?? 0) ? own : theirs
  const isOld = !newest || now - newest.issuedAt > LIST_DAYS * 86_400 || serials.size > newest.serials.size
  if (!isOld && theirs?.number === number) return { number, serials, isNew: false }
  const next = isOld ? number + 1 : number
  const bytes = isOld
    ? certificate.issueRevocations(root, { number: next, issuedAt: now, serials })
    : await files.readArmored(listPath, 'REVOCATIONS')
  if (isOld) await files.writeFileSafely(listPath, files.armor('REVOCATIONS', bytes), { mode: 0o644, overwrite: true })
  await askGateway(io, flags, { method: 'PUT', path: '/v1/revocations', body: { list: Buffer.from(bytes).toString('base64') } })
  return { number: next, serials, isNew: isOld }
}
