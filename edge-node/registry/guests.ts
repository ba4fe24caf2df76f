// The guests of running QEMUs: what each does, and what follows when it ends. Enters: events of QMP, exits of QEMUs.
// Leaves: changes of entries.
// Always holds: a QEMU whose guest is over is ended: its VM is stopped, or failed with a code; while a migration has
// the VM, nothing is ended here; the exit of a QEMU that the agent itself ends is no failure.
import { hasCode } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { exitError } from '../vm/exit.ts'
import type { RunningVm } from '../vm/machine.ts'
import { type GuestState, guestEnd, guestState } from '../vm/run-state.ts'
import type { Entries } from './entries.ts'
import type { VmEntry } from './entry.ts'

export class Guests {
  readonly #entries: Entries
  readonly #closing: AbortSignal
  readonly #log: Log

  constructor({ entries, closing, log }: { entries: Entries; closing: AbortSignal; log: Log }) {
    this.#entries = entries
    this.#closing = closing
    this.#log = log
  }

  /** From now on the entry follows this QEMU. */
  watch(entry: VmEntry, vm: RunningVm): void {
    const becomes = (guest: GuestState) => {
      entry.guest = guest
      if (entry.record.state === 'running') this.#entries.changed()
    }
    const isOver = (guest: GuestState) => {
      entry.over = guest
      look()
    }
    const look = () => {
      if (entry.vm === vm && !entry.ending && entry.record.state === 'running') this.#entries.later(entry, () => this.look(entry))
    }
    vm.qmp.on('STOP', () => {
      becomes('paused')
      // A CPU that cannot go on has no event of its own.
      look()
    })
    vm.qmp.on('RESUME', () => {
      becomes('running')
      if (entry.record.resumePending && entry.record.state === 'running')
        this.#entries.later(entry, () => this.#entries.update(entry, { resumePending: false }))
      // The guest may still sleep after a `cont`.
      look()
    })
    vm.qmp.on('SUSPEND', () => becomes('suspended'))
    vm.qmp.on('WAKEUP', () => becomes('running'))
    vm.qmp.on('SHUTDOWN', ({ data }) => {
      if (data.guest === true) isOver('off')
    })
    vm.qmp.on('GUEST_PANICKED', ({ data }) => {
      if (data.action !== 'run') isOver('panicked')
    })
    void vm.exited.then(exit => {
      if (entry.vm !== vm || entry.ending || this.#closing.aborted) return
      entry.vm = undefined
      this.#log.error('QEMU exited unexpectedly', { vm: entry.spec.name, code: exit.code, signal: exit.signal })
      // Of an incoming VM the migration engine has `exited` as well, and drops the reservation.
      if (entry.record.state === 'incoming') return
      const failure = exitError(`QEMU of ${entry.spec.name}`, exit).toJSON()
      this.#entries.later(entry, () => this.#entries.update(entry, { state: 'failed', resumePending: false, failure }))
    })
  }

  /** Asks QEMU what the guest does. A QEMU whose guest is over is ended: the VM is stopped, or has failed. */
  async look(entry: VmEntry): Promise<void> {
    if (!entry.vm || entry.record.state !== 'running') return
    const { status } = await entry.vm.commands.queryStatus()
    const before = entry.guest
    entry.guest = guestState(status)
    const end = guestEnd(entry.spec.name, entry.over ?? entry.guest)
    if (!end) return entry.guest === before ? undefined : this.#entries.changed()
    this.#log.info('guest ended', { vm: entry.spec.name, code: end.code, status })
    await this.end(entry, vm => vm.stop())
    const isStopped = hasCode(end, 'GUEST_STOPPED')
    await this.#entries.update(entry, {
      state: isStopped ? 'stopped' : 'failed',
      resumePending: false,
      ...(isStopped ? {} : { failure: end.toJSON() }),
    })
  }

  /** Lets the guest run on, or wakes it. */
  async resume(entry: VmEntry): Promise<void> {
    const { vm } = entry
    if (entry.guest === 'suspended') await vm?.commands.systemWakeup()
    else await vm?.commands.cont()
    entry.guest = 'running'
    // The guest runs: a failed write changes nothing of that, and the `cont` of the next agent to a running guest has
    // no effect.
    await this.#entries
      .update(entry, { resumePending: false })
      .catch(error => this.#log.warn('running state of a VM could not be recorded', { vm: entry.spec.name, error }))
  }

  async wake(entry: VmEntry): Promise<void> {
    await entry.vm?.commands.systemWakeup()
    entry.guest = 'running'
    this.#entries.changed()
  }

  /** Ends the VM's QEMU, if it has one, because the agent wants it. */
  async end(entry: VmEntry, how: (vm: RunningVm) => Promise<unknown>): Promise<void> {
    const { vm } = entry
    if (!vm) return
    entry.ending = true
    try {
      await how(vm)
      if (entry.vm === vm) entry.vm = undefined
    } finally {
      entry.ending = false
    }
  }
}
