// The files of this site that specifications name. Enters: specs, VMs that run. Leaves: facts of the files;
// PREFLIGHT_FILE_* codes.
// Always holds: of a VM that has a QEMU the descriptors count that QEMU has open, never the names; what a check found
// is compared again before the VM changes hands (assertUnchanged).
import { join } from 'node:path'
import { exists } from '../../ops/files.ts'
import { createFileDigests, type FileDigests, type HashOptions } from '../disks/digests.ts'
import type { ArgvPaths } from '../vm/argv.ts'
import { checkSpecFiles, sharedFolderId, specFileFacts, specFilePath } from '../vm/files.ts'
import { assertNamedUnchanged, assertUnchanged, heldFacts, namedFiles } from '../vm/held-files.ts'
import type { RunningVm } from '../vm/machine.ts'
import type { FileFacts, SpecFile, VmSpec } from '../vm/spec.ts'
import type { VmEntry } from './entry.ts'

type Facts = Record<string, FileFacts>

export type Folders = { stateDir: string; imagesDir: string; sharedDir?: string | undefined }

export class SiteFiles {
  readonly paths: ArgvPaths
  readonly digests: FileDigests

  constructor({ stateDir, imagesDir, sharedDir }: Folders) {
    this.paths = { imagesDir, sharedDir }
    this.digests = createFileDigests(join(stateDir, 'file-roots.json'))
  }

  /** That every file of the spec is here. PREFLIGHT_FILE_MISSING. */
  check(spec: VmSpec): Promise<void> {
    return checkSpecFiles(spec, this.paths)
  }

  /** Whether there is anything of this name, usable or not. */
  has(item: SpecFile): Promise<boolean> {
    const path = specFilePath(item, this.paths)
    return path === undefined ? Promise.resolve(false) : exists(path)
  }

  /** By name. Files that were not read before are read now, which takes as long as it takes. */
  factsOf(spec: VmSpec, options: HashOptions & { expected?: Facts }): Promise<Facts> {
    return specFileFacts(spec, this.paths, this.digests, options)
  }

  /** As the VM's QEMU has them open. PREFLIGHT_FILE_CHANGED, QEMU_EXITED; the signal's reason. */
  async heldBy(entry: VmEntry, vm: RunningVm, options: HashOptions): Promise<Facts> {
    const { facts, seen } = await heldFacts(vm, entry.spec, this.paths, this.digests, options)
    entry.seen = seen
    return facts
  }

  /** Of a VM without a QEMU: by name, as it would open them. PREFLIGHT_FILE_CHANGED; the signal's reason. */
  async namedBy(entry: VmEntry, options: HashOptions): Promise<Facts> {
    const facts = await this.factsOf(entry.spec, options)
    entry.seen = await namedFiles(entry.spec, this.paths)
    return facts
  }

  /**
   * That the files of a VM are those which the last heldBy() or namedBy() saw. Takes no time. PREFLIGHT_FILE_CHANGED.
   */
  async assertUnchanged({ spec, seen = [] }: VmEntry, vm: RunningVm | undefined): Promise<void> {
    if (vm) await assertUnchanged(vm, seen)
    else await assertNamedUnchanged(spec, seen)
  }

  /** The id of the shared folder, for a VM that has a disk there. */
  async shared(spec: VmSpec | undefined): Promise<{ sharedId?: string | undefined }> {
    const { sharedDir } = this.paths
    const isShared = spec?.disks.some(({ mode }) => mode === 'shared') && sharedDir !== undefined
    return isShared ? { sharedId: await sharedFolderId(sharedDir) } : {}
  }

  close(): Promise<void> {
    return this.digests.close()
  }
}
