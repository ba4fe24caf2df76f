// VMs that leave for other sites: what they need there, begin, end, settle. Enters: names, how a migration ended.
// Leaves: the machine to migrate, the record that follows from the end.
// Always holds: a VM in doubt does not begin to migrate; one that has moved leaves nothing here but its epoch; one in
// doubt stays paused until it is settled.

import type { Method } from '../../wire/control.ts'
import { type ErrorBody, GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { HashOptions } from '../disks/digests.ts'
import type { Leaves } from '../disks/leaves.ts'
import type { RunningVm } from '../vm/machine.ts'
import type { VmNeeds } from '../vm/preflight.ts'
import { workingAccelerator } from '../vm/qemu.ts'
import { canMoveSuspended } from '../vm/run-state.ts'
import type { Passage } from './coming-disks.ts'
import type { Entries } from './entries.ts'
import type { VmEntry } from './entry.ts'
import type { Guests } from './guests.ts'
import type { LocalDisks } from './local-disks.ts'
import type { VmRecord } from './records.ts'
import type { Resources } from './resources.ts'
import type { SiteFiles } from './site-files.ts'
import type { SiteHost } from './site-host.ts'

/** `start`: a VM that does not run starts at the target. */
export type NeedsOptions = HashOptions & { start?: boolean | undefined }

type DeparturesOptions = {
  entries: Entries
  guests: Guests
  files: SiteFiles
  host: SiteHost
  resources: Resources
  localDisks: LocalDisks
  log: Log
}

/** Of a VM that has moved: where to, and what its disks hold as far as it is known. */
export type LeftFor = { peer: Passage['peer']; leaves?: readonly Leaves[] | undefined }

export class Departures {
  readonly #entries: Entries
  readonly #guests: Guests
  readonly #files: SiteFiles

  readonly #host: SiteHost
  readonly #resources: Resources
  readonly #localDisks: LocalDisks
  readonly #log: Log

  constructor({ entries, guests, files, host, resources, localDisks, log }: DeparturesOptions) {
    this.#entries = entries
    this.#guests = guests
    this.#files = files
    this.#host = host
    this.#resources = resources
    this.#localDisks = localDisks
    this.#log = log
  }

  async needs(name: string, method: Method, { start = false, ...options }: NeedsOptions): Promise<VmNeeds> {
    const entry = this.#entries.get(name)
    const { spec, vm } = entry
    if (!vm && entry.record.stopped && method === 'cold') return await this.#needsOfStopped(entry, start, options)
    if (!vm) throw this.#entries.wrongState(name, 'cannot be migrated: it does not run')
    const files = await this.#files.heldBy(entry, vm, options)
    const { qemuVersion, accelerator } = vm
    return { spec, qemuVersion, accelerator, method, files, ...(await this.#files.shared(spec)) }
  }

  async #needsOfStopped(entry: VmEntry, start: boolean, options: HashOptions): Promise<VmNeeds> {
    const { spec } = entry
    const { qemuVersion, accelerators } = await this.#host.info(spec)
    if (qemuVersion === undefined) throw new GodwitError('PREFLIGHT_QEMU_MISSING', 'this site has no QEMU')
    const accelerator = workingAccelerator(spec.accelerator, accelerators) ?? 'tcg'
    const files = await this.#files.namedBy(entry, options)
    const stopped = start ? 'starts' : 'stays'
    return { spec, qemuVersion, accelerator, method: 'cold', files, stopped, ...(await this.#files.shared(spec)) }
  }

  async begin(name: string): Promise<RunningVm> {
    return this.#entries.inTurn(name, async entry => {
      this.#assertSettled(entry)
      const { state } = this.#entries.facts(name)
      if ((state !== 'running' && state !== 'suspended') || !entry.vm)
        throw this.#entries.wrongState(
          name,
          'cannot be migrated: it does not run',
          'run godwit vm start; a stopped VM moves with --method cold',
        )
      if (state === 'suspended' && !canMoveSuspended(entry.vm.qemuVersion))
        throw new GodwitError(
          'GUEST_SUSPENDED',
          `the guest of ${name} is suspended, and QEMU ${entry.vm.qemuVersion} would wake it during the migration`,
        )
      await this.#entries.update(entry, { state: 'migrating', resumePending: false })
      return entry.vm
    })
  }

  async beginStopped(name: string): Promise<void> {
    await this.#entries.inTurn(name, async entry => {
      this.#assertSettled(entry)
      if (entry.record.state !== 'stopped') throw this.#entries.wrongState(name, 'cannot be moved as a stopped VM')
      await this.#entries.update(entry, { state: 'migrating', stopped: true })
    })
  }

  #assertSettled({ spec, record }: VmEntry): void {
    if (record.state === 'migrating') throw new GodwitError('MIGRATION_BUSY', `${spec.name} is already migrating`)
    if (record.doubt) throw new GodwitError('MIGRATION_DOUBT', `it is not certain that ${spec.name} belongs to this site`)
  }

  async end(name: string, outcome: 'moved' | 'kept' | 'doubt', epoch?: number, left?: LeftFor): Promise<void> {
    await this.#entries.inTurn(name, async entry => {
      const { state, epoch: known, stopped } = entry.record
      // QEMU ended meanwhile: the VM is ours all the same, at the epoch that the migration's end gave it.
      if (state === 'failed' && outcome === 'kept')
        return await this.#entries.update(entry, { doubt: false, epoch: Math.max(known, epoch ?? 0) })
      if (state !== 'migrating' && state !== 'failed') throw this.#entries.wrongState(name, 'is not migrating')
      if (outcome === 'moved') return await this.#leave(entry, epoch ?? known + 1, left)
      const after = stopped ? 'stopped' : outcome === 'doubt' ? 'paused' : 'running'
      if (outcome === 'doubt') return await this.#entries.update(entry, { ...inDoubt(), state: after, stopped: undefined })
      await this.#entries.update(entry, { state: after, stopped: undefined, epoch: epoch ?? known })
      await this.#guests.look(entry)
    })
  }

  async settle(name: string, outcome: 'moved' | 'kept', epoch: number, left?: LeftFor): Promise<void> {
    await this.#entries.inTurn(name, async entry => {
      const { record, vm } = entry
      if (!record.doubt && record.epoch >= epoch) throw this.#entries.wrongState(name, 'is not in doubt')
      if (outcome === 'moved') return await this.#leave(entry, epoch, left)
      await this.#entries.update(entry, keptAfterDoubt(record, vm !== undefined, epoch))
      await this.#guests.look(entry)
    })
  }

  /** Its QEMU is killed, without asking the guest: it runs at another site. */
  async #leave(entry: VmEntry, epoch: number, left: LeftFor | undefined): Promise<void> {
    await this.#guests.end(entry, vm => vm.kill())
    if (left) await this.#noteLeft(entry, epoch, left)
    await this.#entries.forget(entry, epoch, left ? 'copy' : 'nothing')
  }

  /** Without a warm copy more has to travel when the VM returns, and that is all. */
  async #noteLeft({ spec }: VmEntry, epoch: number, { peer, leaves }: LeftFor): Promise<void> {
    const noted = this.#localDisks.noteLeft(spec, this.#resources.folder(spec.name), { epoch, peer }, leaves)
    await noted.catch(error => this.#log.warn('warm copy could not be noted', { vm: spec.name, error }))
  }
}

/** Handed over without an answer: the VM stays as it is, paused with its memory or stopped, till its owner is known. */
const inDoubt = (): Partial<VmRecord> => {
  const failure = new GodwitError('MIGRATION_DOUBT', 'handed over, and the other site has not confirmed it', { hint: 'run godwit recover' })
  return { doubt: true, failure: failure.toJSON() }
}

const keptAfterDoubt = ({ state, failure, epoch: known }: VmRecord, hasQemu: boolean, epoch: number): Partial<VmRecord> => ({
  ...(hasQemu ? { state: 'running', failure: undefined } : { state, failure: isDoubt(failure) ? undefined : failure }),
  doubt: false,
  epoch: Math.max(known, epoch),
})

const isDoubt = (failure: ErrorBody | undefined): boolean => failure?.code === 'MIGRATION_DOUBT'
