// Reads single blocks of the disks of a VM that is coming, in few requests. Enters: places (places.ts), in any order.
// Leaves: their content, or where in a plain file it is.
// Always holds: a block whose chunk is in a plain file (the image, or a raw disk) is left to the caller, who reads it
// there: a request to the server of the disk costs ten times as much. All others, and at the last call all, come from
// the server. Its blocks that lie near each other are one request, of at most 256 KiB. A place that no disk has is
// refused by has(), and must not be read.
import type { ChunkSet } from './chunk-set.ts'
import { BLOCK_BYTES, CHUNK_BLOCKS, diskBlockOf, diskOf } from './places.ts'

type Readable = {
  readonly sizeBytes: number
  read(offset: number, into: Uint8Array): Promise<void>
  /** A plain file that has all chunks but these. */
  readonly plain?: { fd: number; except?: ChunkSet | undefined } | undefined
}

export type BlockReader = {
  has(place: number): boolean
  /**
   * Reads blocks into `into`, one behind the other in this order, but for those that it gives: [index, open file,
   * offset]*. `isLast`: it gives none.
   */
  read(places: Float64Array, into: Uint8Array, isLast: boolean): Promise<Float64Array>
}

/** Reading on over so many blocks costs less than a request. */
const GAP_BLOCKS = 8
const RUN_BLOCKS_MAX = 64
/** V8 collects garbage for every few tens of MB of new buffers: these are used again. */
const SPARE_MAX = 16

export function createBlockReader(disks: readonly Readable[]): BlockReader {
  const plainOf = (place: number) => {
    const { plain } = disks[diskOf(place)]!
    return plain?.except?.has(Math.floor(diskBlockOf(place) / CHUNK_BLOCKS)) ? undefined : plain
  }
  const spare: Uint8Array[] = []
  const readRun = async (places: Float64Array, run: number[], into: Uint8Array) => {
    const first = places[run[0]!]!
    const disk = disks[diskOf(first)]!
    const offset = diskBlockOf(first) * BLOCK_BYTES
    if (isInOrder(places, run)) return await disk.read(offset, into.subarray(run[0]! * BLOCK_BYTES, (run.at(-1)! + 1) * BLOCK_BYTES))
    const buffer = spare.pop() ?? new Uint8Array(RUN_BLOCKS_MAX * BLOCK_BYTES)
    const bytes = buffer.subarray(0, (places[run.at(-1)!]! - first + 1) * BLOCK_BYTES)
    await disk.read(offset, bytes)
    for (const i of run)
      into.set(bytes.subarray((places[i]! - first) * BLOCK_BYTES, (places[i]! - first + 1) * BLOCK_BYTES), i * BLOCK_BYTES)
    if (spare.length < SPARE_MAX) spare.push(buffer)
  }
  return {
    has(place) {
      const disk = disks[diskOf(place)]
      return disk !== undefined && (diskBlockOf(place) + 1) * BLOCK_BYTES <= disk.sizeBytes
    },
    async read(places, into, isLast) {
      const left: number[] = []
      const served: number[] = []
      for (const [i, place] of places.entries()) {
        const plain = isLast ? undefined : plainOf(place)
        if (plain) left.push(i, plain.fd, diskBlockOf(place) * BLOCK_BYTES)
        else served.push(i)
      }
      await Promise.all(runsOf(places, served).map(run => readRun(places, run, into)))
      return Float64Array.from(left)
    },
  }
}

/** Whether the blocks stand in `into` as they stand on the disk. */
const isInOrder = (places: Float64Array, run: number[]): boolean =>
  run.every((i, n) => i === run[0]! + n && places[i] === places[run[0]!]! + n)

/** Indexes of places, in groups of neighbours in the order of their place. */
function runsOf(places: Float64Array, indexes: number[]): number[][] {
  const order = indexes.sort((a, b) => places[a]! - places[b]!)
  const runs: number[][] = []
  for (const i of order) {
    const run = runs.at(-1)
    const isNear = run && places[i]! - places[run.at(-1)!]! <= GAP_BLOCKS && places[i]! - places[run[0]!]! < RUN_BLOCKS_MAX
    if (isNear) run.push(i)
    else runs.push([i])
  }
  return runs
}
