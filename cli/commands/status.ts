// godwit status: sites, VMs and migrations that the gateway knows of.
import type { GatewayStatus } from '../../wire/admin.ts'
import { askGateway } from '../client.ts'
import { command, gatewayOptions, shared } from '../command.ts'
import { json } from '../output.ts'
import { renderStatus } from '../status-view.ts'

export const status = command({
  name: 'status',
  summary: 'show sites, VMs and migrations as the gateway knows them',
  details:
    'With --watch it runs until Ctrl-C: a terminal always shows the current status; other output has the status once and then a line for each change. With --watch and --json each line is a JSON object: the state as {"event": "status"} where the stream begins or events are missing, then one event each (see godwit events).',
  options: {
    watch: { kind: 'flag', short: 'w', help: 'update the view until Ctrl-C' },
    json: shared.json,
    ...gatewayOptions,
  },
  examples: ['godwit status', 'godwit status --watch', 'godwit status --json'],
  run: async ({ options, io }) => {
    if (options.watch) {
      const { watchStatus } = await import('../watch-status.ts')
      return await watchStatus(io, options)
    }
    const answer = await askGateway<GatewayStatus>(io, options, { path: '/v1/status' })
    io.out(options.json ? json(answer) : renderStatus(answer, Date.now()))
    return 0
  },
})
