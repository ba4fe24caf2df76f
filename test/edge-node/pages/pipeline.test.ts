import type { CompressJob, CompressResult } from '../../../edge-node/pages/compress.ts'
import { createPipeline, type FrameSink, type PipelineOptions } from '../../../edge-node/pages/pipeline.ts'
import type { Pool } from '../../../edge-node/pages/pool.ts'
import { within } from '../../../ops/deadline.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { FRAME } from '../../../wire/types.ts'
import { assert, codeOf, suite, thrown } from '../../support/suite.ts'
import { pageOf, plainHasher } from './support.ts'

const test = suite('pages: pipeline')
const blocks = [{ id: 0, bytes: 4096 * 4096 }]
const soon = <T>(promise: Promise<T>) => within(promise, { ms: 5000, what: 'the pipeline' })

/** A sink of which each stream can be held; `log` has what was handed over, as `0:BATCH` or `1:BARRIER`. */
function createSink(streams: number) {
  const log: string[] = []
  const held: (() => void)[][] = Array.from({ length: streams }, () => [])
  const holding = new Array<boolean>(streams).fill(false)
  const sink: FrameSink = {
    streams,
    async send(stream, type) {
      log.push(`${stream}:${type === FRAME.BATCH ? 'BATCH' : 'BARRIER'}`)
      if (holding[stream]) await new Promise<void>(resolve => held[stream]!.push(resolve))
    },
  }
  const hold = (stream: number) => {
    holding[stream] = true
  }
  const free = (stream: number) => {
    holding[stream] = false
    for (const resolve of held[stream]!.splice(0)) resolve()
  }
  return { sink, log, hold, free }
}

const pipelineOf = (sink: FrameSink, more: Partial<PipelineOptions> = {}) =>
  createPipeline({ sink, blocks, hasher: plainHasher, compression: 'zstd', workers: 0, batchPages: 1, ...more })

test('a barrier is on every stream, after all that was said before it', async () => {
  const { sink, log } = createSink(3)
  const elsewhere: number[] = []
  const pipeline = pipelineOf(sink, { onBarrier: n => void elsewhere.push(n) })
  for (let i = 0; i < 4; i++) pipeline.page(0, i * 4096, pageOf(1 + i))
  assert.is(await soon(pipeline.barrier()), 1)
  assert.equal(
    log.slice(0, 4).map(entry => entry.slice(2)),
    ['BATCH', 'BATCH', 'BATCH', 'BATCH'],
  )
  assert.equal(log.slice(4).sort(), ['0:BARRIER', '1:BARRIER', '2:BARRIER'])
  assert.equal(elsewhere, [1])
  assert.is(await soon(pipeline.barrier()), 2)
  await soon(pipeline.finish())
  assert.equal(elsewhere, [1, 2, 3])
})

test('a held stream holds the others at the next barrier and no sooner, so that nothing they send could keep its barrier from the path', async () => {
  const { sink, log, hold, free } = createSink(2)
  const pipeline = pipelineOf(sink)
  hold(0)
  for (let i = 0; i < 3; i++) pipeline.page(0, i * 4096, pageOf(1 + i))
  const barrier = pipeline.barrier()
  pipeline.page(0, 9 * 4096, pageOf(9))
  const second = pipeline.barrier()
  let passed = false
  void barrier.then(() => {
    passed = true
  })
  await new Promise(resolve => setTimeout(resolve, 20))
  assert.is(passed, false)
  assert.equal(
    log.filter(entry => entry.startsWith('0')),
    ['0:BATCH'],
  )
  assert.equal(
    log.filter(entry => entry.startsWith('1')),
    ['1:BATCH', '1:BATCH', '1:BARRIER'],
  )
  free(0)
  assert.is(await soon(barrier), 1)
  assert.is(await soon(second), 2)
  assert.equal(log.slice(0, 5).sort(), ['0:BARRIER', '0:BATCH', '1:BARRIER', '1:BATCH', '1:BATCH'])
  assert.equal(
    log.slice(5).map(entry => entry.slice(2)),
    ['BATCH', 'BARRIER', 'BARRIER'],
  )
  await soon(pipeline.finish())
})

