// A UDP path that flips bits: every so many datagrams one bit of one of them, both ways. Enters: datagrams. Leaves: the
// same, some of them wrong.
import { createSocket, type Socket } from 'node:dgram'
import { once } from 'node:events'
import { createRandom } from '../../../sim-network/random.ts'

const HOST = '127.0.0.1'

type Corrupter = AsyncDisposable & {
  readonly port: number
  /** Share of datagrams that are altered from now on. */
  set(ratio: number): void
  readonly altered: number
}

export async function startCorrupter(upstreamPort: number, seed: number): Promise<Corrupter> {
  const random = createRandom(seed)
  const clients = new Map<number, Socket>()
  const server = createSocket('udp4')
  let ratio = 0
  let altered = 0
  const pass = (bytes: Buffer): Buffer => {
    if (!random.chance(ratio)) return bytes
    altered++
    const at = random.uint32() % bytes.length
    bytes[at] = bytes[at]! ^ (1 << (random.uint32() % 8))
    return bytes
  }
  server.on('message', (bytes, { port }) => {
    let upstream = clients.get(port)
    if (!upstream) {
      upstream = createSocket('udp4').on('error', () => {})
      upstream.on('message', answer => server.send(pass(answer), port, HOST))
      clients.set(port, upstream)
    }
    upstream.send(pass(bytes), upstreamPort, HOST)
  })
  server.bind(0, HOST)
  await once(server, 'listening')
  return {
    port: server.address().port,
    set(share) {
      ratio = share
    },
    get altered() {
      return altered
    },
    async [Symbol.asyncDispose]() {
      server.close()
      for (const client of clients.values()) client.close()
    },
  }
}
