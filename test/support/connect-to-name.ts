// Connects by each engine to a listener on 127.0.0.1, by a name. Run by test/transport/names.test.ts where that name
// has several addresses.
import { lookup } from 'node:dns/promises'
import { createEngines } from '../../transport/select.ts'

const host = process.argv[2] ?? ''
const addresses = (await lookup(host, { all: true, order: 'verbatim' })).map(({ address }) => address)
const connected: string[] = []
for (const engine of createEngines({ idleTimeoutMs: 4_000 })) {
  if (!(await engine.available()).ok) continue
  const listener = await engine.listen({ host: '127.0.0.1', port: 0 })
  const connection = await engine.connect({ host, port: listener.address.port, timeoutMs: 5_000 })
  connected.push(engine.name)
  await connection.close()
  await listener.close()
}
console.log(JSON.stringify({ addresses, connected }))
process.exit(0)
