// VMs that come from other sites: check, hold, reserve, commit, drop. Enters: what a VM needs, the epoch that is
// offered. Leaves: a QEMU that waits, a VM of ours, or a coded error that keeps the VM at its source.
// Always holds: only an epoch above every one that was seen of a name is accepted; before commit() the record has the
// epoch before, so that a reservation that ends leaves no trace; commit() is durable before it resolves.
import { GodwitError, hasCode } from '../../wire/errors.ts'
import type { HashOptions } from '../disks/digests.ts'
import type { Images } from '../disks/images.ts'
import type { Accelerator } from '../vm/argv.ts'
import type { RunningVm } from '../vm/machine.ts'
import { fileProblem, preflight, type VmNeeds } from '../vm/preflight.ts'
import { fileKey, specFiles, type VmSpec } from '../vm/spec.ts'
import type { Capacity } from './capacity.ts'
import type { Entries } from './entries.ts'
import type { Guests } from './guests.ts'
import type { Launcher } from './launch.ts'
import type { Resources } from './resources.ts'
import type { SiteFiles } from './site-files.ts'
import type { SiteHost } from './site-host.ts'

type ArrivalsOptions = {
  entries: Entries
  guests: Guests
  launcher: Launcher
  host: SiteHost
  files: SiteFiles
  images: Images
  capacity: Capacity
  resources: Resources
}

/** `usesCopy`: the source can be told what this site holds of the VM's disks. */
export type ReserveOptions = { signal?: AbortSignal | undefined; usesCopy?: boolean | undefined }

export class Arrivals {
  readonly #options: ArrivalsOptions
  readonly #entries: Entries

  constructor(options: ArrivalsOptions) {
    this.#options = options
    this.#entries = options.entries
  }

  async check(needs: VmNeeds, options: HashOptions): Promise<void> {
    const { host, files } = this.#options
    const { spec, files: there } = needs
    this.#assertAbsent(spec.name)
    const problem = preflight(needs, { ...(await host.info(spec)), files: there })
    if (problem) throw problem
    const here = await files.factsOf(spec, { ...options, expected: there })
    // They come before the VM does.
    for (const { key } of await this.missingImages(needs)) here[key] = there[key]!
    const other = preflight(needs, { ...(await host.info(spec)), files: here })
    if (other) throw other
  }

  async missingImages({ spec, files: there }: VmNeeds): Promise<{ key: string; name: string; root: string }[]> {
    const missing = []
    for (const item of specFiles(spec)) {
      const [key, name] = [fileKey(item), item.file]
      const root = there[key]?.root
      if (item.use !== 'image' || root === undefined || (await this.#options.files.has(item))) continue
      const known = await this.#options.images.show(name).catch(() => undefined)
      if (known === undefined || known.root === root) missing.push({ key, name, root })
    }
    return missing
  }

  async checkHeld(name: string, needs: VmNeeds, options: HashOptions): Promise<void> {
    const { files } = this.#options
    const entry = this.#entries.get(name)
    const held = needs.stopped ? await files.namedBy(entry, options) : await files.heldBy(entry, this.#entries.machine(name), options)
    const problem = fileProblem(needs, held, true)
    if (problem) throw problem
  }

  async hold(needs: VmNeeds, epoch: number, { id, ms }: { id: string; ms: number }, options: HashOptions): Promise<number> {
    await this.#assertNewEpoch(needs.spec.name, epoch)
    await this.check(needs, options)
    const bytes = await this.#options.capacity.hold(needs.spec, { id, untilMs: performance.now() + ms })
    this.#entries.changed()
    // Free memory changes once more when the hold ends.
    setTimeout(() => this.#entries.changed(), ms + 50).unref()
    return bytes
  }

  releaseHold(id: string): boolean {
    const was = this.#options.capacity.release({ id })
    if (was) this.#entries.changed()
    return was
  }

  async reserve(spec: VmSpec, epoch: number, accelerator: Accelerator, { signal, usesCopy }: ReserveOptions): Promise<RunningVm> {
    const { launcher, capacity } = this.#options
    const { name } = spec
    const { entry, highest } = await this.#insert(spec, epoch, { usesCopy })
    return this.#entries.inTurn(name, async () => {
      try {
        entry.vm = await launcher.launch(entry, { incoming: true, accelerator, signal })
        capacity.release({ vm: name })
        return entry.vm
      } catch (error) {
        // A QEMU that does not start may be due to the disks that it began with.
        await this.#entries.forget(entry, highest, hasCode(error, 'QEMU_EXITED') ? 'nothing' : 'copy')
        throw error
      }
    })
  }

  async reserveStopped(spec: VmSpec, epoch: number, { usesCopy }: ReserveOptions): Promise<void> {
    await this.#insert(spec, epoch, { stopped: true, usesCopy })
    this.#options.capacity.release({ vm: spec.name })
  }

  async #insert(spec: VmSpec, epoch: number, more: { stopped?: true; usesCopy: boolean | undefined }) {
    this.#assertAbsent(spec.name)
    const highest = await this.#assertNewEpoch(spec.name, epoch)
    await this.#options.files.check(spec)
    // The record has the epoch before: a reservation may end without the VM ever having been ours, and the same offer
    // may come again.
    return { entry: await this.#entries.insert(spec, { state: 'incoming', epoch: highest, ...more }), highest }
  }

  async drop(name: string): Promise<void> {
    if (this.#entries.find(name)?.record.state !== 'incoming') return
    await this.#entries.inTurn(name, async entry => {
      if (entry.record.state !== 'incoming') return
      await this.#options.guests.end(entry, vm => vm.kill())
      await this.#entries.forget(entry, entry.record.epoch, 'copy')
    })
  }

  async commit(name: string, epoch: number): Promise<void> {
    await this.#entries.inTurn(name, async entry => {
      const { state, stopped } = entry.record
      if (state !== 'incoming' || !(stopped || entry.vm?.alive)) throw this.#entries.wrongState(name, 'is not reserved at this site')
      if (epoch <= entry.record.epoch) throw new GodwitError('EPOCH_STALE', `${name}: epoch ${epoch} is not above ${entry.record.epoch}`)
      await this.#options.resources.own(name)
      if (stopped) return await this.#entries.update(entry, { state: 'stopped', stopped: undefined, epoch })
      await this.#entries.update(entry, { state: 'running', epoch, resumePending: true })
      // QEMU ended during that write, while it still counted as a reservation: the VM is ours, and has failed.
      if (!entry.vm?.alive) {
        const failure = new GodwitError('QEMU_EXITED', `QEMU of ${name} ended`).toJSON()
        await this.#entries.update(entry, { state: 'failed', resumePending: false, failure })
      }
      entry.guest = 'running'
    })
  }

  #assertAbsent(name: string): void {
    if (!this.#entries.find(name)) return
    throw new GodwitError('VM_EXISTS', `a VM named ${name} exists at the target (${this.#entries.facts(name).state})`)
  }

  /** Gives the highest epoch that was seen of this name. EPOCH_STALE unless the one that is offered is higher. */
  async #assertNewEpoch(name: string, epoch: number): Promise<number> {
    const highest = await this.#entries.highestEpoch(name)
    if (epoch <= highest)
      throw new GodwitError('EPOCH_STALE', `${name}: the source offers epoch ${epoch}, but this site has seen epoch ${highest}`)
    return highest
  }
}
