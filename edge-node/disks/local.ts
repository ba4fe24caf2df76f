// The file of a local disk: made empty or over an image. Enters: a folder, a size, an image. Leaves: a file that QEMU
// can open.
// Always holds: the file is whole and on the disk when it resolves; it is only for the agent's user (QEMU gets it
// open); an existing file is not touched.
import { constants } from 'node:fs'
import { chmod, copyFile, mkdir, open, stat, truncate } from 'node:fs/promises'
import { dirname } from 'node:path'
import { GodwitError } from '../../wire/errors.ts'
import { createQcow2 } from './tools.ts'

/** Of stat(2), whatever the file system has. */
const BLOCK_BYTES = 512

type LocalDiskFile = {
  path: string
  format: 'raw' | 'qcow2'
  sizeBytes: number
  /** A raw file, of at most `sizeBytes`. */
  image?: string | undefined
}

/** DISK_FULL, IMAGE_INVALID, CONFIG_UNREADABLE when there is such a file. */
export async function makeLocalDisk({ path, format, sizeBytes, image }: LocalDiskFile): Promise<void> {
  const dir = dirname(path)
  await mkdir(dir, { recursive: true, mode: 0o700 })
  try {
    if (format === 'qcow2') {
      // qemu-img would overwrite one.
      await (await open(path, 'wx', 0o600)).close()
      await createQcow2({ file: path, sizeBytes, backing: image }, { dir })
    } else if (image === undefined) await (await open(path, 'wx', 0o600)).close()
    // Where the file system can, the copy shares its blocks with the image.
    else await copyFile(image, path, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE)
    if (format === 'raw') await truncate(path, sizeBytes)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOSPC') throw new GodwitError('DISK_FULL', `${path}: no space left for this disk`)
    if (error instanceof GodwitError) throw error
    throw new GodwitError('CONFIG_UNREADABLE', `${path}: the disk cannot be made`, { cause: error })
  }
  await chmod(path, 0o600)
  for (const each of [path, dir]) {
    await using file = await open(each)
    await file.sync()
  }
}

/** What a file takes of its file system: holes, and what a qcow2 has not written, count nothing. 0 for no such file. */
export const allocatedBytes = async (path: string): Promise<number> =>
  BLOCK_BYTES * ((await stat(path).catch(() => undefined))?.blocks ?? 0)
