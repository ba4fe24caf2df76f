// Reads the disks of a VM that does not run, through qemu-nbd. Enters: their files, what each began with. Leaves: their
// chunks, as a sender wants them (sender.ts).
// Always holds: the files are opened read-only, and stay as they are; a qcow2 that names another file is refused before
// anything opens it, since a QEMU had the file in its hands; the servers end with the reader.
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { GodwitError } from '../../wire/errors.ts'
import { ChunkSet, chunksOf } from './chunk-set.ts'
import { CHUNK_BYTES } from './chunk-tree.ts'
import { ownContent } from './extents.ts'
import type { Leaves } from './leaves.ts'
import type { DiskReaders } from './sender.ts'
import { type DiskServer, type ServedDisk, serveDisk } from './server.ts'

export type StoppedDisk = {
  sizeBytes: number
  base: Leaves
  /** `dir`: the folder of the disks, which is the agent's alone. */
  served: ServedDisk & { dir: string }
}

/** PREFLIGHT_QEMU_MISSING, IMAGE_INVALID, NBD_*. */
export async function openFileReader(disks: readonly StoppedDisk[]): Promise<DiskReaders & AsyncDisposable> {
  const servers: DiskServer[] = []
  const close = async () => void (await Promise.all(servers.splice(0).map(server => server.close())))
  try {
    for (const { served } of disks) {
      if (served.format === 'qcow2') await assertAlone(join(served.dir, served.file))
      servers.push(await serveDisk(served.dir, served, { isReadOnly: true }))
    }
  } catch (error) {
    await close()
    throw error
  }
  let isFirst = true
  return {
    sizesBytes: disks.map(({ sizeBytes }) => sizeBytes),
    async swap() {
      // Nobody writes to them: there is one round.
      if (!isFirst) return disks.map(({ sizeBytes }) => new ChunkSet(chunksOf(sizeBytes)))
      isFirst = false
      return await Promise.all(disks.map(({ base }, disk) => ownContent(servers[disk]!.client, base)))
    },
    read: (disk, chunk, into) => servers[disk]!.client.read(chunk * CHUNK_BYTES, into),
    [Symbol.asyncDispose]: close,
  }
}

// qcow2 header (QEMU docs/interop/qcow2): u32 version at 4; u64 incompatible features at 72, bit 2: external data file.
const HEADER_BYTES = 80
const EXTERNAL_DATA = 4n

/** The image that a disk stands on is named when it is opened; a data file would be taken from the header. */
async function assertAlone(path: string): Promise<void> {
  await using file = await open(path, 'r')
  const header = Buffer.alloc(HEADER_BYTES)
  await file.read(header, 0, HEADER_BYTES, 0)
  if (header.readUInt32BE(4) < 3 || (header.readBigUInt64BE(72) & EXTERNAL_DATA) === 0n) return
  throw new GodwitError('IMAGE_INVALID', `${path}: the disk keeps its data in another file`, {
    hint: 'the guest cannot have done this: restore the disk from a backup',
  })
}
