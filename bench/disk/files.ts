// Files of the benchmark's disks, made and read with qemu-img. Enters: paths. Leaves: qcow2 files, raw copies. Always
// holds: formats and images are named, never probed.
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

const RUN_MS = 120_000
const qemuImg = (...words: string[]) => promisify(execFile)('qemu-img', words, { timeout: RUN_MS })

export async function createDisk(path: string, sizeBytes: number, image?: string): Promise<void> {
  const backing = image === undefined ? [] : ['-b', image, '-F', 'raw']
  await qemuImg('create', '-q', '-f', 'qcow2', ...backing, path, String(sizeBytes))
}

/** Into a blank qcow2 that is not smaller. */
export async function fillDisk(path: string, content: string): Promise<void> {
  await qemuImg('convert', '-n', '-f', 'raw', '-O', 'qcow2', content, path)
}

/** A disk as its guest saw it, of a QEMU that has it open or has ended. */
export async function readDisk(path: string, to: string, image?: string): Promise<void> {
  const file = (filename: string) => ({ driver: 'file', filename, locking: 'off' })
  const backing = image === undefined ? {} : { backing: { driver: 'raw', file: file(image) } }
  const node = { driver: 'qcow2', file: file(path), ...backing }
  await qemuImg('convert', '-U', '-O', 'raw', `json:${JSON.stringify(node)}`, to)
}
