// Reads single blocks of disks, in few requests. Enters: places (places.ts), in any order. Leaves: their content.
// Always holds: blocks that lie near each other are one request, of at most 1 MiB; a place that no disk has is refused
// by has(), and must not be read.
import { BLOCK_BYTES, blockOf, diskOf } from './places.ts'

type Readable = { readonly sizeBytes: number; read(offset: number, into: Uint8Array): Promise<void> }

export type BlockReader = { has(place: number): boolean; read(places: Float64Array, into: Uint8Array): Promise<void> }

/** Reading on over so many blocks costs less than a request. */
const GAP_BLOCKS = 8
const RUN_BLOCKS_MAX = 256

export function createBlockReader(disks: readonly Readable[]): BlockReader {
  const readRun = async (places: Float64Array, run: number[], into: Uint8Array) => {
    const first = places[run[0]!]!
    const blocks = places[run.at(-1)!]! - first + 1
    const bytes = Buffer.allocUnsafe(blocks * BLOCK_BYTES)
    await disks[diskOf(first)]!.read(blockOf(first) * BLOCK_BYTES, bytes)
    for (const i of run)
      into.set(bytes.subarray((places[i]! - first) * BLOCK_BYTES, (places[i]! - first + 1) * BLOCK_BYTES), i * BLOCK_BYTES)
  }
  return {
    has(place) {
      const disk = disks[diskOf(place)]
      return disk !== undefined && (blockOf(place) + 1) * BLOCK_BYTES <= disk.sizeBytes
    },
    async read(places, into) {
      await Promise.all(runsOf(places).map(run => readRun(places, run, into)))
    },
  }
}

/** Indexes of the places, in groups of neighbours in the order of their place. */
function runsOf(places: Float64Array): number[][] {
  const order = Array.from(places.keys()).sort((a, b) => places[a]! - places[b]!)
  const runs: number[][] = []
  for (const i of order) {
    const run = runs.at(-1)
    const isNear = run && places[i]! - places[run.at(-1)!]! <= GAP_BLOCKS && places[i]! - places[run[0]!]! < RUN_BLOCKS_MAX
    if (isNear) run.push(i)
    else runs.push([i])
  }
  return runs
}
