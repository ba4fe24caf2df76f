// transport/select.ts in the simulation: there is one engine.
import type { Engine } from '../../../../transport/types.ts'

export async function selectEngine({ engines, signal }: { engines: Engine[]; signal: AbortSignal }) {
  const connection = await engines[0]!.connect({ host: 'gateway', port: 1, signal })
  return { connection, selection: { engine: 'memory', tried: [] } }
}
