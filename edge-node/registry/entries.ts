// The VMs of this site by name: their records, and the order in which they are changed. Enters: VMs that come and go,
// changes of records, orders.
// Leaves: each VM as it is now; a call to each listener after each change.
// Always holds: one order at a time for a VM; a record is on the disk before anything that follows from it; a VM that
// is forgotten leaves its epoch only.
import type { Store } from '../../ops/store.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { RunningVm } from '../vm/machine.ts'
import type { VmSpec } from '../vm/spec.ts'
import { factsOf, type LocalVmFacts, newEntry, type VmEntry } from './entry.ts'
import { highestEpoch, removeRecord, type VmRecord, writeRecord } from './records.ts'
import type { Resources } from './resources.ts'

type EntriesOptions = {
  store: Store
  resources: Resources
  /** Places that are held for VMs that may come, but for this one. */
  heldBesides: (name: string) => number
  /** The node is shutting down: no further order begins. */
  closing: AbortSignal
  log: Log
}

/** `usesCopy`: an incoming one may begin with its warm copy. */
type NewVm = Pick<VmRecord, 'state' | 'epoch' | 'stopped'> & { usesCopy?: boolean | undefined }

const MAX_VMS = 256

export class Entries {
  readonly #options: EntriesOptions
  readonly #entries = new Map<string, VmEntry>()
  readonly #listeners = new Set<() => void>()

  constructor(options: EntriesOptions) {
    this.#options = options
  }

  // --- looking ---

  all(): VmEntry[] {
    return [...this.#entries.values()]
  }

  find(name: string): VmEntry | undefined {
    return this.#entries.get(name)
  }

  /** VM_UNKNOWN when there is none. */
  get(name: string): VmEntry {
    const entry = this.#entries.get(name)
    if (!entry) throw new GodwitError('VM_UNKNOWN', `no VM named ${name} at this site`)
    return entry
  }

  facts(name: string): LocalVmFacts {
    return factsOf(this.get(name))
  }

  /** The QEMU of a VM that has one now; VM_STATE otherwise. */
  machine(name: string): RunningVm {
    const { vm } = this.get(name)
    if (!vm) throw this.wrongState(name, 'has no running QEMU')
    return vm
  }

  /** The highest epoch that was ever seen of this name; 0 for none. */
  highestEpoch(name: string): Promise<number> {
    return highestEpoch(this.#options.store, name)
  }

  wrongState(name: string, what: string, hint?: string): GodwitError {
    return new GodwitError('VM_STATE', `${name} ${what} (it is ${this.facts(name).state})`, hint === undefined ? {} : { hint })
  }

  /** Calls `listener` after each change of any VM's state. Returns what takes it off again. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  changed(): void {
    for (const listener of [...this.#listeners]) listener()
  }

  // --- turns ---

  /** Runs an order when those before it have ended. */
  async inTurn<T>(name: string, order: (entry: VmEntry) => Promise<T>): Promise<T> {
    const entry = this.get(name)
    if (this.#options.closing.aborted) throw new GodwitError('VM_STATE', 'the node is shutting down')
    const mine = entry.turn.then(() => {
      if (this.#entries.get(name) !== entry) throw new GodwitError('VM_UNKNOWN', `no VM named ${name} at this site any more`)
      return order(entry)
    })
    entry.turn = mine.catch(() => {})
    return mine
  }

  /** An order that nobody waits for. */
  later(entry: VmEntry, order: () => Promise<void>): void {
    const { closing, log } = this.#options
    this.inTurn(entry.spec.name, order).catch(error => {
      if (!closing.aborted) log.warn('state change of a VM could not be processed', { vm: entry.spec.name, error })
    })
  }

  // --- changing ---

  /**
   * A VM that is new here, with its record and what it has at this site. VM_EXISTS, LIMIT_EXCEEDED, CONFIG_UNREADABLE.
   */
  async insert(spec: VmSpec, { state, epoch, stopped, usesCopy = false }: NewVm): Promise<VmEntry> {
    const { store, resources, heldBesides } = this.#options
    if (this.#entries.has(spec.name)) throw new GodwitError('VM_EXISTS', `a VM named ${spec.name} exists at this site`)
    if (this.#entries.size + heldBesides(spec.name) >= MAX_VMS) throw new GodwitError('LIMIT_EXCEEDED', `${MAX_VMS} VMs exist at this site`)
    const entry = newEntry(spec, { version: 1, state, epoch, resumePending: false, doubt: false, stopped })
    this.#entries.set(spec.name, entry) // before the first await: two orders of one name must not both pass
    try {
      // The record first: a folder without one would look like a VM whose record is lost.
      await writeRecord(store, spec.name, entry.record)
      await (state === 'incoming' ? resources.reserve(spec, usesCopy) : resources.create(spec))
    } catch (error) {
      // What was made of it (a disk, when the file system is full) goes again; its epoch was never used.
      await removeRecord(store, spec.name, await highestEpoch(store, spec.name).catch(() => epoch)).catch(() => {})
      await resources.leave(spec.name).catch(() => {})
      this.#entries.delete(spec.name)
      throw toGodwitError(error, 'CONFIG_UNREADABLE')
    }
    this.changed()
    return entry
  }

  /** A VM that an earlier agent left. */
  async takeUp(spec: VmSpec, record: VmRecord, vm: RunningVm | undefined): Promise<VmEntry> {
    const entry = newEntry(spec, record, vm)
    this.#entries.set(spec.name, entry)
    await writeRecord(this.#options.store, spec.name, record)
    return entry
  }

  /** Durable when it resolves. */
  async update(entry: VmEntry, change: Partial<VmRecord>): Promise<void> {
    const record = { ...entry.record, ...change }
    await writeRecord(this.#options.store, entry.spec.name, record)
    entry.record = record
    this.changed()
  }

  /** Removes the VM and all that it has at this site, but what is kept as a warm copy; its highest epoch stays. */
  async forget(entry: VmEntry, epoch: number, keep: 'nothing' | 'copy'): Promise<void> {
    const { store, resources } = this.#options
    const { name } = entry.spec
    await removeRecord(store, name, epoch)
    await resources.endQemu(name)
    await (keep === 'copy' ? resources.leave(name) : resources.remove(name))
    this.#entries.delete(name)
    this.changed()
  }

  // --- the end ---

  /** When the orders at hand have ended. */
  async idle(): Promise<void> {
    await Promise.allSettled(this.all().map(({ turn }) => turn))
  }

  unlisten(): void {
    this.#listeners.clear()
  }
}
