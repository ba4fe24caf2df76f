// The other end of the compliance suite's tests of sudden death, in a process that can be killed.
// Arguments: engine, role (listen | connect), port, idle timeout in ms. Prints its port when it listens.
import { createQuicEngine } from '../../transport/quic.ts'
import { createTlsEngine } from '../../transport/tls.ts'
import type { Connection, Engine } from '../../transport/types.ts'
import { createWebTransportEngine } from '../../transport/webtransport.ts'

const [name, role, port, idleTimeoutMs] = process.argv.slice(2)
const makers: Record<string, (options: { idleTimeoutMs: number }) => Engine> = {
  quic: createQuicEngine,
  tls: createTlsEngine,
  webtransport: createWebTransportEngine,
}
const engine = makers[name!]!({ idleTimeoutMs: Number(idleTimeoutMs) })

let connection: Connection | null
if (role === 'listen') {
  const listener = await engine.listen({ host: '127.0.0.1', port: Number(port) })
  console.log(listener.address.port)
  connection = await listener.accept()
  const stream = await connection?.acceptStream()
  await stream?.read()
  await stream?.write(Uint8Array.of(1))
} else {
  connection = await engine.connect({ host: '127.0.0.1', port: Number(port) })
  const stream = await connection.openStream()
  await stream.write(Uint8Array.of(1))
}
await connection?.closed
process.exit(0)
