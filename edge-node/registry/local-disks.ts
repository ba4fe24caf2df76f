// The local disks of a VM as a migration sees them. Enters: specs, VMs that leave or come. Leaves: what their disks
// begin with, and at the target their files, open for writing.
// Always holds: both sites have the same base of a disk: the image that its spec names, or zeros; nothing is written to
// a disk whose QEMU has it active.

import { randomBytes } from 'node:crypto'
import { basename, join } from 'node:path'
import { createPageHasher } from '../../crypto/channel/page-hash.ts'
import { GodwitError } from '../../wire/errors.ts'
import { type BlockReader, createBlockReader } from '../disks/block-reader.ts'
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
      return { node: diskNode(index), sizeBytes, base, served, blocks: image && (await known?.images.of(image, signal)) }
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
    const servers: DiskServer[] = []
    try {
      const received = []
      for (const { index, disk, sizeBytes } of disks) {
        const held = await this.#baseOf(disk, sizeBytes)
        const server = await serveDisk(join(dir, VM_FILES.disks), await this.#servedOf(dir, { index, disk, sizeBytes }))
        servers.push(server)
        received.push({ sizeBytes, writer: server.client, held })
      }
      return new ComingDisks(
        createDiskReceiver(received, (frame, bytes) => inflate(zstd, frame, bytes)),
        servers,
      )
    } catch (error) {
      await Promise.all(servers.map(server => server.close()))
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

class ComingDisks {
  readonly #receiver: DiskReceiver
  readonly #servers: DiskServer[]
  readonly blocks: BlockReader

  constructor(receiver: DiskReceiver, servers: DiskServer[]) {
    this.#receiver = receiver
    this.blocks = createBlockReader(servers.map(({ client }) => client))
    this.#servers = servers
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
    await Promise.all(this.#servers.splice(0).map(server => server.close()))
  }
}
