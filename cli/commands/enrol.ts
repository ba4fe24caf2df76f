// godwit enrol: how a new site gets its certificate through the gateway, without the gateway being able to make one.
//   operator: enrol token SITE -> a token, told to the site's administrator
//   site:     keygen, enrol request --token ... -> shows its fingerprint and waits
//   operator: enrol approve SITE --fingerprint ... -> signs with the offline root; the site receives and checks the certificate
import { join } from 'node:path'
import { formatDuration } from '../../ops/units.ts'
import type { EnrolmentView, TokenReply } from '../../wire/admin.ts'
import { GodwitError } from '../../wire/errors.ts'
import { askGateway, loadNodeConfig } from '../client.ts'
import { type Command, command, shared } from '../command.ts'
import type { Io } from '../io.ts'
import { json, listing, table } from '../output.ts'
import { defaultPaths } from '../paths.ts'
import { describeFile, issue, loadCrypto, readRoot } from '../signing.ts'

const admin = { json: shared.json, gateway: shared.gateway, 'token-file': shared.tokenFile } as const
const DAY_MS = 86_400_000

const token = command({
  name: 'enrol token',
  summary: 'make a single-use token with which one site may ask for a certificate',
  details: 'For the operator. It is shown once and kept as a hash; it is good for an hour at most.',
  positionals: [{ name: 'SITE', help: 'name that the site will have' }],
  options: admin,
  examples: ['godwit enrol token berlin-1'],
  run: async ({ options, args, io }) => {
    const reply = await askGateway<TokenReply>(io, options, { method: 'POST', path: '/v1/enrolments/tokens', body: { site: args[0]! } })
    io.out(options.json ? json(reply) : `${reply.token}\n`)
    if (!options.json) io.err(`for site ${reply.site}, good for ${formatDuration(reply.expiresAt - Date.now())}\n`)
    return 0
  },
})

const request = command({
  name: 'enrol request',
  summary: 'ask for the certificate of this site, and wait for it',
  details:
    'For the site. Needs its keys (godwit keygen), root.pub (by hand, from the operator: it is what this site trusts) and the node configuration. ' +
    'Tell the operator the fingerprint that is shown; the certificate that comes is checked against root.pub and written where the configuration says.',
  options: {
    token: { kind: 'text', value: 'TOKEN', help: 'from godwit enrol token (or GODWIT_ENROL_TOKEN, which ps does not show)' },
    config: shared.config,
    'wait-for': { kind: 'duration', value: 'TIME', help: 'how long to wait for the operator (default 1h)' },
    json: shared.json,
  },
  examples: ['godwit enrol request --token gwt-...'],
  run: async ({ options, io }) => {
    const secret = options.token ?? io.env['GODWIT_ENROL_TOKEN']
    if (!secret) throw new GodwitError('USAGE', '--token is needed: the operator makes it with godwit enrol token')
    const config = await loadNodeConfig(io, { file: options.config })
    const { enrolSite } = await import('../wiring.ts')
    const { identity, certificate, files } = await loadCrypto()
    const { readKeys } = await import('../../edge-node/identity.ts')
    const keys = await readKeys(config.identity.keys)
    const rootPublic = await files.readArmored(config.identity.root, 'ROOT PUBLIC KEY')
    const fingerprint = identity.fingerprint(keys.signPublic)
    io.err(`site ${config.site}\nfingerprint ${fingerprint}\n`)
    const signed = certificate.createRequest(keys, { role: 'site', id: config.site })
    const onPending = () => io.err('the gateway has it; waiting for the operator to approve it with this fingerprint (Ctrl-C leaves)\n')
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
  const timer = setTimeout(() => stop.abort(new GodwitError('TIMEOUT', `no certificate within ${formatDuration(ms)}`)), ms)
  const stopListening = io.onInterrupt(() =>
    stop.abort(new GodwitError('TIMEOUT', 'left before the certificate came', { hint: 'run it again with the same token' })),
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
  summary: 'show who has a token, who waits for approval and who was approved',
  details: 'For the operator.',
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
    'For the operator, where the root key is. The gateway hands over the request but is not believed: its fingerprint must be the one that the site told you. ' +
    'Where the root key has no network at all, use godwit root sign and copy the files.',
  positionals: [{ name: 'SITE', help: 'name of the site' }],
  options: {
    fingerprint: { kind: 'text', value: 'FINGERPRINT', help: 'what the site told you', required: true },
    root: { kind: 'path', value: 'FILE', help: "the root's secret key (default: root.key in the configuration folder)" },
    'valid-for': { kind: 'duration', value: 'TIME', help: 'how long the certificate is good (default 30d)' },
    ...admin,
  },
  examples: ['godwit enrol approve berlin-1 --fingerprint 7k3mp-...'],
  run: async ({ options, args, io }) => {
    const site = args[0]!
    const root = await readRoot(options.root ?? join(defaultPaths(io).configDir, 'root.key'))
    const view = (await enrolments(io, options)).find(candidate => candidate.site === site)
    if (!view?.request) throw new GodwitError('SITE_UNKNOWN', `site ${site} has not sent a request`, { hint: 'see godwit enrol list' })
    const asked = new Uint8Array(Buffer.from(view.request, 'base64'))
    const issued = await issue(root, asked, { id: site, fingerprint: options.fingerprint, validMs: options['valid-for'] ?? 30 * DAY_MS })
    const body = { certificate: Buffer.from(issued.bytes).toString('base64') }
    await askGateway(io, options, { method: 'PUT', path: `/v1/enrolments/${encodeURIComponent(site)}`, body })
    const { bytes: _, ...claims } = issued
    io.out(options.json ? json(claims) : listing(Object.entries(claims)))
    return 0
  },
})

const status = command({
  name: 'enrol status',
  summary: "show this site's certificate and how long it is good",
  details: 'For the site. Exit code 6 when it would not be accepted.',
  options: { config: shared.config, json: shared.json },
  examples: ['godwit enrol status'],
  run: async ({ options, io }) => {
    const config = await loadNodeConfig(io, { file: options.config })
    const facts = await describeFile(config.identity.certificate, config.identity.root)
    const { error, ...shown } = facts
    if (error !== undefined && !options.json) io.out(listing(Object.entries(shown)))
    if (error !== undefined) throw new GodwitError('CERT_UNTRUSTED', error)
    io.out(options.json ? json(shown) : listing(Object.entries(shown)))
    return 0
  },
})

export const enrolCommands: Command[] = [token, request, list, approve, status]
