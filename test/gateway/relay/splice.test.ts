// The blind splice: faithful, bounded, and ended by whatever ends either side.
import { splice } from '../../../gateway/relay/splice.ts'
import { createMemoryEngine } from '../../../transport/memory.ts'
import type { Stream } from '../../../transport/types.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const test = suite('gateway: splice', { ms: 10_000 })
const BUFFER = 64 * 1024

/** source <-> (left spliced with right) <-> target. */
async function rig(more: { signal?: AbortSignal; idleMs?: number } = {}) {
  const engine = createMemoryEngine({ bufferBytes: BUFFER })
  const listener = await engine.listen({ host: '127.0.0.1', port: 0 })
  const pipe = async () => {
    const client = await engine.connect({ host: '127.0.0.1', port: listener.address.port })
    const server = await listener.accept()
    const near = await client.openStream()
    await near.write(new Uint8Array([0]))
    const far = (await server?.acceptStream()) as Stream
    await far.read()
    return { near, far, client }
  }
  const one = await pipe()
  const two = await pipe()
  const counted = { 'source-to-target': 0, 'target-to-source': 0 }
  const done = splice(one.far, two.far, {
    signal: more.signal ?? new AbortController().signal,
    idleMs: more.idleMs ?? 60_000,
    onChunk: (direction, chunk) => {
      counted[direction] += chunk.length
    },
  })
  done.catch(() => {})
  return { source: one.near, target: two.near, done, counted, client: one.client }
}

async function readAll(stream: Stream): Promise<Buffer> {
  const parts: Uint8Array[] = []
  for (let part = await stream.read(); part; part = await stream.read()) parts.push(part)
  return Buffer.concat(parts)
}

test('carries both directions unaltered, ends each on its own, and counts', async () => {
  const { source, target, done, counted } = await rig()
  const big = Buffer.alloc(1_000_000, 'the same bytes, whatever they are ')
  const received = readAll(target)
  for (let at = 0; at < big.length; at += 40_000) await source.write(big.subarray(at, at + 40_000))
  await source.end()
  assert.ok(big.equals(await received), 'all of it has come, and its end')
  await target.write(Buffer.from('the other direction is still open'))
  await target.end()
  assert.is((await readAll(source)).toString(), 'the other direction is still open')
  await done
  assert.equal(counted, { 'source-to-target': 1_000_000, 'target-to-source': 33 })
})

test('a slow reader slows the writer: what is under way is bounded', async () => {
  const { source, target } = await rig()
  let written = 0
  const writing = (async () => {
    for (;;) {
      await source.write(new Uint8Array(16 * 1024))
      written += 16 * 1024
    }
  })()
  writing.catch(() => {})
  await new Promise(resolve => setTimeout(resolve, 100))
  const stalledAt = written
  await new Promise(resolve => setTimeout(resolve, 100))
  assert.is(written, stalledAt, 'nothing moves while nobody reads')
  assert.ok(written <= 2 * BUFFER + 2 * BUFFER, `${written} bytes under way: two engine buffers and one chunk`)
  let read = 0
  while (read < 10 * BUFFER) read += (await target.read())?.length ?? 0
  assert.ok(written > stalledAt, 'reading lets it go on')
  source.reset('enough')
})

test('a reset of either side resets the other', async () => {
  for (const who of ['source', 'target'] as const) {
    const ends = await rig()
    await ends.source.write(new Uint8Array([1]))
    await ends.target.read()
    ends[who].reset('gone')
    assert.is(await codeOf(() => ends[who === 'source' ? 'target' : 'source'].read()), 'STREAM_RESET')
    assert.is(await codeOf(() => ends.done), 'STREAM_RESET')
  }
})

test('a reset also after one direction has ended', async () => {
  const { source, target, done } = await rig()
  await source.end()
  assert.is(await target.read(), null)
  target.reset('gone')
  assert.is(await codeOf(() => source.read()), 'STREAM_RESET')
  assert.is(await codeOf(() => done), 'STREAM_RESET')
})

test('a lost connection resets the other side', async () => {
  const { target, done, client } = await rig()
  await client.close()
  assert.is(await codeOf(() => target.read()), 'STREAM_RESET')
  assert.is(await codeOf(() => done), 'CONNECTION_LOST')
})

test('ends by its signal and by idleness, both sides reset', async () => {
  const stop = new AbortController()
  const stopped = await rig({ signal: stop.signal })
  stop.abort(new GodwitError('MIGRATION_CANCELLED'))
  assert.is(await codeOf(() => stopped.source.read()), 'STREAM_RESET')
  assert.is(await codeOf(() => stopped.target.read()), 'STREAM_RESET')
  assert.is(await codeOf(() => stopped.done), 'MIGRATION_CANCELLED')

  const idle = await rig({ idleMs: 40 })
  assert.is(await codeOf(() => idle.done), 'TIMEOUT')
  assert.is(await codeOf(() => idle.target.read()), 'STREAM_RESET')
})

test.run()
