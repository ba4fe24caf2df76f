// Payloads with content of disks on their way to the page streams. Enters: payloads, not compressed. Leaves: the same,
// compressed where that is worth it, on the stream that each belongs to.
// Always holds: payloads of one stream leave in the order in which they came; AT_ONCE of them are in memory; after a
// failure nothing more is sent.
import type { Log } from '../../wire/log.ts'
import type { CompressJob, CompressResult } from './compress.ts'
import { createThreadPool } from './pool.ts'

const AT_ONCE = 4
const LEVEL = 3

type PayloadQueueOptions = {
  streams: number
  compression: 'zstd' | 'off'
  /** A number of the payload: equal ones share a stream. */
  streamOf: (payload: Uint8Array) => number
  send: (stream: number, payload: Uint8Array) => Promise<void>
  log: Log
}

export type PayloadQueue = {
  /** Resolves when there is room for the next; the payload is the queue's. `onSent`: it has left. */
  send(payload: Uint8Array, onSent?: () => void): Promise<void>
  /** All is sent. */
  drained(): Promise<void>
  close(): Promise<void>
}

export function createPayloadQueue({ streams, compression, streamOf, send, log }: PayloadQueueOptions): PayloadQueue {
  const pool = createThreadPool<CompressJob, CompressResult>(1, { role: 'compress' }, { log })
  const tails = Array.from({ length: streams }, () => Promise.resolve())
  const waiting = new Set<Promise<void>>()
  let failure: unknown

  const shrink = async (payload: Uint8Array): Promise<Uint8Array> => {
    if (compression === 'off') return payload
    const input = payload.buffer as ArrayBuffer
    const output = new ArrayBuffer(payload.length)
    const job: CompressJob = { input, output, bytes: payload.length, level: LEVEL }
    const { input: raw, output: packed, bytes, compressed } = await pool.run(() => job, [input, output])
    return compressed ? new Uint8Array(packed, 0, bytes) : new Uint8Array(raw, 0, bytes)
  }
  return {
    async send(payload, onSent) {
      if (failure !== undefined) throw failure
      const stream = streamOf(payload) % streams
      const packed = shrink(payload)
      const sent = Promise.all([packed, tails[stream]]).then(async ([bytes]) => {
        await send(stream, bytes)
        onSent?.()
      })
      tails[stream] = sent
      const done = sent.catch(error => {
        failure ??= error
      })
      waiting.add(done)
      void done.then(() => waiting.delete(done))
      while (waiting.size >= AT_ONCE) await Promise.race(waiting)
    },
    async drained() {
      await Promise.all(waiting)
      if (failure !== undefined) throw failure
    },
    async close() {
      await pool.close().catch(() => {})
    },
  }
}
