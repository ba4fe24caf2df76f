// The largest file that a VM's QEMU may write (ops/cage.ts enforces it). Enters: a specification, opened disks. Leaves:
// bytes.
// Always holds: a disk can grow to its full virtual size, with its tables.

import { closeSync, openSync, readSync } from 'node:fs'
import { MIB } from '../../wire/units.ts'
import type { DiskSpec, VmSpec } from './spec.ts'

/** What logs and small files may take. The agent shortens logs at 8 MiB (runtime-folder.ts). */
const SMALL_FILES_BYTES = 256 * MIB
/** Tables of a qcow2 image, 64 KiB clusters: below 0.2 % of its virtual size (docs/interop/qcow2 of QEMU). */
const QCOW2_TABLES = 1.01
const QCOW2_MAGIC = 0x514649fb

/**
 * The largest file that this VM's QEMU needs, bytes: its memory (a memfd), a written disk at its full size. `fds`:
 * written disks, opened.
 */
export function fileSizeLimit(spec: VmSpec, written: { disk: DiskSpec; fd: number; bytes: number }[]): number {
  const sizes = written.map(({ disk, fd, bytes }) => (disk.format === 'qcow2' ? Math.max(bytes, qcow2Bytes(fd)) : bytes))
  return Math.max(spec.memoryBytes, ...sizes) + SMALL_FILES_BYTES
}

/**
 * What a qcow2 image can grow to: the virtual size of its header (big-endian u64 at 24) and its tables. 0 where it is
 * none.
 */
function qcow2Bytes(fd: number): number {
  const header = Buffer.alloc(32)
  // Opened anew: a shared disk is open with O_DIRECT, which reads whole blocks only.
  const file = openSync(`/proc/self/fd/${fd}`, 'r')
  try {
    if (readSync(file, header, 0, header.length, 0) < header.length || header.readUInt32BE(0) !== QCOW2_MAGIC) return 0
  } finally {
    closeSync(file)
  }
  return Math.ceil(Number(header.readBigUInt64BE(24)) * QCOW2_TABLES)
}
