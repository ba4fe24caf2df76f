// What QEMU's RunState says of the guest. Pure. Enters: `status` of query-status. Leaves: what the guest is doing, and
// an error where it is over.
// Always holds: a guest that is over never goes on by `cont`: it has powered off, its kernel has panicked, or its CPU
// cannot go on. Its VM is stopped or failed.
import { GodwitError } from '../../wire/errors.ts'

/**
 * `suspended`: ACPI S3, the guest sleeps until it is woken. `off`: it has powered off. `panicked`: its kernel says so.
 * `broken`: its CPU cannot go on.
 */
export type GuestState = 'running' | 'suspended' | 'paused' | 'off' | 'panicked' | 'broken'

const OF_STATUS: Readonly<Record<string, GuestState>> = {
  running: 'running',
  suspended: 'suspended',
  shutdown: 'off',
  'guest-panicked': 'panicked',
  'internal-error': 'broken',
}

/** Any other status: the guest stands still and may go on. */
export const guestState = (status: string): GuestState => OF_STATUS[status] ?? 'paused'

/** Why the guest is over: GUEST_STOPPED or GUEST_CRASHED. undefined while it may go on. */
export function guestEnd(vm: string, guest: GuestState): GodwitError | undefined {
  if (guest === 'off') return new GodwitError('GUEST_STOPPED', `the guest of ${vm} has powered off`)
  if (guest === 'panicked') return new GodwitError('GUEST_CRASHED', `the kernel of ${vm} has panicked`)
  if (guest === 'broken') return new GodwitError('GUEST_CRASHED', `QEMU stopped ${vm} after a CPU error (internal-error)`)
  return undefined
}

/** Before 9.0 QEMU wakes a suspended guest when it migrates it, and does not let it go on sleeping. */
export const canMoveSuspended = (qemuVersion: string): boolean => Number.parseInt(qemuVersion, 10) >= 9
