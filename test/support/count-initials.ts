// Prints how many of `count` first datagrams of one address reach a QUIC server on port 7443. Run by
// test/transport/firewall.test.ts in a network namespace.
import { sleep } from '../../ops/deadline.ts'
import { createIdentity, loadQuic } from '../../transport/quic-native.ts'
import { floodInitials } from './quic-initial.ts'

const count = Number(process.argv[2])
const { native } = loadQuic()
const bytes = 4 * 1024 * 1024
const config = new native.QuinnConfig({
  privateKeyProto: createIdentity().proto,
  ...{ handshakeTimeout: 4_000, maxIdleTimeout: 4_000, keepAliveInterval: 1_000, shutdownTimeout: 1_000 },
  ...{ maxConcurrentStreamLimit: 1, maxStreamData: bytes, maxConnectionData: bytes, receiveBufferSize: bytes, sendBufferSize: bytes },
})
const server = new native.Server(config, '127.0.0.1', 7443)
for (let i = 0; i < count; i++) server.inboundConnection().catch(() => {})
await floodInitials(7443, count)
let begun = -1
while (server.stats().acceptedHandshakes !== begun) {
  begun = server.stats().acceptedHandshakes
  await sleep(300)
}
console.log(begun)
process.exit(0)
