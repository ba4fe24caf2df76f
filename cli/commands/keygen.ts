// godwit keygen: the keys of a site or gateway, and the request that the root signs.
import { join } from 'node:path'
import { GodwitError } from '../../wire/errors.ts'
import { command, shared } from '../command.ts'
import { json, listing } from '../output.ts'
import { defaultPaths } from '../paths.ts'

export const keygen = command({
  name: 'keygen',
  summary: 'create the keys of a site or gateway, and a certificate request',
  details:
    'Writes ROLE.keys (0600, secret, never leaves this machine) and ROLE.request (public, for godwit root sign or godwit enrol). ' +
    'Read the printed fingerprint to the operator of the root: it must match the request that the operator signs.',
  options: {
    id: { kind: 'text', value: 'NAME', help: 'name of the site or gateway: 1 to 64 of a-z, 0-9 and -', required: true },
    role: { kind: 'choice', choices: ['site', 'gateway'], help: 'owner of the keys (default site)' },
    out: { kind: 'path', value: 'DIR', help: 'folder to write to (default: the configuration folder)' },
    force: { kind: 'flag', help: 'overwrite existing keys: their certificate becomes useless' },
    json: shared.json,
  },
  examples: ['godwit keygen --id berlin-1', 'godwit keygen --role gateway --id gateway'],
  run: async ({ options, io }) => {
    const [{ encodeKeys, fingerprint, generateSiteKeys, loadSodium }, { createRequest }, { NAME_PATTERN }, files] = await Promise.all([
      import('../../crypto/identity.ts'),
      import('../../crypto/certificate.ts'),
      import('../../wire/types.ts'),
      import('../../ops/files.ts'),
    ])
    const { id, role = 'site', out = defaultPaths(io).configDir, force } = options
    if (!NAME_PATTERN.test(id)) throw new GodwitError('USAGE', `--id '${id}': expected 1 to 64 of a-z, 0-9 and -`)
    await loadSodium()
    const keys = generateSiteKeys()
    const keysPath = join(out, `${role}.keys`)
    const requestPath = join(out, `${role}.request`)
    await files.writeFileSafely(keysPath, encodeKeys(keys), { overwrite: force })
    await files.writeFileSafely(requestPath, files.armor('CERTIFICATE REQUEST', createRequest(keys, { role, id })), {
      mode: 0o644,
      overwrite: true,
    })
    const answer = { role, id, fingerprint: fingerprint(keys.signPublic), keys: keysPath, request: requestPath }
    io.out(options.json ? json(answer) : listing(Object.entries(answer)))
    return 0
  },
})
