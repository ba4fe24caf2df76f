// Which engines reach the gateway, and where. Enters: the configuration, the engines. Leaves: a connection and how it
// was chosen.
import { selectEngine } from '../transport/select.ts'
import type { Connection, Engine, EngineName, Selection } from '../transport/types.ts'
import type { NodeConfig } from './config.ts'

type Dialed = { connection: Connection; selection: Selection }

/** `engine`: this one and no other, in place of what the configuration prefers. */
export async function dialGateway(
  { gateway, transport }: NodeConfig,
  engines: Engine[],
  signal: AbortSignal,
  engine?: EngineName | undefined,
): Promise<Dialed> {
  const { host, ports } = gateway
  const endpoints: Parameters<typeof selectEngine>[0]['endpoints'] = {}
  for (const name of ['quic', 'tls', 'webtransport'] as const) {
    const port = ports[name]
    if (port !== 'off') endpoints[name] = { host, port }
  }
  return await selectEngine({ prefer: engine ?? transport, engines, endpoints, signal })
}

/**
 * Engines of the data connections: the one that the control connection takes, and TLS beside it, which on a kernel with
 * BBR carries bulk better (transport/bulk.ts).
 */
export function dataEngines({ gateway, transport }: NodeConfig, engines: Engine[]): (EngineName | undefined)[] {
  const hasTls = gateway.ports.tls !== 'off' && engines.some(({ name }) => name === 'tls')
  return transport === 'auto' && hasTls ? [undefined, 'tls'] : [undefined]
}
