// What the host of this site can give to a VM. Enters: its QEMU (measured once), its free memory and disk,
// specifications. Leaves: facts for a preflight, warnings for who creates a VM.
// Always holds: a missing QEMU is a fact in info() and an error in qemu(); a measurement that failed is repeated at the
// next call.
import { totalmem } from 'node:os'
import { join } from 'node:path'
import { within } from '../../ops/deadline.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { Accelerator } from '../vm/argv.ts'
import { assertMachine, createWarnings } from '../vm/create-check.ts'
import type { HostInfo } from '../vm/preflight.ts'
import { type QemuAbilities, type QemuInfo, workingAccelerator } from '../vm/qemu.ts'
import type { VmSpec } from '../vm/spec.ts'
import type { Capacity } from './capacity.ts'
import type { SiteFiles } from './site-files.ts'
import type { VmHost } from './vm-host.ts'

type MeasuredQemu = { info: QemuInfo; abilities: QemuAbilities }

type SiteHostOptions = {
  vmHost: VmHost
  stateDir: string
  qemuBinary: string
  capacity: Capacity
  files: SiteFiles
  /** Ends a measurement. */
  closing: AbortSignal
  log: Log
}

/** Who creates a VM does not wait longer for a QEMU that is being measured. */
const CREATE_CHECK_MS = 5_000

export class SiteHost {
  readonly #options: SiteHostOptions
  #qemu: Promise<MeasuredQemu> | undefined

  constructor(options: SiteHostOptions) {
    this.#options = options
  }

  /** What this host has, but for files of a VM. */
  async info(spec?: VmSpec): Promise<HostInfo> {
    const { vmHost, stateDir, qemuBinary, capacity, files, closing, log } = this.#options
    const qemu = await this.qemu().catch((error: unknown) => {
      log.warn('no usable QEMU', { error })
      return undefined
    })
    return {
      // Too old to be used is not the same as missing, and the preflight tells them apart.
      qemuVersion: qemu?.info.version ?? (await vmHost.readQemuVersion(qemuBinary, closing).catch(() => undefined)),
      accelerators: qemu?.abilities.accelerators ?? [],
      machines: qemu?.abilities.machines ?? [],
      cpus: qemu?.abilities.cpus ?? {},
      vcpus: vmHost.hostVcpus(),
      memoryFreeBytes: Math.max(0, await capacity.freeBytes(spec?.name)),
      diskFreeBytes: await vmHost.diskFreeBytes(stateDir),
      files: {},
      taps: spec ? vmHost.existingTaps(spec.nics) : [],
      ...(await files.shared(spec)),
    }
  }

  /** The QEMU of this host and what it can do. PREFLIGHT_QEMU_MISSING, PREFLIGHT_QEMU_OLD. */
  qemu(): Promise<MeasuredQemu> {
    this.#qemu ??= this.#measure().catch(error => {
      this.#qemu = undefined // it may be installed later
      throw error
    })
    return this.#qemu
  }

  /**
   * Why a VM of this spec will not start here for now, or never move. PREFLIGHT_MACHINE, PREFLIGHT_CPU when QEMU cannot
   * make its machine.
   */
  async checkCreate(spec: VmSpec): Promise<string[]> {
    const measured = within(this.qemu(), { ms: CREATE_CHECK_MS, what: 'the abilities of QEMU on this host are still being measured' })
    const qemu = await measured.catch((error: unknown) => toGodwitError(error))
    // A start measures again, without this deadline.
    if (qemu instanceof GodwitError) return [`could not check whether the VM can start at this site: ${qemu.message} (${qemu.code})`]
    const { accelerators } = qemu.abilities
    const accelerator = workingAccelerator(spec.accelerator, accelerators)
    // Whatever it runs under one day, that QEMU must know the machine. Where no accelerator works, nothing was asked of
    // it.
    const likely = accelerator ?? accelerators[0]
    if (likely) this.assertMachine(spec, likely, qemu)
    return createWarnings(spec, accelerator, hostOf(qemu))
  }

  /** PREFLIGHT_MACHINE, PREFLIGHT_CPU when this QEMU cannot make the machine of the spec. */
  assertMachine(spec: VmSpec, accelerator: Accelerator, qemu: MeasuredQemu): void {
    assertMachine(spec, accelerator, hostOf(qemu))
  }

  async #measure(): Promise<MeasuredQemu> {
    const { vmHost, stateDir, qemuBinary: binary, closing: signal, log } = this.#options
    const info = await vmHost.findQemu({ binary, signal })
    return { info, abilities: await vmHost.qemuAbilities(info, { cacheFile: join(stateDir, 'qemu-abilities.json'), log, signal }) }
  }
}

const hostOf = ({ info, abilities }: MeasuredQemu) => ({ ...abilities, qemuVersion: info.version, memoryBytes: totalmem() })
