import { createMemoryEngine } from '../../transport/memory.ts'
import { transportCompliance } from '../compliance/transport.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('memory engine', { ms: 5_000 })

test('severing loses every connection at both ends, and listeners stay', async () => {
  const engine = createMemoryEngine()
  const listener = await engine.listen({ host: 'gateway', port: 7 })
  const client = await engine.connect({ host: 'gateway', port: 7 })
  const server = await listener.accept()
  const stream = await client.openStream()
  await stream.write(new Uint8Array(3))
  const reading = codeOf(() => stream.read())
  engine.sever()
  assert.is(await reading, 'CONNECTION_LOST')
  assert.is((await client.closed).code, 'CONNECTION_LOST')
  assert.is((await server!.closed).code, 'CONNECTION_LOST')
  await engine.connect({ host: 'gateway', port: 7 })
})

test('two instances do not see each other', async () => {
  await createMemoryEngine().listen({ host: 'a', port: 1 })
  assert.is(await codeOf(() => createMemoryEngine().connect({ host: 'a', port: 1 })), 'CONNECT_FAILED')
})

test('a stream beyond the limit is refused', async () => {
  const engine = createMemoryEngine({ maxStreams: 2 })
  await engine.listen({ host: 'a', port: 1 })
  const client = await engine.connect({ host: 'a', port: 1 })
  await client.openStream()
  await client.openStream()
  assert.is(await codeOf(() => client.openStream()), 'LIMIT_EXCEEDED')
})

test.run()

const compliance = await transportCompliance('memory', {
  make: () => createMemoryEngine(),
  backpressureBytes: 256 * 1024,
  inProcess: 'both ends are this process',
  protocol: 'none',
})
compliance.run()
