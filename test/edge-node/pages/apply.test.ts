import { type Applier, createApplier } from '../../../edge-node/pages/apply.ts'
import { Barriers } from '../../../edge-node/pages/barriers.ts'
import { batchBufferBytes } from '../../../edge-node/pages/batch.ts'
import type { ApplyJob, ApplyResult } from '../../../edge-node/pages/memory.ts'
import { PendingBatch } from '../../../edge-node/pages/pending.ts'
import { createApplyPerformer } from '../../../edge-node/pages/perform.ts'
import type { DiskBlocks } from '../../../edge-node/pages/place.ts'
import { createInlinePool, type Pool } from '../../../edge-node/pages/pool.ts'
import { within } from '../../../ops/deadline.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { PAGE_BYTES } from '../../../wire/types.ts'
import { assert, codeOf, suite, thrown } from '../../support/suite.ts'
import { contentsOf, pageOf, proofHasher, ramMemory, regionsOf } from './support.ts'

const test = suite('pages: apply')
const blocks = [{ id: 0, bytes: 8 * 4096 }]
const soon = <T>(promise: Promise<T>) => within(promise, { ms: 5000, what: 'the applier' })

function batch(fill: (pending: PendingBatch) => void): Uint8Array {
  const pending = new PendingBatch(8, () => new ArrayBuffer(batchBufferBytes(8)), { hasher: proofHasher })
  fill(pending)
  const { buffer, bytes } = pending.take()
  return new Uint8Array(buffer, 0, bytes)
}

const content = (page: number, number: number) => batch(pending => pending.content(page, pageOf(number)))

function applierOf(streams = 2) {
  const memory = ramMemory(blocks)
  const pool = createInlinePool<ApplyJob, ApplyResult>(createApplyPerformer(memory))
  return { memory, applier: createApplier({ streams, memory: regionsOf(blocks), workers: 0, pool }) }
}

/** A pool whose jobs wait until `release`. */
function slowPool(inner: Pool<ApplyJob, ApplyResult>) {
  const held: (() => void)[] = []
  let open = false
  const pool: Pool<ApplyJob, ApplyResult> = {
    size: 1,
    ended: inner.ended,
    async run(job, transfer) {
      if (!open) await new Promise<void>(resolve => held.push(resolve))
      return inner.run(job, transfer)
    },
    close: () => inner.close(),
  }
  const release = () => {
    open = true
    for (const resolve of held.splice(0)) resolve()
  }
  return { pool, held, release }
}

/** Whether a promise settles within a few turns. */
async function isOpen(promise: Promise<unknown>): Promise<boolean> {
  let open = true
  promise.then(
    () => {
      open = false
    },
    () => {
      open = false
    },
  )
  await new Promise(resolve => setTimeout(resolve, 15))
  return open
}

const everyone = (applier: Applier, streams: number, n: number) =>
  Promise.all([applier.barrier('skeleton', n), ...Array.from({ length: streams }, (_, stream) => applier.barrier(stream, n))])

test('a barrier opens when every stream and the skeleton have reached it, with all before it in memory', async () => {
  const { applier, memory } = applierOf()
  await applier.batch(0, content(1, 11))
  await applier.batch(
    1,
    batch(pending => {
      pending.content(2, pageOf(22))
      pending.reference(3, 1)
    }),
  )
  const first = applier.barrier(0, 1)
  const skeleton = applier.barrier('skeleton', 1)
  assert.ok(await isOpen(first))
  assert.is(contentsOf(memory)[3], 0)
  await soon(Promise.all([first, skeleton, applier.barrier(1, 1)]))
  assert.equal(contentsOf(memory), [0, 11, 22, 11, 0, 0, 0, 0])
  assert.equal(applier.stats().pages, { content: 2, delta: 0, zero: 0, duplicate: 1, fromDisk: 0, zeroWritten: 0 })
  await soon(applier.finish())
})

test('a batch is accepted only while there is room, in order, and a barrier waits for the ones not yet accepted', async () => {
  const memory = ramMemory(blocks)
  const { pool, held, release } = slowPool(createInlinePool<ApplyJob, ApplyResult>(createApplyPerformer(memory)))
  const applier = createApplier({ streams: 1, memory: regionsOf(blocks), workers: 0, pool })
  const { batchesMax } = applier.stats().buffered
  for (let i = 0; i < batchesMax; i++) await soon(applier.batch(0, content(0, 100 + i)))
  const late = applier.batch(0, content(1, 7))
  assert.ok(await isOpen(late))
  assert.is(held.length, batchesMax)
  const barrier = everyone(applier, 1, 1)
  assert.ok(await isOpen(barrier))
  release()
  await soon(late)
  await soon(barrier)
  assert.is(contentsOf(memory)[1], 7)
  await soon(applier.finish())
})

