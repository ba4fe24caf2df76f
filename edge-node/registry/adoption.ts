// What an earlier life of the agent left: folders, records, QEMUs that run. Enters: the folders of this site. Leaves:
// entries with their records as they are now, and with the QEMUs that still run.
// Always holds: a guest is resumed only where the record allows it to run; a VM in doubt stays paused; a reservation
// that nobody waits for is removed; one VM that cannot be adopted does not keep the others from being served.
import { eventually } from '../../ops/deadline.ts'
import type { Store } from '../../ops/store.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { exitError } from '../vm/exit.ts'
import type { RunningVm } from '../vm/machine.ts'
import { guestState } from '../vm/run-state.ts'
import type { VmSpec } from '../vm/spec.ts'
import type { Entries } from './entries.ts'
import type { Guests } from './guests.ts'
import type { Launcher } from './launch.ts'
import { isName, readRecord, removeRecord, type VmRecord } from './records.ts'
import type { Resources } from './resources.ts'
import type { VmHost } from './vm-host.ts'

type AdoptionOptions = {
  vmHost: VmHost
  store: Store
  resources: Resources
  entries: Entries
  guests: Guests
  launcher: Launcher
  /** Whether an incoming VM is still of use: a loaded one that may be granted yet. */
  keepIncoming: (name: string) => boolean
  log: Log
}

type Adopted = { record: VmRecord; vm: RunningVm | undefined }

const CANCEL_TIMEOUT_MS = 10_000
const ENDED: readonly string[] = ['none', 'completed', 'failed', 'cancelled']

/** Adopts every VM that has a folder here. */
export async function adoptAll(options: AdoptionOptions): Promise<void> {
  const { resources, log } = options
  for (const name of await resources.names()) {
    try {
      await adoptOne(name, options)
    } catch (error) {
      log.error('VM could not be adopted', { vm: name, error })
    }
  }
}

async function adoptOne(name: string, options: AdoptionOptions): Promise<void> {
  const { vmHost, store, resources, entries, guests, launcher, log } = options
  const spec = await resources.specOf(name)
  const dir = resources.folder(name)
  const known = await readRecord(store, name)
  // An epoch (be it 0) without a record: the VM was forgotten, and the agent died before its folder was removed.
  const forgotten = known === undefined && (await isName(store, name))
  const isKept = known?.state === 'incoming' && options.keepIncoming(name)
  const waiting = isKept ? await vmHost.adoptMachine({ spec, dir, log }) : undefined
  if (forgotten || (known?.state === 'incoming' && !waiting)) {
    await resources.endQemu(name)
    await removeRecord(store, name, known?.epoch ?? 0)
    return await resources.leave(name)
  }
  const { record, vm } = waiting ? { record: known!, vm: waiting } : await adopt(spec, dir, known, options)
  const entry = await entries.takeUp(spec, record, vm)
  if (!vm) return
  await launcher.confineAgain(spec, vm)
  guests.watch(entry, vm)
  await guests.look(entry)
  log.info('adopted', { vm: name, pid: vm.pid, state: record.state })
}

type Tools = Pick<AdoptionOptions, 'vmHost' | 'log'>

/**
 * `record` undefined: the store has no record of this folder (it was lost). An `incoming` VM must be dropped before: it
 * was never ours.
 */
async function adopt(spec: VmSpec, dir: string, record: VmRecord | undefined, { vmHost, log }: Tools): Promise<Adopted> {
  if (!record) return adoptUnknown(spec, dir, { vmHost, log })
  if (record.state === 'stopped' || record.state === 'failed') {
    await vmHost.killLeftover(dir) // its end had been decided
    return { record, vm: undefined }
  }
  const isRebooted = await vmHost.isOfEarlierBoot(dir)
  const vm = await vmHost.adoptMachine({ spec, dir, log })
  if (!vm) return { record: endedRecord(spec, record, isRebooted || (await vmHost.qemuLogTail(dir))), vm }
  return { record: { ...record, ...(await settle(vm, record, log)) }, vm }
}

async function adoptUnknown(spec: VmSpec, dir: string, { vmHost, log }: Tools): Promise<Adopted> {
  const vm = await vmHost.adoptMachine({ spec, dir, log })
  const running = vm !== undefined && (await vm.commands.queryStatus()).running
  const failure = new GodwitError('MIGRATION_DOUBT', `the record of ${spec.name} is lost`).toJSON()
  log.error('VM without a record', { vm: spec.name, running })
  return {
    record: { version: 1, state: vm ? (running ? 'running' : 'paused') : 'failed', epoch: 0, resumePending: false, doubt: true, failure },
    vm,
  }
}

/** `how`: the last lines of QEMU's log, or true when the host was rebooted. */
function endedRecord(spec: VmSpec, record: VmRecord, how: string | true): VmRecord {
  // A VM that ended in the middle of a migration may run at the target: only a person may start it anew here.
  const doubt = record.doubt || record.state === 'migrating'
  if (record.stopped) return { ...record, state: 'stopped', stopped: undefined, resumePending: false, doubt }
  if (how === true) return { ...record, state: 'stopped', resumePending: false, doubt }
  const failure = exitError(`QEMU of ${spec.name}`, { code: null, signal: null, logTail: how }).toJSON()
  return { ...record, state: 'failed', resumePending: false, doubt, failure }
}

async function settle(vm: RunningVm, record: VmRecord, log: Log): Promise<Pick<VmRecord, 'state' | 'resumePending' | 'doubt'>> {
  if (record.state === 'migrating') await cancelOutgoing(vm, log)
  const { status, running } = await vm.commands.queryStatus()
  const doubt = record.doubt
  const guest = guestState(status)
  if (running) return { state: 'running', resumePending: false, doubt }
  if (record.state === 'migrating') {
    log.error('VM stays paused: its hand-over is not complete', { vm: vm.name, status })
    return { state: 'paused', resumePending: false, doubt: true }
  }
  // One that sleeps goes on sleeping; where the guest is over, guests.look() ends the QEMU.
  if (guest !== 'paused') return { state: 'running', resumePending: false, doubt }
  if (record.resumePending && (status === 'prelaunch' || status === 'paused')) {
    await vm.commands.cont()
    return { state: 'running', resumePending: false, doubt }
  }
  return { state: 'paused', resumePending: false, doubt }
}

/**
 * Ends a pre-copy that an earlier agent had begun. QEMU lets the guest run on by itself unless the hand-over had begun.
 */
async function cancelOutgoing(vm: RunningVm, log: Log): Promise<void> {
  try {
    const { status } = await vm.commands.queryMigrate()
    if (ENDED.includes(status)) return
    await vm.commands.migrateCancel()
    await eventually(async () => (ENDED.includes((await vm.commands.queryMigrate()).status) ? true : undefined), {
      ms: CANCEL_TIMEOUT_MS,
      what: 'the end of the cancelled migration',
    })
  } catch (error) {
    log.warn('migration of an earlier agent could not be cancelled', { vm: vm.name, error })
  }
}
