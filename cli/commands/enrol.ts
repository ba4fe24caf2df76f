// godwit enrol: a new site receives its certificate through the gateway, which cannot issue one itself.
//   operator: enrol token SITE -> a token for the site's administrator
//   site:     keygen, enrol request --token ... -> shows its fingerprint and waits
//   operator: enrol approve SITE --fingerprint ... -> signs with the offline root; the site receives the certificate
//             and checks it

import { join } from 'node:path'
import type { NodeConfig } from '../../edge-node/config.ts'
import { formatDuration } from '../../ops/units.ts'
import type { EnrolmentView, TokenReply } from '../../wire/admin.ts'
import { GodwitError } from '../../wire/errors.ts'
import { DAY_MS } from '../../wire/units.ts'
import { askGateway, loadNodeConfig } from '../client.ts'
import { type CliCommand, command, gatewayOptions, shared } from '../command.ts'
import type { Io } from '../io.ts'
import { recordIssued } from '../issued.ts'
import { json, listing, table } from '../output.ts'
import { defaultPaths } from '../paths.ts'
import { describeFile, issue, loadCrypto, readRoot } from '../signing.ts'

const admin = { json: shared.json, ...gatewayOptions } as const

const token = command({
  name: 'enrol token',
  summary: 'create a single-use token with which one site may request a certificate',
  details: 'For the operator. The gateway shows the token once and stores only its hash. It expires after one hour.',
  positionals: [{ name: 'SITE', help: 'name of the new site' }],
  options: admin,
  examples: ['godwit enrol token berlin-1'],
  run: async ({ options, args, io }) => {
    const reply = await askGateway<TokenReply>(io, options, { method: 'POST', path: '/v1/enrolments/tokens', body: { site: args[0]! } })
    io.out(options.json ? json(reply) : `${reply.token}\n`)
    if (!options.json) io.err(`token for site ${reply.site}, expires in ${formatDuration(reply.expiresAt - Date.now())}\n`)
    return 0
  },
})

const request = command({
  name: 'enrol request',
  summary: 'request the certificate of this site, and wait for it',
  details:
    'For the site. Needs its keys (godwit keygen), the node configuration, and root.pub from the operator (copy it by hand: the site trusts this key). ' +
    'Read the fingerprint to the operator. The certificate is checked against root.pub and written to identity.certificate of the configuration.',
  options: {
    token: { kind: 'text', value: 'TOKEN', help: 'token from godwit enrol token (or GODWIT_ENROL_TOKEN, which ps does not show)' },
    config: shared.config,
    'wait-for': { kind: 'duration', value: 'TIME', help: 'how long to wait for the operator (default 1h)' },
    json: shared.json,
  },
  examples: ['godwit enrol request --token gwt-...'],
  run: async ({ options, io }) => {
    const secret = options.token ?? io.env['GODWIT_ENROL_TOKEN']
    if (!secret) throw new GodwitError('USAGE', '--token is missing: the operator creates a token with godwit enrol token')
    const config = await loadNodeConfig(io, { file: options.config })
    const { enrolSite } = await import('../wiring.ts')
    const { identity, certificate, files } = await loadCrypto()
    const { readKeys } = await import('../../identity/load.ts')
    const keys = await readKeys(config.identity.keys)
    const rootPublic = await files.readArmored(config.identity.root, 'ROOT PUBLIC KEY')
    const fingerprint = identity.fingerprint(keys.signPublic)
    io.err(`site ${config.site}\nfingerprint ${fingerprint}\n`)
    const signed = certificate.createRequest(keys, { role: 'site', id: config.site })
    const onPending = () => io.err('request sent; waiting until the operator approves it with this fingerprint (Ctrl-C exits)\n')
    const issued = await abortable(io, options['wait-for'] ?? 3_600_000, signal =>
      enrolSite({ config, token: secret, request: signed, rootPublic, onPending, signal }),
    )
    await files.writeFileSafely(config.identity.certificate, files.armor('CERTIFICATE', issued.bytes), { mode: 0o644, overwrite: true })
    const facts = await describeFile(config.identity.certificate, config.identity.root)
    io.out(
      options.json
        ? json({ path: config.identity.certificate, ...facts })
        : listing([['certificate', config.identity.certificate], ...Object.entries(facts)]),
    )
    return 0
  },
})

async function abortable<T>(io: Io, ms: number, body: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const stop = new AbortController()
  const timer = setTimeout(() => stop.abort(new GodwitError('TIMEOUT', `no certificate arrived within ${formatDuration(ms)}`)), ms)
  const stopListening = io.onInterrupt(() =>
    stop.abort(new GodwitError('TIMEOUT', 'interrupted before the certificate arrived', { hint: 'run it again with the same token' })),
  )
  try {
    return await body(stop.signal)
  } finally {
    clearTimeout(timer)
    stopListening()
  }
}