test('the payload may be reused once the batch is accepted', async () => {
  const memory = ramMemory(blocks)
  const { pool, release } = slowPool(createInlinePool<ApplyJob, ApplyResult>(createApplyPerformer(memory)))
  const applier = createApplier({ streams: 1, memory: regionsOf(blocks), workers: 0, pool })
  const payload = content(1, 7)
  await soon(applier.batch(0, payload))
  payload.fill(0xff)
  release()
  await soon(everyone(applier, 1, 1))
  assert.is(contentsOf(memory)[1], 7)
})

test('a malformed batch fails everyone: those who wait and those who come', async () => {
  const { applier } = applierOf()
  const waiting = codeOf(() => soon(applier.barrier(0, 1)))
  await applier.batch(1, new Uint8Array(20))
  assert.is(await waiting, 'FRAME_MALFORMED')
  assert.is(await codeOf(() => soon(applier.batch(1, content(1, 1)))), 'FRAME_MALFORMED')
  assert.is(await codeOf(() => soon(applier.barrier(1, 1))), 'FRAME_MALFORMED')
  assert.is(await codeOf(() => soon(applier.finish())), 'FRAME_MALFORMED')
})

test('a barrier that is not the next one is refused', async () => {
  for (const n of [0, 2, 5]) {
    const { applier } = applierOf()
    assert.is(await codeOf(() => soon(applier.barrier(0, n))), 'FRAME_MALFORMED')
  }
  const { applier } = applierOf(1)
  await soon(everyone(applier, 1, 1))
  assert.is(await codeOf(() => soon(applier.barrier('skeleton', 1))), 'FRAME_MALFORMED')
})

test('more references in an interval than the guest has pages are refused', async () => {
  const { applier } = applierOf(1)
  const many = batch(pending => {
    for (let i = 0; i < 9; i++) pending.reference(i % 2, 2)
  })
  await applier.batch(0, many)
  assert.is(await codeOf(() => soon(everyone(applier, 1, 1))), 'FRAME_MALFORMED')
})

test('a batch beyond the frame limit is refused', async () => {
  assert.is(await codeOf(() => applierOf(1).applier.batch(0, new Uint8Array(2 * 1024 * 1024 + 1))), 'FRAME_TOO_LARGE')
})

test('streams that end without a last barrier are refused', async () => {
  const unwritten = applierOf(1).applier
  await unwritten.batch(0, content(1, 1))
  assert.is(await codeOf(() => unwritten.finish()), 'FRAME_MALFORMED')
  const referring = applierOf(1).applier
  await referring.batch(
    0,
    batch(pending => pending.reference(1, 2)),
  )
  await new Promise(resolve => setTimeout(resolve, 15))
  assert.is(await codeOf(() => referring.finish()), 'FRAME_MALFORMED')
  const halfway = applierOf(1).applier
  const waiting = codeOf(() => soon(halfway.barrier(0, 1)))
  assert.is(await codeOf(() => halfway.finish()), 'FRAME_MALFORMED')
  assert.is(await waiting, 'FRAME_MALFORMED')
})

test('abort fails those who wait for room or for a barrier', async () => {
  const memory = ramMemory(blocks)
  const { pool } = slowPool(createInlinePool<ApplyJob, ApplyResult>(createApplyPerformer(memory)))
  const applier = createApplier({ streams: 2, memory: regionsOf(blocks), workers: 0, pool })
  for (let i = 0; i < applier.stats().buffered.batchesMax; i++) await applier.batch(0, content(0, 100 + i))
  const waits = [applier.batch(0, content(1, 7)), applier.barrier(1, 1)].map(wait => codeOf(() => soon(wait)))
  await soon(applier.abort(new GodwitError('CONNECTION_LOST')))
  assert.equal(await Promise.all(waits), ['CONNECTION_LOST', 'CONNECTION_LOST'])
})

