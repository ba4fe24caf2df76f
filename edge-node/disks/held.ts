// What the target of a migration holds of a disk besides its base, as it tells the source. Pure.
//
//   body = runs * (u32 first chunk | u32 chunks) | the first 8 bytes of the leaf of each chunk
//
// Always holds: a message fits a MESSAGE frame; a prefix decides only whether a chunk is sent: both sites compare whole
// roots at the end. Any other body is FRAME_MALFORMED.
import { GodwitError } from '../../wire/errors.ts'
import type { ChunkRun } from './chunk-set.ts'
import { HASH_BYTES } from './chunk-tree.ts'
import type { Leaves } from './leaves.ts'
import { differences } from './notes.ts'

const PREFIX_BYTES = 8
const RUN_BYTES = 8
/** In base64 below 56 KiB. */
const BODY_BYTES_MAX = 40_000
/** Of all bodies of a migration: some 380 GiB that differ from the base. */
export const HELD_BYTES_MAX = 64 * 1024 * 1024

export type HeldPart = { disk: number; runs: number; body: string }

/** Whether the target's leaf, of which a prefix may be all that is known, is this one. */
export const isHeld = (held: Buffer, leaf: Buffer): boolean => held.compare(leaf, 0, PREFIX_BYTES, 0, PREFIX_BYTES) === 0

/** Where `held` differs from `base`, in parts. */
export function* heldParts(disk: number, held: Leaves, base: Leaves): Generator<HeldPart> {
  let runs: ChunkRun[] = []
  let bytes = 0
  for (const run of differences(held, base)) {
    for (let { first, count } = run; count > 0; ) {
      const room = Math.floor((BODY_BYTES_MAX - bytes - RUN_BYTES) / PREFIX_BYTES)
      if (room < 1) {
        yield partOf(disk, runs, held)
        runs = []
        bytes = 0
        continue
      }
      const taken = Math.min(room, count)
      runs.push({ first, count: taken })
      bytes += RUN_BYTES + taken * PREFIX_BYTES
      first += taken
      count -= taken
    }
  }
  if (runs.length > 0) yield partOf(disk, runs, held)
}

function partOf(disk: number, runs: readonly ChunkRun[], held: Leaves): HeldPart {
  const list = Buffer.alloc(runs.length * RUN_BYTES)
  const prefixes: Buffer[] = []
  for (const [i, { first, count }] of runs.entries()) {
    list.writeUInt32BE(first, i * RUN_BYTES)
    list.writeUInt32BE(count, i * RUN_BYTES + 4)
    for (let chunk = first; chunk < first + count; chunk++) prefixes.push(held.get(chunk).subarray(0, PREFIX_BYTES))
  }
  return { disk, runs: runs.length, body: Buffer.concat([list, ...prefixes]).toString('base64') }
}

/** Sets in `held`, by disk, what a part names. */
export function applyHeld({ disk, runs, body }: HeldPart, held: readonly Leaves[]): void {
  const malformed = () => new GodwitError('FRAME_MALFORMED', 'what the target holds of a disk does not fit the disk')
  const leaves = held[disk]
  const bytes = Buffer.from(body, 'base64')
  if (!leaves || bytes.length < runs * RUN_BYTES) throw malformed()
  let at = runs * RUN_BYTES
  for (let i = 0; i < runs; i++) {
    const first = bytes.readUInt32BE(i * RUN_BYTES)
    const count = bytes.readUInt32BE(i * RUN_BYTES + 4)
    if (first + count > leaves.chunks || at + count * PREFIX_BYTES > bytes.length) throw malformed()
    for (let chunk = first; chunk < first + count; chunk++, at += PREFIX_BYTES) {
      const leaf = Buffer.alloc(HASH_BYTES)
      bytes.copy(leaf, 0, at, at + PREFIX_BYTES)
      leaves.set(chunk, leaf)
    }
  }
  if (at !== bytes.length) throw malformed()
}
