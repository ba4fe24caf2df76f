// godwit site forget | assign: decisions of an operator about sites at the gateway, when the sites themselves cannot
// answer.
import type { ForgottenSite } from '../../wire/admin.ts'
import { askGateway } from '../client.ts'
import { command, gatewayOptions, shared } from '../command.ts'
import { json } from '../output.ts'

const options = { json: shared.json, ...gatewayOptions }

const forget = command({
  name: 'site forget',
  summary: 'remove from the gateway a site that will not come back',
  details:
    'Deletes the last report of the site, frees the names of its VMs for other sites that have such VMs, and ends its unfinished migrations ' +
    '(with MIGRATION_DOUBT if a VM was being handed over: run godwit recover at the other site). Fails with SITE_ONLINE while the site is connected. A site with ' +
    'a valid certificate can reconnect and is then known again: revoke the certificate (godwit root revoke) to prevent that.',
  positionals: [{ name: 'NAME', help: 'name of the site (see godwit status)' }],
  options,
  examples: ['godwit site forget hamburg-1', 'godwit site forget hamburg-1 --json'],
  run: async ({ options, args, io }) => {
    const name = args[0]!
    const gone = await askGateway<ForgottenSite>(io, options, { method: 'DELETE', path: `/v1/sites/${encodeURIComponent(name)}` })
    const text = `removed site ${name}; VMs without a site: ${gone.vms.join(', ') || 'none'}; migrations ended: ${gone.migrations.length}\n`
    io.out(options.json ? json(gone) : text)
    return 0
  },
})

const assign = command({
  name: 'site assign',
  summary: 'set which site a VM belongs to, when two sites claim it',
  details:
    'At the gateway a VM name belongs to one site: the first that reported it, until the VM moves. Users, placement and migrations follow that site only. This command assigns the name to ' +
    'another site, which must have a VM of that name. It changes nothing at the sites: check first that the VM does not run at both.',
  positionals: [
    { name: 'VM', help: 'name of the VM' },
    { name: 'SITE', help: 'site that the VM belongs to' },
  ],
  options,
  examples: ['godwit site assign web-1 berlin-1'],
  run: async ({ options, args, io }) => {
    const [vm, site] = [args[0]!, args[1]!]
    await askGateway(io, options, { method: 'PUT', path: `/v1/vms/${encodeURIComponent(vm)}/home`, body: { site } })
    io.out(options.json ? json({ vm, site }) : `VM ${vm} now belongs to site ${site}\n`)
    return 0
  },
})

export const siteCommands = [forget, assign]
