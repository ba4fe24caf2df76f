// godwit root: the offline root that says which keys are whose. Its secret belongs on a machine without a network; only requests go in and
// certificates and revocation lists come out.
import { join } from 'node:path'
import { GodwitError } from '../../wire/errors.ts'
import { type Command, command, shared } from '../command.ts'
import { json, listing } from '../output.ts'
import { defaultPaths } from '../paths.ts'
import { issue, loadCrypto, readRoot } from '../signing.ts'

const rootFile = { kind: 'path', value: 'FILE', help: "the root's secret key (default: root.key in the configuration folder)" } as const
const DAY_MS = 86_400_000

const create = command({
  name: 'root create',
  summary: 'make the root key that certifies sites and gateways',
  details:
    'Writes root.key (0600: whoever has it can join any site to your fleet; keep it offline) and root.pub (public, goes to every site and gateway).',
  options: {
    out: { kind: 'path', value: 'DIR', help: 'folder to write to (default: the configuration folder)' },
    force: { kind: 'flag', help: 'overwrite a root that exists: all it certified must be certified anew' },
    json: shared.json,
  },
  examples: ['godwit root create'],
  run: async ({ options, io }) => {
    const { certificate, identity, files } = await loadCrypto()
    const folder = options.out ?? defaultPaths(io).configDir
    const root = certificate.createRoot()
    const answer = { fingerprint: identity.fingerprint(root.signPublic), key: join(folder, 'root.key'), public: join(folder, 'root.pub') }
    await files.writeFileSafely(answer.key, certificate.encodeRoot(root), { overwrite: options.force })
    await files.writeFileSafely(answer.public, files.armor('ROOT PUBLIC KEY', root.signPublic), { mode: 0o644, overwrite: true })
    io.out(options.json ? json(answer) : listing(Object.entries(answer)))
    return 0
  },
})

const sign = command({
  name: 'root sign',
  summary: 'certify the keys in a request',
  details:
    'Compare the fingerprint with the one that keygen printed at the site (read it aloud over the phone), or give it with --fingerprint: then a request with other keys is refused.',
  positionals: [{ name: 'REQUEST', help: 'request file from godwit keygen' }],
  options: {
    root: rootFile,
    'valid-for': { kind: 'duration', value: 'TIME', help: 'how long the certificate is good (default 30d)' },
    fingerprint: { kind: 'text', value: 'FINGERPRINT', help: 'refuse a request whose keys have another fingerprint' },
    out: { kind: 'path', value: 'FILE', help: 'where to write the certificate (default: beside the request, .cert)' },
    json: shared.json,
  },
  examples: ['godwit root sign site.request --valid-for 30d', 'godwit root sign berlin.request --fingerprint 7k3mp-...'],
  run: async ({ options, args, io }) => {
    const { files } = await loadCrypto()
    const requestPath = args[0]!
    const request = await files.readArmored(requestPath, 'CERTIFICATE REQUEST')
    const root = await readRoot(options.root ?? join(defaultPaths(io).configDir, 'root.key'))
    const issued = await issue(root, request, { validMs: options['valid-for'] ?? 30 * DAY_MS, fingerprint: options.fingerprint })
    const path = options.out ?? `${requestPath.replace(/\.request$/, '')}.cert`
    await files.writeFileSafely(path, files.armor('CERTIFICATE', issued.bytes), { mode: 0o644, overwrite: true })
    const { bytes: _, ...claims } = issued
    const answer = { certificate: path, ...claims }
    io.out(options.json ? json(answer) : listing(Object.entries(answer)))
    return 0
  },
})

const revoke = command({
  name: 'root revoke',
  summary: 'add certificates to the revocation list, or date the list anew',
  details:
    'Reads the list if it exists, adds the serials, numbers and dates it anew, signs and writes it. Copy it to every site and gateway (their revocations field). ' +
    'Lists age: run this without arguments to publish a fresh one.',
  positionals: [{ name: 'SERIAL|CERTIFICATE', help: 'serial numbers or certificate files', optional: true, many: true }],
  options: {
    root: rootFile,
    list: { kind: 'path', value: 'FILE', help: 'the list (default: revocations in the configuration folder)' },
    json: shared.json,
  },
  examples: ['godwit root revoke site.cert', 'godwit root revoke'],
  run: async ({ options, args, io }) => {
    const { certificate, files } = await loadCrypto()
    const { configDir } = defaultPaths(io)
    const root = await readRoot(options.root ?? join(configDir, 'root.key'))
    const path = options.list ?? join(configDir, 'revocations')
    const now = Math.floor(Date.now() / 1000)
    const old = (await files.exists(path))
      ? certificate.verifyRevocations(await files.readArmored(path, 'REVOCATIONS'), {
          rootPublic: root.signPublic,
          now,
          maxAgeSeconds: Number.POSITIVE_INFINITY,
        })
      : { number: 0, serials: new Set<string>() }
    const serials = new Set([...old.serials, ...(await Promise.all(args.map(serialOf)))])
    const list = certificate.issueRevocations(root, { number: old.number + 1, issuedAt: now, serials })
    await files.writeFileSafely(path, files.armor('REVOCATIONS', list), { mode: 0o644, overwrite: true })
    const answer = { list: path, number: old.number + 1, serials: serials.size }
    io.out(options.json ? json(answer) : listing(Object.entries(answer).map(([key, value]) => [key, String(value)])))
    return 0
  },
})

