// All that a VM has at this site besides its record: its folder with its specification and its local disks, and the
// user of its QEMU.
// Enters: specifications, names. Leaves: folders and users.
// Always holds: whatever a VM has here is made, reserved and removed by this class and by nothing else; the record
// (records.ts) is written before a folder is made, and removed before the folder is; a folder is removed only when its
// QEMU has ended.
import { join } from 'node:path'
import { GodwitError } from '../../wire/errors.ts'
import { MIB } from '../../wire/units.ts'
import type { Copies } from '../disks/copies.ts'
import type { Images } from '../disks/images.ts'
import { makeLocalDisk } from '../disks/local.ts'
import { makeSeed } from '../disks/seed.ts'
import { type Accelerator, localDiskPath, VM_FILES, variablesPath } from '../vm/argv.ts'
import { kvmGroup, type VmUser } from '../vm/confine.ts'
import {
  disksOf,
  formatSize,
  isLocal,
  isSeed,
  isVariables,
  type LocalDisk,
  localBytes,
  parseSpec,
  seedFiles,
  specToYaml,
  type VmSpec,
} from '../vm/spec.ts'
import type { VmUsers } from '../vm/users.ts'
import { shapesOf } from './local-disks.ts'
import type { VmHost } from './vm-host.ts'

type ResourcesOptions = { vmHost: VmHost; stateDir: string; users: VmUsers | undefined; images: Images; copies: Copies }

export class Resources {
  readonly #host: VmHost
  readonly #vmsDir: string
  readonly #users: VmUsers | undefined
  readonly #images: Images
  readonly #copies: Copies

  constructor({ vmHost, stateDir, users, images, copies }: ResourcesOptions) {
    this.#host = vmHost
    this.#vmsDir = join(stateDir, 'vms')
    this.#users = users
    this.#images = images
    this.#copies = copies
  }

  /** The VMs that have a folder here. */
  names(): Promise<string[]> {
    return this.#host.files.names(this.#vmsDir)
  }

  folder(name: string): string {
    return join(this.#vmsDir, name)
  }

  /**
   * The spec with the size of each local disk written out: another site must not take its own image's. IMAGE_UNKNOWN,
   * IMAGE_CHANGED, VM_SPEC_INVALID when a disk is smaller than its image.
   */
  async completed(spec: VmSpec): Promise<VmSpec> {
    const disks = await Promise.all(
      spec.disks.map(async (disk, index) => {
        if (!isLocal(disk) || disk.image === undefined) return disk
        const { sizeBytes } = await this.#images.use(disk.image)
        const least = Math.ceil(sizeBytes / MIB) * MIB
        if (disk.size !== undefined && localBytes(disk) < least)
          throw new GodwitError('VM_SPEC_INVALID', `disks[${index}].size: image ${disk.image} has ${formatSize(least)}`)
        return { ...disk, size: disk.size ?? formatSize(least) }
      }),
    )
    return { ...spec, disks }
  }

  /** For a VM that is created at this site: its folder, and its disks with the content of their images. */
  async create(spec: VmSpec): Promise<void> {
    await this.#writeSpec(spec)
    for (const [index, disk] of disksOf(spec).entries()) {
      if (!isLocal(disk)) continue
      if (isSeed(disk)) await makeSeed(localDiskPath(this.folder(spec.name), index, disk), seedFiles(spec)!)
      else await this.#makeDisk(spec.name, index, disk, isVariables(disk) ? variablesPath : undefined)
    }
  }

  /** For a VM that another site sends: with new disks, or those of its warm copy where the other site can use one. */
  async reserve(spec: VmSpec, usesCopy: boolean): Promise<void> {
    await this.#writeSpec(spec)
    if (usesCopy && (await this.#copies.take(spec.name, await shapesOf(this.#images, spec), this.#disksOf(spec.name)))) return
    // A raw disk comes whole: at its source it began with a copy of the image, which need not be here, with the texts
    // of a seed, or with the firmware's variables.
    let isRetry = false
    await this.#copies.withRoom(async () => {
      if (isRetry) await this.#host.files.removeFolder(this.#disksOf(spec.name))
      isRetry = true
      for (const [index, disk] of disksOf(spec).entries())
        if (isLocal(disk)) await this.#makeDisk(spec.name, index, disk.format === 'raw' ? { ...disk, image: undefined } : disk)
    })
  }

  /** Of a VM that has a folder here. CONFIG_INVALID, VM_SPEC_INVALID. */
  async specOf(name: string): Promise<VmSpec> {
    const dir = this.folder(name)
    const spec = parseSpec(await this.#host.files.readText(join(dir, VM_FILES.spec)))
    if (spec.name !== name) throw new GodwitError('CONFIG_INVALID', `${dir} contains the specification of ${spec.name}`)
    return spec
  }

  /** The user of the VM's QEMU, the same until the VM is removed; undefined where QEMUs run as the agent's user. */
  async userOf(name: string, accelerator: Accelerator): Promise<VmUser | undefined> {
    const uid = await this.#users?.take(name)
    return uid === undefined ? undefined : { uid, gid: (accelerator === 'kvm' ? kvmGroup() : undefined) ?? uid }
  }

  /** Kills the QEMU that works in the VM's folder, if there is one. */
  async endQemu(name: string): Promise<void> {
    await this.#host.killLeftover(this.folder(name))
  }

  /** The VM is this site's: its disks are no copy, and become none. */
  async own(name: string): Promise<void> {
    await this.#copies.disown(this.#disksOf(name))
  }

  /** As remove(), but what says of itself that it is a warm copy is kept as one. */
  async leave(name: string): Promise<void> {
    await this.#copies.keep(name, this.#disksOf(name))
    await this.remove(name)
  }

  /** All that the VM has here. Its QEMU has ended. */
  async remove(name: string): Promise<void> {
    await this.#host.files.removeFolder(this.folder(name))
    await this.#users?.release(name)
  }

  #disksOf(name: string): string {
    return join(this.folder(name), VM_FILES.disks)
  }

  async #makeDisk(name: string, index: number, disk: LocalDisk, content?: string): Promise<void> {
    const image = disk.image === undefined ? content : (await this.#images.use(disk.image)).path
    const path = localDiskPath(this.folder(name), index, disk)
    await makeLocalDisk({ path, format: disk.format, sizeBytes: localBytes(disk), image })
  }

  async #writeSpec(spec: VmSpec): Promise<void> {
    const dir = this.folder(spec.name)
    await this.#host.files.makeFolder(dir, 0o700)
    await this.#host.files.writeText(join(dir, VM_FILES.spec), specToYaml(spec))
  }
}