test('reading on past a barrier is our own mistake, not a coded error', async () => {
  const { applier } = applierOf(2)
  void applier.barrier(0, 1).catch(() => {})
  for (const call of [
    () => applier.batch(0, content(1, 1)),
    () => applier.barrier(0, 2),
    () => applier.barrier('skeleton', 1).then(() => applier.batch(7, content(1, 1))),
  ]) {
    const error = await within(Promise.race([thrown(call), new Promise(resolve => setTimeout(() => resolve(new Error('open')), 20))]), {
      ms: 1000,
      what: 'a refusal',
    })
    assert.not('code' in (error as object))
  }
})

test('the gate lets nobody pass before the last, and everybody after', async () => {
  const gate = new Barriers(3)
  assert.not(gate.arrive(2, 1))
  assert.not(gate.arrive(0, 1))
  assert.ok(gate.waits(0))
  assert.not(gate.waits(1))
  assert.instance(await thrown(() => gate.open()), Error)
  assert.ok(gate.arrive(1, 1))
  gate.open()
  assert.is(gate.passed, 1)
  assert.not(gate.waits(0))
  assert.is(await codeOf(() => gate.arrive(0, 1)), 'FRAME_MALFORMED')
})

/** An applier with a disk of 8 blocks, block n with content 100 + n unless it is altered. */
function applierWithDisk() {
  const memory = ramMemory(blocks)
  const pool = createInlinePool<ApplyJob, ApplyResult>(createApplyPerformer(memory, proofHasher))
  const disk = Array.from({ length: 8 }, (_, i) => 100 + i)
  const reader: DiskBlocks = {
    has: place => place < disk.length,
    async read(places, into) {
      for (const [i, place] of places.entries()) into.set(pageOf(disk[place]!), i * PAGE_BYTES)
      return new Float64Array(0)
    },
  }
  const disks = { blocks: reader, proofKey: new Uint8Array(32) }
  return { disk, memory, applier: createApplier({ streams: 2, memory: regionsOf(blocks), workers: 0, disks, pool }) }
}

const named = (...pairs: [number, number][]) =>
  batch(pending => {
    for (const [address, place] of pairs) pending.block(address, place, pageOf(100 + place))
  })

test('pages that are blocks of a disk are read there before the barrier opens', async () => {
  const { applier, memory } = applierWithDisk()
  await applier.batch(0, named([1, 5], [2, 6], [7, 0]))
  await soon(everyone(applier, 2, 1))
  assert.equal(contentsOf(memory), [0, 105, 106, 0, 0, 0, 0, 100])
  assert.is(applier.stats().pages.fromDisk, 3)
  await soon(applier.finish())
})

test('a block that comes to the disk after the page that names it counts at the barrier', async () => {
  const { applier, memory, disk } = applierWithDisk()
  disk[5] = 1
  await applier.batch(0, named([1, 5], [2, 6]))
  const waiting = [applier.barrier('skeleton', 1), applier.barrier(0, 1)]
  assert.ok(await isOpen(waiting[0]!))
  assert.equal(contentsOf(memory), [0, 0, 0, 0, 0, 0, 0, 0], 'nothing that the proof does not cover is written')
  disk[5] = 105
  await soon(Promise.all([...waiting, applier.barrier(1, 1)]))
  assert.equal(contentsOf(memory), [0, 105, 106, 0, 0, 0, 0, 0])
  await soon(applier.finish())
})

test('a disk that differs at the barrier is DISK_MISMATCH, and nothing of it is in memory', async () => {
  const { applier, memory, disk } = applierWithDisk()
  disk[6] = 1
  await applier.batch(0, named([1, 5], [2, 6]))
  assert.is(await codeOf(() => soon(everyone(applier, 2, 1))), 'DISK_MISMATCH')
  assert.equal(contentsOf(memory), [0, 0, 0, 0, 0, 0, 0, 0])
})

test('a block outside the disk, or a disk that the VM does not have, is FRAME_MALFORMED', async () => {
  for (const { applier } of [applierWithDisk(), applierOf()]) {
    await applier.batch(0, named([1, 8]))
    assert.is(await codeOf(() => soon(everyone(applier, 2, 1))), 'FRAME_MALFORMED')
  }
})

test('more pages that do not fit than the guest has are FRAME_MALFORMED', async () => {
  const { applier, disk } = applierWithDisk()
  disk.fill(1)
  for (let i = 0; i < 3; i++) await applier.batch(0, named([0, 1], [1, 2], [2, 3], [3, 4])).catch(() => {})
  assert.is(await codeOf(() => soon(everyone(applier, 2, 1))), 'FRAME_MALFORMED')
})

test.run()
