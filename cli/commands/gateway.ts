// godwit gateway: runs the gateway in the foreground until SIGTERM or Ctrl-C.
import { loadGatewayConfig } from '../client.ts'
import { command, shared } from '../command.ts'
import { runUntilInterrupted } from '../io.ts'

export const gateway = command({
  name: 'gateway',
  summary: 'run the gateway: nodes connect to it, and it relays their encrypted streams',
  details:
    'Runs in the foreground and logs to stderr. SIGTERM or Ctrl-C stops it in order, a second one at once. ' +
    'Running migrations are aborted, and their VMs keep running at the source. The first start creates the admin token.',
  options: { config: shared.config },
  examples: ['godwit gateway', 'godwit gateway --config /etc/godwit/gateway.yaml'],
  run: async ({ options, io }) => {
    const config = await loadGatewayConfig(io, { file: options.config })
    const { runGateway } = await import('../wiring.ts')
    await runUntilInterrupted(io, () => runGateway(config, line => io.err(line)))
    return 0
  },
})