test('barriers elsewhere come in order, each after the one before is done', async () => {
  const { sink } = createSink(1)
  const elsewhere: string[] = []
  const pipeline = pipelineOf(sink, {
    async onBarrier(n) {
      elsewhere.push(`${n} begins`)
      await new Promise(resolve => setTimeout(resolve, 5))
      elsewhere.push(`${n} ends`)
    },
  })
  await soon(Promise.all([pipeline.barrier(), pipeline.barrier()]))
  assert.equal(elsewhere, ['1 begins', '1 ends', '2 begins', '2 ends'])
  pipeline.abort(new Error('enough'))
})

test('it is saturated while the sink has no room, within its bound, and says when there is room again', async () => {
  const { sink, hold, free } = createSink(1)
  hold(0)
  const pipeline = pipelineOf(sink)
  let fed = 0
  while (!pipeline.saturated) pipeline.page(0, fed * 4096, pageOf(1 + fed++))
  const { batches, batchesMax } = pipeline.stats().buffered
  assert.is(batches, batchesMax)
  let drained = false
  const waiting = pipeline.drained().then(() => {
    drained = true
  })
  await new Promise(resolve => setTimeout(resolve, 10))
  assert.is(drained, false)
  free(0)
  await soon(waiting)
  assert.not(pipeline.saturated)
  await soon(pipeline.finish())
  assert.is(pipeline.stats().buffered.batches, 0)
})

test('feeding on although saturated fails at the bound: memory is never without limit', async () => {
  const { sink, hold } = createSink(1)
  hold(0)
  const pipeline = pipelineOf(sink)
  const error = await thrown(() => {
    for (let i = 0; i < 1000; i++) pipeline.page(0, i * 4096, pageOf(1 + i))
  })
  assert.match(String(error), /saturated/)
  assert.ok(pipeline.stats().batches < 100)
})

test('a sink that fails aborts the pipeline: everything under way and every later call fails with its error', async () => {
  let sends = 0
  const sink: FrameSink = {
    streams: 2,
    async send() {
      if (++sends === 3) throw new GodwitError('CONNECTION_LOST')
    },
  }
  const pipeline = pipelineOf(sink)
  for (let i = 0; i < 4; i++) pipeline.page(0, i * 4096, pageOf(1 + i))
  assert.is(await codeOf(() => soon(pipeline.barrier())), 'CONNECTION_LOST')
  assert.is(await codeOf(() => pipeline.page(0, 0, pageOf(1))), 'CONNECTION_LOST')
  assert.is(await codeOf(() => pipeline.zero(0, 0)), 'CONNECTION_LOST')
  assert.is(await codeOf(() => soon(pipeline.drained())), 'CONNECTION_LOST')
  assert.is(await codeOf(() => soon(pipeline.finish())), 'CONNECTION_LOST')
})

test('abort fails those who wait for room or for a barrier', async () => {
  const { sink, hold } = createSink(1)
  hold(0)
  const pipeline = pipelineOf(sink)
  for (let i = 0; !pipeline.saturated; i++) pipeline.page(0, i * 4096, pageOf(1 + i))
  const waits = [pipeline.drained(), pipeline.barrier()].map((wait: Promise<unknown>) => codeOf(() => soon(wait)))
  pipeline.abort(new GodwitError('MIGRATION_CANCELLED'))
  assert.equal(await Promise.all(waits), ['MIGRATION_CANCELLED', 'MIGRATION_CANCELLED'])
})

