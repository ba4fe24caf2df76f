// godwit root: the offline root, which certifies keys. Its secret belongs on a machine without a network: only requests
// enter that machine, and only certificates and revocation lists leave it.

import { join } from 'node:path'
import { nowSeconds } from '../../ops/clock.ts'
import { GodwitError } from '../../wire/errors.ts'
import { DAY_MS } from '../../wire/units.ts'
import { type CliCommand, command, shared } from '../command.ts'
import { readIssued, recordIssued, withTheirKeys } from '../issued.ts'
import { json, listing } from '../output.ts'
import { defaultPaths } from '../paths.ts'
import { issue, loadCrypto, readRoot } from '../signing.ts'
import { rootRenew } from './root-renew.ts'

const rootFile = { kind: 'path', value: 'FILE', help: "the root's secret key (default: root.key in the configuration folder)" } as const

const create = command({
  name: 'root create',
  summary: 'create the root key that certifies sites and gateways',
  details:
    'Writes root.key (0600; its owner can add any site to your fleet: keep it offline), root.pub (public; copy it to every site and gateway) and ' +
    'revocations (the first revocation list; copy it to the gateway, which sends it to the nodes). No migration begins without a list that is at most 30 days old.',
  options: {
    out: { kind: 'path', value: 'DIR', help: 'folder to write to (default: the configuration folder)' },
    force: { kind: 'flag', help: 'overwrite an existing root: every site and gateway then needs a new certificate' },
    json: shared.json,
  },
  examples: ['godwit root create'],
  run: async ({ options, io }) => {
    const { certificate, identity, files } = await loadCrypto()
    const folder = options.out ?? defaultPaths(io).configDir
    const root = certificate.createRoot()
    const answer = {
      fingerprint: identity.fingerprint(root.signPublic),
      key: join(folder, 'root.key'),
      public: join(folder, 'root.pub'),
      revocations: join(folder, 'revocations'),
    }
    const list = certificate.issueRevocations(root, { number: 1, issuedAt: nowSeconds(), serials: [] })
    await files.writeFileSafely(answer.key, certificate.encodeRoot(root), { overwrite: options.force })
    await files.writeFileSafely(answer.public, files.armor('ROOT PUBLIC KEY', root.signPublic), { mode: 0o644, overwrite: true })
    await files.writeFileSafely(answer.revocations, files.armor('REVOCATIONS', list), { mode: 0o644, overwrite: true })
    io.out(options.json ? json(answer) : listing(Object.entries(answer)))
    return 0
  },
})

