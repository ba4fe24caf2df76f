// godwit node: runs the edge node in the foreground until SIGTERM or Ctrl-C. Its VMs keep running.
import { loadNodeConfig } from '../client.ts'
import { command, shared } from '../command.ts'
import { runUntilInterrupted } from '../io.ts'

export const node = command({
  name: 'node',
  summary: "run the edge node: this host's VMs, and its connection to the gateway",
  details:
    'Runs in the foreground and logs to stderr. SIGTERM or Ctrl-C stops it in order, a second one at once. ' +
    'Its VMs keep running without it, and the next start finds them. It exits with STORE_FAILED when a write to its database fails: ' +
    'let a supervisor restart it (systemd: Restart=on-failure); it continues from the last durable record.',
  options: { config: shared.config },
  examples: ['godwit node', 'godwit node --config /etc/godwit/node.yaml'],
  run: async ({ options, io }) => {
    const config = await loadNodeConfig(io, { file: options.config })
    const { runNode } = await import('../wiring.ts')
    await runUntilInterrupted(io, () => runNode(config, line => io.err(line)))
    return 0
  },
})
