// Reads what a served disk (server.ts) holds, where nothing else says it: a warm copy that was left in the middle of
// writing, or that somebody has altered.
// Enters: a client of the disk, its base. Leaves: the leaves of the disk.
// Always holds: what the disk's own layer does not have is its base's; a read that fails ends it.
import { chunkBytes } from './batch.ts'
import { CHUNK_BYTES, leafOf } from './chunk-tree.ts'
import { ownContent } from './extents.ts'
import type { Leaves } from './leaves.ts'
import type { NbdClient } from './nbd/client.ts'

const RUN_CHUNKS = 16

type RereadOptions = { signal?: AbortSignal | undefined; onProgress: (doneBytes: number) => void }

/** Sets in `leaves`, which are the base's, all that the disk has otherwise. The signal's reason. */
export async function readOwnContent(
  client: NbdClient,
  base: Leaves,
  leaves: Leaves,
  { signal, onProgress }: RereadOptions,
): Promise<void> {
  const { sizeBytes } = client
  const content = await ownContent(client, base)
  const buffer = Buffer.alloc(RUN_CHUNKS * CHUNK_BYTES)
  const zeros = Buffer.alloc(CHUNK_BYTES)
  for (const { first, count } of content.runs(RUN_CHUNKS)) {
    signal?.throwIfAborted()
    const bytes = buffer.subarray(0, Math.min(sizeBytes, (first + count) * CHUNK_BYTES) - first * CHUNK_BYTES)
    await client.read(first * CHUNK_BYTES, bytes)
    for (let i = 0; i < count; i++) {
      const length = chunkBytes(first + i, sizeBytes)
      const piece = bytes.subarray(i * CHUNK_BYTES, i * CHUNK_BYTES + length)
      if (piece.equals(zeros.subarray(0, length))) leaves.setZero(first + i)
      else leaves.set(first + i, leafOf(piece))
    }
    onProgress((first + count) * CHUNK_BYTES)
  }
}
