// What becomes of a VM when an agent starts and finds what an earlier one left. Enters: the record, the folder. Leaves: the record as it stands now, and the running QEMU.
// Always holds: a guest is resumed only where the record says that it may run; who is in doubt leaves it paused and says so.
import { existsSync } from 'node:fs'
import { eventually } from '../../ops/deadline.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { adoptMachine, exitError, type RunningVm } from './machine.ts'
import { bootId } from './process.ts'
import type { VmRecord } from './records.ts'
import { killLeftover, qemuLogTail, readProcessFile } from './runtime-folder.ts'
import type { VmSpec } from './spec.ts'

export type Adopted = { record: VmRecord; vm: RunningVm | undefined }

const CANCEL_TIMEOUT_MS = 10_000
const ENDED: readonly string[] = ['none', 'completed', 'failed', 'cancelled']

/** `record` undefined: the store knows nothing of this folder (it was lost). An `incoming` VM must be dropped before: it was never ours. */
export async function adopt(spec: VmSpec, dir: string, record: VmRecord | undefined, log: Log): Promise<Adopted> {
  if (!record) return adoptUnknown(spec, dir, log)
  if (record.state === 'stopped' || record.state === 'failed') {
    await killLeftover(dir) // its end had been decided
    return { record, vm: undefined }
  }
  const file = await readProcessFile(dir)
  const rebooted = file !== undefined && file.identity.bootId !== bootId()
  const vm = await adoptMachine({ spec, dir, log })
  if (!vm) return { record: await endedRecord(spec, dir, record, rebooted), vm }
  const state = await settle(vm, record, log)
  if (state !== 'stopped') return { record: { ...record, ...state }, vm }
  await vm.stop({ force: true })
  return { record: { ...record, state, resumePending: false, doubt: false }, vm: undefined }
}

async function adoptUnknown(spec: VmSpec, dir: string, log: Log): Promise<Adopted> {
  const vm = existsSync(dir) ? await adoptMachine({ spec, dir, log }) : undefined
  const running = vm !== undefined && (await vm.commands.queryStatus()).running
  const failure = new GodwitError('MIGRATION_DOUBT', `the record of ${spec.name} is lost`).toJSON()
  log.error('a VM without a record', { vm: spec.name, running })
  return {
    record: { version: 1, state: vm ? (running ? 'running' : 'paused') : 'failed', epoch: 0, resumePending: false, doubt: true, failure },
    vm,
  }
}

async function endedRecord(spec: VmSpec, dir: string, record: VmRecord, rebooted: boolean): Promise<VmRecord> {
  // A VM that ended in the middle of a migration may run at the target: its fresh start here needs a person's word.
  const doubt = record.doubt || record.state === 'migrating'
  if (rebooted) return { ...record, state: 'stopped', resumePending: false, doubt }
  const failure = exitError(spec.name, { code: null, signal: null, logTail: await qemuLogTail(dir) }).toJSON()
  return { ...record, state: 'failed', resumePending: false, doubt, failure }
}

async function settle(vm: RunningVm, record: VmRecord, log: Log): Promise<'stopped' | Pick<VmRecord, 'state' | 'resumePending' | 'doubt'>> {
  if (record.state === 'migrating') await cancelOutgoing(vm, log)
  const { status, running } = await vm.commands.queryStatus()
  const doubt = record.doubt
  if (running) return { state: 'running', resumePending: false, doubt }
  if (record.state === 'migrating') {
    log.error('a VM was left in the middle of a hand-over: it stays paused', { vm: vm.name, status })
    return { state: 'paused', resumePending: false, doubt: true }
  }
  if (status === 'shutdown') return 'stopped'
  if (record.resumePending && (status === 'prelaunch' || status === 'paused')) {
    await vm.commands.cont()
    return { state: 'running', resumePending: false, doubt }
  }
  return { state: 'paused', resumePending: false, doubt }
}

/** Ends a pre-copy that an earlier agent had begun. QEMU lets the guest run on by itself unless the hand-over had begun. */
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
    log.warn('cannot cancel the migration of an earlier agent', { vm: vm.name, error })
  }
}
