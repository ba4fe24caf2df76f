// The source's corridor: QEMU's socket -> parser -> pages to the pipeline, the rest (the skeleton) in order to stream 1 -> sealed streams.
// Always holds: device state is behind a barrier, so the target has every page in guest memory before its QEMU reads the first device byte (virtio
// reads its rings from there); reading from QEMU stops while the pipeline or the path is full, so bytes in flight stay bounded by the gate.
import { createServer, type Server, type Socket } from 'node:net'
import { toHex } from '../../crypto/bytes.ts'
import { derivePageHashKey } from '../../crypto/keys.ts'
import type { Manifest } from '../../crypto/manifest.ts'
import { createPageHasher } from '../../crypto/page-hash.ts'
import type { Stream } from '../../transport/types.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import { FRAME } from '../../wire/types.ts'
import type { SealedWriter } from '../channel/sealed-stream.ts'
import type { Session } from '../channel/session.ts'
import { encodeBarrier } from '../pages/batch.ts'
import { createPipeline, type Pipeline } from '../pages/pipeline.ts'
import type { Gate } from '../rate/gate.ts'
import { type Block, createParser } from '../stream/parse.ts'
import { createEndWatch } from './stream-end.ts'

/** The RAM block that travels as pages: the memory backend that the VM's own command line names (vm/argv.ts). */
export const CAPTURED_BLOCK = 'ram0'
export const SKELETON_INDEX = 1
export const FIRST_PAGE_INDEX = 2
const SKELETON_FRAME_BYTES = 64 * 1024
const SKELETON_WAITING_BYTES_MAX = 1024 * 1024

export type OutgoingOptions = {
  session: Session
  gate: Gate
  streams: { skeleton: Stream; pages: Stream[] }
  compression: 'zstd' | 'off'
  level: number | 'auto'
  workers: number
  /** Told once which blocks travel as pages, before the first of them is sent. */
  onBlocks: (blocks: { name: string; bytes: number }[]) => void
  /** RAM is complete: all after it is device state. */
  onRamEnd: () => void
  /** Everything has been sent; what went into each stream. */
  onEnd: (manifest: Manifest) => void
  onOpaque: (reason: string) => void
  fail: (error: GodwitError) => void
}

export type Outgoing = {
  /** Reads one QEMU connection to its end. */
  feed(socket: Socket): Promise<void>
  /** Ends all streams in order (idempotent): called when the end of QEMU's stream is known. */
  finish(): Promise<void>
  abort(error: GodwitError): void
  readonly pipeline: Pipeline | undefined
  readonly wireBytes: number
}

export function createOutgoing(options: OutgoingOptions): Outgoing {
  const { session, gate, streams, fail } = options
  const skeleton = session.writer(streams.skeleton, SKELETON_INDEX, gate)
  const pages = streams.pages.map((stream, i) => session.writer(stream, FIRST_PAGE_INDEX + i, gate))
  const order = createOrder(fail)
  let pipeline: Pipeline | undefined
  let finished: Promise<void> | undefined

  const rest = createSkeletonQueue(skeleton, order)
  /** Everything before this point is in the target's memory before anything after it is read there. */
  const barrier = () => {
    rest.close()
    order.add(async () => {
      await pipeline?.barrier()
    })
  }
  const endWatch = createEndWatch()
  let inDevices = false
  const parser = createParser(
    {
      skeleton(bytes) {
        rest.push(bytes)
        if (inDevices && endWatch.push(bytes)) void finish()
      },
      page: (block, offset, bytes) => pipeline!.page(block.index, offset, bytes),
      zero: (block, offset) => pipeline!.zero(block.index, offset),
      blocks: blocks => {
        pipeline = startPipeline(options, blocks, skeleton, pages)
      },
      ramEnd() {
        inDevices = true
        barrier()
        options.onRamEnd()
      },
      opaque(reason) {
        barrier()
        options.onOpaque(reason)
      },
    },
    { captures: name => name === CAPTURED_BLOCK },
  )
  const finish = () => {
    finished ??= (async () => {
      rest.close()
      await order.settled()
      await pipeline?.finish()
      await Promise.all([skeleton, ...pages].map(writer => writer.finish()))
      options.onEnd(manifestOf([skeleton, ...pages]))
    })().catch(error => fail(toGodwitError(error)))
    return finished
  }
  return {
    async feed(socket) {
      for await (const chunk of socket) {
        parser.push(chunk as Uint8Array)
        rest.close(parser.phase !== 'iterate')
        if (pipeline?.saturated) await pipeline.drained()
        if (rest.waitingBytes > SKELETON_WAITING_BYTES_MAX) await order.settled()
      }
      parser.end()
      if (!finished) throw new GodwitError('QEMU_STREAM', "the source's QEMU ended its stream early")
    },
    finish,
    abort(error) {
      gate.close(error)
      pipeline?.abort(error)
      for (const stream of [streams.skeleton, ...streams.pages]) stream.reset(error.code)
    },
    get pipeline() {
      return pipeline
    },
    get wireBytes() {
      return [skeleton, ...pages].reduce((sum, writer) => sum + writer.wireBytes, 0)
    },
  }
}