const sign = command({
  name: 'root sign',
  summary: 'certify the keys in a request',
  details:
    'Give the fingerprint that keygen printed at the site (let the site read it to you by phone): a request with other keys is rejected. Without this check, ' +
    'an attacker who replaces the file could join as that site. Use --no-fingerprint only for a request that never left this machine.',
  positionals: [{ name: 'REQUEST', help: 'request file from godwit keygen' }],
  options: {
    root: rootFile,
    'valid-for': { kind: 'duration', value: 'TIME', help: 'validity of the certificate (default 30d)' },
    fingerprint: { kind: 'text', value: 'FINGERPRINT', help: 'fingerprint that the site read to you; required without --no-fingerprint' },
    'no-fingerprint': { kind: 'flag', help: 'the request was created on this machine, and nobody could replace it' },
    out: { kind: 'path', value: 'FILE', help: 'file to write the certificate to (default: beside the request, .cert)' },
    json: shared.json,
  },
  examples: [
    'godwit root sign berlin.request --fingerprint 7k3mp-... --valid-for 30d',
    'godwit root sign gateway.request --no-fingerprint',
  ],
  run: async ({ options, args, io }) => {
    const { files } = await loadCrypto()
    const requestPath = args[0]!
    if ((options.fingerprint === undefined) === !options['no-fingerprint'])
      throw new GodwitError('USAGE', '--fingerprint is missing: give the one that keygen printed at the site', {
        hint: 'ask the site for it (godwit root show site.request), or use --no-fingerprint for a request that never left this machine',
      })
    const request = await files.readArmored(requestPath, 'CERTIFICATE REQUEST')
    const rootPath = options.root ?? join(defaultPaths(io).configDir, 'root.key')
    const root = await readRoot(rootPath)
    const issued = await issue(root, request, { validMs: options['valid-for'] ?? 30 * DAY_MS, fingerprint: options.fingerprint })
    await recordIssued(rootPath, issued)
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
  summary: 'add certificates to the revocation list, or sign it again',
  details:
    'Reads the list if it exists, adds the serials and all others of the same keys (from the file issued beside root.key), and signs the list with a new number and date. Copy it to the gateway (its revocations field), which reads it ' +
    'within seconds and sends it to every node. A list expires after 30 days: run this command without arguments before that to sign it again.',
  positionals: [{ name: 'SERIAL|CERTIFICATE', help: 'serial numbers or certificate files', optional: true, many: true }],
  options: {
    root: rootFile,
    list: { kind: 'path', value: 'FILE', help: 'the list (default: revocations in the configuration folder)' },
    after: { kind: 'integer', value: 'N', min: 0, max: 1_000_000_000, help: 'number of the last list, if its file is lost' },
    json: shared.json,
  },
  examples: ['godwit root revoke site.cert', 'godwit root revoke'],
  run: async ({ options, args, io }) => {
    const { certificate, files } = await loadCrypto()
    const { configDir } = defaultPaths(io)
    const rootPath = options.root ?? join(configDir, 'root.key')
    const root = await readRoot(rootPath)
    const path = options.list ?? join(configDir, 'revocations')
    const now = nowSeconds()
    const old = (await files.exists(path))
      ? certificate.verifyRevocations(await files.readArmored(path, 'REVOCATIONS'), {
          rootPublic: root.signPublic,
          now,
          maxAgeSeconds: Number.POSITIVE_INFINITY,
        })
      : { number: 0, serials: new Set<string>() }
    const named = [...old.serials, ...(await Promise.all(args.map(serialOf)))]
    const serials = withTheirKeys(named, await readIssued(rootPath), now * 1000)
    const number = Math.max(old.number, options.after ?? 0) + 1
    const list = certificate.issueRevocations(root, { number, issuedAt: now, serials })
    await files.writeFileSafely(path, files.armor('REVOCATIONS', list), { mode: 0o644, overwrite: true })
    const answer = { list: path, number, serials: serials.size }
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
  summary: 'show the content of a key, request, certificate or revocation file',
  details: 'Shows the fields of the file. With --root-public it also checks a certificate against that root.',
  positionals: [
    { name: 'FILE', help: 'file that godwit keygen or godwit root wrote (default: root.pub in the configuration folder)', optional: true },
  ],
  options: {
    'root-public': { kind: 'path', value: 'FILE', help: 'root to check against' },
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
  summary: 'sign that a site can no longer run a VM, so that another site may take it over',
  details:
    'Sign only if the host of that site is powered off or can never run this VM again: the statement lets another site start the VM, and two running ' +
    'copies destroy its data. godwit recover at the other site shows what the statement must contain. It is valid once, for one VM at one epoch.',
  options: {
    site: { kind: 'text', value: 'SITE', help: 'site that is cut off', required: true },
    vm: { kind: 'text', value: 'VM', help: 'VM that this site may have run', required: true },
    epoch: {
      kind: 'integer',
      value: 'N',
      min: 0,
      max: 1_000_000_000,
      help: 'epoch at which this site may have run the VM',
      required: true,
    },
    for: { kind: 'text', value: 'SITE', help: 'site that may take the VM over', required: true },
    by: { kind: 'text', value: 'TEXT', help: 'who checked that the site is off, and how; stored with the records', required: true },
    root: rootFile,
    out: { kind: 'path', value: 'FILE', help: 'file to write to (default: VM-EPOCH.fencing)' },
    json: shared.json,
  },
  examples: ['godwit root fence --site b --vm web-1 --epoch 2 --for a --by "Ada Byron pulled the plug of host b, 14:10"'],
  run: async ({ options, io }) => {
    const { files } = await loadCrypto()
    const { issueFencing } = await import('../../crypto/fencing.ts')
    const root = await readRoot(options.root ?? join(defaultPaths(io).configDir, 'root.key'))
    const { site, vm, epoch, by } = options
    const path = options.out ?? `${vm}-${epoch}.fencing`
    const claims = { site, vm, epoch, for: options.for, by, issuedAt: nowSeconds() }
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

export const rootCommands: CliCommand[] = [create, sign, rootRenew, revoke, fence, show]
