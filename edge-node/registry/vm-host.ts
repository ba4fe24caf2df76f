// What a registry has from its host, as one plain type: QEMUs, files, and what there is of everything.
// Always holds: QEMUs are started and found by this type alone, so a registry runs on any host that has it: on this
// machine (vmHost), or on one of the ownership simulation.

import type { Log } from '../../wire/log.ts'
import { type Copies, openCopies } from '../disks/copies.ts'
import { type Images, type ImagesOptions, openImages } from '../disks/images.ts'
import { diskFreeBytes, existingTaps, hostVcpus, memoryAvailableBytes } from '../vm/host.ts'
import { type HostFiles, hostFiles } from '../vm/host-files.ts'
import { adoptMachine, type LaunchOptions, type RunningVm, startMachine } from '../vm/machine.ts'
import { findQemu, type QemuAbilities, type QemuInfo, qemuAbilities, readQemuVersion } from '../vm/qemu.ts'
import { isOfEarlierBoot, killLeftover, qemuLogTail } from '../vm/runtime-folder.ts'
import type { NicSpec, VmSpec } from '../vm/spec.ts'
import { type Folders, SiteFiles } from './site-files.ts'

export type VmHost = {
  /** See machine.ts. */
  startMachine(options: LaunchOptions): Promise<RunningVm>
  adoptMachine(options: { spec: VmSpec; dir: string; log: Log }): Promise<RunningVm | undefined>
  /** See runtime-folder.ts; each of a VM's folder. */
  killLeftover(dir: string): Promise<void>
  qemuLogTail(dir: string): Promise<string>
  isOfEarlierBoot(dir: string): Promise<boolean>
  /** See qemu.ts. */
  findQemu(options: { binary: string; signal: AbortSignal }): Promise<QemuInfo>
  readQemuVersion(binary: string, signal: AbortSignal): Promise<string>
  qemuAbilities(qemu: QemuInfo, options: { cacheFile: string; log: Log; signal: AbortSignal }): Promise<QemuAbilities>
  /** See host.ts. */
  memoryAvailableBytes(): number
  diskFreeBytes(folder: string): Promise<number>
  hostVcpus(): number
  existingTaps(nics: readonly NicSpec[]): string[]
  /** Small files that the registry keeps. */
  files: HostFiles
  /** The files that specifications name. */
  siteFiles(folders: Folders): SiteFiles
  openImages(options: ImagesOptions): Promise<Images>
  openCopies(options: { dir: string; log: Log }): Copies
}

/** This machine. */
export const vmHost: VmHost = {
  ...{ startMachine, adoptMachine, killLeftover, qemuLogTail, isOfEarlierBoot },
  ...{ findQemu, readQemuVersion, qemuAbilities },
  ...{ diskFreeBytes, hostVcpus, existingTaps, memoryAvailableBytes: () => memoryAvailableBytes() },
  files: hostFiles,
  siteFiles: folders => new SiteFiles(folders),
  openImages,
  openCopies,
}
