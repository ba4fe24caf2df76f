// Which chunks of a disk an NBD server knows something of. Enters: a client with metadata contexts. Leaves: sets of
// chunks. Source: QEMU docs/interop/nbd.
import { ChunkSet, chunksOf } from './chunk-set.ts'
import type { Leaves } from './leaves.ts'
import { ALLOCATION_CONTEXT, type NbdClient } from './nbd/client.ts'
import { ALLOCATION } from './nbd/codec.ts'

/** Layers of a disk: 1 is the disk's own file, more are its image. */
const DEPTH_CONTEXT = 'qemu:allocation-depth'
const OWN_LAYER = 1
const STATUS_BYTES_MAX = 1024 * 1024 * 1024

/** What ownContent() asks of a server. */
export const CONTENT_CONTEXTS = [DEPTH_CONTEXT, ALLOCATION_CONTEXT] as const

/** What a disk has in its own layer, but zeros where its base has zeros too: holes of a large disk are not read. */
export async function ownContent(client: NbdClient, base: Leaves): Promise<ChunkSet> {
  const own = await marked(client, DEPTH_CONTEXT, flags => flags === OWN_LAYER)
  const data = await marked(client, ALLOCATION_CONTEXT, flags => (flags & ALLOCATION.ZERO) === 0)
  const content = new ChunkSet(own.chunks)
  for (const { first, count } of own.runs())
    for (let chunk = first; chunk < first + count; chunk++) if (data.has(chunk) || !base.isZero(chunk)) content.add(chunk)
  return content
}

/** Chunks that an extent with such flags touches. */
export async function marked(client: NbdClient, context: string, isMarked: (flags: number) => boolean): Promise<ChunkSet> {
  const set = new ChunkSet(chunksOf(client.sizeBytes))
  for (let at = 0; at < client.sizeBytes; ) {
    const length = Math.min(STATUS_BYTES_MAX, client.sizeBytes - at)
    for (const extent of await client.status(context, at, length)) {
      if (isMarked(extent.flags)) set.addBytes(at, extent.length)
      at += extent.length
    }
  }
  return set
}