const list = command({
  name: 'enrol list',
  summary: 'list sites with a token, sites that wait for approval, and approved sites',
  details: 'For the operator. lapsed: the token expired before the approval; create a new one.',
  options: admin,
  examples: ['godwit enrol list'],
  run: async ({ options, io }) => {
    const views = await enrolments(io, options)
    const rows = views.map(view => [
      view.site,
      view.status,
      view.fingerprint ?? '-',
      formatDuration(Math.max(0, view.expiresAt - Date.now())),
    ])
    io.out(options.json ? json(views) : table(['SITE', 'STATUS', 'FINGERPRINT', 'TOKEN EXPIRES IN'], rows, 'no enrolments'))
    return 0
  },
})

async function enrolments(io: Io, options: { gateway?: string | undefined; 'token-file'?: string | undefined }): Promise<EnrolmentView[]> {
  const { enrolments } = await askGateway<{ enrolments: EnrolmentView[] }>(io, options, { path: '/v1/enrolments' })
  return enrolments
}

const approve = command({
  name: 'enrol approve',
  summary: 'sign the request of a waiting site and hand the certificate to the gateway',
  details:
    'For the operator, on the machine with the root key. The gateway only delivers the request: --fingerprint must be the one that the site read to you. ' +
    'If the machine with the root key has no network, use godwit root sign and copy the files.',
  positionals: [{ name: 'SITE', help: 'name of the site' }],
  options: {
    fingerprint: { kind: 'text', value: 'FINGERPRINT', help: 'fingerprint that the site read to you', required: true },
    root: { kind: 'path', value: 'FILE', help: "the root's secret key (default: root.key in the configuration folder)" },
    'valid-for': { kind: 'duration', value: 'TIME', help: 'validity of the certificate (default 30d)' },
    ...admin,
  },
  examples: ['godwit enrol approve berlin-1 --fingerprint 7k3mp-...'],
  run: async ({ options, args, io }) => {
    const site = args[0]!
    const rootPath = options.root ?? join(defaultPaths(io).configDir, 'root.key')
    const root = await readRoot(rootPath)
    const view = (await enrolments(io, options)).find(candidate => candidate.site === site)
    if (!view?.request)
      throw new GodwitError('SITE_UNKNOWN', `the gateway has no request of site ${site}`, { hint: 'see godwit enrol list' })
    // Checked before signing; the gateway rejects such a request too.
    if (view.status === 'lapsed')
      throw new GodwitError('TOKEN_INVALID', `the token of site ${site} has expired, so the site could not fetch the certificate`, {
        hint: `create a new token (godwit enrol token ${site}) and repeat godwit enrol request at the site`,
      })
    const asked = new Uint8Array(Buffer.from(view.request, 'base64'))
    const issued = await issue(root, asked, { id: site, fingerprint: options.fingerprint, validMs: options['valid-for'] ?? 30 * DAY_MS })
    await recordIssued(rootPath, issued)
    const body = { certificate: Buffer.from(issued.bytes).toString('base64') }
    await askGateway(io, options, { method: 'PUT', path: `/v1/enrolments/${encodeURIComponent(site)}`, body })
    const { bytes: _, ...claims } = issued
    io.out(options.json ? json(claims) : listing(Object.entries(claims)))
    return 0
  },
})

/** The file of the certificate that the node uses: a renewed one is in the state folder. */
async function certificateFile({ identity, stateDir }: NodeConfig): Promise<string> {
  const { newestCertificate, renewedFile } = await import('../../identity/load.ts')
  const { files } = await loadCrypto()
  const renewed = renewedFile(stateDir, 'site')
  if (!(await files.exists(renewed))) return identity.certificate
  const newest = await newestCertificate({ ...identity, renewed })
  return Buffer.compare(newest, await files.readArmored(renewed, 'CERTIFICATE')) === 0 ? renewed : identity.certificate
}

const status = command({
  name: 'enrol status',
  summary: "show this site's certificate and its expiry",
  details: 'For the site. Exit code 6 if the gateway would reject the certificate.',
  options: { config: shared.config, json: shared.json },
  examples: ['godwit enrol status'],
  run: async ({ options, io }) => {
    const config = await loadNodeConfig(io, { file: options.config })
    const facts = await describeFile(await certificateFile(config), config.identity.root)
    const { error, ...shown } = facts
    if (error !== undefined && !options.json) io.out(listing(Object.entries(shown)))
    if (error !== undefined) throw new GodwitError('CERT_UNTRUSTED', error)
    io.out(options.json ? json(shown) : listing(Object.entries(shown)))
    return 0
  },
})

export const enrolCommands: CliCommand[] = [token, request, list, approve, status]
