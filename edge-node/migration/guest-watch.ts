// The guest's own end while its VM migrates. Enters: QEMU's events and its word at the beginning. Leaves: an error that
// ends the migration, at once.
// Always holds: what is over is not copied any further and nothing lets it run again; a guest that reboots goes on
// migrating; one that falls asleep does so too where its QEMU can move it asleep. Device state carries no request to
// power off, so a guest whose end comes as its CPUs are stopped for the switch-over has ended as well: at the target it
// would wait for ever for a machine that turns off.
import { GodwitError } from '../../wire/errors.ts'
import type { QmpClient } from '../qmp/client.ts'
import { qmpCommands } from '../qmp/commands.ts'
import { canMoveSuspended, type GuestState, guestEnd, guestState } from '../vm/run-state.ts'

export type GuestWatch = {
  /** Asks QEMU, for what was before the watch: GUEST_STOPPED, GUEST_CRASHED, GUEST_SUSPENDED. */
  check(): Promise<void>
  stop(): void
}

type GuestWatchOptions = {
  vm: string
  qmp: QmpClient
  /** GUEST_STOPPED or GUEST_CRASHED: it is over. GUEST_SUSPENDED: it sleeps, and this QEMU would wake it. */
  onEnd: (error: GodwitError) => void
}

export function watchGuest({ vm, qmp, onEnd }: GuestWatchOptions): GuestWatch {
  const { major, minor } = qmp.version
  const problem = (guest: GuestState): GodwitError | undefined => {
    if (guest !== 'suspended' || canMoveSuspended(String(major))) return guestEnd(vm, guest)
    return new GodwitError(
      'GUEST_SUSPENDED',
      `the guest of ${vm} is suspended, and QEMU ${major}.${minor} would wake it during the migration`,
    )
  }
  const is = (guest: GuestState) => {
    const error = problem(guest)
    if (error) onEnd(error)
  }
  const offs = [
    qmp.on('SHUTDOWN', ({ data }) => (data.guest === true ? is('off') : undefined)),
    qmp.on('GUEST_PANICKED', ({ data }) => (data.action === 'run' ? undefined : is('panicked'))),
    qmp.on('SUSPEND', () => is('suspended')),
  ]
  return {
    async check() {
      const error = problem(guestState((await qmpCommands(qmp).queryStatus()).status))
      if (error) throw error
    },
    stop() {
      for (const off of offs.splice(0)) off()
    },
  }
}
