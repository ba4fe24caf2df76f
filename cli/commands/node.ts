// godwit node: runs the edge node in the foreground until SIGTERM or Ctrl-C. Its VMs go on.
import { loadNodeConfig } from '../client.ts'
import { command, shared } from '../command.ts'
import { untilInterrupted } from '../io.ts'

export const node = command({
  name: 'node',
  summary: "run the edge node: this host's VMs, and its connection to the gateway",
  details:
    'Runs in the foreground and logs to stderr. SIGTERM or Ctrl-C ends it in order, a second one at once. ' +
    'Its VMs go on without it and are found again when it next starts. It ends with STORE_FAILED when its database takes no more writes: ' +
    'whoever keeps it running (systemd: Restart=on-failure) starts it again, and it goes on from what was written.',
  options: { config: shared.config },
  examples: ['godwit node', 'godwit node --config /etc/godwit/node.yaml'],
  run: async ({ options, io }) => {
    const config = await loadNodeConfig(io, { file: options.config })
    const { runNode } = await import('../wiring.ts')
    const running = await runNode(config, line => io.err(line))
    const error = await Promise.race([untilInterrupted(io), running.broken])
    await running.close()
    if (error instanceof Error) throw error
    return 0
  },
})