test('a failing onBarrier and a failing worker abort it too', async () => {
  const failing = pipelineOf(createSink(1).sink, {
    onBarrier() {
      throw new GodwitError('STREAM_RESET')
    },
  })
  assert.is(await codeOf(() => soon(failing.barrier())), 'STREAM_RESET')
  const nothing = async () => {}
  const run = () => Promise.reject(new GodwitError('INTERNAL'))
  const pool: Pool<CompressJob, CompressResult> = { size: 1, run, close: nothing, ended: nothing() }
  const broken = pipelineOf(createSink(1).sink, { pool })
  broken.page(0, 0, pageOf(1))
  assert.is(await codeOf(() => soon(broken.barrier())), 'INTERNAL')
})

test('stats tell what became of each page, and what it cost', async () => {
  const { sink } = createSink(1)
  const pipeline = pipelineOf(sink, { batchPages: 64, level: 1 })
  for (let i = 0; i < 10; i++) pipeline.page(0, i * 4096, pageOf(1 + i))
  pipeline.page(0, 10 * 4096, pageOf(1))
  pipeline.zero(0, 11 * 4096)
  await soon(pipeline.barrier())
  pipeline.page(0, 0, pageOf(1))
  pipeline.page(0, 4096, pageOf(99))
  await soon(pipeline.barrier())
  const stats = pipeline.stats()
  assert.is(stats.guestBytes, 14 * 4096)
  assert.equal(stats.pages, {
    zero: 1,
    duplicate: 1,
    fromDisk: 0,
    delta: 1,
    compressed: 10,
    raw: 0,
    unchanged: 1,
    superseded: 0,
    rewritten: 1,
  })
  assert.equal(stats.barriers, { asked: 2, rewritten: 0, referenced: 0 })
  assert.is(stats.batches, 2)
  assert.ok(stats.deltaBytes > 0 && stats.deltaBytes < 4096)
  assert.ok(stats.bytesIn > 10 * 4096 && stats.bytesOut < stats.bytesIn / 10)
  await soon(pipeline.finish())
})

test('with compression off equal pages are sent each, unless references are asked for', async () => {
  for (const references of [undefined, true] as const) {
    const pipeline = pipelineOf(createSink(1).sink, { compression: 'off', ...(references ? { references } : {}) })
    pipeline.page(0, 0, pageOf(1))
    pipeline.page(0, 4096, pageOf(1))
    await soon(pipeline.finish())
    assert.is(pipeline.stats().pages.raw, references ? 1 : 2)
  }
})

test('compression off sends raw; the level can be set while it runs', async () => {
  const raw = pipelineOf(createSink(1).sink, { compression: 'off' })
  raw.page(0, 0, pageOf(1))
  await soon(raw.finish())
  assert.is(raw.stats().pages.raw, 1)
  assert.is(raw.stats().level, 'off')
  const pipeline = pipelineOf(createSink(1).sink)
  assert.is(pipeline.stats().level, 1)
  pipeline.setLevel(3)
  assert.is(pipeline.stats().level, 3)
  assert.instance(await thrown(() => pipeline.setLevel(23)), TypeError)
  await soon(pipeline.finish())
})

test('bad arguments are TypeErrors, a page outside the guest is QEMU_STREAM, and nothing is taken after finish', async () => {
  const { sink } = createSink(1)
  for (const more of [{ batchPages: 0 }, { batchPages: 257 }, { blocks: [] }, { level: 0.5 }, { sink: { ...sink, streams: 0 } }]) {
    assert.instance(await thrown(() => pipelineOf(sink, more)), TypeError)
  }
  const pipeline = pipelineOf(sink)
  assert.is(await codeOf(() => pipeline.page(0, 4096 * 4096, pageOf(1))), 'QEMU_STREAM')
  assert.is(await codeOf(() => pipeline.zero(1, 0)), 'QEMU_STREAM')
  assert.instance(await thrown(() => pipeline.page(0, 0, new Uint8Array(100))), TypeError)
  await soon(pipeline.finish())
  assert.match(String(await thrown(() => pipeline.zero(0, 0))), /finished/)
})

test.run()
