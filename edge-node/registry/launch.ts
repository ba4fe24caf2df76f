// Where a VM gets its QEMU: a process that is started for it, within the memory of this host. Enters: entries without a
// QEMU. Leaves: the QEMU, watched.
// Always holds: memory is claimed before QEMU starts, and QEMU counts by itself from the moment that the claim ends; a
// QEMU with a user of its own is kept from the network as its spec demands, also one that an earlier agent started.
import type { Log } from '../../wire/log.ts'
import type { Accelerator } from '../vm/argv.ts'
import type { UserRange } from '../vm/confine.ts'
import { type GuestFilter, isSilent } from '../vm/guest-filter.ts'
import type { RunningVm } from '../vm/machine.ts'
import { chooseAccelerator } from '../vm/qemu.ts'
import type { VmSpec } from '../vm/spec.ts'
import type { Capacity } from './capacity.ts'
import type { VmEntry } from './entry.ts'
import type { Guests } from './guests.ts'
import type { Resources } from './resources.ts'
import type { SiteFiles } from './site-files.ts'
import type { SiteHost } from './site-host.ts'
import type { VmHost } from './vm-host.ts'

type LauncherOptions = {
  startMachine: VmHost['startMachine']
  host: SiteHost
  capacity: Capacity
  resources: Resources
  files: SiteFiles
  guests: Guests
  users: UserRange | undefined
  filter: GuestFilter | undefined
  /** Ends a start. */
  closing: AbortSignal
  log: Log
}

type LaunchOptions = {
  /** It waits for a migration. */
  incoming: boolean
  /** Default: the one that the spec names. */
  accelerator?: Accelerator
  signal?: AbortSignal | undefined
}

export class Launcher {
  readonly #options: LauncherOptions

  constructor(options: LauncherOptions) {
    this.#options = options
  }

  /** Starts a QEMU for the entry, paused. PREFLIGHT_*, QEMU_*, LIMIT_EXCEEDED. */
  async launch(entry: VmEntry, { incoming, accelerator, signal }: LaunchOptions): Promise<RunningVm> {
    const { host, capacity, resources, files, guests, filter, closing, log } = this.#options
    const { spec } = entry
    await files.check(spec)
    const qemu = await host.qemu()
    const room = await capacity.claim(spec)
    try {
      const chosen = chooseAccelerator(accelerator ?? spec.accelerator, qemu.abilities.accelerators)
      host.assertMachine(spec, chosen, qemu)
      const vm = await this.#options.startMachine({
        spec,
        dir: resources.folder(spec.name),
        paths: files.paths,
        accelerator: chosen,
        incoming,
        qemu: qemu.info,
        runAs: await resources.userOf(spec.name, chosen),
        filter,
        signal: signal ? AbortSignal.any([signal, closing]) : closing,
        log,
      })
      if (vm.accelerator === 'tcg') log.warn('VM runs under TCG: slow, and not a security boundary', { vm: spec.name })
      entry.vm = vm // it counts by itself from here
      entry.guest = 'running'
      entry.over = undefined
      entry.ending = false
      guests.watch(entry, vm)
      return vm
    } finally {
      room.release()
    }
  }

  /**
   * For a QEMU of an earlier agent: the filter may have been flushed, or the host's rules loaded anew, while no agent
   * was there.
   */
  async confineAgain(spec: VmSpec, vm: RunningVm): Promise<void> {
    const { users: range, filter } = this.#options
    const uid = vm.user()
    if (!range || uid === undefined || uid < range.from || uid >= range.from + range.count) return
    await filter?.set(uid, { isSilent: isSilent(spec) })
    void vm.exited.then(() => filter?.forget(uid))
  }
}
