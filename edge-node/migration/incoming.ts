// The target's corridor: sealed streams -> pages straight into guest memory, skeleton in order into QEMU's incoming socket.
// Always holds: at BARRIER n a stream is not read on until every stream has reached it and all pages before it are in guest memory; the return
// path's SHUT (the load's verdict) is held back until all streams ended whole, so the source's QEMU cannot complete on less.
import { closeSync } from 'node:fs'
import type { Socket } from 'node:net'
import type { Manifest } from '../../crypto/manifest.ts'
import type { Stream } from '../../transport/types.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Frame } from '../../wire/frame.ts'
import { FRAME } from '../../wire/types.ts'
import type { SealedReader } from '../channel/sealed-stream.ts'
import type { Session } from '../channel/session.ts'
import { type Applier, createApplier } from '../pages/apply.ts'
import { decodeBarrier } from '../pages/batch.ts'
import { createReturnPathParser, decodeValue, encodeMessage, RETURN_PATH } from '../stream/return-path.ts'
import { FIRST_PAGE_INDEX, SKELETON_INDEX } from './outgoing.ts'

/** Record bytes after which an acknowledgement goes at once; smaller amounts wait for the timer. */
const ACK_BYTES = 64 * 1024
const ACK_MS = 10

export type IncomingOptions = {
  session: Session
  /** Page streams that the plan names. */
  pageStreams: number
  /** QEMU's incoming socket, connected. */
  qemu: Socket
  /** Guest memory, opened O_RDWR for the workers; closed here once no worker can write any more: an open descriptor keeps a dead VM's memory allocated. */
  memory: { fd: number; bytes: number }
  workers: number
  onAck: (receivedBytes: number) => void
  /** Return-path bytes for the source's QEMU, all but SHUT. */
  onReturnPath: (bytes: Uint8Array) => void
  fail: (error: GodwitError) => void
}

export type Incoming = {
  /** A relay stream of this migration has come. */
  accept(index: number, stream: Stream): void
  /** The source names the blocks that travel as pages. */
  begin(blocks: { name: string; bytes: number }[]): void
  /** SHUT from QEMU: its code and its bytes, to be forwarded only when the manifest was right. */
  readonly shut: Promise<{ code: number; bytes: Uint8Array }>
  /** All streams have ended whole and every page is in guest memory. */
  readonly ended: Promise<Manifest>
  /** Time from the first device byte at QEMU to the last, ms. */
  stateMs(): number
  /** Time from the last device byte to SHUT, ms. */
  loadMs(): number
  stats(): ReturnType<Applier['stats']> | undefined
  abort(error: GodwitError): void
}

