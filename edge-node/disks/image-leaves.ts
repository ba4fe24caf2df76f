// What a disk that stands on an image begins with, chunk by chunk. Enters: images, sizes of disks. Leaves: leaves, read
// once for each image and size.
// Always holds: behind the end of the image the disk has zeros; a reading belongs to the image's root, not to its name,
// and is refused when the file has another root; the last few are kept; a thread reads, and passes over holes.
import { type FileHandle, open } from 'node:fs/promises'
import { GodwitError } from '../../wire/errors.ts'
import { chunkBytes } from './batch.ts'
import { CHUNK_BYTES, leafOf } from './chunk-tree.ts'
import { hashFile } from './hash-file.ts'
import { Leaves } from './leaves.ts'

const KEPT = 8

type ImageLeaves = {
  /** A copy that the caller may change. IMAGE_CHANGED; the signal's reason. */
  of(image: { path: string; root: string }, sizeBytes: number, signal?: AbortSignal): Promise<Leaves>
}

export function createImageLeaves(): ImageLeaves {
  const kept = new Map<string, Promise<Leaves>>()
  return {
    async of({ path, root }, sizeBytes, signal) {
      const key = `${root} ${sizeBytes}`
      const reading = kept.get(key) ?? readLeaves({ path, root }, sizeBytes, signal)
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

async function readLeaves(
  { path, root }: { path: string; root: string },
  sizeBytes: number,
  signal: AbortSignal | undefined,
): Promise<Leaves> {
  const leaves = new Leaves(sizeBytes)
  await using file = await open(path)
  const { size, blocks } = await file.stat()
  const found = await hashFile(
    { fd: file.fd, bytes: size, isSparse: blocks * 512 < size },
    { signal, onLeaves: (first, hashes) => leaves.setAll(first, hashes) },
  )
  if (found !== root) throw new GodwitError('IMAGE_CHANGED', `${path} has another content than the image of this name`)
  const rest = size % CHUNK_BYTES
  if (rest > 0 && sizeBytes > size) await padLast(file, leaves, size - rest)
  return leaves
}

/** The image ends within a chunk of the disk. */
async function padLast(file: FileHandle, leaves: Leaves, at: number): Promise<void> {
  const chunk = at / CHUNK_BYTES
  const bytes = Buffer.alloc(chunkBytes(chunk, leaves.sizeBytes))
  await file.read(bytes, 0, bytes.length, at)
  leaves.set(chunk, leafOf(bytes))
}
