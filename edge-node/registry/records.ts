// The records of this site's VMs: state and epoch, in the store. Enters: changes. Leaves: records that are on the disk
// (fsync) before anything that follows from them.
// Always holds: the highest epoch ever seen of a VM's name stays, also after the VM has moved to another site, so that
// a message of an earlier owner is recognised.
import type { Store } from '../../ops/store.ts'
import type { ErrorBody } from '../../wire/errors.ts'

export type VmRecordState = 'stopped' | 'running' | 'paused' | 'migrating' | 'incoming' | 'failed'

export type VmRecord = {
  version: 1
  state: VmRecordState
  /** Raised by one with each change of owner. */
  epoch: number
  /** The guest may run, and `cont` may not have been sent yet: an agent that finds it paused sends it. */
  resumePending: boolean
  /** It is not certain that this site owns the VM: it runs only when a person decides so. */
  doubt: boolean
  /** It migrates without a QEMU: it is stopped at the site that owns it in the end. */
  stopped?: boolean | undefined
  failure?: ErrorBody | undefined
}

const VMS = 'vms'
const EPOCHS = 'vm-epochs'

export const readRecord = (store: Store, name: string): Promise<VmRecord | undefined> => store.get<VmRecord>(VMS, name)

export const highestEpoch = async (store: Store, name: string): Promise<number> => (await store.get<number>(EPOCHS, name)) ?? 0

/**
 * Whether a VM of this name was ever written down here: then a missing record means that it was forgotten, not lost.
 */
export const isName = async (store: Store, name: string): Promise<boolean> => (await store.get<number>(EPOCHS, name)) !== undefined

/** Writes the record, and the epoch if it is the highest, as one durable step. */
export async function writeRecord(store: Store, name: string, record: VmRecord): Promise<void> {
  const epoch = Math.max(record.epoch, await highestEpoch(store, name))
  await store.batch(
    [
      { type: 'put', table: VMS, key: name, value: record },
      { type: 'put', table: EPOCHS, key: name, value: epoch },
    ],
    { sync: true },
  )
}

/** Forgets the VM, keeps its highest epoch (at least `epoch`). */
export async function removeRecord(store: Store, name: string, epoch: number): Promise<void> {
  const highest = Math.max(epoch, await highestEpoch(store, name))
  await store.batch(
    [
      { type: 'delete', table: VMS, key: name },
      { type: 'put', table: EPOCHS, key: name, value: highest },
    ],
    { sync: true },
  )
}