export function createIncoming(options: IncomingOptions): Incoming {
  const { session, pageStreams, qemu, fail } = options
  const streams = new Map<number, Stream>()
  const readers = new Map<number, SealedReader>()
  const begun = deferred<Applier>()
  const shut = deferred<{ code: number; bytes: Uint8Array }>()
  const ended = deferred<Manifest>()
  const times = { barrierMs: 0, deviceMs: 0, lastByteMs: 0, shutMs: 0 }
  const acks = createAcks(options.onAck)
  let applier: Applier | undefined
  let running = 0
  const closeMemory = closerOf(options.memory.fd)

  const returnPath = createReturnPathParser({
    message(type, payload) {
      const bytes = encodeMessage(type, payload)
      if (type !== RETURN_PATH.shut) return options.onReturnPath(bytes)
      times.shutMs = performance.now()
      shut.resolve({ code: decodeValue(payload), bytes })
    },
  })
  qemu.on('data', chunk => {
    try {
      returnPath.push(chunk as Uint8Array)
    } catch (error) {
      fail(toGodwitError(error))
    }
  })
  const skeleton = async ({ type, payload }: Frame) => {
    if (type === FRAME.BARRIER) {
      await (await begun.promise).barrier('skeleton', decodeBarrier(payload))
      times.barrierMs = performance.now()
      return
    }
    // Device state is what follows the last barrier but the final one, which nothing follows.
    times.deviceMs = times.barrierMs
    await write(qemu, payload)
    times.lastByteMs = performance.now()
  }
  const page = async (stream: number, { type, payload }: Frame) => {
    const target = await begun.promise
    await (type === FRAME.BARRIER ? target.barrier(stream, decodeBarrier(payload)) : target.batch(stream, payload))
  }
  const readAll = async (index: number, reader: SealedReader) => {
    for await (const frame of reader.frames()) await (index === SKELETON_INDEX ? skeleton(frame) : page(index - FIRST_PAGE_INDEX, frame))
    acks.flush()
    running -= 1
    if (running > 0 || readers.size < pageStreams + 1) return
    await (await begun.promise).finish().then(closeMemory)
    const sorted = [...readers].sort(([a], [b]) => a - b)
    ended.resolve({ streams: sorted.map(([at, { records, digest }]) => ({ index: at, records, digest: digest() })) })
  }
  return {
    accept(index, stream) {
      if (index < SKELETON_INDEX || index > SKELETON_INDEX + pageStreams || readers.has(index)) {
        stream.reset('unexpected stream')
        return fail(new GodwitError('MIGRATION_STATE', `stream ${index} is not part of the plan`))
      }
      const reader = session.reader(stream, index, index === SKELETON_INDEX ? ['SKELETON', 'BARRIER'] : ['BATCH', 'BARRIER'], acks.received)
      streams.set(index, stream)
      readers.set(index, reader)
      running += 1
      readAll(index, reader).catch(error => fail(toGodwitError(error)))
    },
    begin(blocks) {
      if (applier) return fail(new GodwitError('MIGRATION_STATE', 'PAGES came twice'))
      const captured = blocks.flatMap((block, index) => (block.bytes > 0 ? [{ block: index, bytes: block.bytes }] : []))
      if (captured.length !== 1 || captured[0]!.bytes !== options.memory.bytes) {
        return fail(new GodwitError('MIGRATION_STATE', 'the source has other guest memory than its specification says'))
      }
      applier = createApplier({
        streams: pageStreams,
        memory: [{ block: captured[0]!.block, fd: options.memory.fd, bytes: options.memory.bytes, offset: 0 }],
        workers: options.workers,
      })
      begun.resolve(applier)
    },
    shut: shut.promise,
    ended: ended.promise,
    stateMs: () => Math.max(0, times.lastByteMs - times.deviceMs),
    loadMs: () => Math.max(0, times.shutMs - times.lastByteMs),
    stats: () => applier?.stats(),
    abort(error) {
      acks.stop()
      void Promise.resolve(applier?.abort(error)).then(closeMemory)
      for (const stream of streams.values()) stream.reset(error.code)
      qemu.destroy()
    },
  }
}

/** Closes once: the number may belong to another file by the second time. */
function closerOf(fd: number): () => void {
  let isOpen = true
  return () => {
    if (isOpen) closeSync(fd)
    isOpen = false
  }
}

/** Counts received bytes and says so: soon when much has come, after a short while otherwise. */
function createAcks(send: (receivedBytes: number) => void) {
  let total = 0
  let told = 0
  let timer: NodeJS.Timeout | undefined
  const flush = () => {
    clearTimeout(timer)
    timer = undefined
    if (told === total) return
    told = total
    send(total)
  }
  return {
    received(bytes: number) {
      total += bytes
      if (total - told >= ACK_BYTES) flush()
      else timer ??= setTimeout(flush, ACK_MS)
    },
    flush,
    stop: () => clearTimeout(timer),
  }
}

/** Writes and waits while QEMU's socket is full. */
async function write(socket: Socket, bytes: Uint8Array): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    socket.write(bytes.slice(), error =>
      error ? reject(new GodwitError('QEMU_LOAD', "the target's QEMU closed its socket", { cause: error })) : resolve(),
    )
  })
}

function deferred<T>(): { promise: Promise<T>; resolve: (value: T) => void } {
  let resolve: (value: T) => void = () => {}
  const promise = new Promise<T>(done => {
    resolve = done
  })
  return { promise, resolve }
}
