// The whole with real worker threads, the real hasher and a file as guest memory.
import { closeSync, ftruncateSync, mkdtempSync, openSync, readSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createPageHasher } from '../../../crypto/channel/page-hash.ts'
import { loadSodium } from '../../../crypto/sodium.ts'
import { createApplier } from '../../../edge-node/pages/apply.ts'
import { decodeBarrier } from '../../../edge-node/pages/batch.ts'
import { createPipeline, type FrameSink } from '../../../edge-node/pages/pipeline.ts'
import { createThreadPool } from '../../../edge-node/pages/pool.ts'
import { within } from '../../../ops/deadline.ts'
import { FRAME } from '../../../wire/types.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { seeded } from './support.ts'

const test = suite('pages: threads')
await loadSodium()
const PAGES = 1500
const BYTES = PAGES * 4096

function guestFile() {
  const folder = mkdtempSync(join(tmpdir(), 'godwit-threads-'))
  const fd = openSync(join(folder, 'memory'), 'w+')
  ftruncateSync(fd, BYTES)
  return {
    fd,
    read() {
      const bytes = new Uint8Array(BYTES)
      readSync(fd, bytes, 0, BYTES, 0)
      return bytes
    },
    [Symbol.dispose]() {
      closeSync(fd)
      rmSync(folder, { recursive: true })
    },
  }
}

/** Writes a random page: zero, a copy of another, random bytes or text. */
function write(guest: Uint8Array, index: number, random: () => number): void {
  const page = guest.subarray(index * 4096, (index + 1) * 4096)
  const kind = random()
  if (kind < 0.25) page.fill(0)
  else if (kind < 0.45) page.set(guest.subarray(4096 * Math.floor(random() * PAGES)).subarray(0, 4096))
  else if (kind < 0.6) for (let i = 0; i < 4096; i++) page[i] = random() * 256
  else page.set(new TextEncoder().encode(`line ${Math.floor(random() * 1e6)} of a log; `.repeat(300)).subarray(0, 4096))
}

for (const [workers, compression] of [
  [2, 'zstd'],
  [1, 'off'],
  [0, 'zstd'],
] as const) {
  test(`a guest that changes under way arrives whole: ${workers} workers a side, compression ${compression}`, async () => {
    using file = guestFile()
    const random = seeded(workers + 1)
    const guest = new Uint8Array(BYTES)
    const streams = 3
    const applier = createApplier({ streams, memory: [{ block: 0, fd: file.fd, bytes: BYTES, offset: 0 }], workers })
    const failed = Promise.withResolvers<never>()
    failed.promise.catch(() => {})
    const ends: Promise<void>[] = Array.from({ length: streams + 1 }, () => Promise.resolve())
    // Each stream is a queue of one: the next frame is taken when the applier wants more.
    const after = (member: number, next: () => Promise<void>) => {
      ends[member] = ends[member]!.then(next)
      ends[member].catch(failed.reject)
      return ends[member]
    }
    const sink: FrameSink = {
      streams,
      send(stream, type, payload) {
        if (type === FRAME.BATCH) return after(stream, () => applier.batch(stream, payload))
        const n = decodeBarrier(payload)
        void after(stream, () => applier.barrier(stream, n))
        return Promise.resolve()
      },
    }
    const hasher = createPageHasher(new Uint8Array(32).fill(1))
    const onBarrier = (n: number) => void after(streams, () => applier.barrier('skeleton', n))
    const pipeline = createPipeline({
      sink,
      blocks: [{ id: 0, bytes: BYTES }],
      hasher,
      compression,
      references: true,
      workers,
      onBarrier,
      batchPages: 16,
    })
    const send = async (index: number) => {
      const page = guest.subarray(index * 4096, (index + 1) * 4096)
      if (page.every(byte => byte === 0)) pipeline.zero(0, index * 4096)
      else pipeline.page(0, index * 4096, page)
      if (pipeline.saturated) await pipeline.drained()
    }
    const all = async () => {
      for (let index = 0; index < PAGES; index++) write(guest, index, random)
      for (let index = 0; index < PAGES; index++) await send(index)
      for (let round = 0; round < 4; round++) {
        for (let i = 0; i < 200; i++) {
          const index = Math.floor(random() * PAGES)
          write(guest, index, random)
          await send(index)
        }
      }
      await pipeline.finish()
      await Promise.all(ends)
      await applier.finish()
    }
    await within(Promise.race([all(), failed.promise]), { ms: 20_000, what: 'the guest' })
    assert.is(Buffer.compare(file.read(), guest), 0)
    const { pages, barriers } = pipeline.stats()
    assert.ok(pages.duplicate > 0 && pages.zero > 0 && pages.rewritten > 0 && barriers.rewritten > 0)
    const applied = applier.stats()
    assert.is(applied.pages.content, pages.compressed + pages.raw)
    assert.is(applied.pages.duplicate, pages.duplicate)
    assert.is(applied.bytesIn, pipeline.stats().bytesOut)
  })
}

test('the error of a worker keeps its code, and a closed pool does no more', async () => {
  using file = guestFile()
  const pool = createThreadPool(1, { role: 'apply', regions: [{ block: 0, fd: file.fd, bytes: BYTES, offset: 0 }] })
  const input = new ArrayBuffer(100)
  assert.is(
    await codeOf(() =>
      within(
        pool.run(() => ({ kind: 'batch', input, bytes: 100 }), [input]),
        { ms: 10_000, what: 'a job' },
      ),
    ),
    'FRAME_MALFORMED',
  )
  assert.is(input.byteLength, 0)
  const late = codeOf(() => pool.run(() => ({ kind: 'resolve', references: new Float64Array(0) }), []))
  await within(pool.close(), { ms: 10_000, what: 'closing' })
  assert.is(await late, 'INTERNAL')
  assert.is(await codeOf(() => pool.run(() => ({ kind: 'resolve', references: new Float64Array(0) }), [])), 'INTERNAL')
})

test('a worker that cannot start fails its jobs', async () => {
  const pool = createThreadPool(1, { role: 'apply', regions: [] })
  const job = pool.run(() => ({ kind: 'resolve', references: new Float64Array(0) }), [])
  assert.is(await codeOf(() => within(job, { ms: 10_000, what: 'a job' })), 'INTERNAL')
  await pool.close()
})

test.run()
