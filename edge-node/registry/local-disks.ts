// The local disks of a VM as a migration sees them. Enters: specs, VMs that leave or come. Leaves: what their disks
// begin with, and at the target their files, open for writing.
// Always holds: both sites have the same base of a disk: the image that its spec names, or zeros; nothing is written to
// a disk whose QEMU has it active.

import { randomBytes } from 'node:crypto'
import { type FileHandle, open } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { createPageHasher } from '../../crypto/channel/page-hash.ts'
import { GodwitError } from '../../wire/errors.ts'
import { type BlockReader, createBlockReader } from '../disks/block-reader.ts'
import { ChunkSet } from '../disks/chunk-set.ts'
import { createImageBlocks, type ImageBlocks } from '../disks/image-blocks.ts'
import { createImageLeaves } from '../disks/image-leaves.ts'
import type { Images } from '../disks/images.ts'
import { Leaves } from '../disks/leaves.ts'
import { allocatedBytes } from '../disks/local.ts'
import { createDiskReceiver, type DiskReceiver } from '../disks/receiver.ts'
import { type DiskServer, type ServedDisk, serveDisk } from '../disks/server.ts'
import { inflate, loadZstd } from '../pages/compress.ts'
import type { PageHasher } from '../pages/hasher.ts'
import { diskNode, localDiskPath, VM_FILES } from '../vm/argv.ts'
import { diskItem, disksOf, isLocal, type LocalDisk, localBytes, type VmSpec } from '../vm/spec.ts'

type Disk = { index: number; disk: LocalDisk; sizeBytes: number }

const localDisksOf = (spec: VmSpec): Disk[] =>
  disksOf(spec).flatMap((disk, index) => (isLocal(disk) ? [{ index, disk, sizeBytes: localBytes(disk) }] : []))

export class LocalDisks {
  readonly #images: Images
  readonly #leaves = createImageLeaves()
  #known: { hasher: PageHasher; images: ImageBlocks } | undefined

  constructor(images: Images) {
    this.#images = images
  }

  /**
   * The local disks of a VM whose folder is `dir`: QEMU's nodes, files, what each began with; `withBlocks`: block by
   * block, and how to compare pages with it. IMAGE_*; the signal's reason.
   */
  async source(spec: VmSpec, dir: string, { withBlocks, signal }: { withBlocks: boolean; signal?: AbortSignal | undefined }) {
    const known = withBlocks ? this.#comparison() : undefined
    const disks = localDisksOf(spec).map(async ({ index, disk, sizeBytes }) => {
      const image = await this.#imageOf(disk)
      const base = await this.#baseOf(disk, sizeBytes, signal)
      const served = { dir: join(dir, VM_FILES.disks), ...(await this.#servedOf(dir, { index, disk, sizeBytes })) }
      const blocks = image && (await known?.images.of(image, base, signal))
      return { node: diskNode(index), sizeBytes, base, served, blocks }
    })
    return { disks: await Promise.all(disks), hasher: known?.hasher }
  }

  /** One secret key for the life of the agent: what was read of an image is of use for all its VMs. */
  #comparison() {
    if (!this.#known) {
      const hasher = createPageHasher(new Uint8Array(randomBytes(32)))
      this.#known = { hasher, images: createImageBlocks(hasher) }
    }
    return this.#known
  }

  /**
   * The files of a VM that is coming, in its folder `dir`. undefined when it has none. PREFLIGHT_QEMU_MISSING, IMAGE_*,
   * NBD_*.
   */
  async target(spec: VmSpec, dir: string) {
    const disks = localDisksOf(spec)
    if (disks.length === 0) return undefined
    const zstd = await loadZstd()
    const files: ComingFile[] = []
    try {
      const received = []
      for (const { index, disk, sizeBytes } of disks) {
        const held = await this.#baseOf(disk, sizeBytes)
        const folder = join(dir, VM_FILES.disks)
        const served = await this.#servedOf(dir, { index, disk, sizeBytes })
        const server = await serveDisk(folder, served)
        const written = new ChunkSet(held.chunks)
        const coming: ComingFile = { server, plain: undefined }
        files.push(coming)
        if (served.format === 'raw') coming.plain = { file: await open(join(folder, served.file)) }
        else if (served.image !== undefined) coming.plain = { file: await open(served.image), except: written }
        received.push({ sizeBytes, writer: server.client, held, written })
      }
      return new ComingDisks(
        createDiskReceiver(received, (frame, bytes) => inflate(zstd, frame, bytes)),
        files,
      )
    } catch (error) {
      await closeAll(files)
      throw error
    }
  }

  /** What a target that has the images may lack of the disks, by what their files take here. */
  async travellingBytes(spec: VmSpec, dir: string): Promise<number> {
    const each = localDisksOf(spec).map(async ({ index, disk }) => {
      const own = await allocatedBytes(localDiskPath(dir, index, disk))
      // A raw disk began with a copy of its image.
      const image = disk.format === 'raw' ? (await this.#imageOf(disk))?.path : undefined
      return Math.max(0, own - (image === undefined ? 0 : await allocatedBytes(image)))
    })
    return (await Promise.all(each)).reduce((sum, bytes) => sum + bytes, 0)
  }

  async #servedOf(dir: string, { index, disk, sizeBytes }: Disk): Promise<ServedDisk> {
    const image = (await this.#imageOf(disk))?.path
    return { file: basename(localDiskPath(dir, index, disk)), format: disk.format, sizeBytes, image }
  }

  async #baseOf(disk: LocalDisk, sizeBytes: number, signal?: AbortSignal): Promise<Leaves> {
    const image = await this.#imageOf(disk)
    return image ? await this.#leaves.of(image, sizeBytes, signal) : new Leaves(sizeBytes)
  }

  async #imageOf(disk: LocalDisk) {
    const item = diskItem(disk)
    return item && (await this.#images.use(item.file))
  }
}

/** The file of a disk, which its server writes, and a plain file that has all chunks but some: itself, or its image. */
type ComingFile = { server: DiskServer; plain: { file: FileHandle; except?: ChunkSet } | undefined }

const readableOf = ({ server: { client }, plain }: ComingFile) => ({
  sizeBytes: client.sizeBytes,
  read: (offset: number, into: Uint8Array) => client.read(offset, into),
  plain: plain && { fd: plain.file.fd, except: plain.except },
})

const closeAll = async (files: ComingFile[]): Promise<void> => {
  await Promise.all(files.splice(0).flatMap(({ server, plain }) => [server.close(), plain?.file.close()]))
}

class ComingDisks {
  readonly #receiver: DiskReceiver
  readonly #files: ComingFile[]
  readonly blocks: BlockReader

  constructor(receiver: DiskReceiver, files: ComingFile[]) {
    this.#receiver = receiver
    this.blocks = createBlockReader(files.map(readableOf))
    this.#files = files
  }

  apply(payload: Uint8Array): Promise<void> {
    return this.#receiver.apply(payload)
  }

  async finish(roots: readonly string[]): Promise<void> {
    await this.#receiver.flush()
    const here = this.#receiver.roots()
    const other = here.findIndex((root, disk) => root !== roots[disk])
    if (here.length !== roots.length || other >= 0)
      throw new GodwitError('MANIFEST_MISMATCH', `local disk ${other} at the target is not what the source has`)
    await this.close()
  }

  async close(): Promise<void> {
    await closeAll(this.#files)
  }
}
