// What people order of a VM: create, start, wake, stop, delete. Enters: specifications, names. Leaves: a VM in the
// state that was asked for, or a coded error. Always holds: the record that lets a guest run is on the disk before
// `cont`; a VM that may run elsewhere is neither started nor shut down.
import { within } from '../../ops/deadline.ts'
import { fromBody, GodwitError, hasCode, toGodwitError } from '../../wire/errors.ts'
import type { RunningVm } from '../vm/machine.ts'
import { parseSpec } from '../vm/spec.ts'
import type { Entries } from './entries.ts'
import type { LocalVmFacts, VmEntry } from './entry.ts'
import type { Guests } from './guests.ts'
import type { Launcher } from './launch.ts'
import type { Resources } from './resources.ts'
import type { SiteFiles } from './site-files.ts'
import type { SiteHost } from './site-host.ts'

export type StopVmOptions = {
  /** Ends QEMU at once: the guest is not asked. */
  force?: boolean
  /** How long the guest may take to shut down, ms. Default 120 s. */
  timeoutMs?: number
  /** Ends the waiting; the guest has been asked all the same. */
  signal?: AbortSignal | undefined
}
/** `warnings`: what will keep the VM from starting here, or from ever moving. */
export type CreatedVm = LocalVmFacts & { warnings?: string[] }
export type StartVmOptions = { force?: boolean; signal?: AbortSignal | undefined }

type LifeOptions = {
  entries: Entries
  guests: Guests
  launcher: Launcher
  host: SiteHost
  files: SiteFiles
  resources: Resources
  closing: AbortSignal
}

const MIGRATES = 'cancel the migration first, or wait for its end'
const STOP_TIMEOUT_MS = 120_000
/** The power button is pressed again after this: a guest that boots or wakes misses the first time. */
const PRESS_AGAIN_MS = 5_000

export class Life {
  readonly #options: LifeOptions
  readonly #entries: Entries
  readonly #guests: Guests

  constructor(options: LifeOptions) {
    this.#options = options
    this.#entries = options.entries
    this.#guests = options.guests
  }

  async create(yamlText: string): Promise<CreatedVm> {
    const { host, files, resources } = this.#options
    const asked = parseSpec(yamlText)
    const { name } = asked
    if (this.#entries.find(name)) throw new GodwitError('VM_EXISTS', `a VM named ${name} exists at this site`)
    const spec = await resources.completed(asked)
    await files.check(spec)
    const warnings = await host.checkCreate(spec)
    await this.#entries.insert(spec, { state: 'stopped', epoch: (await this.#entries.highestEpoch(name)) + 1 })
    return { ...this.#entries.facts(name), ...(warnings.length > 0 ? { warnings } : {}) }
  }

  async start(name: string, { force = false, signal }: StartVmOptions): Promise<void> {
    await this.#entries.inTurn(name, async entry => {
      const { state } = this.#entries.facts(name)
      if (!['stopped', 'failed', 'paused', 'suspended'].includes(state))
        throw this.#entries.wrongState(name, 'cannot be started', state === 'migrating' ? MIGRATES : undefined)
      if (entry.record.doubt)
        throw new GodwitError(force ? 'FENCING_REQUIRED' : 'MIGRATION_DOUBT', `${name} may run at another site`, {
          hint: 'run godwit recover',
        })
      const fresh = entry.vm === undefined
      entry.vm ??= await this.#options.launcher.launch(entry, { incoming: false, signal })
      await this.#entries.update(entry, { state: 'running', resumePending: true, doubt: false, failure: undefined })
      try {
        await this.#guests.resume(entry)
      } catch (error) {
        if (fresh) await this.#guests.end(entry, vm => vm.kill())
        const state = fresh ? 'failed' : 'paused'
        await this.#entries.update(entry, { state, resumePending: false, failure: toGodwitError(error).toJSON() })
        throw error
      }
    })
  }

  async wake(name: string): Promise<void> {
    await this.#entries.inTurn(name, async entry => {
      if (this.#entries.facts(name).state !== 'suspended') throw this.#entries.wrongState(name, 'cannot be woken')
      await this.#guests.wake(entry)
    })
  }

  async stop(name: string, { force = false, timeoutMs = STOP_TIMEOUT_MS, signal }: StopVmOptions): Promise<void> {
    const asked = await this.#entries.inTurn(name, async entry => {
      if (entry.record.state === 'migrating' || entry.record.state === 'incoming')
        throw this.#entries.wrongState(name, 'cannot be stopped: it migrates', MIGRATES)
      if (!force && entry.vm) return await this.#askToStop(entry, entry.vm)
      await this.#guests.end(entry, vm => vm.stop())
      if (entry.record.state !== 'stopped')
        await this.#entries.update(entry, { state: 'stopped', resumePending: false, failure: undefined })
      return undefined
    })
    // The turn is free meanwhile: a `force` need not wait for the end of this.
    if (asked) await this.#untilOff(name, asked, timeoutMs, signal)
  }

  async delete(name: string): Promise<void> {
    await this.#entries.inTurn(name, async entry => {
      if (entry.record.state !== 'stopped' && entry.record.state !== 'failed')
        throw this.#entries.wrongState(name, 'cannot be deleted: stop it first')
      await this.#entries.forget(entry, entry.record.epoch, 'nothing')
    })
  }

  async #askToStop(entry: VmEntry, vm: RunningVm): Promise<RunningVm> {
    const { name } = entry.spec
    const { state } = this.#entries.facts(name)
    // Its memory may be the only copy: only godwit recover starts or ends it.
    if (entry.record.doubt && state === 'paused') throw new GodwitError('MIGRATION_DOUBT', `${name} may run at another site`)
    if (state === 'paused') {
      const hint = 'start it first, or use --force, which loses its memory'
      throw this.#entries.wrongState(name, 'cannot shut down: its guest is paused', hint)
    }
    if (state === 'suspended') await this.#guests.wake(entry)
    await vm.commands.systemPowerdown()
    return vm
  }

  /** Until the guest that was asked has powered off, or its QEMU has ended in another way (thrown as it is listed). */
  async #untilOff(name: string, vm: RunningVm, timeoutMs: number, signal: AbortSignal | undefined): Promise<void> {
    const { closing } = this.#options
    const isGone = Promise.withResolvers<void>()
    const stops = signal ? AbortSignal.any([signal, closing]) : closing
    const look = () => {
      if (this.#entries.find(name)?.vm !== vm) isGone.resolve()
    }
    const off = this.#entries.onChange(look)
    const again = setInterval(() => void vm.commands.systemPowerdown().catch(() => {}), PRESS_AGAIN_MS)
    look()
    try {
      const what = { ms: timeoutMs, what: `${name} shutting down`, code: 'STOP_TIMEOUT' as const, signal: stops }
      await within(isGone.promise, what)
    } catch (error) {
      if (!hasCode(error, 'STOP_TIMEOUT')) throw error
      throw new GodwitError('STOP_TIMEOUT', `the guest of ${name} did not shut down within ${timeoutMs / 1000} s; it keeps running`)
    } finally {
      clearInterval(again)
      off()
    }
    await this.#entries.inTurn(name, async ({ record }) => {
      if (record.state === 'failed' && record.failure) throw fromBody(record.failure)
    })
  }
}
