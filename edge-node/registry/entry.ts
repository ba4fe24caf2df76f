// One VM as the registry holds it, and the facts that are listed of it. Pure. Enters: spec, record, QEMU, guest.
// Leaves: facts for people and the gateway.
// Always holds: a VM is listed as running only while its guest runs; `runsHere` is false for a VM that another site may
// own.
import type { ErrorBody } from '../../wire/errors.ts'
import type { Accelerator } from '../vm/argv.ts'
import type { SeenFile } from '../vm/held-files.ts'
import type { RunningVm } from '../vm/machine.ts'
import type { GuestState } from '../vm/run-state.ts'
import type { VmSpec } from '../vm/spec.ts'
import type { VmRecord, VmRecordState } from './records.ts'

export type LocalVmFacts = {
  name: string
  /** `suspended`: the guest sleeps (ACPI S3) until it is woken. */
  state: VmRecordState | 'suspended'
  epoch: number
  memoryBytes: number
  vcpus: number
  accelerator?: Accelerator | undefined
  pid?: number | undefined
  /** It is not certain that this site owns the VM. */
  doubt: boolean
  failure?: ErrorBody | undefined
}

export type VmEntry = {
  readonly spec: VmSpec
  record: VmRecord
  vm: RunningVm | undefined
  /** The state of the guest of a VM that has a QEMU, whatever its record holds. */
  guest: GuestState
  /**
   * QEMU has reported the end of the guest. Its run state may be a migration's meanwhile and not show that end later.
   */
  over: GuestState | undefined
  /** The agent itself is ending this QEMU: its exit is no failure. */
  ending: boolean
  /** Its files as the last check of a migration found them. */
  seen?: SeenFile[]
  /** The last order for this VM: the next one waits for it. */
  turn: Promise<unknown>
}

export const newEntry = (spec: VmSpec, record: VmRecord, vm?: RunningVm): VmEntry => ({
  ...{ spec, record, vm, guest: 'running', over: undefined, ending: false, turn: Promise.resolve() },
})

export const factsOf = ({ spec, record, vm, guest }: VmEntry): LocalVmFacts => ({
  name: spec.name,
  state: record.state !== 'running' || guest === 'running' ? record.state : guest === 'suspended' ? 'suspended' : 'paused',
  epoch: record.epoch,
  memoryBytes: spec.memoryBytes,
  vcpus: spec.vcpus,
  accelerator: vm?.accelerator,
  pid: vm?.pid,
  doubt: record.doubt,
  failure: record.failure,
})

/** Whether the guest runs here now: its QEMU is alive, its CPUs are not stopped, and no other site owns it. */
export const runsHere = ({ record, vm, guest }: VmEntry): boolean =>
  vm?.alive === true && guest === 'running' && !record.doubt && (record.state === 'running' || record.state === 'migrating')
