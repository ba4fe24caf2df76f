// godwit cancel: stops a migration that has not been handed over yet.
import { askGateway } from '../client.ts'
import { command, gatewayOptions, shared } from '../command.ts'
import { json } from '../output.ts'

export const cancel = command({
  name: 'cancel',
  summary: 'cancel a migration; the VM keeps running at the source',
  details: 'After the hand-over it fails with MIGRATION_LATE: the VM then runs at the target.',
  positionals: [{ name: 'MIGRATION', help: 'id of the migration (see godwit status)' }],
  options: { json: shared.json, ...gatewayOptions },
  examples: ['godwit cancel 3f2a90c1d4e5b6a7980011223344aabb'],
  run: async ({ options, args, io }) => {
    await askGateway(io, options, { method: 'DELETE', path: `/v1/migrations/${encodeURIComponent(args[0]!)}` })
    io.out(options.json ? json({ migrationId: args[0], cancelled: true }) : 'cancelling; the VM keeps running at the source\n')
    return 0
  },
})
