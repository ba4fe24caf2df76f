// The source's half of moving disks: rounds over what was written, until little is left; then, with the guest stopped,
// the last round.
// Enters: readers of the disks (QEMU's bitmaps, or image files of a VM that does not run), what the target has. Leaves:
// DISK payloads in order, the roots.
// Always holds: all disks are of one instant in each round (one swap of all bitmaps); a chunk that was written after it
// was read is in the next round; what the target has already is not sent; at most one run of chunks is in memory beside
// what `send` waits for. After `last` the target has exactly the content whose roots it gives.
import { BATCH_CHUNKS_MAX, BATCH_RUNS_MAX, chunkBytes, DISK_HEADER_BYTES, type DiskRun, REGION_CHUNKS, writeDiskBatch } from './batch.ts'
import { type ChunkRun, ChunkSet } from './chunk-set.ts'
import { CHUNK_BYTES, leafOf } from './chunk-tree.ts'
import { isHeld } from './held.ts'
import type { Leaves } from './leaves.ts'

/** What is read of the disks of one VM. */
export type DiskReaders = {
  readonly sizesBytes: readonly number[]
  /**
   * Of each disk, what was written since the swap before, at one instant; at the first call, all that may differ from
   * its base (its image, or zeros). What it gives can be read until the next swap.
   */
  swap(): Promise<ChunkSet[]>
  /** Fills `into` from a chunk of a disk on. */
  read(disk: number, chunk: number, into: Uint8Array): Promise<void>
}

type DiskSenderOptions = {
  readers: DiskReaders
  /** By disk: the content at the source as far as it is known: its base's. The sender keeps it up to date. */
  content: readonly Leaves[]
  /** By disk: what the target has; of a leaf the prefix is enough (held.ts). The sender keeps it up to date. */
  held: readonly Leaves[]
  watch?: DiskWatch | undefined
  /**
   * Sends one payload (batch.ts, not compressed), in order. Resolves when there is room for the next; the payload is
   * the receiver's.
   */
  send: (payload: Uint8Array) => Promise<void>
}

/** Who keeps account of what the target has (block-index.ts). */
export type DiskWatch = {
  /** A round begins: these chunks, by disk, are looked at now. Each leaves its set when it has been. */
  round(pending: readonly ChunkSet[]): Promise<void>
  /** The target has this chunk already. */
  held(disk: number, chunk: number, bytes: Uint8Array): void
  /** The chunk is about to change at the target. */
  changing(disk: number, chunk: number): void
}

export type DiskFigures = {
  rounds: number
  /** Chunks of each kind so far. A chunk that was sent twice counts twice. */
  sentChunks: number
  zeroChunks: number
  /** Read, and the target had them. */
  heldChunks: number
  /** Still to be looked at in this round. */
  pendingChunks: number
}

export type DiskSender = {
  /**
   * Swaps, and sends what was written. Gives how many chunks that were. Throws what the readers and `send` throw; the
   * signal's reason.
   */
  round(signal?: AbortSignal): Promise<number>
  /** The guest stands still: sends the rest. Gives the roots of all disks, in hex. */
  last(signal?: AbortSignal): Promise<string[]>
  readonly figures: DiskFigures
}