async function serialOf(word: string): Promise<string> {
  if (/^[0-9a-f]{32}$/.test(word)) return word
  const { certificate, files } = await loadCrypto()
  return certificate.decodeCertificate(await files.readArmored(word, 'CERTIFICATE')).serial
}

const show = command({
  name: 'root show',
  summary: 'say what is in a key, request, certificate or revocation file',
  details: 'Shows what the file claims; a certificate is also checked against root.pub where --root-public names it.',
  positionals: [
    { name: 'FILE', help: 'any file that keygen or root has written (default: root.pub in the configuration folder)', optional: true },
  ],
  options: {
    'root-public': { kind: 'path', value: 'FILE', help: 'check against this root' },
    json: shared.json,
  },
  examples: ['godwit root show', 'godwit root show site.cert --root-public root.pub'],
  run: async ({ options, args, io }) => {
    const { describeFile } = await import('../signing.ts')
    const facts = await describeFile(args[0] ?? join(defaultPaths(io).configDir, 'root.pub'), options['root-public'])
    if (facts['error'] !== undefined && !options.json) io.out(listing(Object.entries(facts).filter(([key]) => key !== 'error')))
    if (facts['error'] !== undefined) throw new GodwitError('CERT_UNTRUSTED', facts['error'])
    io.out(options.json ? json(facts) : listing(Object.entries(facts)))
    return 0
  },
})

const fence = command({
  name: 'root fence',
  summary: 'sign that a site can no longer run a VM, so that another may take it over',
  details:
    'Sign this only when the host of that site is powered off, or can never again run this VM: whoever holds the statement starts the VM elsewhere, and two ' +
    'copies destroy its data. godwit recover at the site that takes over says what it must hold. It is good for one VM at one epoch, once.',
  options: {
    site: { kind: 'text', value: 'SITE', help: 'the site that has been cut off', required: true },
    vm: { kind: 'text', value: 'VM', help: 'the VM that it may have had', required: true },
    epoch: { kind: 'integer', value: 'N', min: 0, max: 1_000_000_000, help: 'the epoch at which it may have had it', required: true },
    for: { kind: 'text', value: 'SITE', help: 'the site that may take the VM over', required: true },
    by: { kind: 'text', value: 'TEXT', help: 'who made sure, and how; it is kept with the records', required: true },
    root: rootFile,
    out: { kind: 'path', value: 'FILE', help: 'where to write it (default: VM-EPOCH.fencing)' },
    json: shared.json,
  },
  examples: ['godwit root fence --site b --vm web-1 --epoch 2 --for a --by "Ada Byron pulled the plug of host b, 14:10"'],
  run: async ({ options, io }) => {
    const { files } = await loadCrypto()
    const { issueFencing } = await import('../../crypto/fencing.ts')
    const root = await readRoot(options.root ?? join(defaultPaths(io).configDir, 'root.key'))
    const { site, vm, epoch, by } = options
    const path = options.out ?? `${vm}-${epoch}.fencing`
    const claims = { site, vm, epoch, for: options.for, by, issuedAt: Math.floor(Date.now() / 1000) }
    const bytes = (() => {
      try {
        return issueFencing(root, claims)
      } catch (error) {
        if (error instanceof TypeError) throw new GodwitError('USAGE', error.message)
        throw error
      }
    })()
    await files.writeFileSafely(path, files.armor('FENCING STATEMENT', bytes), { mode: 0o644, overwrite: true })
    const answer = { statement: path, ...claims }
    io.out(options.json ? json(answer) : listing(Object.entries(answer).map(([key, value]) => [key, String(value)])))
    return 0
  },
})

export const rootCommands: Command[] = [create, sign, revoke, fence, show]
