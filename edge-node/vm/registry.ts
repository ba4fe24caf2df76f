// The VMs of this site. Enters: specs and orders, from people and from the migration engine. Leaves: running machines, states, coded refusals.
// Always holds: one order at a time for a VM; a record reaches the disk before the guest may run because of it; one agent for a state folder (STORE_LOCKED);
// a VM that has gone elsewhere leaves nothing here but its epoch.
import { chmod, mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { openStore, type Store } from '../../ops/store.ts'
import { type ErrorBody, GodwitError, toGodwitError } from '../../wire/errors.ts'
import { type Log, silentLog } from '../../wire/log.ts'
import { adopt } from './adopt.ts'
import { type Accelerator, type ArgvPaths, VM_FILES } from './argv.ts'
import { kvmGroup, type UserRange, type VmUser } from './confine.ts'
import type { VmConsole } from './console.ts'
import { checkSpecFiles, createFileDigests, type FileDigests, sharedFolderId, specFileFacts } from './files.ts'
import { Holds } from './holds.ts'
import { diskFreeBytes, existingTaps, hostVcpus, memoryAvailableBytes } from './host.ts'
import { adoptMachine, exitError, type RunningVm, startMachine } from './machine.ts'
import { type HostInfo, MEMORY_OVERHEAD_BYTES, type Method, preflight, type VmNeeds } from './preflight.ts'
import { allocatedMemoryBytes } from './process.ts'
import { chooseAccelerator, findQemu, QEMU_BINARY, type QemuAbilities, type QemuInfo, qemuAbilities, readQemuVersion } from './qemu.ts'
import { highestEpoch, isName, readRecord, removeRecord, type VmRecord, type VmState, writeRecord } from './records.ts'
import { killLeftover } from './runtime-folder.ts'
import { formatSize, MIB, parseSpec, specToYaml, type VmSpec } from './spec.ts'
import { openUsers, type VmUsers } from './users.ts'

export type { VmState } from './records.ts'

export type VmFacts = {
  name: string
  state: VmState
  epoch: number
  memoryBytes: number
  vcpus: number
  accelerator?: Accelerator | undefined
  pid?: number | undefined
  /** It is not certain that this site owns the VM. */
  doubt: boolean
  failure?: ErrorBody | undefined
}

export type RegistryOptions = {
  stateDir: string
  imagesDir: string
  sharedDir?: string | undefined
  /** Holds the lock of the state folder; opened as stateDir/store (and closed with the registry) when none is given. */
  store?: Store | undefined
  qemuBinary?: string | undefined
  /** Of the host's memory, never given to VMs. Default 0. */
  memoryReserveBytes?: number | undefined
  /** Each VM's QEMU runs as a user of its own from here (the agent must be root); absent: as the agent's user. */
  users?: UserRange | undefined
  /** Whether an incoming VM of an earlier life of the agent is still of use: a loaded one that may be granted yet. Default: none is; their QEMUs are ended. */
  keepIncoming?: ((name: string) => boolean) | undefined
  log?: Log
}

type Entry = {
  spec: VmSpec
  record: VmRecord
  vm: RunningVm | undefined
  /** The guest was stopped by QEMU or by somebody at its monitor, while the record says that it runs. */
  halted: boolean
  /** The agent itself is ending this QEMU: its exit is no failure. */
  ending: boolean
  /** The last order for this VM: the next one waits for it. */
  turn: Promise<unknown>
}

const MAX_VMS = 256

const isDoubt = (failure: ErrorBody | undefined): boolean => failure?.code === 'MIGRATION_DOUBT'

/** Opens the registry and adopts what an earlier agent left running. STORE_LOCKED when another agent has the state folder. */
export async function openRegistry(options: RegistryOptions): Promise<Registry> {
  const { stateDir } = options
  await mkdir(join(stateDir, 'vms'), { recursive: true, mode: 0o700 })
  await chmod(stateDir, 0o700)
  const store = options.store ?? (await openStore(join(stateDir, 'store'), options.log ? { log: options.log } : {}))
  const users = options.users && (await openUsers({ store, range: options.users }))
  const registry = new Registry(options, store, users)
  try {
    await registry.adoptAll()
    return registry
  } catch (error) {
    await registry.close()
    throw error
  }
}

export class Registry {
  readonly #options: RegistryOptions
  readonly #store: Store
  readonly #log: Log
  readonly #paths: ArgvPaths
  readonly #users: VmUsers | undefined
  readonly #qemuBinary: string
  readonly #digests: FileDigests
  readonly #entries = new Map<string, Entry>()
  readonly #listeners = new Set<() => void>()
  readonly #holds = new Holds()
  #qemu: Promise<{ info: QemuInfo; abilities: QemuAbilities }> | undefined
  #closed = false

  constructor(options: RegistryOptions, store: Store, users: VmUsers | undefined) {
    this.#options = options
    this.#store = store
    this.#users = users
    this.#log = options.log ?? silentLog
    this.#paths = { imagesDir: options.imagesDir, sharedDir: options.sharedDir }
    this.#qemuBinary = options.qemuBinary ?? QEMU_BINARY
    this.#digests = createFileDigests(join(options.stateDir, 'file-digests.json'))
  }

  // --- looking ---

  list(): VmFacts[] {
    return [...this.#entries.keys()].sort().map(name => this.get(name))
  }

  /** VM_UNKNOWN when there is none. */
  get(name: string): VmFacts {
    const { spec, record, vm, halted } = this.#entry(name)
    return {
      name,
      state: record.state === 'running' && halted ? 'paused' : record.state,
      epoch: record.epoch,
      memoryBytes: spec.memoryBytes,
      vcpus: spec.vcpus,
      accelerator: vm?.accelerator,
      pid: vm?.pid,
      doubt: record.doubt,
      failure: record.failure,
    }
  }

  spec(name: string): VmSpec {
    return this.#entry(name).spec
  }

  /** The QEMU of a VM that has one now; VM_STATE otherwise. */
  machine(name: string): RunningVm {
    const { vm } = this.#entry(name)
    if (!vm) throw this.#wrongState(name, 'has no running QEMU')
    return vm
  }

  /** Whether the guest runs here now: its QEMU is alive, its CPUs are not stopped, and no other site owns it. */
  runs(name: string): boolean {
    const entry = this.#entries.get(name)
    if (!entry?.vm?.alive || entry.halted || entry.record.doubt) return false
    return entry.record.state === 'running' || entry.record.state === 'migrating'
  }

  /** The serial console; VM_STATE when the VM does not run or has none. */
  console(name: string): VmConsole {
    const { console } = this.machine(name)
    if (!console) throw this.#wrongState(name, 'has no serial port (serial: false)')
    return console
  }

  /** Calls `listener` after each change of any VM's state. Returns what takes it off again. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  // --- orders of people ---

  /** Takes a spec in; nothing starts. VM_SPEC_INVALID, VM_EXISTS, PREFLIGHT_FILE_MISSING. */
  async create(yamlText: string): Promise<VmFacts> {
    const spec = parseSpec(yamlText)
    if (this.#entries.has(spec.name)) throw new GodwitError('VM_EXISTS', `a VM named ${spec.name} exists at this site`)
    await checkSpecFiles(spec, this.#paths)
    await this.#insert(spec, { state: 'stopped', epoch: (await highestEpoch(this.#store, spec.name)) + 1 })
    return this.get(spec.name)
  }

  /**
   * Starts a stopped or failed VM, lets a paused one run on. VM_STATE in any other state; MIGRATION_DOUBT when it may run elsewhere. `force` is no proof
   * that it does not: FENCING_REQUIRED (doubts.ts takes proofs).
   */
  async start(name: string, { force = false, signal }: { force?: boolean; signal?: AbortSignal | undefined } = {}): Promise<VmFacts> {
    await this.#inTurn(name, async entry => {
      const state = this.get(name).state
      if (state !== 'stopped' && state !== 'failed' && state !== 'paused') throw this.#wrongState(name, 'cannot be started')
      if (entry.record.doubt)
        throw new GodwitError(force ? 'FENCING_REQUIRED' : 'MIGRATION_DOUBT', `${name} may run at another site`, {
          hint: 'see godwit recover',
        })
      const fresh = entry.vm === undefined
      entry.vm ??= await this.#launch(entry, { incoming: false, signal })
      await this.#update(entry, { state: 'running', resumePending: true, doubt: false, failure: undefined })
      try {
        await this.#resume(entry)
      } catch (error) {
        if (fresh) await this.#end(entry, vm => vm.kill())
        await this.#update(entry, { state: fresh ? 'failed' : 'paused', resumePending: false, failure: toGodwitError(error).toJSON() })
        throw error
      }
    })
    return this.get(name)
  }

  /** Power button, then `quit` after `graceMs`; `force`: at once. A stopped VM stays stopped. VM_STATE while it migrates. */
  async stop(name: string, options: { force?: boolean; graceMs?: number } = {}): Promise<VmFacts> {
    await this.#inTurn(name, async entry => {
      if (entry.record.state === 'migrating' || entry.record.state === 'incoming')
        throw this.#wrongState(name, 'cannot be stopped: it migrates')
      await this.#end(entry, vm => vm.stop(options))
      if (entry.record.state !== 'stopped') await this.#update(entry, { state: 'stopped', resumePending: false, failure: undefined })
    })
    return this.get(name)
  }

  /** Forgets the VM and removes its folder (never its disks). VM_STATE unless it is stopped or failed. */
  async delete(name: string): Promise<void> {
    await this.#inTurn(name, async entry => {
      if (entry.record.state !== 'stopped' && entry.record.state !== 'failed')
        throw this.#wrongState(name, 'cannot be deleted: stop it first')
      await this.#forget(entry, entry.record.epoch)
    })
  }

  // --- orders of the migration engine ---

  /** What the VM needs at a target, said by the source before it offers the VM. VM_STATE when it does not run. */
  async needs(name: string, method: Method, signal?: AbortSignal): Promise<VmNeeds> {
    const { spec, vm } = this.#entry(name)
    if (!vm) throw this.#wrongState(name, 'cannot be migrated: it does not run')
    const { sharedDir } = this.#options
    const shared = spec.disks.some(disk => disk.mode === 'shared') && sharedDir !== undefined
    return {
      spec,
      qemuVersion: vm.qemuVersion,
      accelerator: vm.accelerator,
      method,
      files: await specFileFacts(spec, this.#paths, this.#digests, signal),
      ...(shared ? { sharedId: await sharedFolderId(sharedDir) } : {}),
    }
  }

  /** What this host has for a VM (without one: for none in particular). A missing QEMU is a fact here, not an error. */
  async hostInfo(spec?: VmSpec, signal?: AbortSignal): Promise<HostInfo> {
    const qemu = await this.#measuredQemu().catch((error: unknown) => {
      this.#log.warn('no usable QEMU', { error })
      return undefined
    })
    const { sharedDir, stateDir } = this.#options
    const shared = spec?.disks.some(disk => disk.mode === 'shared') && sharedDir !== undefined
    return {
      // Too old to be used is not the same as missing, and the preflight says which.
      qemuVersion: qemu?.info.version ?? (await readQemuVersion(this.#qemuBinary).catch(() => undefined)),
      accelerators: qemu?.abilities.accelerators ?? [],
      machines: qemu?.abilities.machines ?? [],
      cpus: qemu?.abilities.cpus ?? {},
      vcpus: hostVcpus(),
      memoryFreeBytes: Math.max(0, await this.#freeBytes(spec?.name)),
      diskFreeBytes: await diskFreeBytes(stateDir),
      files: spec ? await specFileFacts(spec, this.#paths, this.#digests, signal) : {},
      taps: spec ? existingTaps(spec.nics) : [],
      ...(shared ? { sharedId: await sharedFolderId(sharedDir) } : {}),
    }
  }

  /** Throws the first reason why a VM with these needs cannot come here: VM_EXISTS or a PREFLIGHT code. */
  async checkIncoming(needs: VmNeeds, signal?: AbortSignal): Promise<void> {
    const { name } = needs.spec
    if (this.#entries.has(name)) throw new GodwitError('VM_EXISTS', `a VM named ${name} exists at the target (${this.get(name).state})`)
    const problem = preflight(needs, await this.hostInfo(needs.spec, signal))
    if (problem) throw problem
  }

  /**
   * Keeps room for a VM with these needs that may come with this epoch; gives the bytes. VM_EXISTS, EPOCH_STALE, LIMIT_EXCEEDED or a PREFLIGHT code. Again
   * for the same VM: anew. It ends by itself after `ms`, when the VM comes, and by releaseHold().
   */
  async holdIncoming(needs: VmNeeds, epoch: number, { id, ms }: { id: string; ms: number }, signal?: AbortSignal): Promise<number> {
    const { name, memoryBytes } = needs.spec
    const highest = await highestEpoch(this.#store, name)
    if (epoch <= highest) throw new GodwitError('EPOCH_STALE', `${name}: epoch ${epoch} is offered, ${highest} has been seen here`)
    await this.checkIncoming(needs, signal)
    const bytes = memoryBytes + MEMORY_OVERHEAD_BYTES
    this.#holds.put(name, { id, bytes, untilMs: Date.now() + ms })
    this.#changed()
    // Whoever hears of this site's free memory shall hear of the end as well.
    setTimeout(() => this.#changed(), ms + 50).unref()
    return bytes
  }

  /** Harmless when there is none; gives whether there was. */
  releaseHold(id: string): boolean {
    const was = this.#holds.release({ id })
    if (was) this.#changed()
    return was
  }

  /** Starts a QEMU that waits for the VM (-incoming defer -S). EPOCH_STALE unless `epoch` is higher than any seen of this name; VM_EXISTS. */
  async reserveIncoming(spec: VmSpec, epoch: number, accelerator: Accelerator, signal?: AbortSignal): Promise<RunningVm> {
    const { name } = spec
    if (this.#entries.has(name)) throw new GodwitError('VM_EXISTS', `a VM named ${name} exists at the target (${this.get(name).state})`)
    const highest = await highestEpoch(this.#store, name)
    if (epoch <= highest) throw new GodwitError('EPOCH_STALE', `${name}: epoch ${epoch} is offered, ${highest} has been seen here`)
    await checkSpecFiles(spec, this.#paths)
    // The record bears the epoch before: the reservation may end without the VM ever having been ours, and then the same offer may come again.
    const entry = await this.#insert(spec, { state: 'incoming', epoch: highest })
    return this.#inTurn(name, async () => {
      try {
        entry.vm = await this.#launch(entry, { incoming: true, accelerator, signal })
        this.#holds.release({ vm: name })
        return entry.vm
      } catch (error) {
        await this.#forget(entry, highest)
        throw error
      }
    })
  }

  /** Gives a reservation up: its QEMU is killed and nothing stays. Harmless when there is none. */
  async dropIncoming(name: string): Promise<void> {
    if (this.#entries.get(name)?.record.state !== 'incoming') return
    await this.#inTurn(name, async entry => {
      if (entry.record.state !== 'incoming') return
      await this.#end(entry, vm => vm.kill())
      await this.#forget(entry, entry.record.epoch)
    })
  }

  /**
   * Makes the reserved VM ours at this epoch: durable when it resolves. Only after that may the engine send `cont` (an agent that dies in between sends it
   * when it is back). VM_STATE when it is not reserved or its QEMU has ended.
   */
  async commitIncoming(name: string, epoch: number): Promise<void> {
    await this.#inTurn(name, async entry => {
      if (entry.record.state !== 'incoming' || !entry.vm?.alive) throw this.#wrongState(name, 'is not reserved here')
      if (epoch <= entry.record.epoch) throw new GodwitError('EPOCH_STALE', `${name}: epoch ${epoch} is not above ${entry.record.epoch}`)
      await this.#update(entry, { state: 'running', epoch, resumePending: true })
      // It ended while that was written, and was still counted as a reservation then: the VM is ours, and has failed.
      if (!entry.vm?.alive) {
        const failure = new GodwitError('QEMU_EXITED', `QEMU of ${name} ended`).toJSON()
        await this.#update(entry, { state: 'failed', resumePending: false, failure })
      }
      entry.halted = false
    })
  }

  /** Marks a running VM as migrating (durably) and gives its machine. VM_STATE, MIGRATION_BUSY, MIGRATION_DOUBT. */
  async beginMigration(name: string): Promise<RunningVm> {
    return this.#inTurn(name, async entry => {
      if (entry.record.state === 'migrating') throw new GodwitError('MIGRATION_BUSY', `${name} is migrating already`)
      if (entry.record.doubt) throw new GodwitError('MIGRATION_DOUBT', `it is not certain that ${name} belongs to this site`)
      if (this.get(name).state !== 'running' || !entry.vm) throw this.#wrongState(name, 'cannot be migrated: it does not run')
      await this.#update(entry, { state: 'migrating', resumePending: false })
      return entry.vm
    })
  }

  /**
   * 'kept': the VM stays (the engine has made sure that the guest runs again). 'moved': another site owns it with `epoch` (this one's + 1 unless told);
   * its QEMU is killed and nothing stays here but the epoch. 'doubt': handed over, and the other site has not answered: it stays paused here, with its
   * memory, until a person says where it runs.
   */
  async endMigration(name: string, outcome: 'moved' | 'kept' | 'doubt', epoch?: number): Promise<void> {
    await this.#inTurn(name, async entry => {
      // QEMU ended meanwhile: the VM is ours all the same, at the epoch that the migration's end gave it.
      if (entry.record.state === 'failed' && outcome === 'kept')
        return await this.#update(entry, { doubt: false, epoch: Math.max(entry.record.epoch, epoch ?? 0) })
      if (entry.record.state !== 'migrating' && entry.record.state !== 'failed') throw this.#wrongState(name, 'is not migrating')
      if (outcome === 'moved') {
        await this.#end(entry, vm => vm.kill())
        await this.#forget(entry, epoch ?? entry.record.epoch + 1)
        return
      }
      if (outcome === 'doubt') {
        const failure = new GodwitError('MIGRATION_DOUBT', 'handed over, and the other site has not answered', {
          hint: 'see godwit recover',
        })
        return await this.#update(entry, { state: 'paused', doubt: true, failure: failure.toJSON() })
      }
      await this.#update(entry, { state: 'running', epoch: epoch ?? entry.record.epoch })
      await this.#look(entry)
    })
  }

  /**
   * What the ownership journal says of a VM that a migration left unsettled: 'moved', it belongs to another site at this epoch and nothing stays here;
   * 'kept', it is ours at this epoch; where it has a QEMU the guest runs (the caller has made sure). VM_STATE when the VM is not in doubt and its record
   * is not behind the journal.
   */
  async settle(name: string, outcome: 'moved' | 'kept', epoch: number): Promise<void> {
    await this.#inTurn(name, async entry => {
      const { doubt, epoch: known, state, failure } = entry.record
      if (!doubt && known >= epoch) throw this.#wrongState(name, 'is not in doubt')
      if (outcome === 'kept') {
        const rest = entry.vm
          ? { state: 'running' as const, failure: undefined }
          : { state, failure: isDoubt(failure) ? undefined : failure }
        return await this.#update(entry, { ...rest, doubt: false, epoch: Math.max(known, epoch) })
      }
      await this.#end(entry, vm => vm.kill())
      await this.#forget(entry, epoch)
    })
  }

  /** The highest epoch at which a VM of this name was ever owned by this site, or known to be another's; 0 for none. */
  highestEpoch(name: string): Promise<number> {
    return highestEpoch(this.#store, name)
  }

  /** Lets go of every QEMU (they go on) and of the store. */
  async close(): Promise<void> {
    this.#closed = true
    await Promise.allSettled([...this.#entries.values()].map(entry => entry.turn))
    for (const entry of this.#entries.values()) entry.vm?.detach()
    this.#listeners.clear()
    if (this.#options.store === undefined) await this.#store.close()
  }

  /** Takes up what an earlier agent left; called once by openRegistry. */
  async adoptAll(): Promise<void> {
    for (const name of await readdir(join(this.#options.stateDir, 'vms'))) {
      const dir = this.#folder(name)
      try {
        const spec = parseSpec(await readFile(join(dir, VM_FILES.spec), 'utf8'))
        if (spec.name !== name) throw new GodwitError('CONFIG_INVALID', `${dir} holds the spec of ${spec.name}`)
        const known = await readRecord(this.#store, name)
        // An epoch (be it 0) without a record: the VM was forgotten, and the agent died before its folder was removed.
        const forgotten = known === undefined && (await isName(this.#store, name))
        const isKept = known?.state === 'incoming' && (this.#options.keepIncoming?.(name) ?? false)
        const waiting = isKept ? await adoptMachine({ spec, dir, log: this.#log }) : undefined
        if (forgotten || (known?.state === 'incoming' && !waiting)) {
          await killLeftover(dir)
          await removeRecord(this.#store, name, known?.epoch ?? 0)
          await rm(dir, { recursive: true, force: true })
          await this.#users?.release(name)
          continue
        }
        const { record, vm } = waiting ? { record: known!, vm: waiting } : await adopt(spec, dir, known, this.#log)
        const entry: Entry = { spec, record, vm, halted: false, ending: false, turn: Promise.resolve() }
        this.#entries.set(name, entry)
        await writeRecord(this.#store, name, record)
        if (vm) this.#watch(entry, vm)
        if (vm) this.#log.info('adopted', { vm: name, pid: vm.pid, state: record.state })
      } catch (error) {
        // One VM that cannot be taken up must not keep the others from being served.
        this.#log.error('cannot take up a VM', { vm: name, error })
      }
    }
  }

  // --- inside ---

  readonly #folder = (name: string): string => join(this.#options.stateDir, 'vms', name)

  #entry(name: string): Entry {
    const entry = this.#entries.get(name)
    if (!entry) throw new GodwitError('VM_UNKNOWN', `no VM named ${name} at this site`)
    return entry
  }

  #wrongState(name: string, what: string): GodwitError {
    return new GodwitError('VM_STATE', `${name} ${what} (it is ${this.get(name).state})`)
  }

  /** Runs an order when those before it have ended. */
  async #inTurn<T>(name: string, order: (entry: Entry) => Promise<T>): Promise<T> {
    const entry = this.#entry(name)
    if (this.#closed) throw new GodwitError('VM_STATE', 'the node is shutting down')
    const mine = entry.turn.then(() => {
      if (this.#entries.get(name) !== entry) throw new GodwitError('VM_UNKNOWN', `no VM named ${name} at this site any more`)
      return order(entry)
    })
    entry.turn = mine.catch(() => {})
    return mine
  }

  async #insert(spec: VmSpec, { state, epoch }: { state: VmState; epoch: number }): Promise<Entry> {
    if (this.#entries.has(spec.name)) throw new GodwitError('VM_EXISTS', `a VM named ${spec.name} exists at this site`)
    if (this.#entries.size + this.#holds.besides(spec.name).count >= MAX_VMS)
      throw new GodwitError('LIMIT_EXCEEDED', `${MAX_VMS} VMs exist at this site`)
    const record: VmRecord = { version: 1, state, epoch, resumePending: false, doubt: false }
    const entry: Entry = { spec, record, vm: undefined, halted: false, ending: false, turn: Promise.resolve() }
    this.#entries.set(spec.name, entry) // before the first await: two orders of one name must not both pass
    try {
      // The record first: a folder without one would look like a VM whose record is lost.
      await writeRecord(this.#store, spec.name, record)
      const dir = this.#folder(spec.name)
      await mkdir(dir, { recursive: true, mode: 0o700 })
      await writeFile(join(dir, `${VM_FILES.spec}.new`), specToYaml(spec), { mode: 0o600, flush: true })
      await rename(join(dir, `${VM_FILES.spec}.new`), join(dir, VM_FILES.spec))
    } catch (error) {
      this.#entries.delete(spec.name)
      throw toGodwitError(error, 'CONFIG_UNREADABLE')
    }
    this.#changed()
    return entry
  }

  async #forget(entry: Entry, epoch: number): Promise<void> {
    const { name } = entry.spec
    await removeRecord(this.#store, name, epoch)
    await killLeftover(this.#folder(name))
    await rm(this.#folder(name), { recursive: true, force: true })
    await this.#users?.release(name)
    this.#entries.delete(name)
    this.#changed()
  }

  async #update(entry: Entry, change: Partial<VmRecord>): Promise<void> {
    const record = { ...entry.record, ...change }
    await writeRecord(this.#store, entry.spec.name, record)
    entry.record = record
    this.#changed()
  }

  #changed(): void {
    for (const listener of [...this.#listeners]) listener()
  }

  #measuredQemu(): Promise<{ info: QemuInfo; abilities: QemuAbilities }> {
    const measure = async () => {
      const { stateDir } = this.#options
      const info = await findQemu({ binary: this.#qemuBinary })
      return { info, abilities: await qemuAbilities(info, { cacheFile: join(stateDir, 'qemu-abilities.json'), log: this.#log }) }
    }
    this.#qemu ??= measure().catch(error => {
      this.#qemu = undefined // it may be installed later
      throw error
    })
    return this.#qemu
  }

  async #launch(
    entry: Entry,
    { incoming, accelerator, signal }: { incoming: boolean; accelerator?: Accelerator; signal?: AbortSignal | undefined },
  ): Promise<RunningVm> {
    const { spec } = entry
    await checkSpecFiles(spec, this.#paths)
    const { info, abilities } = await this.#measuredQemu()
    await this.#checkMemory(spec, entry)
    const chosen = chooseAccelerator(accelerator ?? spec.accelerator, abilities.accelerators)
    const vm = await startMachine({
      spec,
      dir: this.#folder(spec.name),
      paths: this.#paths,
      accelerator: chosen,
      incoming,
      qemu: info,
      runAs: await this.#userOf(spec.name, chosen),
      signal,
      log: this.#log,
    })
    if (vm.accelerator === 'tcg') this.#log.warn('this VM runs under TCG: slow, and no security boundary', { vm: spec.name })
    entry.halted = false
    entry.ending = false
    this.#watch(entry, vm)
    return vm
  }

  async #userOf(name: string, accelerator: Accelerator): Promise<VmUser | undefined> {
    const uid = await this.#users?.take(name)
    return uid === undefined ? undefined : { uid, gid: (accelerator === 'kvm' ? kvmGroup() : undefined) ?? uid }
  }

  async #checkMemory(spec: VmSpec, entry: Entry): Promise<void> {
    const free = await this.#freeBytes(entry.spec.name, entry)
    if (free >= spec.memoryBytes + MEMORY_OVERHEAD_BYTES) return
    throw new GodwitError(
      'PREFLIGHT_MEMORY',
      `${spec.name} needs ${formatSize(spec.memoryBytes + MEMORY_OVERHEAD_BYTES)}, ${Math.max(0, Math.floor(free / MIB))}MiB are free here`,
    )
  }

  /** What a VM could get now; negative when more is promised than there is. */
  /** For a VM of this name, which may have what is held for it. */
  async #freeBytes(name?: string, except?: Entry): Promise<number> {
    const held = this.#holds.besides(name).bytes
    return memoryAvailableBytes() - (this.#options.memoryReserveBytes ?? 0) - (await this.#promisedBytes(except)) - held
  }

  /** Memory that running VMs may still take: QEMU gets a guest's pages when the guest first touches them, so MemAvailable does not show them yet. */
  async #promisedBytes(except?: Entry): Promise<number> {
    const parts = [...this.#entries.values()].map(async entry => {
      if (!entry.vm || entry === except) return 0
      return Math.max(0, entry.vm.memoryBytes - (await allocatedMemoryBytes(entry.vm.identity, entry.vm.memoryBytes)))
    })
    return (await Promise.all(parts)).reduce((sum, bytes) => sum + bytes, 0)
  }

  async #resume(entry: Entry): Promise<void> {
    await entry.vm?.commands.cont()
    entry.halted = false
    // It runs: a disk that refuses this takes nothing back, and the next agent's `cont` of a running guest changes nothing.
    await this.#update(entry, { resumePending: false }).catch(error =>
      this.#log.warn('not recorded that the VM runs', { vm: entry.spec.name, error }),
    )
  }

  /** Ends a VM's QEMU on our own account. */
  async #end(entry: Entry, how: (vm: RunningVm) => Promise<unknown>): Promise<void> {
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

  #watch(entry: Entry, vm: RunningVm): void {
    const halted = (value: boolean) => () => {
      entry.halted = value
      if (entry.record.state === 'running') this.#changed()
    }
    vm.qmp.on('STOP', halted(true))
    vm.qmp.on('RESUME', () => {
      halted(false)()
      if (entry.record.resumePending && entry.record.state === 'running')
        this.#later(entry, () => this.#update(entry, { resumePending: false }))
    })
    vm.qmp.on('SHUTDOWN', () => {
      if (entry.vm === vm && !entry.ending && entry.record.state === 'running') this.#later(entry, () => this.#look(entry))
    })
    void vm.exited.then(exit => {
      if (entry.vm !== vm || entry.ending || this.#closed) return
      entry.vm = undefined
      this.#log.error('QEMU ended by itself', { vm: entry.spec.name, code: exit.code, signal: exit.signal })
      // In an incoming VM the engine hears of it by `exited` and drops the reservation.
      if (entry.record.state === 'incoming') return
      this.#later(entry, () =>
        this.#update(entry, {
          state: 'failed',
          resumePending: false,
          failure: exitError(entry.spec.name, exit).toJSON(),
        }),
      )
    })
  }

  /** A QEMU whose guest has powered off is ended; the VM is stopped. */
  async #look(entry: Entry): Promise<void> {
    if (!entry.vm || entry.record.state !== 'running') return
    const { status, running } = await entry.vm.commands.queryStatus()
    entry.halted = !running
    if (status !== 'shutdown') return
    await this.#end(entry, vm => vm.stop({ force: true }))
    await this.#update(entry, { state: 'stopped', resumePending: false })
  }

  /** An order that nobody waits for. */
  #later(entry: Entry, order: () => Promise<void>): void {
    this.#inTurn(entry.spec.name, order).catch(error => {
      if (!this.#closed) this.#log.warn('cannot follow a change of a VM', { vm: entry.spec.name, error })
    })
  }
}
