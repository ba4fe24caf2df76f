// Which engines reach the gateway, and where. Enters: the configuration, the engines. Leaves: a connection and how it was chosen.
import { selectEngine } from '../transport/select.ts'
import type { Connection, Engine, Selection } from '../transport/types.ts'
import type { NodeConfig } from './config.ts'

type Dialed = { connection: Connection; selection: Selection }

export async function dialGateway({ gateway, transport }: NodeConfig, engines: Engine[], signal: AbortSignal): Promise<Dialed> {
  const { host, ports } = gateway
  const endpoints: Parameters<typeof selectEngine>[0]['endpoints'] = {}
  for (const name of ['quic', 'tls', 'webtransport'] as const) {
    const port = ports[name]
    if (port !== 'off') endpoints[name] = { host, port }
  }
  return await selectEngine({ prefer: transport, engines, endpoints, signal })
}
