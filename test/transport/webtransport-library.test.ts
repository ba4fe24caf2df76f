// What is guarded of the WebTransport library: its timer pings a session that is being destroyed, which in Node throws
// and would end the process.

import { randomBytes } from 'node:crypto'
import { connect } from 'node:http2'
import { within } from '../../ops/deadline.ts'
import { createServerCertificate } from '../../transport/self-signed.ts'
import { loadWebTransport, onHttp2Connection } from '../../transport/webtransport-library.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('transport/webtransport-library')
const library = await loadWebTransport().catch((error: Error) => error)
const WINDOW = 16 * 1024 * 1024

test(
  'a ping of a session that is being destroyed does nothing, on sessions that the server accepts',
  async () => {
    if (library instanceof Error) return
    const { certificatePem: cert, keyPem: privKey } = createServerCertificate()
    const flow = { initialStreamFlowControlWindow: WINDOW, initialSessionFlowControlWindow: WINDOW }
    const server = new library.Http2Server({ host: '127.0.0.1', port: 0, secret: randomBytes(32).toString('hex'), cert, privKey, ...flow })
    server.startServer()
    await within(server.ready, { ms: 5_000, what: 'the server' })
    const pinged = new Promise<unknown[]>((resolve, reject) => {
      onHttp2Connection(server, session => {
        session.on('error', () => {})
        try {
          const before = session.ping(() => {})
          session.destroy()
          // As the library's timer does: it asks whether the session is closed, not whether it is destroyed.
          resolve([before, session.closed, session.ping(() => {})])
        } catch (error) {
          reject(error)
        }
      })
    })
    const client = connect(`https://127.0.0.1:${server.address()?.port}`, { rejectUnauthorized: false })
    client.on('error', () => {})
    try {
      assert.equal(await within(pinged, { ms: 5_000, what: 'a session' }), [true, false, false])
    } finally {
      client.destroy()
      server.stopServer()
    }
  },
  { skip: library instanceof Error && `the library does not load: ${library.message}` },
)

test.run()
