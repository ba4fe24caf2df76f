// The local disks of a VM at the source of its migration: rounds while the guest runs, one last round while it stands
// still.
// Enters: the VM's QEMU, or none where it does not run; the disks with what both sides have of them. Leaves: DISK
// frames on the page streams, the roots of the disks.
// Always holds: a chunk travels on one page stream only, so a later version of it never overtakes an earlier one; as
// frames of a page stream they are applied before the target's QEMU reads device state (the barrier there); bitmaps and
// exports are gone before QEMU's migration goes on. What the target has of the disks is known block by block, for pages
// of memory that have the same content (disks/block-index.ts).
import { sleep } from '../../ops/deadline.ts'
import { type GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { DISK_HEADER_BYTES, readDiskBody, readDiskHeader, regionOf } from '../disks/batch.ts'
import { type BlockHasher, type BlockHashes, type ChunkHashes, hashBlocks } from '../disks/block-hashes.ts'
import { BlockIndex } from '../disks/block-index.ts'
import { CHUNK_BYTES } from '../disks/chunk-tree.ts'
import { openFileReader, type StoppedDisk } from '../disks/file-reader.ts'
import { applyHeld, type HeldPart } from '../disks/held.ts'
import type { Leaves } from '../disks/leaves.ts'
import { openQemuReader, type QemuDisk, type QemuReader } from '../disks/qemu-reader.ts'
import { createDiskSender, type DiskFigures, type DiskSender, type DiskWatch } from '../disks/sender.ts'
import type { PageHasher } from '../pages/hasher.ts'
import { createPayloadQueue, type PayloadQueue } from '../pages/payload-queue.ts'
import type { RunningQemu } from './source-options.ts'

/** A round of so little is sent within the switch-over. */
const SMALL_CHUNKS = 32
/** A round must be smaller than the one before by this, or the guest writes as fast as the path carries. */
const SHRINKS = 0.8
const ROUNDS_MAX = 30
/** Between rounds while memory travels. */
const PAUSE_MS = 250

/** By disk: QEMU's node, its file, its size, and what it stands on at both sites; `blocks`: of the image. */
type LeavingDisk = QemuDisk & StoppedDisk & { blocks?: BlockHashes | undefined }

/** `hasher`: of the blocks, and of the pages that are compared with them; absent: pages are not compared with disks. */
export type LeavingDisks = { disks: readonly LeavingDisk[]; hasher?: PageHasher | undefined }

type SourceDisksOptions = {
  /** Absent: the VM does not run. */
  qemu: RunningQemu | undefined
  sources: LeavingDisks
  /** What the target has of them besides their bases. */
  copies: readonly HeldPart[]
  pageStreams: number
  compression: 'zstd' | 'off'
  send: (pageStream: number, payload: Uint8Array) => Promise<void>
  /** Resolves when the barrier of an interval of pages is on all streams. */
  passed: (interval: number) => Promise<void>
  signal: AbortSignal
  log: Log
}

export type SourceDisks = {
  /** Rounds until little is left, or a further one would not be smaller. */
  converge(onProgress: (figures: DiskFigures) => void): Promise<void>
  /** Goes on with rounds, until last(). */
  follow(fail: (error: GodwitError) => void): void
  /** The guest stands still: the rest. Gives the roots. */
  last(): Promise<string[]>
  readonly figures: DiskFigures
  /** What pages of memory are compared with. */
  readonly held: { blocks: BlockIndex; hasher: PageHasher } | undefined
  /** By disk, what it holds, after last(). */
  readonly content: readonly Leaves[] | undefined
  close(): Promise<void>
}

export async function openSourceDisks(options: SourceDisksOptions): Promise<SourceDisks> {
  const { qemu, sources, signal, log } = options
  const { disks, hasher } = sources
  const readers = await (qemu ? openQemuReader({ qmp: qemu.qmp, runDir: qemu.dir, disks }) : openFileReader(disks))
  const { pageStreams: streams, compression, send } = options
  const held = disks.map(({ base }) => base.copy())
  for (const part of options.copies) applyHeld(part, held)
  const content = disks.map(({ base }) => base.copy())
  const known = hasher && { blocks: indexOf(disks, held), hasher }
  const queue = createPayloadQueue({ streams, compression, streamOf: regionOf, send, log })
  const sender = createDiskSender({
    readers,
    content,
    held,
    watch: known && watchOf(known, options.passed),
    send(payload) {
      const hashes = known && hashesOf(payload, disks, known.hasher)
      return queue.send(payload, () => {
        for (const each of hashes ?? []) known?.blocks.put(each.disk, each.chunk, each.hashes)
      })
    },
  })
  return new Rounds(readers, sender, content, queue, signal, known)
}

/** The blocks that the target begins with. */
function indexOf(disks: readonly LeavingDisk[], held: readonly Leaves[]): BlockIndex {
  const index = new BlockIndex(disks.length)
  for (const [disk, { blocks, base }] of disks.entries())
    if (blocks) index.begin(disk, blocks, chunk => chunk < base.chunks && held[disk]!.get(chunk).equals(base.get(chunk)))
  return index
}

const watchOf = ({ blocks, hasher }: Held, passed: (interval: number) => Promise<void>): DiskWatch => ({
  async round(pending) {
    blocks.watch(pending)
    const last = blocks.lastNamed()
    if (last > 0) await passed(last)
  },
  held(disk, chunk, bytes) {
    if (!blocks.has(disk, chunk)) blocks.put(disk, chunk, hashBlocks(hasher, bytes))
  },
  changing: (disk, chunk) => blocks.forget(disk, chunk),
})

type Held = NonNullable<SourceDisks['held']>

class Rounds implements SourceDisks {
  readonly #readers: QemuReader
  readonly #sender: DiskSender
  readonly #content: readonly Leaves[]
  #isOver = false
  readonly #queue: PayloadQueue
  readonly #signal: AbortSignal
  readonly held: Held | undefined
  readonly #stop = new AbortController()
  #following: Promise<void> = Promise.resolve()

  constructor(
    readers: QemuReader,
    sender: DiskSender,
    content: readonly Leaves[],
    queue: PayloadQueue,
    signal: AbortSignal,
    held: Held | undefined,
  ) {
    this.held = held
    this.#readers = readers
    this.#sender = sender
    this.#content = content
    this.#queue = queue
    this.#signal = signal
  }

  get content(): readonly Leaves[] | undefined {
    return this.#isOver ? this.#content : undefined
  }

  get figures(): DiskFigures {
    return this.#sender.figures
  }

  async converge(onProgress: (figures: DiskFigures) => void): Promise<void> {
    const report = setInterval(() => onProgress(this.figures), 500)
    try {
      let before = Number.POSITIVE_INFINITY
      for (let round = 0; round < ROUNDS_MAX; round++) {
        const chunks = await this.#sender.round(this.#signal)
        await this.#queue.drained()
        if (chunks <= SMALL_CHUNKS || chunks > before * SHRINKS) return
        before = chunks
      }
    } finally {
      clearInterval(report)
      onProgress(this.figures)
    }
  }

  follow(fail: (error: GodwitError) => void): void {
    const loop = async () => {
      while (!this.#stop.signal.aborted) {
        await this.#sender.round(this.#signal)
        // A chunk of the next round is compared with what has left.
        await this.#queue.drained()
        await sleep(PAUSE_MS, this.#stop.signal).catch(() => {})
      }
    }
    this.#following = loop().catch(error => fail(toGodwitError(error)))
  }

  async last(): Promise<string[]> {
    this.#stop.abort()
    await this.#following
    const roots = await this.#sender.last(this.#signal)
    await this.#queue.drained()
    this.#isOver = true
    await this.close()
    return roots
  }

  async close(): Promise<void> {
    this.#stop.abort()
    await this.#following
    await this.#readers[Symbol.asyncDispose]()
    await this.#queue.close()
  }
}

/** Of the chunks of an uncompressed payload. */
function hashesOf(payload: Uint8Array, disks: readonly QemuDisk[], hasher: BlockHasher) {
  const header = readDiskHeader(payload)
  const { disk, chunks } = readDiskBody(header, payload.subarray(DISK_HEADER_BYTES), disks[header.disk]!.sizeBytes)
  return chunks.map(({ chunk, bytes }): { disk: number; chunk: number; hashes: ChunkHashes } => {
    return { disk, chunk, hashes: hashBlocks(hasher, bytes) }
  })
}

/** For the report: bytes by what became of them. */
export const diskReport = ({ rounds, sentChunks, zeroChunks, heldChunks }: DiskFigures) => ({
  rounds,
  bytesSent: sentChunks * CHUNK_BYTES,
  bytesZero: zeroChunks * CHUNK_BYTES,
  bytesHeld: heldChunks * CHUNK_BYTES,
})
