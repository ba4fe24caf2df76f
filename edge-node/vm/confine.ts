// Whether QEMU can run as a user of its own here, and whether that user can reach what this VM needs. Enters: this
// process's rights, a VM and its user.
// Leaves: what is missing, in words that say what to do. Always holds: the kernel is asked (a child with that user's
// rights), never mode bits alone, except where a device's rights decide which group QEMU gets.
import { spawn } from 'node:child_process'
import { readFileSync, statSync } from 'node:fs'
import { GodwitError } from '../../wire/errors.ts'
import { FIRST_FD, type OpenedFile } from './argv.ts'
import type { VmSpec } from './spec.ts'

export type VmUser = { uid: number; gid: number }
export type UserRange = { from: number; count: number }

/**
 * Neither given to people nor to services by Debian or systemd (UIDS-GIDS.md: 65536 to 524287 are free but for
 * subordinate ids, from 100000 on).
 */
export const DEFAULT_USERS: UserRange = { from: 70_000, count: 1000 }

// linux/capability.h: what an agent needs to run QEMU as somebody else and still open its memory through /proc.
const NEEDED: Record<string, number> = { CHOWN: 0, DAC_OVERRIDE: 1, KILL: 5, SETGID: 6, SETUID: 7, SYS_PTRACE: 19 }

/** Why no QEMU can run as a user of this range, or undefined. */
export function confinementProblem(range: UserRange): string | undefined {
  if (process.getuid?.() !== 0) return 'the node does not run as root'
  const held = BigInt(`0x${/^CapEff:\s+([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'}`)
  const lacking = Object.keys(NEEDED).filter(name => ((held >> BigInt(NEEDED[name]!)) & 1n) === 0n)
  if (lacking.length > 0) return `the node lacks ${lacking.map(name => `CAP_${name}`).join(', ')}`
  const last = range.from + range.count - 1
  const isMapped = (file: string) =>
    readFileSync(file, 'utf8')
      .trim()
      .split('\n')
      .some(line => {
        const [inside = 0, , count = 0] = line.trim().split(/\s+/).map(Number)
        return range.from >= inside && last < inside + count
      })
  if (!isMapped('/proc/self/uid_map') || !isMapped('/proc/self/gid_map'))
    return `users ${range.from} to ${last} do not exist in this container`
  return undefined
}

/**
 * The group that QEMU needs for /dev/kvm; undefined: none in particular. CONFIG_UNREADABLE when only root may use it.
 */
export function kvmGroup(device = '/dev/kvm'): number | undefined {
  const { mode, gid } = statSync(device)
  if ((mode & 0o006) === 0o006) return undefined
  if ((mode & 0o060) === 0o060 && gid !== 0) return gid
  throw new GodwitError('CONFIG_UNREADABLE', `only root can use ${device}: a QEMU with its own user cannot`, {
    hint: `give a group access: chgrp kvm ${device} && chmod 660 ${device}`,
  })
}

type Needs = {
  spec: VmSpec
  user: VmUser
  /** What QEMU gets open, and the descriptors. */
  files: OpenedFile[]
  fds: number[]
}

/**
 * CONFIG_UNREADABLE, naming the file and the user, when this user cannot read a kernel; PREFLIGHT_DEVICE for a tap.
 * Disks are open already.
 */
export async function assertUsable({ spec, user, files, fds }: Needs): Promise<void> {
  for (const [at, { path, use }] of files.entries()) {
    // QEMU opens kernel and initrd again through /proc/self/fd: the folders do not matter, the file's own rights do.
    if ((use !== 'kernel' && use !== 'initrd') || (await canRead(fds[at]!, user))) continue
    throw new GodwitError('CONFIG_UNREADABLE', `${path}: not readable for user ${user.uid}, who runs the QEMU of ${spec.name}`, {
      hint: `chmod o+r ${path}`,
    })
  }
  for (const nic of spec.nics) if (nic.type === 'tap') assertTapOwner(nic.tap, user)
}

/** test(1) with that user's rights. */
const canRead = (fd: number, user: VmUser): Promise<boolean> =>
  new Promise(resolve => {
    const child = spawn('test', ['-r', `/proc/self/fd/${FIRST_FD}`], {
      ...user,
      cwd: '/',
      stdio: ['ignore', 'ignore', 'ignore', fd],
      timeout: 10_000,
    })
    child.once('error', () => resolve(false))
    child.once('exit', code => resolve(code === 0))
  })

/**
 * A tap is opened by its owner, or by whoever may configure the network, which QEMU may not. The tap is free (taps.ts).
 */
function assertTapOwner(tap: string, { uid }: VmUser): void {
  let owner = -1
  try {
    owner = Number(readFileSync(`/sys/class/net/${tap}/owner`, 'utf8'))
  } catch {
    return // there is none: the preflight says so
  }
  if (owner === uid) return
  throw new GodwitError('PREFLIGHT_DEVICE', `the tap interface ${tap} does not belong to user ${uid}, who runs the QEMU of this VM`, {
    hint: `create a tap for this user and put its name into the specification: ip tuntap add NAME mode tap user ${uid}`,
  })
}