function startPipeline(options: OutgoingOptions, blocks: readonly Block[], skeleton: SealedWriter, pages: SealedWriter[]): Pipeline {
  const captured = blocks.filter(block => block.captured)
  if (captured.length === 0) throw new GodwitError('QEMU_STREAM', `the stream has no RAM block '${CAPTURED_BLOCK}': not a VM of ours`)
  options.onBlocks(blocks.map(block => ({ name: block.name, bytes: block.captured ? block.usedBytes : 0 })))
  return createPipeline({
    sink: {
      streams: pages.length,
      async send(stream, type, payload) {
        const writer = pages[stream]!
        await writer.send(type, payload)
        if (type === FRAME.BARRIER) await writer.flush()
      },
    },
    blocks: captured.map(block => ({ id: block.index, bytes: block.usedBytes })),
    hasher: createPageHasher(derivePageHashKey(options.session.rootKey)),
    compression: options.compression,
    level: options.level,
    workers: options.workers,
    async onBarrier(n) {
      await skeleton.send(FRAME.BARRIER, encodeBarrier(n))
      await skeleton.flush()
    },
  })
}

/** Work that must happen one after the other; the first failure is the migration's. */
function createOrder(fail: (error: GodwitError) => void) {
  let tail: Promise<void> = Promise.resolve()
  return {
    add(work: () => Promise<void>) {
      tail = tail.then(work).catch(error => fail(toGodwitError(error)))
    },
    settled: () => tail,
  }
}

/** Collects skeleton bytes into frames and queues them in order. */
function createSkeletonQueue(writer: SealedWriter, order: ReturnType<typeof createOrder>) {
  let open: Buffer[] = []
  let openBytes = 0
  let waitingBytes = 0
  const close = (flush = true) => {
    if (openBytes === 0) return
    const bytes = Buffer.concat(open)
    open = []
    openBytes = 0
    order.add(async () => {
      await writer.send(FRAME.SKELETON, bytes)
      if (flush) await writer.flush()
      waitingBytes -= bytes.length
    })
  }
  return {
    push(bytes: Uint8Array) {
      for (let at = 0; at < bytes.length; at += SKELETON_FRAME_BYTES) {
        const piece = Buffer.from(bytes.subarray(at, at + SKELETON_FRAME_BYTES))
        if (openBytes + piece.length > SKELETON_FRAME_BYTES) close(false)
        open.push(piece)
        openBytes += piece.length
        waitingBytes += piece.length
      }
    },
    /** Ends the frame being filled; `flush` sends its record at once instead of waiting for a full one. */
    close,
    get waitingBytes() {
      return waitingBytes
    },
  }
}

function manifestOf(writers: SealedWriter[]): Manifest {
  return { streams: writers.map((writer, i) => ({ index: SKELETON_INDEX + i, records: writer.records, digest: writer.digest() })) }
}

/** The manifest as it travels in EOS. */
export const manifestToMessage = (manifest: Manifest) =>
  manifest.streams.map(({ index, records, digest }) => ({ index, records, digest: toHex(digest) }))

/** A unix socket that takes exactly one connection: QEMU's. */
export async function listenForQemu(path: string): Promise<{ server: Server; connection: Promise<Socket> }> {
  const server = createServer({ allowHalfOpen: true })
  const connection = new Promise<Socket>(resolve => {
    server.once('connection', socket => {
      server.close()
      resolve(socket)
    })
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(path, () => resolve())
  })
  return { server, connection }
}
