// The files of a VM that runs, as its QEMU has them open (a name may lead to another file by now; the guest does not
// know that), and by name those of one that does not run.
// Enters: a running QEMU, its spec. Leaves: facts of what it holds; PREFLIGHT_FILE_CHANGED, which names the file.
// Always holds: nothing is said of a running VM's file by its name alone; a fixed file that was written to since QEMU
// opened it has no facts; what was found is looked at again before the VM changes hands (assertUnchanged).
import { closeSync, fstatSync } from 'node:fs'
import { stat } from 'node:fs/promises'
import { GodwitError } from '../../wire/errors.ts'
import { type FileDigests, type FileIdentity, type HashOptions, identityOf, isSameIdentity, progressOver } from '../disks/digests.ts'
import type { ArgvPaths } from './argv.ts'
import { specFilePath } from './files.ts'
import type { RunningVm } from './machine.ts'
import { openHeldFd } from './process.ts'
import { type FileFacts, fileKey, isFixedUse, type SpecFile, specFiles, type VmSpec } from './spec.ts'

type Machine = Pick<RunningVm, 'name' | 'identity' | 'files'>
export type SeenFile = { item: SpecFile; path: string; identity: FileIdentity }
type HeldFacts = { facts: Record<string, FileFacts>; seen: SeenFile[] }

/** What the QEMU of a VM has open, each file of the spec. PREFLIGHT_FILE_CHANGED, QEMU_EXITED; the signal's reason. */
export async function heldFacts(
  vm: Machine,
  spec: VmSpec,
  paths: ArgvPaths,
  digests: FileDigests,
  { signal, onProgress }: HashOptions = {},
): Promise<HeldFacts> {
  const opened: { item: SpecFile; path: string; fd: number; given: FileIdentity; bytes: number }[] = []
  try {
    for (const item of specFiles(spec)) {
      const path = specFilePath(item, paths)!
      const given = await givenOf(vm, item, path)
      const fd = await openHeld(vm, item, given)
      opened.push({ item, path, fd, given, bytes: fstatSync(fd).size })
    }
    const facts: Record<string, FileFacts> = {}
    const fixed = opened.filter(({ item }) => isFixedUse(item.use))
    const progress = progressOver(fixed, onProgress)
    for (const { item, fd, given, bytes } of fixed) {
      assertNotWritten(vm, item, given, identityOf(fstatSync(fd, { bigint: true })))
      const root = await digests.root(fd, item.file, { signal, onProgress: progress.of(item.file) })
      const before = await digests.known(given)
      // Only its change time differs: a new name, other rights, or a content whose time was set back.
      if (before !== undefined && before !== root) throw changed(vm, item, 'changed after the VM opened it')
      facts[fileKey(item)] = { bytes, root }
      progress.next()
    }
    for (const { item, path, given, bytes } of opened) {
      if (isFixedUse(item.use)) continue
      await assertStillNamed(vm, item, path, given)
      facts[fileKey(item)] = { bytes }
    }
    return { facts, seen: opened.map(({ item, path, fd }) => ({ item, path, identity: identityOf(fstatSync(fd, { bigint: true })) })) }
  } finally {
    for (const { fd } of opened) closeSync(fd)
  }
}

/**
 * That the files are still those which heldFacts saw. Reads nothing of them: some microseconds each.
 * PREFLIGHT_FILE_CHANGED.
 */
export async function assertUnchanged(vm: Machine, seen: readonly SeenFile[]): Promise<void> {
  for (const { item, path, identity } of seen) {
    if (!isFixedUse(item.use)) {
      await assertStillNamed(vm, item, path, identity)
      continue
    }
    const fd = await openHeld(vm, item, identity)
    try {
      if (!isSameIdentity(identityOf(fstatSync(fd, { bigint: true })), identity))
        throw changed(vm, item, 'was replaced or changed during the migration')
    } finally {
      closeSync(fd)
    }
  }
}

/** The files of a VM that does not run, by name. PREFLIGHT_FILE_CHANGED when one is missing. */
export async function namedFiles(spec: VmSpec, paths: ArgvPaths): Promise<SeenFile[]> {
  const looked = specFiles(spec).map(async item => {
    const path = specFilePath(item, paths)!
    return { item, path, identity: await namedIdentity(spec, item, path) }
  })
  return await Promise.all(looked)
}

/** That the names lead to the files which namedFiles saw. PREFLIGHT_FILE_CHANGED. */
export async function assertNamedUnchanged(spec: VmSpec, seen: readonly SeenFile[]): Promise<void> {
  for (const { item, path, identity } of seen) {
    const now = await namedIdentity(spec, item, path)
    const isSame = isFixedUse(item.use) ? isSameIdentity(now, identity) : now.dev === identity.dev && now.ino === identity.ino
    if (!isSame) throw changed(spec, item, 'was replaced or changed during the migration')
  }
}

async function namedIdentity(spec: VmSpec, item: SpecFile, path: string): Promise<FileIdentity> {
  const found = await stat(path, { bigint: true }).catch(() => undefined)
  if (!found) throw changed(spec, item, 'no longer exists')
  return identityOf(found)
}

/**
 * What it was when QEMU was given it. Where an earlier agent did not write that down, the name has to do, if QEMU has
 * open what it leads to.
 */
async function givenOf(vm: Machine, item: SpecFile, path: string): Promise<FileIdentity> {
  const given = vm.files?.find(({ key }) => key === fileKey(item))?.identity
  if (given) return given
  const named = await stat(path, { bigint: true }).catch(() => undefined)
  if (!named) throw changed(vm, item, 'no longer exists')
  return identityOf(named)
}

async function openHeld(vm: Machine, item: SpecFile, given: FileIdentity): Promise<number> {
  const fd = await openHeldFd(vm.identity, given)
  if (fd === undefined) throw changed(vm, item, 'differs from the file that the VM has open')
  return fd
}

function assertNotWritten(vm: Machine, item: SpecFile, given: FileIdentity, now: FileIdentity): void {
  if (given.bytes !== now.bytes || given.mtimeNs !== now.mtimeNs) throw changed(vm, item, 'changed after the VM opened it')
}

/** The other site opens a shared disk by its name: that must lead to what is open here. */
async function assertStillNamed(vm: Machine, item: SpecFile, path: string, { dev, ino }: FileIdentity): Promise<void> {
  const named = await stat(path, { bigint: true }).catch(() => undefined)
  if (named && String(named.dev) === dev && String(named.ino) === ino) return
  throw changed(vm, item, named ? 'was replaced after the VM opened it' : 'no longer exists')
}

const changed = ({ name }: Pick<Machine, 'name'>, { file, use }: SpecFile, how: string): GodwitError =>
  new GodwitError('PREFLIGHT_FILE_CHANGED', `${file} (${use} of ${name}) ${how}`)
