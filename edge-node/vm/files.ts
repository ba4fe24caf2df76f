// The files that VMs need, in the site's images folder: are they there, and are they the same at both sites.
// Always holds: a root (disks/digests.ts) belongs to a file as it is, never to a name; a qcow2 that refers to other
// files is refused, since only the named file is compared and QEMU would open what the header names.
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { GodwitError } from '../../wire/errors.ts'
import { type FileDigests, type HashOptions, progressOver } from '../disks/digests.ts'
import { type ArgvPaths, diskPath, firmwarePath } from './argv.ts'
import { type FileFacts, fileKey, isFixedUse, isLocal, type SpecFile, specFiles, type VmSpec } from './spec.ts'

/** The local path of a file that a spec names; undefined for a shared disk at a site without a shared folder. */
export function specFilePath({ file, use }: SpecFile, paths: ArgvPaths): string | undefined {
  if (use === 'firmware') return firmwarePath
  if (use !== 'shared') return join(paths.imagesDir, file)
  return paths.sharedDir === undefined ? undefined : diskPath({ file, mode: 'shared', format: 'raw' }, paths)
}

/** A file by its name; undefined when there is no readable regular file of it. The caller closes it. */
async function openRegular(path: string): Promise<FileHandle | undefined> {
  // Not before it is known to be a file: opening a FIFO waits for its other end.
  if (!(await stat(path).catch(() => undefined))?.isFile()) return undefined
  return await open(path, constants.O_RDONLY).catch(() => undefined)
}

/**
 * Facts of every file of the spec by its name here, by `use/file`; what is missing is absent. `expected`: what the
 * other site has: a file of another size is not read, it is another one anyway.
 */
export async function specFileFacts(
  spec: VmSpec,
  paths: ArgvPaths,
  digests: FileDigests,
  { signal, onProgress, expected }: HashOptions & { expected?: Record<string, FileFacts> | undefined } = {},
): Promise<Record<string, FileFacts>> {
  const facts: Record<string, FileFacts> = {}
  const toHash: { item: SpecFile; path: string; bytes: number }[] = []
  for (const item of specFiles(spec)) {
    const path = specFilePath(item, paths)
    const found = path === undefined ? undefined : await sizeOf(path)
    if (path === undefined || found === undefined) continue
    const other = expected?.[fileKey(item)]
    facts[fileKey(item)] = found
    if (isFixedUse(item.use) && (other === undefined || other.bytes === found.bytes)) toHash.push({ item, path, bytes: found.bytes })
  }
  const progress = progressOver(toHash, onProgress)
  for (const { item, path } of toHash) {
    const file = await openRegular(path)
    try {
      if (!file) delete facts[fileKey(item)]
      else facts[fileKey(item)]!.root = await digests.root(file.fd, item.file, { signal, onProgress: progress.of(item.file) })
    } finally {
      await file?.close()
    }
    progress.next()
  }
  return facts
}

const sizeOf = async (path: string): Promise<FileFacts | undefined> => {
  const found = await stat(path).catch(() => undefined)
  return found?.isFile() ? { bytes: found.size } : undefined
}

/** PREFLIGHT_FILE_MISSING when a file is not there; VM_SPEC_INVALID when a qcow2 needs other files. */
export async function checkSpecFiles(spec: VmSpec, paths: ArgvPaths): Promise<void> {
  for (const item of specFiles(spec)) {
    const path = specFilePath(item, paths)
    if (path === undefined)
      throw new GodwitError('PREFLIGHT_FILE_MISSING', `${item.file} is a shared disk, but this site has no shared folder`, {
        hint: 'mount the storage of the shared disks, and set sharedDir in the configuration of the node',
      })
    if ((await sizeOf(path)) === undefined)
      throw new GodwitError(
        'PREFLIGHT_FILE_MISSING',
        `${path} (${item.use} of ${spec.name}) is missing`,
        item.use === 'firmware' ? { hint: 'install the package ovmf' } : {},
      )
  }
  for (const disk of spec.disks) if (!isLocal(disk) && disk.format === 'qcow2') await checkQcow2(diskPath(disk, paths), disk.file)
}

// qcow2 header (QEMU docs/interop/qcow2): magic 'QFI\xfb', u32 version, u64 backing_file_offset at 8; incompatible
// feature bit 2 at 72: external data file.
async function checkQcow2(path: string, name: string): Promise<void> {
  const header = Buffer.alloc(80)
  const file = await open(path, 'r')
  try {
    await file.read(header, 0, header.length, 0)
  } finally {
    await file.close()
  }
  const refuse = (why: string) => new GodwitError('VM_SPEC_INVALID', `disks: ${name} ${why}`)
  if (header.readUInt32BE(0) !== 0x514649fb) throw refuse('is not a qcow2 image; set its real format')
  if (header.readBigUInt64BE(8) !== 0n) throw refuse('has a backing file; convert it to one file with qemu-img convert')
  if (header.readUInt32BE(4) >= 3 && (header.readBigUInt64BE(72) & 4n) !== 0n)
    throw refuse('keeps its data in another file; use qemu-img convert')
}

/**
 * The name that a shared folder bears, the same at every site that mounts it: two sites that only believe they share
 * storage must not run on two copies.
 */
export async function sharedFolderId(sharedDir: string): Promise<string> {
  const path = join(sharedDir, '.godwit-shared-id')
  try {
    await writeFile(path, randomBytes(16).toString('hex'), { flag: 'wx', mode: 0o644 })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST')
      throw new GodwitError('CONFIG_UNREADABLE', `${sharedDir}: cannot write to the shared folder`, { cause: error })
  }
  return (await readFile(path, 'utf8')).trim()
}
