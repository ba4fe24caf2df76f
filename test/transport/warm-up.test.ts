import { createFrameStream } from '../../transport/frames.ts'
import { createMemoryEngine } from '../../transport/memory.ts'
import type { Connection, Stream } from '../../transport/types.ts'
import { answerWarmUp, WARM_UP_LANE_BYTES_MAX, warmUp } from '../../transport/warm-up.ts'
import { allow, FRAME } from '../../wire/types.ts'
import { assert, suite, thrown } from '../support/suite.ts'

const test = suite('transport: warm-up')

async function pair(lanes: number): Promise<{ client: Connection; server: Connection; close: () => Promise<void> }> {
  const engine = createMemoryEngine()
  const listener = await engine.listen({ host: '127.0.0.1', port: 0 })
  const [client, server] = await Promise.all([engine.connect(listener.address), listener.accept()])
  return {
    client: Object.assign(Object.create(client), { lanes, openStream: () => client.openStream(), stats: () => client.stats() }),
    server: server!,
    close: () => listener.close(),
  }
}

/** Reads the first frame of each stream; gives how many there were. */
async function answerAll(server: Connection, answer: (stream: Stream) => Promise<void>): Promise<number> {
  let count = 0
  for (let stream = await server.acceptStream(); stream; stream = await server.acceptStream()) {
    count++
    const frames = createFrameStream(stream)
    assert.is((await frames.next(allow('WARM_UP')))?.type, FRAME.WARM_UP)
    void answer(frames.rest()).catch(() => stream.reset('no'))
  }
  return count
}

test('each lane carries its share there and back', async () => {
  const { client, server, close } = await pair(3)
  const answered = answerAll(server, answerWarmUp)
  assert.is(await warmUp(client, 300_000), 300_000)
  await server.close()
  assert.is(await answered, 3)
  await close()
})

test('a lane carries a MiB at most, whatever was allowed', async () => {
  const { client, server, close } = await pair(1)
  const answered = answerAll(server, answerWarmUp)
  assert.is(await warmUp(client, 64 * 1024 * 1024), WARM_UP_LANE_BYTES_MAX)
  await server.close()
  await answered
  await close()
})

test('who sends more than the bound is answered by a reset', async () => {
  const { client, server, close } = await pair(1)
  const outcome = Promise.withResolvers<unknown>()
  void answerAll(server, async stream => outcome.resolve(await thrown(() => answerWarmUp(stream))))
  const stream = await client.openStream()
  await stream.write(new Uint8Array([0, 0, 0, 0, FRAME.WARM_UP]))
  const writing = (async () => {
    for (let sent = 0; sent <= WARM_UP_LANE_BYTES_MAX; sent += 65_536) await stream.write(new Uint8Array(65_536))
  })().catch(() => {})
  assert.match(((await outcome.promise) as Error).message, /more than 1048576 bytes/)
  stream.reset('seen')
  await writing
  await server.close()
  await close()
})

test('an end that takes none is an error of the one that asks', async () => {
  const { client, server, close } = await pair(2)
  void answerAll(server, async stream => stream.reset('too many warm up'))
  assert.ok(await thrown(() => warmUp(client, 100_000)))
  await server.close()
  await close()
})

test.run()
