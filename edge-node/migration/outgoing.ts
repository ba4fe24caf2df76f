// The source's corridor: QEMU's socket -> parser -> pages to the pipeline, the rest (the skeleton) in order to stream
// 1 -> kept until the target has it, sealed.
// Always holds: device state is behind a barrier, so the target has every page in guest memory before its QEMU reads
// the first device byte (virtio reads its rings from there); reading from QEMU stops while the pipeline or the path
// is full, or the link is lost, so bytes in flight stay bounded by the gate. A QEMU that is not read waits in its
// write, and the guest runs on: so a lost link costs a live migration time, and the guest nothing.
import type { Socket } from 'node:net'
import { toHex } from '../../crypto/bytes.ts'
import { derivePageHashKey } from '../../crypto/channel/keys.ts'
import type { Manifest } from '../../crypto/channel/manifest.ts'
import { createPageHasher } from '../../crypto/channel/page-hash.ts'
import type { Stream } from '../../transport/types.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { countedRoles, indexOf, pages, type Role, SKELETON } from '../../wire/roles.ts'
import { FRAME } from '../../wire/types.ts'
import type { Channel } from '../channel/channel.ts'
import { createKeptStreams, type KeptStreams } from '../channel/kept-streams.ts'
import type { SealedWriter } from '../channel/sealed-stream.ts'
import { encodeBarrier } from '../pages/batch.ts'
import type { HeldBlocks } from '../pages/classify.ts'
import type { PageHasher } from '../pages/hasher.ts'
import type { Pipeline } from '../pages/pipeline.ts'
import type { Gate } from '../rate/gate.ts'
import type { RamBlock } from '../stream/parse.ts'
import { RAM_BLOCK } from '../vm/argv.ts'
import type { MemoryPath } from './memory-path.ts'
import { createEndWatch } from './stream-end.ts'

const SKELETON_FRAME_BYTES = 64 * 1024
const SKELETON_WAITING_BYTES_MAX = 1024 * 1024

export type OutgoingOptions = {
  memoryPath: MemoryPath
  /** Of the first meeting: the key of the page hashes, or of the proofs for pages from disks, comes of it. */
  rootKey: Uint8Array
  pageStreams: number
  compression: 'zstd' | 'off'
  level: number | 'auto'
  workers: number
  /** The blocks of disks that the target has, and the hasher of them and of pages. Asked when the pages begin. */
  held?: (() => { blocks: HeldBlocks; hasher: PageHasher } | undefined) | undefined
  /** Told once which blocks travel as pages, before the first of them is sent. */
  onBlocks: (blocks: { name: string; bytes: number }[]) => void
  /** RAM is complete: all after it is device state. */
  onRamEnd: () => void
  /**
   * Everything has been sent; what went into each stream over this meeting. Called anew for each meeting that comes
   * to that.
   */
  onEnd: (manifest: Manifest) => void
  onOpaque: (reason: string) => void
  /** A stream of the meeting at hand has failed. */
  onLost: (error: GodwitError) => void
  fail: (error: GodwitError) => void
  log: Log
}

export type Outgoing = {
  /** Reads one QEMU connection to its end. */
  feed(socket: Socket): Promise<void>
  /** Sends a DISK payload on a page stream, counted from 0. Resolves when the path has room; the payload is kept. */
  disk(pageStream: number, payload: Uint8Array): Promise<void>
  /** Ends all streams in order (idempotent): called when the end of QEMU's stream is known. */
  finish(): void
  /**
   * Goes on over this meeting: its data streams, in the order of countedRoles. `taken`: frames of each that the
   * target has.
   */
  attach(meeting: { channel: Channel; gate: Gate; streams: Stream[]; taken: readonly number[] }): void
  /** The target has taken so many frames of each stream. */
  taken(frames: readonly number[]): void
  /** The meeting is lost: everything waits for the next. */
  detach(): void
  /** Resolves when the pipeline's workers have ended (or hang, see pages/pool.ts); never rejects. */
  abort(error: GodwitError): Promise<void>
  readonly pipeline: Pipeline | undefined
  /** Of all meetings. */
  readonly wireBytes: number
  /** What is kept for a meeting to come. */
  readonly keptBytes: number
}

