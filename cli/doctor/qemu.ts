// QEMU checks of godwit doctor: which QEMU is installed, which accelerators run a guest, and so which methods this host
// supports.

import { cgroupProblem } from '../../edge-node/vm/cgroup.ts'
import { confinementProblem, DEFAULT_USERS } from '../../edge-node/vm/confine.ts'
import { openGuestFilter } from '../../edge-node/vm/guest-filter.ts'
import { LIVE_TCG_MINIMUM } from '../../edge-node/vm/preflight.ts'
import { findQemu, type QemuAbilities, qemuAbilities } from '../../edge-node/vm/qemu.ts'
import { compareVersions } from '../../edge-node/vm/version.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Check } from './check.ts'

const INSTALL = 'apt-get install qemu-system-x86 (on Debian 12: from bookworm-backports, for 9.0 or newer)'

export async function qemuChecks(): Promise<Check[]> {
  try {
    const qemu = await findQemu()
    const version: Check = { name: 'qemu', state: 'ok', detail: `${qemu.version} (${qemu.binary})` }
    const abilities = await qemuAbilities(qemu)
    return [version, acceleratorCheck(abilities), ...methodChecks(qemu.version, abilities)]
  } catch (error) {
    if (!(error instanceof GodwitError) || !error.code.startsWith('PREFLIGHT_')) throw error
    return [
      { name: 'qemu', state: 'fail', detail: error.message, advice: INSTALL },
      { name: 'method live', state: 'fail', detail: 'needs QEMU' },
      { name: 'method cold', state: 'fail', detail: 'needs QEMU' },
    ]
  }
}

/** Pure, except for the rights of this process. `users`: the field in node.yaml, if set. */
export function usersCheck(users: 'auto' | 'off' | { from: number; count: number } = 'auto'): Check {
  const name = 'qemu users'
  const shared = 'a guest that escapes from its QEMU can access the other VMs'
  const isRoot = process.getuid?.() === 0
  if (users === 'off')
    return {
      name,
      state: isRoot ? 'fail' : 'warn',
      detail: `off: all QEMUs run as the user of the node, so ${shared}`,
      advice: 'set qemu.users: auto in node.yaml',
    }
  const range = users === 'auto' ? DEFAULT_USERS : users
  const problem = confinementProblem(range)
  if (problem === undefined)
    return { name, state: 'ok', detail: `each QEMU runs as its own user, ids ${range.from} to ${range.from + range.count - 1}` }
  return {
    name,
    state: users === 'auto' && !isRoot ? 'warn' : 'fail',
    detail: `${problem}: all QEMUs run as the user of the node, so ${shared}`,
    advice: 'run the node as root with the capabilities of packaging/godwit-node.service',
  }
}

/** Further confinement of a QEMU that a guest controls: limits and a network filter. */
export async function cageChecks(): Promise<Check[]> {
  const limits = cgroupProblem()
  const filter = await openGuestFilter()
  if (typeof filter !== 'string') filter.close()
  return [
    limits === undefined
      ? { name: 'qemu limits', state: 'ok', detail: 'each QEMU has its own cgroup with limits on memory and processes' }
      : {
          name: 'qemu limits',
          state: 'warn',
          detail: `${limits}: a QEMU may use all memory`,
          advice: 'boot with cgroup v2 (the default of Debian 11 and newer)',
        },
    typeof filter === 'string'
      ? { name: 'qemu network', state: 'warn', detail: filter, advice: 'run apt-get install nftables; the node needs CAP_NET_ADMIN' }
      : { name: 'qemu network', state: 'ok', detail: 'nftables blocks the host network for each QEMU whose NICs do not need it' },
  ]
}

function acceleratorCheck({ accelerators }: QemuAbilities): Check {
  const name = 'accelerator'
  if (accelerators.includes('kvm')) return { name, state: 'ok', detail: `a test guest ran under ${accelerators.join(' and under ')}` }
  if (accelerators.length === 0)
    return {
      name,
      state: 'fail',
      detail: 'no test guest ran within 3 s',
      advice: 'check whether the host is overloaded, then run qemu-system-x86_64 by hand',
    }
  return {
    name,
    state: 'warn',
    detail: 'a test guest ran under tcg but not under kvm: guests are slow, and TCG is not a security boundary',
    advice: 'use a host with hardware virtualisation and access to /dev/kvm',
  }
}

/** Pure: the methods that a host with this QEMU and these accelerators supports. */
export function methodChecks(version: string, { accelerators }: Pick<QemuAbilities, 'accelerators'>): Check[] {
  if (accelerators.length === 0)
    return ['live', 'cold'].map(method => ({ name: `method ${method}`, state: 'fail', detail: 'no guest runs on this host' }))
  const cold: Check = { name: 'method cold', state: 'ok', detail: 'stop, copy, start' }
  if (compareVersions(version, LIVE_TCG_MINIMUM, 2) >= 0) {
    return [
      { name: 'method live', state: 'ok', detail: `QEMU ${version} copies a running guest correctly under ${accelerators.join(' and ')}` },
      cold,
    ]
  }
  if (accelerators.includes('kvm'))
    return [{ name: 'method live', state: 'ok', detail: `under kvm only: QEMU ${version} misses pages under tcg` }, cold]
  return [
    {
      name: 'method live',
      state: 'warn',
      detail: `not available: QEMU ${version} under tcg misses dirty pages in pre-copy`,
      advice: `${INSTALL}, or migrate with --method cold`,
    },
    cold,
  ]
}
