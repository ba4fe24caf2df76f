// In a network namespace of its own, with addresses fd00::1 to fd00::9 on its loopback: prints how many connections of
// these, all of one /64, an HTTP server keeps open at once. Not a test itself.
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { eventually } from '../../ops/deadline.ts'
import { startHttpServer } from '../../ops/http.ts'
import { openTlsFiles } from '../../ops/tls-files.ts'
import { silentLog } from '../../wire/log.ts'

const [certificate = '', key = ''] = process.argv.slice(2)
const tls = await openTlsFiles({ certificate, key }, { log: silentLog })
const server = await startHttpServer({ listen: { host: 'fd00::1', port: 0 }, routes: [], token: 't', tls, log: silentLog })
const port = 'port' in server.address ? server.address.port : 0
const sockets: Socket[] = []
for (let at = 0; at < 96; at++) {
  const socket = connect({ host: 'fd00::1', port, localAddress: `fd00::${2 + (at % 8)}` })
  socket.on('error', () => {}).resume()
  await once(socket, 'connect', { signal: AbortSignal.timeout(5_000) })
  sockets.push(socket)
}
const open = () => sockets.filter(socket => !socket.destroyed && !socket.readableEnded).length
await eventually(() => (open() === 64 ? true : undefined), { ms: 5_000, what: 'the others to be closed' }).catch(() => {})
console.log(open())
process.exit(0)