export function createOutgoing(options: OutgoingOptions): Outgoing {
  const { fail } = options
  const roles = countedRoles(options.pageStreams)
  const kept = createKeptStreams({
    roles,
    onEnded: writers => options.onEnd(manifestOf(roles, writers)),
    onLost: options.onLost,
  })
  const order = createOrder(fail)
  let pipeline: Pipeline | undefined
  let finished = false

  const rest = createSkeletonQueue(kept, order)
  /** Everything before this point is in the target's memory before anything after it is read there. */
  const barrier = () => {
    rest.close()
    order.add(async () => {
      await pipeline?.barrier()
    })
  }
  const endWatch = createEndWatch()
  let inDevices = false
  const parser = options.memoryPath.createParser(
    {
      skeleton(bytes) {
        rest.push(bytes)
        if (inDevices && endWatch.push(bytes)) finish()
      },
      page: (block, offset, bytes) => pipeline!.page(block.index, offset, bytes),
      zero: (block, offset) => pipeline!.zero(block.index, offset),
      blocks: blocks => {
        pipeline = startPipeline(options, blocks, kept)
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
    { captures: name => name === RAM_BLOCK },
  )
  const finish = () => {
    if (finished) return
    finished = true
    rest.close()
    order.add(async () => {
      await pipeline?.finish()
      kept.end()
    })
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
    disk: (pageStream, payload) => kept.send(pages(pageStream), FRAME.DISK, payload),
    attach({ channel, gate, streams, taken }) {
      kept.attach(
        streams.map((stream, i) => channel.writer(stream, roles[i]!, gate, taken[i])),
        taken,
      )
    },
    taken: frames => kept.taken(frames),
    detach: () => kept.detach(),
    async abort(error) {
      kept.abort(error)
      await pipeline?.abort(error)
    },
    get pipeline() {
      return pipeline
    },
    get wireBytes() {
      return kept.wireBytes
    },
    get keptBytes() {
      return kept.keptBytes
    },
  }
}

function startPipeline(options: OutgoingOptions, blocks: readonly RamBlock[], kept: KeptStreams): Pipeline {
  const captured = blocks.filter(block => block.captured)
  if (captured.length === 0)
    throw new GodwitError('QEMU_STREAM', `the stream has no RAM block '${RAM_BLOCK}': Godwit did not start this VM`)
  const own = createPageHasher(derivePageHashKey(options.rootKey))
  const held = options.held?.()
  options.onBlocks(blocks.map(block => ({ name: block.name, bytes: block.captured ? block.usedBytes : 0 })))
  return options.memoryPath.createPipeline({
    sink: {
      streams: options.pageStreams,
      // The pipeline uses its buffers again: a frame is copied to be kept.
      send: (stream, type, payload) => kept.send(pages(stream), type, Buffer.from(payload), { flush: type === FRAME.BARRIER }),
    },
    blocks: captured.map(block => ({ id: block.index, bytes: block.usedBytes })),
    hasher: held?.hasher ?? own,
    held: held && { blocks: held.blocks, proofHasher: own },
    compression: options.compression,
    ...(options.level === 'auto' ? {} : { level: options.level }),
    workers: options.workers,
    log: options.log,
    onBarrier: n => kept.send(SKELETON, FRAME.BARRIER, encodeBarrier(n), { flush: true }),
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
function createSkeletonQueue(kept: KeptStreams, order: ReturnType<typeof createOrder>) {
  let open: Buffer[] = []
  let openBytes = 0
  let waitingBytes = 0
  const close = (flush = true) => {
    if (openBytes === 0) return
    const bytes = Buffer.concat(open)
    open = []
    openBytes = 0
    order.add(async () => {
      await kept.send(SKELETON, FRAME.SKELETON, bytes, { flush })
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

function manifestOf(roles: readonly Role[], writers: SealedWriter[]): Manifest {
  return { streams: writers.map((writer, i) => ({ index: indexOf(roles[i]!), records: writer.records, digest: writer.digest() })) }
}

/** The manifest as it travels in EOS. */
export const manifestToMessage = (manifest: Manifest) =>
  manifest.streams.map(({ index, records, digest }) => ({ index, records, digest: toHex(digest) }))
