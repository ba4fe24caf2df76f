// The target's corridor: sealed streams -> pages straight into guest memory, skeleton in order into QEMU's incoming
// socket.
// Always holds: at BARRIER n a stream is not read on until every stream has reached it and all pages before it are in
// guest memory; the return path's SHUT (the load's verdict) is held back until all streams ended whole, so the
// source's QEMU cannot complete on less. Over any number of meetings each frame is taken once: it counts when its
// work begins, and what a lost meeting had still to bring comes over the next, from that very frame on.
import type { Socket } from 'node:net'
import { derivePageHashKey } from '../../crypto/channel/keys.ts'
import { compareManifests, type Manifest } from '../../crypto/channel/manifest.ts'
import { within } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Frame } from '../../wire/frame.ts'
import type { Log } from '../../wire/log.ts'
import { countedRoles } from '../../wire/roles.ts'
import { FRAME } from '../../wire/types.ts'
import type { Channel } from '../channel/channel.ts'
import { createTakenStreams } from '../channel/taken-streams.ts'
import type { Applier } from '../pages/apply.ts'
import { decodeBarrier } from '../pages/batch.ts'
import type { DiskBlocks } from '../pages/place.ts'
import { createReturnPathParser, decodeValue, encodeReturnPath, RETURN_PATH } from '../stream/return-path.ts'
import type { MemoryPath } from './memory-path.ts'
import type { Peer } from './peer.ts'

export const WHOLE_TIMEOUT_MS = 120_000

type IncomingOptions = {
  memoryPath: MemoryPath
  /** Page streams that the plan names. */
  pageStreams: number
  /** QEMU's incoming socket, connected. */
  qemu: Socket
  /**
   * Guest memory, opened O_RDWR for the workers; closed here once no worker can write any more: an open descriptor
   * keeps a dead VM's memory allocated.
   */
  memory: { fd: number; bytes: number }
  workers: number
  /** Takes DISK payloads, for a VM with local disks. */
  disk?: ((payload: Uint8Array) => Promise<void>) | undefined
  /** What pages may refer to. `rootKey`: of the meeting with the offer. */
  disks?: { blocks: DiskBlocks; rootKey: Uint8Array } | undefined
  /** Wire bytes of this meeting, and frames of each data stream taken in all. */
  onAck: (receivedBytes: number, taken: number[]) => void
  /** Return-path bytes for the source's QEMU, all but SHUT. */
  onReturnPath: (bytes: Uint8Array) => void
  /** A stream of the meeting at hand has failed. */
  onLost: (error: GodwitError) => void
  fail: (error: GodwitError) => void
  log: Log
}

export type Incoming = {
  /**
   * Goes on over this meeting; gives the frames of each data stream that are taken. Streams of earlier ones bring
   * nothing any more.
   */
  meet(channel: Channel, attempt: number): number[]
  /** A relay stream of this migration has come. */
  accept(index: number, attempt: number, stream: Stream): void
  /** The source names the blocks that travel as pages. */
  begin(blocks: { name: string; bytes: number }[]): void
  /** SHUT from QEMU: its code and its bytes, to be forwarded only when the manifest was right. */
  readonly shut: Promise<{ code: number; bytes: Uint8Array }>
  /**
   * All streams have ended whole over the meeting of this attempt and every page is in guest memory; undefined when
   * that meeting was lost before.
   */
  ended(attempt: number): Promise<Manifest | undefined>
  /** Time from the first device byte at QEMU to the last, ms. */
  stateMs(): number
  /** Time from the last device byte to SHUT, ms. */
  loadMs(): number
  stats(): ReturnType<Applier['stats']> | undefined
  /**
   * Resolves when the workers have ended (or hang, see pages/pool.ts: then the memory stays open for them); never
   * rejects.
   */
  abort(error: GodwitError): Promise<void>
}

