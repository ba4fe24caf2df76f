// What a disk that stands on an image begins with, chunk by chunk. Enters: images, sizes of disks. Leaves: leaves, read
// once for each image and size.
// Always holds: behind the end of the image the disk has zeros; a reading belongs to the image's root, not to its name;
// the last few are kept.
import { open } from 'node:fs/promises'
import { chunkBytes } from './batch.ts'
import { CHUNK_BYTES, leafOf } from './chunk-tree.ts'
import { Leaves } from './leaves.ts'

const KEPT = 8
const ZEROS = Buffer.alloc(CHUNK_BYTES)

type ImageLeaves = {
  /** A copy that the caller may change. The signal's reason. */
  of(image: { path: string; root: string }, sizeBytes: number, signal?: AbortSignal): Promise<Leaves>
}

export function createImageLeaves(): ImageLeaves {
  const kept = new Map<string, Promise<Leaves>>()
  return {
    async of({ path, root }, sizeBytes, signal) {
      const key = `${root} ${sizeBytes}`
      const reading = kept.get(key) ?? readLeaves(path, sizeBytes, signal)
      kept.delete(key)
      kept.set(key, reading)
      for (const oldest of kept.keys()) if (kept.size > KEPT) kept.delete(oldest)
      try {
        return (await reading).copy()
      } catch (error) {
        kept.delete(key)
        throw error
      }
    },
  }
}

async function readLeaves(path: string, sizeBytes: number, signal: AbortSignal | undefined): Promise<Leaves> {
  const leaves = new Leaves(sizeBytes)
  await using file = await open(path)
  const { size } = await file.stat()
  const buffer = Buffer.alloc(CHUNK_BYTES)
  for (let chunk = 0; chunk * CHUNK_BYTES < Math.min(size, sizeBytes); chunk++) {
    signal?.throwIfAborted()
    const bytes = chunkBytes(chunk, sizeBytes)
    const { bytesRead } = await file.read(buffer, 0, bytes, chunk * CHUNK_BYTES)
    buffer.fill(0, bytesRead)
    const piece = buffer.subarray(0, bytes)
    if (!piece.equals(ZEROS.subarray(0, bytes))) leaves.set(chunk, leafOf(piece))
  }
  return leaves
}
