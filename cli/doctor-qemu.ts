// The QEMU lines of godwit doctor: which is installed, what really runs a guest, and so which methods this host can offer.

import { confinementProblem, DEFAULT_USERS } from '../edge-node/vm/confine.ts'
import { findQemu, type QemuAbilities, qemuAbilities } from '../edge-node/vm/qemu.ts'
import { compareVersions } from '../edge-node/vm/version.ts'
import { GodwitError } from '../wire/errors.ts'
import type { Check } from './doctor.ts'

/** Live pre-copy under TCG is right from this version on: older ones miss dirty pages. */
const LIVE_TCG_MINIMUM = '9.0'
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

/** Pure but for this process's rights. `users`: what node.yaml says, if it says anything. */
export function usersCheck(users: 'auto' | 'off' | { from: number; count: number } = 'auto'): Check {
  const name = 'qemu users'
  const shared = 'a guest that breaks out of its QEMU reaches the other VMs'
  if (users === 'off')
    return { name, state: 'warn', detail: `off: all QEMUs run as the node's user, ${shared}`, advice: 'set qemu.users: auto in node.yaml' }
  const range = users === 'auto' ? DEFAULT_USERS : users
  const problem = confinementProblem(range)
  if (problem === undefined)
    return { name, state: 'ok', detail: `each VM's QEMU runs as a user of its own, ${range.from} to ${range.from + range.count - 1}` }
  return {
    name,
    state: users === 'auto' ? 'warn' : 'fail',
    detail: `${problem}: all QEMUs run as its user, ${shared}`,
    advice: 'run the node as root with the capabilities of packaging/godwit-node.service',
  }
}

function acceleratorCheck({ accelerators }: QemuAbilities): Check {
  const name = 'accelerator'
  if (accelerators.includes('kvm')) return { name, state: 'ok', detail: `a guest ran under ${accelerators.join(' and under ')}` }
  if (accelerators.length === 0)
    return {
      name,
      state: 'fail',
      detail: 'no guest ran within 3 s',
      advice: 'see whether the host is overloaded, then qemu-system-x86_64 by hand',
    }
  return {
    name,
    state: 'warn',
    detail: 'a guest ran under tcg, none under kvm: guests are slow, and TCG is no security boundary',
    advice: 'use a host with hardware virtualisation and access to /dev/kvm',
  }
}

/** Pure: which methods a host with this QEMU and these accelerators has. */
export function methodChecks(version: string, { accelerators }: Pick<QemuAbilities, 'accelerators'>): Check[] {
  if (accelerators.length === 0)
    return ['live', 'cold'].map(method => ({ name: `method ${method}`, state: 'fail', detail: 'no guest runs here' }))
  const cold: Check = { name: 'method cold', state: 'ok', detail: 'stop, copy, start' }
  if (compareVersions(version, LIVE_TCG_MINIMUM, 2) >= 0) {
    return [
      { name: 'method live', state: 'ok', detail: `QEMU ${version} copies a running guest rightly under ${accelerators.join(' and ')}` },
      cold,
    ]
  }
  if (accelerators.includes('kvm'))
    return [{ name: 'method live', state: 'ok', detail: `under kvm only: QEMU ${version} misses pages under tcg` }, cold]
  return [
    {
      name: 'method live',
      state: 'warn',
      detail: `no: QEMU ${version} under tcg misses dirty pages in pre-copy, so live is refused`,
      advice: `${INSTALL}, or migrate with --method cold`,
    },
    cold,
  ]
}
