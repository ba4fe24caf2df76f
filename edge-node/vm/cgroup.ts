// A cgroup for each QEMU, with limits on memory and processes, where cgroup v2 can be written (cgroup-v2.rst of Linux).
// Enters: a pid, a VM.
// Leaves: the process in /sys/fs/cgroup/godwit/qemu-PID. Always holds: a limit is never below what the VM may use;
// cgroups of QEMUs that have ended are removed when the next one starts; where there is no such hierarchy (cgroup v1, a
// container that may not write it) nothing is done, and cgroupProblem() says so.

import { accessSync, constants, existsSync, mkdirSync, readdirSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { MIB } from '../../wire/units.ts'
import type { VmSpec } from './spec.ts'

const ROOT = '/sys/fs/cgroup'
const FOLDER = 'godwit'
const CONTROLLERS = '+memory +pids'
/** Beside guest memory: QEMU itself, and under TCG its translated code (1 GiB at most by default). */
const MEMORY_BESIDES_BYTES = 1536 * MIB
/** QEMU's threads: one for each vCPU, I/O workers (64 by default), the monitor and migration. */
const THREADS_BESIDES = 192

/** Why no QEMU can have a cgroup here, or undefined. */
export function cgroupProblem(root = ROOT): string | undefined {
  if (!existsSync(join(root, 'cgroup.controllers'))) return 'no cgroup v2 hierarchy is mounted at /sys/fs/cgroup'
  try {
    accessSync(join(root, 'cgroup.subtree_control'), constants.W_OK)
    prepare(root)
    return undefined
  } catch (error) {
    return `the cgroup hierarchy is not writable (${(error as NodeJS.ErrnoException).code ?? error})`
  }
}

/**
 * Puts a process that has just started into a cgroup of its own. Does nothing, and gives false, where that is not
 * possible.
 */
export function enterCgroup(pid: number, spec: Pick<VmSpec, 'memoryBytes' | 'vcpus'>, root = ROOT): boolean {
  if (cgroupProblem(root) !== undefined) return false
  try {
    removeLeftovers(root)
    const folder = join(root, FOLDER, `qemu-${pid}`)
    mkdirSync(folder, { recursive: true })
    writeFileSync(join(folder, 'memory.max'), String(spec.memoryBytes + MEMORY_BESIDES_BYTES))
    writeFileSync(join(folder, 'pids.max'), String(spec.vcpus + THREADS_BESIDES))
    writeFileSync(join(folder, 'cgroup.procs'), String(pid))
    return true
  } catch {
    return false // without a limit it is as on a host without cgroups
  }
}

function prepare(root: string): void {
  writeFileSync(join(root, 'cgroup.subtree_control'), CONTROLLERS)
  mkdirSync(join(root, FOLDER), { recursive: true })
  writeFileSync(join(root, FOLDER, 'cgroup.subtree_control'), CONTROLLERS)
}

/** Removes cgroups without processes: the kernel refuses to remove one that has any (EBUSY). */
function removeLeftovers(root: string): void {
  for (const name of readdirSync(join(root, FOLDER)).filter(entry => entry.startsWith('qemu-'))) {
    try {
      rmdirSync(join(root, FOLDER, name))
    } catch {
      // Its QEMU runs.
    }
  }
}
