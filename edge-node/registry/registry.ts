// The VMs of this site. Enters: specs and orders, from people and from the migration engine. Leaves: running machines,
// states, coded errors.
// Always holds: one order at a time for a VM; a record reaches the disk before the guest may run because of it; one
// agent for a state folder (STORE_LOCKED); a VM that has moved to another site leaves nothing here but its epoch.
//
// This file is the list of all that can be asked, with its errors. entries.ts holds the VMs and their turns,
// resources.ts all that a VM has at this site, life.ts the orders of people, arrivals.ts and departures.ts those of the
// migration engine, launch.ts and guests.ts the QEMUs, capacity.ts the memory, adoption.ts what an earlier agent left.
import { join } from 'node:path'
import { within } from '../../ops/deadline.ts'
import { openStore, type Store } from '../../ops/store.ts'
import type { Method } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { type Log, silentLog } from '../../wire/log.ts'
import type { Copies } from '../disks/copies.ts'
import type { HashOptions } from '../disks/digests.ts'
import type { Images } from '../disks/images.ts'
import { createImports, type Imports } from '../disks/imports.ts'
import { type Accelerator, RUNTIME_FILES } from '../vm/argv.ts'
import type { UserRange } from '../vm/confine.ts'
import type { VmConsole } from '../vm/console.ts'
import type { GuestFilter } from '../vm/guest-filter.ts'
import type { RunningVm } from '../vm/machine.ts'
import type { HostInfo, VmNeeds } from '../vm/preflight.ts'
import { QEMU_BINARY } from '../vm/qemu.ts'
import { specFiles, type VmSpec } from '../vm/spec.ts'
import { openUsers, type VmUsers } from '../vm/users.ts'
import { adoptAll } from './adoption.ts'
import { Arrivals, type ReserveOptions } from './arrivals.ts'
import { Capacity, promisedBytes } from './capacity.ts'
import type { Passage } from './coming-disks.ts'
import { Departures, type LeftFor, type NeedsOptions } from './departures.ts'
import { Entries } from './entries.ts'
import { type LocalVmFacts, runsHere } from './entry.ts'
import { Guests } from './guests.ts'
import { Launcher } from './launch.ts'
import { type CreatedVm, Life, type StartVmOptions, type StopVmOptions } from './life.ts'
import { LocalDisks } from './local-disks.ts'
import { Resources } from './resources.ts'
import type { SiteFiles } from './site-files.ts'
import { SiteHost } from './site-host.ts'
import { vmHost as thisMachine, type VmHost } from './vm-host.ts'

export type { LocalVmFacts } from './entry.ts'

export type RegistryOptions = {
  stateDir: string
  imagesDir: string
  sharedDir?: string | undefined
  /** Holds the lock of the state folder; opened as stateDir/store (and closed with the registry) when none is given. */
  store?: Store | undefined
  /** Default: this machine. */
  vmHost?: VmHost | undefined
  qemuBinary?: string | undefined
  /** Of the host's memory, never given to VMs. Default 0. */
  memoryReserveBytes?: number | undefined
  /** Each VM's QEMU runs as a user of its own from here (the agent must be root); absent: as the agent's user. */
  users?: UserRange | undefined
  filter?: GuestFilter | undefined
  /**
   * Whether an incoming VM of an earlier life of the agent is still of use: a loaded one that may be granted yet.
   * Default: none is; their QEMUs are ended.
   */
  keepIncoming?: ((name: string) => boolean) | undefined
  log?: Log
}

/** How long orders at hand may take to end when the registry closes; after it their QMP connections are closed. */
const CLOSE_MS = 1_000

/**
 * Opens the registry and adopts what an earlier agent left running. STORE_LOCKED when another agent has the state
 * folder.
 */
