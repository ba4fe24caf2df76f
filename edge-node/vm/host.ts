// What this host has free, and which network devices. Enters: /proc, /sys, a folder. Leaves: numbers and names,
// measured now.
import { existsSync, readFileSync } from 'node:fs'
import { statfs } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import type { NicSpec } from './spec.ts'

/** MemAvailable of /proc/meminfo: what new processes can get without swapping (proc(5)). */
export function memoryAvailableBytes(meminfo = readFileSync('/proc/meminfo', 'utf8')): number {
  const match = /^MemAvailable:\s+([0-9]+) kB$/m.exec(meminfo)
  return match ? Number(match[1]) * 1024 : 0
}

/** Free to us on the file system of this folder. */
export async function diskFreeBytes(folder: string): Promise<number> {
  const { bavail, bsize } = await statfs(folder)
  return bavail * bsize
}

export const hostVcpus = (): number => availableParallelism()

/** Those of the spec's taps that exist on this host. */
export const existingTaps = (nics: readonly NicSpec[]): string[] =>
  nics.flatMap(nic => (nic.type === 'tap' && existsSync(`/sys/class/net/${nic.tap}/tun_flags`) ? [nic.tap] : []))
