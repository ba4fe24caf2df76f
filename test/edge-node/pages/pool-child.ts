// A process whose page workers are at work when their pool, or the process, ends: pool.test.ts looks at how it ends.
//   closes N   closes N pools, each while its thread compresses; prints `closed N`
//   exits      process.exit(3) while six threads compress
//   throws     an exception that nobody catches, while six threads compress
//   hangs      closes a pool whose thread never ends its job, prints what close() says, and calls process.exit(3)
import { setTimeout as sleep } from 'node:timers/promises'
import { batchBufferBytes } from '../../../edge-node/pages/batch.ts'
import type { CompressJob, CompressResult } from '../../../edge-node/pages/compress.ts'
import { createThreadPool, type Pool, type PoolOptions } from '../../../edge-node/pages/pool.ts'

const poolOf = (threads: number, options: PoolOptions = {}) =>
  createThreadPool<CompressJob, CompressResult>(threads, { role: 'compress' }, options)

/** Small batches: most of the time goes into setting up zstd, which is where a thread must not be stopped. */
const BYTES = 4 * 1024

function jobOf(): { job: () => CompressJob; transfer: ArrayBuffer[] } {
  const input = new ArrayBuffer(batchBufferBytes(1))
  const output = new ArrayBuffer(batchBufferBytes(1))
  new Uint8Array(input).fill(7)
  return { job: () => ({ input, output, bytes: BYTES, level: 1 }), transfer: [input, output] }
}

/** Keeps a pool busy until it fails; resolves with the error. `onFirst`: a job has been done. */
async function feed(pool: Pool<CompressJob, CompressResult>, onFirst?: () => void): Promise<unknown> {
  for (;;) {
    const { job, transfer } = jobOf()
    try {
      await pool.run(job, transfer)
      onFirst?.()
    } catch (error) {
      return error
    }
  }
}

/** A pool that is at work. */
async function busyPool(threads: number) {
  const pool = poolOf(threads)
  const first = Promise.withResolvers<void>()
  const feeders = Array.from({ length: 3 * threads }, () => feed(pool, first.resolve))
  await first.promise
  return { pool, feeders }
}

const [mode, count] = process.argv.slice(2)
if (mode === 'closes') {
  for (let i = 0; i < Number(count); i++) {
    const { pool, feeders } = await busyPool(1)
    await sleep(i % 3)
    await pool.close()
    await pool.ended
    for (const error of await Promise.all(feeders)) if (!/were closed/.test(String(error))) throw error
  }
  console.log(`closed ${count}`)
} else if (mode === 'exits' || mode === 'throws') {
  await busyPool(6)
  await sleep(Math.random() * 3)
  console.log('ending')
  if (mode === 'exits') process.exit(3)
  throw new Error('nobody catches this')
} else if (mode === 'hangs') {
  const pool = poolOf(1, { worker: new URL('./pool-hanging-worker.ts', import.meta.url), endMs: 300 })
  const { job, transfer } = jobOf()
  const channel = new BroadcastChannel('hangs')
  const hanging = new Promise(resolve => (channel.onmessage = resolve))
  const under = pool.run(job, transfer).catch(error => error)
  await hanging
  channel.close()
  let isOver = false
  void pool.ended.then(() => (isOver = true))
  await pool.close().catch(error => console.log(`close: ${error.code}`))
  console.log(`job: ${(await under).code}, ended: ${isOver}`)
  process.exit(3)
}
