// Notes of what a file holds, chunk by chunk, so that it need not be read again: written when its data are on the disk.
// Enters: leaves, what the file began as. Leaves: bytes; from bytes, the leaves. Pure.
//
//   'GWNOTES1' | u64 size of the file | 32 bytes: root of its base (zeros: none) | u32 runs
//   | runs * (u32 first chunk | u32 chunks) (ascending) | the leaf of each chunk of the runs | SHA-256 of all before
//
// Always holds: a chunk in no run is that of the base; notes count as a whole, or not at all. Whether the file is still
// the one that was noted is for the reader to know (copies.ts).
import { createHash } from 'node:crypto'
import type { ChunkRun } from './chunk-set.ts'
import { HASH_BYTES } from './chunk-tree.ts'
import type { Leaves } from './leaves.ts'

const MAGIC = Buffer.from('GWNOTES1')
const RUN_BYTES = 8

/** What a file began as: the chunks of its image and their root, in hex; an empty root for a file of zeros. */
export type Base = { root: string; leaves: Leaves }

/** Runs of chunks of which `leaves` has other ones than `base`. */
export function* differences(leaves: Leaves, base: Leaves): Generator<ChunkRun> {
  let first = -1
  for (let chunk = 0; chunk <= leaves.chunks; chunk++) {
    const differs = chunk < leaves.chunks && !leaves.get(chunk).equals(base.get(chunk))
    if (differs && first < 0) first = chunk
    if (differs || first < 0) continue
    yield { first, count: chunk - first }
    first = -1
  }
}

function headerOf(sizeBytes: number, root: string): Buffer {
  const header = Buffer.alloc(MAGIC.length + 8 + HASH_BYTES)
  MAGIC.copy(header)
  header.writeBigUInt64BE(BigInt(sizeBytes), MAGIC.length)
  header.write(root, MAGIC.length + 8, 'hex')
  return header
}

const sumOf = (bytes: Uint8Array): Buffer => createHash('sha256').update(bytes).digest()

export function encodeNotes(sizeBytes: number, base: Base, leaves: Leaves): Buffer {
  const runs = [...differences(leaves, base.leaves)]
  const list = Buffer.alloc(4 + runs.length * RUN_BYTES)
  list.writeUInt32BE(runs.length)
  for (const [i, { first, count }] of runs.entries()) {
    list.writeUInt32BE(first, 4 + i * RUN_BYTES)
    list.writeUInt32BE(count, 8 + i * RUN_BYTES)
  }
  const hashes = runs.flatMap(({ first, count }) => Array.from({ length: count }, (_, i) => leaves.get(first + i)))
  const all = Buffer.concat([headerOf(sizeBytes, base.root), list, ...hashes])
  return Buffer.concat([all, sumOf(all)])
}

/** undefined for bytes that are no notes, and for notes of another size or base. */
export function decodeNotes(notes: Buffer, sizeBytes: number, base: Base): Leaves | undefined {
  const header = headerOf(sizeBytes, base.root)
  const end = notes.length - HASH_BYTES
  if (end < header.length + 4 || !notes.subarray(0, header.length).equals(header)) return undefined
  if (!sumOf(notes.subarray(0, end)).equals(notes.subarray(end))) return undefined
  const leaves = base.leaves.copy()
  const runs = notes.readUInt32BE(header.length)
  let at = header.length + 4 + runs * RUN_BYTES
  for (let i = 0; i < runs; i++) {
    const first = notes.readUInt32BE(header.length + 4 + i * RUN_BYTES)
    const count = notes.readUInt32BE(header.length + 8 + i * RUN_BYTES)
    for (let chunk = first; chunk < first + count; chunk++, at += HASH_BYTES) leaves.set(chunk, notes.subarray(at, at + HASH_BYTES))
  }
  return leaves
}
