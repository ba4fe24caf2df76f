// Whether a VM can have its tap interfaces. Enters: a spec, /proc. Leaves: nothing, or which process has one of them.
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { GodwitError } from '../../wire/errors.ts'
import type { VmSpec } from './spec.ts'

/**
 * The process that has a tap open, by `iff:` of its descriptors of /dev/net/tun (drivers/net/tun.c,
 * tun_chr_show_fdinfo); undefined when none is seen. A tap carries one VM: QEMU gets EBUSY for one that is open.
 */
export function tapHolder(tap: string, proc = '/proc'): number | undefined {
  for (const pid of readdirSync(proc).filter(name => /^\d+$/.test(name))) {
    try {
      for (const fd of readdirSync(`${proc}/${pid}/fd`)) {
        if (readlinkSync(`${proc}/${pid}/fd/${fd}`) !== '/dev/net/tun') continue
        if (new RegExp(`^iff:\\s+${tap}$`, 'm').test(readFileSync(`${proc}/${pid}/fdinfo/${fd}`, 'utf8'))) return Number(pid)
      }
    } catch {
      // It has ended meanwhile, or is not ours to look at.
    }
  }
  return undefined
}

/**
 * PREFLIGHT_DEVICE_BUSY when a process has one of the VM's taps open. Nothing that is in use is named in a hint that
 * would remove it.
 */
export function assertTapsFree(
  { name, nics }: Pick<VmSpec, 'name' | 'nics'>,
  holderOf: (tap: string) => number | undefined = tapHolder,
): void {
  for (const nic of nics) {
    const pid = nic.type === 'tap' ? holderOf(nic.tap) : undefined
    if (nic.type !== 'tap' || pid === undefined) continue
    throw new GodwitError('PREFLIGHT_DEVICE_BUSY', `the tap interface ${nic.tap} of ${name} is in use by process ${pid}`, {
      hint: `give this VM its own tap, or stop the process that uses ${nic.tap}`,
    })
  }
}
