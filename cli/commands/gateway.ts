// godwit gateway: runs the gateway in the foreground until SIGTERM or Ctrl-C.
import { loadGatewayConfig } from '../client.ts'
import { command, shared } from '../command.ts'
import { untilInterrupted } from '../io.ts'

export const gateway = command({
  name: 'gateway',
  summary: 'run the gateway: nodes connect to it, it relays between them what it cannot read',
  details:
    'Runs in the foreground and logs to stderr. SIGTERM or Ctrl-C ends it in order, a second one at once. ' +
    'Migrations that are under way end with it, their VMs run on at the source. The admin token is made when it first starts.',
  options: { config: shared.config },
  examples: ['godwit gateway', 'godwit gateway --config /etc/godwit/gateway.yaml'],
  run: async ({ options, io }) => {
    const config = await loadGatewayConfig(io, { file: options.config })
    const { runGateway } = await import('../wiring.ts')
    const running = await runGateway(config, line => io.err(line))
    await untilInterrupted(io)
    await running.close()
    return 0
  },
})