export function createIncoming(options: IncomingOptions): Incoming {
  const { pageStreams, qemu, fail } = options
  const begun = Promise.withResolvers<Applier>()
  const shut = Promise.withResolvers<{ code: number; bytes: Uint8Array }>()
  const times = { barrierMs: 0, deviceMs: 0, lastByteMs: 0, shutMs: 0 }
  let applier: Applier | undefined
  const closeMemory = once(() => options.memoryPath.closeMemory(options.memory.fd))

  const returnPath = createReturnPathParser({
    message(type, payload) {
      const bytes = encodeReturnPath(type, payload)
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
  const { disk } = options
  const page = async (stream: number, { type, payload }: Frame) => {
    // Disks travel before QEMU has named its memory blocks.
    if (type === FRAME.DISK) return await disk!(payload)
    const target = await begun.promise
    await (type === FRAME.BARRIER ? target.barrier(stream, decodeBarrier(payload)) : target.batch(stream, payload))
  }
  const streams = createTakenStreams({
    roles: countedRoles(pageStreams),
    hasDisks: disk !== undefined,
    onAck: options.onAck,
    onLost: options.onLost,
    fail,
    take: (role, frame) => (role.kind === 'pages' ? page(role.n, frame) : skeleton(frame)),
    async onWhole() {
      const target = await begun.promise
      await target.finish()
      void target.ended.then(closeMemory)
    },
  })
  return {
    meet: streams.meet,
    accept: streams.accept,
    ended: streams.ended,
    begin(blocks) {
      if (applier) return fail(new GodwitError('MIGRATION_STATE', 'PAGES arrived twice'))
      applier = applierFor(options, blocks)
      if (applier) begun.resolve(applier)
      else fail(new GodwitError('MIGRATION_STATE', 'the guest memory of the source differs from its specification'))
    },
    shut: shut.promise,
    stateMs: () => Math.max(0, times.lastByteMs - times.deviceMs),
    loadMs: () => Math.max(0, times.shutMs - times.lastByteMs),
    stats: () => applier?.stats(),
    async abort(error) {
      streams.leave(error.code)
      qemu.destroy()
      void Promise.resolve(applier?.ended).then(closeMemory)
      await applier?.abort(error).catch(() => {})
    },
  }
}

/** For exactly the one block of exactly the size that the waiting QEMU has. */
function applierFor(
  { memoryPath, memory, pageStreams, workers, disks, log }: IncomingOptions,
  blocks: { bytes: number }[],
): Applier | undefined {
  const captured = blocks.flatMap((block, index) => (block.bytes > 0 ? [{ block: index, bytes: block.bytes }] : []))
  if (captured.length !== 1 || captured[0]!.bytes !== memory.bytes) return undefined
  const regions = [{ ...memory, block: captured[0]!.block, offset: 0 }]
  const held = disks && { blocks: disks.blocks, proofKey: derivePageHashKey(disks.rootKey) }
  return memoryPath.createApplier({ streams: pageStreams, memory: regions, workers, disks: held, log })
}

/** The number of a descriptor that was closed may belong to another file by the second time. */
function once(close: () => void): () => void {
  let isOpen = true
  return () => {
    if (isOpen) close()
    isOpen = false
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

/** All streams have ended whole over one meeting, and are what the source sent over that meeting. MANIFEST_MISMATCH. */
export async function wholeManifest(
  incoming: Pick<Incoming, 'ended'>,
  peer: Peer,
  signal: AbortSignal,
  ms = WHOLE_TIMEOUT_MS,
): Promise<Manifest> {
  for (;;) {
    const { attempt, streams } = await peer.expect(['EOS'], { ms, what: 'the manifest' })
    const deadline = { ms: WHOLE_TIMEOUT_MS, what: 'the end of all streams', code: 'MANIFEST_MISMATCH' as const, signal }
    const manifest = await within(incoming.ended(attempt), deadline)
    // Of a meeting that was lost: the source repeats it over the next one.
    if (!manifest) continue
    const sent = streams.map(({ index, records, digest }) => ({ index, records, digest: Buffer.from(digest, 'hex') }))
    compareManifests({ streams: sent }, manifest)
    return manifest
  }
}