export async function openRegistry(options: RegistryOptions): Promise<Registry> {
  const { stateDir, vmHost = thisMachine } = options
  await vmHost.files.makeFolder(join(stateDir, 'vms'), 0o700)
  await vmHost.files.setMode(stateDir, 0o700)
  const store = options.store ?? (await openStore(join(stateDir, 'store'), options.log ? { log: options.log } : {}))
  const users = options.users && (await openUsers({ store, range: options.users }))
  const files = vmHost.siteFiles(options)
  let registry: Registry | undefined
  const images = await vmHost.openImages({
    ...{ imagesDir: options.imagesDir, digests: files.digests, now: Date.now, log: options.log ?? silentLog },
    // qemu-img reads what strangers made: a user who runs no VM.
    ...(users ? { user: async () => userOf(await users.take(IMAGES_USER)) } : {}),
    usersOf: name => registry?.usersOfImage(name) ?? [],
  })
  registry = new Registry(options, { vmHost, store, users, files, images })
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
  readonly #closing = new AbortController()
  readonly #parts: Parts

  constructor(options: RegistryOptions, opened: Opened) {
    this.#options = options
    this.#parts = assemble(options, opened, this.#closing.signal)
  }

  // --- looking ---

  list(): LocalVmFacts[] {
    const names = this.#parts.entries.all().map(({ spec }) => spec.name)
    return names.sort().map(name => this.get(name))
  }

  /** VM_UNKNOWN when there is none. */
  get(name: string): LocalVmFacts {
    return this.#parts.entries.facts(name)
  }

  spec(name: string): VmSpec {
    return this.#parts.entries.get(name).spec
  }

  /** The QEMU of a VM that has one now; VM_STATE otherwise. */
  machine(name: string): RunningVm {
    return this.#parts.entries.machine(name)
  }

  /** Whether the guest runs here now: its QEMU is alive, its CPUs are not stopped, and no other site owns it. */
  runs(name: string): boolean {
    const entry = this.#parts.entries.find(name)
    return entry !== undefined && runsHere(entry)
  }

  /** The serial console; VM_STATE when the VM does not run or has none. */
  console(name: string): VmConsole {
    const { console } = this.machine(name)
    if (!console) throw this.#parts.entries.wrongState(name, 'has no serial port (serial: false)')
    return console
  }

  /** The path of its VNC socket; VM_STATE when the VM does not run or has no display. */
  display(name: string): string {
    const { runDir } = this.machine(name)
    if (!this.spec(name).display) throw this.#parts.entries.wrongState(name, 'has no display: set display: true in its specification')
    return join(runDir, RUNTIME_FILES.display)
  }

  /** The highest epoch at which a VM of this name was ever owned by this site, or known to be another's; 0 for none. */
  highestEpoch(name: string): Promise<number> {
    return this.#parts.entries.highestEpoch(name)
  }

  /** What this host has, but for files of a VM. A missing QEMU is a fact here, not an error. */
  hostInfo(spec?: VmSpec): Promise<HostInfo> {
    return this.#parts.host.info(spec)
  }

  /** Calls `listener` after each change of any VM's state. Returns what takes it off again. */
  onChange(listener: () => void): () => void {
    return this.#parts.entries.onChange(listener)
  }

  /** The bases of local disks. */
  get images(): Images {
    return this.#parts.images
  }

  /** What is kept of VMs that have left, or did not come. */
  get copies(): Copies {
    return this.#parts.copies
  }

  get imports(): Imports {
    return this.#parts.imports
  }

  /** The VMs that name an image or a file of the images folder, in any way. */
  usersOfImage(file: string): string[] {
    const named = this.#parts.entries.all().filter(({ spec }) => specFiles(spec).some(item => item.file === file && item.use !== 'shared'))
    return named.map(({ spec }) => spec.name)
  }

  // --- orders of people ---

  /**
   * Takes a spec in; nothing starts. `warnings`: what will keep the VM from starting here, or from ever moving.
   * VM_SPEC_INVALID, VM_EXISTS, PREFLIGHT_FILE_MISSING; PREFLIGHT_MACHINE, PREFLIGHT_CPU when this site's QEMU cannot
   * make the machine that the spec names.
   */
  create(yamlText: string): Promise<CreatedVm> {
    return this.#parts.life.create(yamlText)
  }

  /**
   * Starts a stopped or failed VM, lets a paused one run on, wakes a suspended one. VM_STATE in any other state;
   * MIGRATION_DOUBT when it may run elsewhere. `force` is no proof that it does not: FENCING_REQUIRED (doubts.ts takes
   * proofs).
   */
  async start(name: string, options: StartVmOptions = {}): Promise<LocalVmFacts> {
    await this.#parts.life.start(name, options)
    return this.get(name)
  }

  /**
   * Presses the power button (a suspended guest is woken first) and waits until the guest has shut down: STOP_TIMEOUT
   * when it has not, and it runs on. `force`: ends QEMU at once. A stopped VM stays stopped. VM_STATE while it
   * migrates, and without `force` while it is paused; MIGRATION_DOUBT without `force` while it may run elsewhere.
   */
  async stop(name: string, options: StopVmOptions = {}): Promise<LocalVmFacts> {
    await this.#parts.life.stop(name, options)
    return this.get(name)
  }

  /** Wakes a suspended guest. VM_STATE in any other state. */
  async wake(name: string): Promise<LocalVmFacts> {
    await this.#parts.life.wake(name)
    return this.get(name)
  }

  /**
   * Forgets the VM and removes its folder (never a file of the images folder). VM_STATE unless it is stopped or failed.
   */
  delete(name: string): Promise<void> {
    return this.#parts.life.delete(name)
  }

  /** Asks QEMU what the guest is doing: where it is over, QEMU is ended, and the VM is stopped or failed. */
  async look(name: string): Promise<void> {
    const { entries, guests } = this.#parts
    if (entries.find(name)) await entries.inTurn(name, entry => guests.look(entry))
  }

  // --- orders of the migration engine, at the source ---

  /**
   * What the VM needs at a target; the source sends it before it offers the VM. Files that were not read before are
   * read now, which takes as long as it takes. VM_STATE when it does not run; PREFLIGHT_FILE_CHANGED; the signal's
   * reason.
   */
  needs(name: string, method: Method, options: NeedsOptions = {}): Promise<VmNeeds> {
    return this.#parts.departures.needs(name, method, options)
  }

  /** The VM's local disks, and what each began with. IMAGE_*; the signal's reason. */
  leavingDisks(name: string, options: Parameters<LocalDisks['source']>[2]): ReturnType<LocalDisks['source']> {
    const { localDisks, resources } = this.#parts
    return localDisks.source(this.spec(name), resources.folder(name), options)
  }

  /** What a target may lack of the VM's local disks, bytes. IMAGE_*. */
  travellingBytes(name: string): Promise<number> {
    const { localDisks, resources } = this.#parts
    return localDisks.travellingBytes(this.spec(name), resources.folder(name))
  }

  /**
   * Marks a running VM as migrating (durably) and gives its machine. VM_STATE, MIGRATION_BUSY, MIGRATION_DOUBT,
   * GUEST_SUSPENDED.
   */
  beginMigration(name: string): Promise<RunningVm> {
    return this.#parts.departures.begin(name)
  }

  /** Marks a stopped VM as migrating (durably): nobody can start it. VM_STATE, MIGRATION_BUSY, MIGRATION_DOUBT. */
  beginStopped(name: string): Promise<void> {
    return this.#parts.departures.beginStopped(name)
  }

  /**
   * 'kept': the VM stays (the engine has made sure that a running guest runs on). 'moved': another site owns it with
   * `epoch` (default: this one's + 1); its QEMU is killed and nothing stays here but the epoch, and with `left` a warm
   * copy of its disks. 'doubt': handed over, and the other site has not answered: it stays paused here, with its
   * memory, until a person decides where it runs.
   */
  endMigration(name: string, outcome: 'moved' | 'kept' | 'doubt', epoch?: number, left?: LeftFor): Promise<void> {
    return this.#parts.departures.end(name, outcome, epoch, left)
  }

  /**
   * The ownership journal decides about a VM that a migration left unsettled: 'moved', it belongs to another site at
   * this epoch and nothing stays here; 'kept', it is ours at this epoch; where it has a QEMU the guest runs (the caller
   * has made sure). VM_STATE when the VM is not in doubt and its record is not behind the journal.
   */
  settle(name: string, outcome: 'moved' | 'kept', epoch: number, left?: LeftFor): Promise<void> {
    return this.#parts.departures.settle(name, outcome, epoch, left)
  }

  // --- orders of the migration engine, at the target ---

  /**
   * Throws the first reason why a VM with these needs cannot come here: VM_EXISTS or a PREFLIGHT code. Its files are
   * read last, as long as that takes.
   */
  checkIncoming(needs: VmNeeds, options: HashOptions = {}): Promise<void> {
    return this.#parts.arrivals.check(needs, options)
  }

  /** The images of such a VM that this site does not have, and whose names are free here. */
  missingImages(needs: VmNeeds): Promise<{ name: string; root: string }[]> {
    return this.#parts.arrivals.missingImages(needs)
  }

  /**
   * Keeps room for a VM with these needs that may come with this epoch; gives the bytes. VM_EXISTS, EPOCH_STALE,
   * LIMIT_EXCEEDED or a PREFLIGHT code. A second hold for the same VM replaces the first. It ends by itself after `ms`,
   * when the VM comes, and by releaseHold().
   */
  holdIncoming(needs: VmNeeds, epoch: number, lease: { id: string; ms: number }, options: HashOptions = {}): Promise<number> {
    return this.#parts.arrivals.hold(needs, epoch, lease, options)
  }

  /** Harmless when there is none; gives whether there was. */
  releaseHold(id: string): boolean {
    return this.#parts.arrivals.releaseHold(id)
  }

  /**
   * Starts a QEMU that waits for the VM (-incoming defer -S). EPOCH_STALE unless `epoch` is higher than any seen of
   * this name; VM_EXISTS.
   */
  reserveIncoming(spec: VmSpec, epoch: number, accelerator: Accelerator, options: ReserveOptions = {}): Promise<RunningVm> {
    return this.#parts.arrivals.reserve(spec, epoch, accelerator, options)
  }

  /** Makes room for a VM that comes without a QEMU: its folder and its disks. EPOCH_STALE, VM_EXISTS, DISK_FULL. */
  reserveStopped(spec: VmSpec, epoch: number, options: ReserveOptions = {}): Promise<void> {
    return this.#parts.arrivals.reserveStopped(spec, epoch, options)
  }

  /** The local disks of a VM that is reserved here, ready to be written; undefined when it has none. */
  comingDisks(name: string, passage: Passage, options: HashOptions = {}): ReturnType<LocalDisks['target']> {
    const { localDisks, resources } = this.#parts
    return localDisks.target(this.spec(name), resources.folder(name), passage, options)
  }

  /** That a VM which is reserved here has open what its source has. A PREFLIGHT code. */
  checkHeld(name: string, needs: VmNeeds, options: HashOptions = {}): Promise<void> {
    return this.#parts.arrivals.checkHeld(name, needs, options)
  }

  /** Gives a reservation up: its QEMU is killed and nothing stays. Harmless when there is none. */
  dropIncoming(name: string): Promise<void> {
    return this.#parts.arrivals.drop(name)
  }

  /**
   * Makes the reserved VM ours at this epoch: durable when it resolves. Only after that may the engine send `cont` (an
   * agent that dies in between sends it when it is back); one that was reserved without a QEMU is stopped. VM_STATE
   * when it is not reserved or its QEMU has ended.
   */
  commitIncoming(name: string, epoch: number): Promise<void> {
    return this.#parts.arrivals.commit(name, epoch)
  }

  /**
   * At either site: the files of a VM are those which needs() or checkHeld() saw. Takes no time.
   * PREFLIGHT_FILE_CHANGED.
   */
  async assertFilesUnchanged(name: string): Promise<void> {
    const { entries, files } = this.#parts
    const entry = entries.get(name)
    await files.assertUnchanged(entry, entry.record.stopped ? undefined : entries.machine(name))
  }

  // --- the agent's beginning and end ---

  /** Takes up what an earlier agent left; called once by openRegistry. */
  adoptAll(): Promise<void> {
    return adoptAll({ ...this.#parts, keepIncoming: name => this.#options.keepIncoming?.(name) ?? false })
  }

  /** Lets go of every QEMU (they go on) and of the store. */
  async close(): Promise<void> {
    const { entries, imports, files, store } = this.#parts
    this.#closing.abort(new GodwitError('SITE_OFFLINE', 'the node is shutting down'))
    await imports.close()
    await files.close()
    const idle = entries.idle()
    await within(idle, { ms: CLOSE_MS, what: 'orders at hand' }).catch(() => {})
    // An order that waits for a QEMU that does not answer ends with the connection.
    for (const { vm } of entries.all()) vm?.detach()
    await idle
    entries.unlisten()
    if (this.#options.store === undefined) await store.close()
  }
}

type Opened = { vmHost: VmHost; store: Store; users: VmUsers | undefined; files: SiteFiles; images: Images }
type Parts = ReturnType<typeof assemble>

/** Among the names of VMs, which have no dot. */
const IMAGES_USER = 'images.import'
const userOf = (uid: number) => ({ uid, gid: uid })

/** The parts, each given those below it. */
function assemble(options: RegistryOptions, { vmHost, store, users, files, images }: Opened, closing: AbortSignal) {
  const { stateDir, filter, log = silentLog } = options
  const copies = vmHost.openCopies({ dir: join(stateDir, 'copies'), log })
  const localDisks = new LocalDisks(images, copies)
  const resources = new Resources({ vmHost, stateDir, users, images, copies })
  const capacity = new Capacity({
    availableBytes: vmHost.memoryAvailableBytes,
    reserveBytes: options.memoryReserveBytes ?? 0,
    promisedBytes: () => promisedBytes(entries.all().flatMap(({ vm }) => vm ?? [])),
  })
  const entries = new Entries({ store, resources, heldBesides: name => capacity.heldBesides(name), closing, log })
  const host = new SiteHost({ vmHost, stateDir, qemuBinary: options.qemuBinary ?? QEMU_BINARY, capacity, files, closing, log })
  const guests = new Guests({ entries, closing, log })
  const { startMachine } = vmHost
  const launcher = new Launcher({ startMachine, host, capacity, resources, files, guests, users: options.users, filter, closing, log })
  const life = new Life({ entries, guests, launcher, host, files, resources, closing })
  const arrivals = new Arrivals({ entries, guests, launcher, host, files, images, capacity, resources })
  const departures = new Departures({ entries, guests, files, host, resources, localDisks, log })
  const imports = createImports(images, log)
  return {
    vmHost,
    store,
    files,
    images,
    imports,
    copies,
    localDisks,
    resources,
    entries,
    host,
    guests,
    launcher,
    life,
    arrivals,
    departures,
    log,
  }
}
