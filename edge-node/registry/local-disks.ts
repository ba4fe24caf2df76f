// The local disks of a VM as a migration sees them. Enters: specs, VMs that leave or come. Leaves: what their disks
// begin with; at the target their files, open for writing; at the source, when the VM has left, notes of them.
// Always holds: both sites have the same base of a disk: the image that its spec names, or zeros; nothing is written to
// a disk whose QEMU has it active.
import { randomBytes } from 'node:crypto'
import { open, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { createPageHasher } from '../../crypto/channel/page-hash.ts'
import { type About, type CopiedDisk, type Copies, markOf, notesPath, removeAbout, type Shape, writeAbout } from '../disks/copies.ts'
import type { HashOptions } from '../disks/digests.ts'
import { createImageBlocks, type ImageBlocks } from '../disks/image-blocks.ts'
import { createImageLeaves } from '../disks/image-leaves.ts'
import type { Images } from '../disks/images.ts'
import { Leaves } from '../disks/leaves.ts'
import { allocatedBytes } from '../disks/local.ts'
import { type Base, encodeNotes } from '../disks/notes.ts'
import type { ServedDisk } from '../disks/server.ts'
import type { PageHasher } from '../pages/hasher.ts'
import { diskNode, localDiskPath, VM_FILES } from '../vm/argv.ts'
import { diskItem, disksOf, isLocal, type LocalDisk, localBytes, type VmSpec } from '../vm/spec.ts'
import { type ComingDisks, openComingDisks, type Passage } from './coming-disks.ts'

type Disk = { index: number; disk: LocalDisk; sizeBytes: number }

const localDisksOf = (spec: VmSpec): Disk[] =>
  disksOf(spec).flatMap((disk, index) => (isLocal(disk) ? [{ index, disk, sizeBytes: localBytes(disk) }] : []))

const imageOf = async (images: Images, disk: LocalDisk) => {
  const item = diskItem(disk)
  return item && (await images.use(item.file))
}

/** What a warm copy of this VM's disks must be to be of use. IMAGE_*. */
export const shapesOf = (images: Images, spec: VmSpec): Promise<Shape[]> =>
  Promise.all(
    localDisksOf(spec).map(async ({ index, disk, sizeBytes }) => ({
      file: basename(localDiskPath('', index, disk)),
      sizeBytes,
      base: (await imageOf(images, disk))?.root ?? '',
    })),
  )

export class LocalDisks {
  readonly #images: Images
  readonly #copies: Copies
  readonly #leaves = createImageLeaves()
  #known: { hasher: PageHasher; images: ImageBlocks } | undefined

  constructor(images: Images, copies: Copies) {
    this.#images = images
    this.#copies = copies
  }

  /**
   * The local disks of a VM whose folder is `dir`: QEMU's nodes, files, what each began with; `withBlocks`: block by
   * block, and how to compare pages with it. IMAGE_*; the signal's reason.
   */
  async source(spec: VmSpec, dir: string, { withBlocks, signal }: { withBlocks: boolean; signal?: AbortSignal | undefined }) {
    const known = withBlocks ? this.#comparison() : undefined
    const disks = localDisksOf(spec).map(async ({ index, disk, sizeBytes }) => {
      const image = await imageOf(this.#images, disk)
      const { leaves: base } = await this.#baseOf(disk, sizeBytes, signal)
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
   * The files of a VM that is coming, in its folder `dir`. A warm copy of which not everything is noted is read first.
   * undefined when it has none. PREFLIGHT_QEMU_MISSING, IMAGE_*, NBD_*, COPY_UNUSABLE; the signal's reason.
   */
  async target(spec: VmSpec, dir: string, passage: Passage, how: HashOptions): Promise<ComingDisks | undefined> {
    const disks = await Promise.all(
      localDisksOf(spec).map(async ({ index, disk, sizeBytes }) => ({
        ...{ index, sizeBytes, format: disk.format, path: localDiskPath(dir, index, disk) },
        base: await this.#baseOf(disk, sizeBytes, how.signal),
        image: (await imageOf(this.#images, disk))?.path,
      })),
    )
    if (disks.length === 0) return undefined
    return await openComingDisks({ vm: spec.name, dir: join(dir, VM_FILES.disks), disks, passage, copies: this.#copies, how })
  }

  /**
   * The VM has left, and its QEMU has ended: its disks say from now on what they are. `leaves`, by disk, of what they
   * hold; absent: they are read when they are needed.
   */
  async noteLeft(spec: VmSpec, dir: string, { epoch, peer }: Passage, leaves?: readonly Leaves[]): Promise<void> {
    const local = localDisksOf(spec)
    const folder = join(dir, VM_FILES.disks)
    if (local.length === 0) return
    await removeAbout(folder)
    const disks: CopiedDisk[] = []
    for (const [at, { index, disk, sizeBytes }] of local.entries()) {
      const path = localDiskPath(dir, index, disk)
      const base = await this.#baseOf(disk, sizeBytes)
      disks.push({ ...{ file: basename(path), sizeBytes, base: base.root }, mark: await noteDisk(path, sizeBytes, base, leaves?.[at]) })
    }
    const about: About = { version: 1, vm: spec.name, epoch, why: 'left', peer, at: Date.now(), disks }
    await writeAbout(folder, about)
  }

  /** What a target that has the images may lack of the disks, by what their files take here. */
  async travellingBytes(spec: VmSpec, dir: string): Promise<number> {
    const each = localDisksOf(spec).map(async ({ index, disk }) => {
      const own = await allocatedBytes(localDiskPath(dir, index, disk))
      // A raw disk began with a copy of its image.
      const image = disk.format === 'raw' ? (await imageOf(this.#images, disk))?.path : undefined
      return Math.max(0, own - (image === undefined ? 0 : await allocatedBytes(image)))
    })
    return (await Promise.all(each)).reduce((sum, bytes) => sum + bytes, 0)
  }

  async #servedOf(dir: string, { index, disk, sizeBytes }: Disk): Promise<ServedDisk> {
    const image = (await imageOf(this.#images, disk))?.path
    return { file: basename(localDiskPath(dir, index, disk)), format: disk.format, sizeBytes, image }
  }

  async #baseOf(disk: LocalDisk, sizeBytes: number, signal?: AbortSignal): Promise<Base> {
    const image = await imageOf(this.#images, disk)
    return { root: image?.root ?? '', leaves: image ? await this.#leaves.of(image, sizeBytes, signal) : new Leaves(sizeBytes) }
  }
}

/** Gives the mark under which the notes count; undefined without leaves. */
async function noteDisk(path: string, sizeBytes: number, base: Base, leaves: Leaves | undefined): Promise<string | undefined> {
  if (!leaves) return undefined
  await using file = await open(path)
  await file.sync()
  await writeFile(notesPath(path), encodeNotes(sizeBytes, base, leaves), { mode: 0o600, flush: true })
  return await markOf(path)
}
