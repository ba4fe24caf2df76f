// The hashes of the blocks of images, for the index of what the target of a migration holds (block-index.ts). Enters:
// images, and the chunks that they have. Leaves: hashes, read once for each image. Chunks of zeros are not read.
// Always holds: all hashes are of one key, which nobody but this agent has; a reading belongs to the image's root, not
// to its name; the last few are kept. Cost: about a second for 1 GiB of content, once; 2 MiB for each GiB while kept.
import { open } from 'node:fs/promises'
import { setImmediate } from 'node:timers/promises'
import { type BlockHasher, BlockHashes, countHashes, hashBlocks } from './block-hashes.ts'
import { CHUNK_BYTES } from './chunk-tree.ts'
import type { Leaves } from './leaves.ts'

const KEPT = 4
/** 8 GiB of content. */
const BLOCKS_MAX = 2 ** 21
const TURN_CHUNKS = 4096

export type ImageBlocks = {
  /** `leaves`: of a disk on this image. What it gives must not be changed. The signal's reason. */
  of(image: { path: string; root: string }, leaves: Leaves, signal?: AbortSignal): Promise<BlockHashes>
}

export function createImageBlocks(hasher: BlockHasher): ImageBlocks {
  const kept = new Map<string, Promise<BlockHashes>>()
  return {
    async of({ path, root }, leaves, signal) {
      const reading = kept.get(root) ?? readBlocks(path, leaves, hasher, signal)
      kept.delete(root)
      kept.set(root, reading)
      for (const oldest of kept.keys()) if (kept.size > KEPT) kept.delete(oldest)
      try {
        return await reading
      } catch (error) {
        kept.delete(root)
        throw error
      }
    },
  }
}

async function readBlocks(path: string, leaves: Leaves, hasher: BlockHasher, signal: AbortSignal | undefined): Promise<BlockHashes> {
  const found = new BlockHashes()
  await using file = await open(path)
  const buffer = Buffer.alloc(CHUNK_BYTES)
  let blocks = 0
  for (let chunk = 0; chunk < leaves.chunks && blocks < BLOCKS_MAX; chunk++) {
    signal?.throwIfAborted()
    // Others have their turn, also in a hole of hundreds of gigabytes.
    if (chunk % TURN_CHUNKS === 0) await setImmediate()
    if (leaves.isZero(chunk)) continue
    const { bytesRead } = await file.read(buffer, 0, CHUNK_BYTES, chunk * CHUNK_BYTES)
    if (bytesRead === 0) break
    // Behind the end of an image its disk has zeros.
    buffer.fill(0, bytesRead)
    const hashes = hashBlocks(hasher, buffer)
    const count = countHashes(hashes)
    if (count > 0) found.set(chunk, hashes)
    blocks += count
  }
  return found
}
