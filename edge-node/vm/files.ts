// The files that VMs need, in the site's images folder: are they there, and are they the same at both sites.
// Always holds: a digest is computed again whenever size, times or inode have changed; a qcow2 that refers to other files is refused, since only the
// named file is compared and QEMU would open what the header names.
import { createHash, randomBytes } from 'node:crypto'
import { open, readFile, rename, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { GodwitError } from '../../wire/errors.ts'
import { type ArgvPaths, diskPath } from './argv.ts'
import { type FileFacts, fileKey, type SpecFile, specFiles, type VmSpec } from './spec.ts'

const READ_BYTES = 1024 * 1024
const MAX_CACHED = 1024

export type FileDigests = { facts(path: string, options?: { signal?: AbortSignal | undefined }): Promise<FileFacts | undefined> }

/** Size and digest of files, remembered in `cacheFile`. `facts` is undefined for a path that is no readable regular file. */
export function createFileDigests(cacheFile: string): FileDigests {
  let known: Promise<Map<string, { key: string; sha256: string }>> | undefined
  const load = async () => {
    try {
      return new Map<string, { key: string; sha256: string }>(JSON.parse(await readFile(cacheFile, 'utf8')))
    } catch {
      return new Map<string, { key: string; sha256: string }>() // a cache: absent or damaged, it is made anew
    }
  }
  return {
    async facts(path, { signal } = {}) {
      const found = await stat(path, { bigint: true }).catch(() => undefined)
      if (!found?.isFile()) return undefined
      known ??= load()
      const cache = await known
      const key = `${found.dev} ${found.ino} ${found.size} ${found.mtimeNs} ${found.ctimeNs}`
      const cached = cache.get(path)
      if (cached?.key === key) return { bytes: Number(found.size), sha256: cached.sha256 }
      const sha256 = await digestOf(path, signal)
      if (cache.size >= MAX_CACHED) cache.clear()
      cache.set(path, { key, sha256 })
      await writeFile(`${cacheFile}.new`, JSON.stringify([...cache]), { mode: 0o600 })
      await rename(`${cacheFile}.new`, cacheFile)
      return { bytes: Number(found.size), sha256 }
    },
  }
}

async function digestOf(path: string, signal?: AbortSignal): Promise<string> {
  const hash = createHash('sha256')
  const buffer = Buffer.allocUnsafe(READ_BYTES)
  const file = await open(path, 'r')
  try {
    for (;;) {
      signal?.throwIfAborted()
      const { bytesRead } = await file.read(buffer, 0, READ_BYTES, null)
      if (bytesRead === 0) return hash.digest('hex')
      hash.update(buffer.subarray(0, bytesRead))
    }
  } finally {
    await file.close()
  }
}

/** The local path of a file that a spec names; undefined for a shared disk at a site without a shared folder. */
export function specFilePath({ file, use }: SpecFile, paths: ArgvPaths): string | undefined {
  if (use !== 'shared') return join(paths.imagesDir, file)
  return paths.sharedDir === undefined ? undefined : diskPath({ file, mode: 'shared', format: 'raw' }, paths)
}

/** Facts of every file of the spec, by `use/file`; what is missing is absent. */
export async function specFileFacts(
  spec: VmSpec,
  paths: ArgvPaths,
  digests: FileDigests,
  signal?: AbortSignal,
): Promise<Record<string, FileFacts>> {
  const facts: Record<string, FileFacts> = {}
  for (const item of specFiles(spec)) {
    const path = specFilePath(item, paths)
    if (path === undefined) continue
    const changing = item.use === 'shared' || item.use === 'writable'
    const found = changing ? await sizeOf(path) : await digests.facts(path, { signal })
    if (found) facts[fileKey(item)] = found
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
      throw new GodwitError('PREFLIGHT_FILE_MISSING', `${item.file} is a shared disk, and this site has no shared folder`, {
        hint: 'name the shared folder in the node configuration',
      })
    if ((await sizeOf(path)) === undefined)
      throw new GodwitError('PREFLIGHT_FILE_MISSING', `${path} (${item.use} of ${spec.name}) is not there`)
  }
  for (const disk of spec.disks) if (disk.format === 'qcow2') await checkQcow2(diskPath(disk, paths), disk.file)
}

// qcow2 header (QEMU docs/interop/qcow2): magic 'QFI\xfb', u32 version, u64 backing_file_offset at 8; incompatible feature bit 2 at 72: external data file.
async function checkQcow2(path: string, name: string): Promise<void> {
  const header = Buffer.alloc(80)
  const file = await open(path, 'r')
  try {
    await file.read(header, 0, header.length, 0)
  } finally {
    await file.close()
  }
  const refuse = (why: string) => new GodwitError('VM_SPEC_INVALID', `disks: ${name} ${why}`)
  if (header.readUInt32BE(0) !== 0x514649fb) throw refuse('is not a qcow2 image; give its real format')
  if (header.readBigUInt64BE(8) !== 0n) throw refuse('has a backing file; make it one file with qemu-img convert')
  if (header.readUInt32BE(4) >= 3 && (header.readBigUInt64BE(72) & 4n) !== 0n)
    throw refuse('keeps its data in another file; use qemu-img convert')
}

/** The name that a shared folder bears, the same at every site that mounts it: two sites that only believe they share storage must not run on two copies. */
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