export function createDiskSender({ readers, content, held, watch, send }: DiskSenderOptions): DiskSender {
  const figures: DiskFigures = { rounds: 0, sentChunks: 0, zeroChunks: 0, heldChunks: 0, pendingChunks: 0 }
  const pending = readers.sizesBytes.map((_, disk) => new ChunkSet(content[disk]!.chunks))

  /** What the target holds otherwise than the base, and nobody wrote here: its old copy differs there. */
  const addDifferences = () => {
    for (const [disk, set] of pending.entries()) for (const chunk of content[disk]!.differing(held[disk]!)) set.add(chunk)
  }
  const swap = async (): Promise<number> => {
    const written = await readers.swap()
    for (const [disk, set] of written.entries()) pending[disk]!.addAll(set)
    if (figures.rounds === 0) addDifferences()
    figures.rounds++
    figures.pendingChunks = pending.reduce((sum, { count }) => sum + count, 0)
    return figures.pendingChunks
  }
  const round = async (signal?: AbortSignal): Promise<number> => {
    const chunks = await swap()
    await watch?.round(pending)
    for (const [disk, set] of pending.entries()) {
      const batch = createBatcher(disk, send)
      // One pass in order; a set that is deleted from while its runs are read ahead stays in step.
      for (let run = firstRun(set, 0); run; run = firstRun(set, run.first + run.count)) {
        signal?.throwIfAborted()
        await sendRun(disk, run, batch)
        for (let i = 0; i < run.count; i++) set.delete(run.first + i)
        figures.pendingChunks -= run.count
      }
      await batch.flush()
    }
    return chunks
  }
  const sendRun = async (disk: number, { first, count }: ChunkRun, batch: Batcher) => {
    const sizeBytes = readers.sizesBytes[disk]!
    const end = Math.min(sizeBytes, (first + count) * CHUNK_BYTES)
    const bytes = Buffer.allocUnsafe(end - first * CHUNK_BYTES)
    await readers.read(disk, first, bytes)
    for (let i = 0; i < count; i++) {
      const chunk = first + i
      const piece = bytes.subarray(i * CHUNK_BYTES, i * CHUNK_BYTES + chunkBytes(chunk, sizeBytes))
      const isZero = piece.equals(ZEROS.subarray(0, piece.length))
      if (isZero) content[disk]!.setZero(chunk)
      else content[disk]!.set(chunk, leafOf(piece))
      if (isHeld(held[disk]!.get(chunk), content[disk]!.get(chunk))) {
        figures.heldChunks++
        watch?.held(disk, chunk, piece)
        continue
      }
      watch?.changing(disk, chunk)
      if (isZero) figures.zeroChunks++
      else figures.sentChunks++
      await batch.add(chunk, isZero ? undefined : piece)
      held[disk]!.set(chunk, content[disk]!.get(chunk))
    }
  }
  return {
    round,
    async last(signal) {
      await round(signal)
      return content.map(leaves => leaves.root())
    },
    figures,
  }
}

const ZEROS = Buffer.alloc(CHUNK_BYTES)

const firstRun = (set: ChunkSet, from: number): ChunkRun | undefined => {
  if (set.count === 0) return undefined
  for (const run of set.runs(BATCH_CHUNKS_MAX, from)) return run
  return undefined
}

type Batcher = { add(chunk: number, bytes: Uint8Array | undefined): Promise<void>; flush(): Promise<void> }

/** Collects chunks into payloads. Pieces are kept until the payload is written: they must not change. */
export function createBatcher(disk: number, send: (payload: Uint8Array) => Promise<void>): Batcher {
  let runs: DiskRun[] = []
  let pieces: Uint8Array[] = []
  let region = -1
  const flush = async () => {
    if (runs.length === 0) return
    const bytes = pieces.reduce((sum, { length }) => sum + length, DISK_HEADER_BYTES + 8 * runs.length)
    const payload = new Uint8Array(bytes)
    writeDiskBatch(payload, disk, runs, pieces)
    runs = []
    pieces = []
    await send(payload)
  }
  return {
    async add(chunk, bytes) {
      const next = Math.floor(chunk / REGION_CHUNKS)
      if (next !== region || (pieces.length >= BATCH_CHUNKS_MAX && bytes)) await flush()
      region = next
      const last = runs.at(-1)
      const isZero = bytes === undefined
      if (last && last.isZero === isZero && last.first + last.count === chunk) last.count++
      else {
        if (runs.length >= BATCH_RUNS_MAX) await flush()
        runs.push({ first: chunk, count: 1, isZero })
      }
      if (bytes) pieces.push(bytes)
    },
    flush,
  }
}
