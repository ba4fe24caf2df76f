// Pages go as they are, each in a frame of its own, spread over the streams; barriers keep the order.

import { encodeBarrier } from '../../../../edge-node/pages/batch.ts'
import type { Pipeline, PipelineOptions } from '../../../../edge-node/pages/pipeline.ts'
import { FRAME, PAGE_BYTES } from '../../../../wire/types.ts'

const COUNTS = { zero: 0, duplicate: 0, unchanged: 0, superseded: 0, rewritten: 0, delta: 0, compressed: 0, raw: 0 }

export function createPipeline({ sink, onBarrier }: PipelineOptions): Pipeline {
  let barriers = 0
  let pages = 0
  let failure: unknown
  let order: Promise<unknown> = Promise.resolve()
  const inOrder = <T>(work: () => Promise<T>): Promise<T> => {
    const done = order.then(() => {
      if (failure) throw failure
      return work()
    })
    order = done.catch(() => {})
    return done
  }
  const said = new Set<number>()
  const barrier = () =>
    inOrder(async () => {
      said.clear()
      const n = ++barriers
      for (let stream = 0; stream < sink.streams; stream++) await sink.send(stream, FRAME.BARRIER, encodeBarrier(n))
      await onBarrier?.(n)
      return n
    })
  const pipeline = {
    page(_: number, offset: number, bytes: Uint8Array) {
      if (failure) throw failure
      if (said.has(offset)) void barrier().catch(() => {})
      said.add(offset)
      const payload = new Uint8Array(4 + bytes.length)
      new DataView(payload.buffer).setUint32(0, offset)
      payload.set(bytes, 4)
      const stream = pages++ % sink.streams
      inOrder(() => Promise.resolve(sink.send(stream, FRAME.BATCH, payload))).catch(() => {})
    },
    zero() {},
    saturated: false,
    drained: async () => {},
    barrier,
    finish: async () => {
      await barrier()
    },
    abort(error: unknown) {
      failure ??= error
    },
    setLevel() {},
    setBatching() {},
    stats: () => ({
      guestBytes: pages * PAGE_BYTES,
      pages: { ...COUNTS, raw: pages },
      deltaBytes: 0,
      waits: { compressed: 0, link: 0, workers: 0 },
      bytesIn: 0,
      bytesOut: 0,
      batches: pages,
      barriers: { asked: 0, rewritten: 0, referenced: 0 },
      busyMs: { classify: 0, compress: 0, send: 0 },
      level: 1,
      buffered: { batches: 0, batchesMax: 1, bytes: 0, bytesMax: 1 },
    }),
  }
  return pipeline as unknown as Pipeline
}
