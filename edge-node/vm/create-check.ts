// What a specification asks for that this host cannot give, or that will keep its VM from ever moving: said when the VM
// is created, not when it is to move. Pure. Enters: a spec, what the host's QEMU can do. Leaves: a refusal, or
// warnings. Always holds: what is refused here could never have started here as the spec says it; what would start and
// never move is a warning, which names the code that the migration would end with.

import { GodwitError } from '../../wire/errors.ts'
import { MIB } from '../../wire/units.ts'
import type { Accelerator } from './argv.ts'
import { type HostInfo, LIVE_TCG_MINIMUM, MEMORY_OVERHEAD_BYTES } from './preflight.ts'
import { DEFAULT_CPU, formatSize, isLocal, type VmSpec } from './spec.ts'
import { compareVersions } from './version.ts'

export type CreateHost = Pick<HostInfo, 'accelerators' | 'machines' | 'cpus'> & {
  qemuVersion: string
  /** Of the whole host. */
  memoryBytes: number
}

/** Throws PREFLIGHT_MACHINE or PREFLIGHT_CPU when this host's QEMU cannot make the machine that the spec names. */
export function assertMachine(spec: VmSpec, accelerator: Accelerator, { qemuVersion, machines, cpus }: CreateHost): void {
  if (!machines.includes(spec.machine)) {
    const family = spec.machine.replace(/[0-9.]+$/, '')
    const known = machines.filter(name => name.startsWith(family))
    const newest = known.sort((a, b) => compareVersions(versionOf(b), versionOf(a), 2))[0]
    throw new GodwitError('PREFLIGHT_MACHINE', `QEMU ${qemuVersion} of this site does not know the machine type ${spec.machine}`, {
      hint: newest === undefined ? 'remove machine from the specification' : `the newest version at this site is ${newest}`,
    })
  }
  const missing = cpus[accelerator]?.[spec.cpu]
  if (missing === undefined)
    throw new GodwitError('PREFLIGHT_CPU', `QEMU ${qemuVersion} of this site does not know the CPU model ${spec.cpu}`, {
      hint: `qemu-system-x86_64 -cpu help lists them; ${DEFAULT_CPU} runs everywhere`,
    })
  if (isFull(spec, accelerator, missing)) return
  throw new GodwitError('PREFLIGHT_CPU', `the CPU of this host cannot run ${spec.cpu}: it lacks ${missing.join(', ')}`, {
    hint: `choose an older model, or ${DEFAULT_CPU}`,
  })
}

const versionOf = (machine: string): string => /[0-9.]+$/.exec(machine)?.[0] ?? '0.0'

/**
 * TCG emulates what it can of any model, alike on every host; QEMU itself takes out of the default model what a KVM
 * host lacks.
 */
const isFull = (spec: VmSpec, accelerator: Accelerator, missing: readonly string[]): boolean =>
  accelerator === 'tcg' || spec.cpu === DEFAULT_CPU || missing.length === 0

/**
 * What starts here and will not move, or not start for now: a sentence each. `accelerator` undefined: the one that the
 * spec names does not work here.
 */
export function createWarnings(spec: VmSpec, accelerator: Accelerator | undefined, host: CreateHost): string[] {
  const warnings: string[] = []
  for (const [index, disk] of spec.disks.entries())
    if (!isLocal(disk) && disk.mode === 'writable')
      warnings.push(`the guest writes to disk ${index} (${disk.file}): this VM cannot migrate (PREFLIGHT_WRITABLE_DISK)`)
  if (accelerator === undefined)
    warnings.push(`${spec.accelerator} does not run a guest on this host: the VM cannot start (PREFLIGHT_ACCELERATOR)`)
  const missing = accelerator === 'tcg' ? (host.cpus.tcg?.[spec.cpu] ?? []) : []
  if (missing.length > 0) warnings.push(`without KVM the guest gets ${spec.cpu} without ${missing.join(', ')}`)
  if (accelerator === 'tcg' && compareVersions(host.qemuVersion, LIVE_TCG_MINIMUM, 2) < 0)
    warnings.push(`without KVM, QEMU ${host.qemuVersion} migrates a VM only with --method cold (PREFLIGHT_QEMU_OLD)`)
  const needed = spec.memoryBytes + MEMORY_OVERHEAD_BYTES
  if (needed > host.memoryBytes) {
    const all = formatSize(Math.floor(host.memoryBytes / MIB) * MIB)
    warnings.push(`the VM needs ${formatSize(needed)} and this host has ${all} in total: the VM cannot start (PREFLIGHT_MEMORY)`)
  }
  return warnings
}
