// Whether a VM can move to a host, decided before a byte moves. Pure. Enters: what the VM needs (said by the source)
// and what the host has (measured there).
// Leaves: nothing, or a coded refusal that says what to do. Always holds: no rule looks at anything but its two
// arguments.

import type { Method } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { check, z } from '../../wire/schema.ts'
import { MIB } from '../../wire/units.ts'
import type { Accelerator } from './argv.ts'
import { DEFAULT_CPU, type FileFacts, fileKey, formatSize, isLocal, parseSpec, specFiles, specToYaml, type VmSpec } from './spec.ts'
import { compareVersions, QEMU_MINIMUM } from './version.ts'

/** Before QEMU 9.0 a live pre-copy under TCG misses dirty pages and still says 'completed'. */
export const LIVE_TCG_MINIMUM = '9.0'
/** What a QEMU process takes beside the guest's memory. */
export const MEMORY_OVERHEAD_BYTES = 128 * MIB
/** Logs and sockets of a VM. */
const DISK_NEEDED_BYTES = 64 * MIB

export type VmNeeds = {
  spec: VmSpec
  /** The source's QEMU, 'major.minor.micro'. */
  qemuVersion: string
  /** What the VM runs under at the source. */
  accelerator: Accelerator
  method: Method
  /** The VM's files at the source, by fileKey. */
  files: Record<string, FileFacts>
  /** The id of the source's shared folder, when the VM has a shared disk. */
  sharedId?: string | undefined
  /**
   * The VM does not run: nothing of a QEMU moves, and it stays stopped at the target or starts there. `qemuVersion` and
   * `accelerator` are then what a start at the source would use.
   */
  stopped?: 'stays' | 'starts' | undefined
}

export type HostInfo = {
  /** undefined: no QEMU. */
  qemuVersion: string | undefined
  accelerators: readonly Accelerator[]
  machines: readonly string[]
  /** By accelerator and model: the features that this host cannot give. */
  cpus: Partial<Record<Accelerator, Record<string, readonly string[]>>>
  vcpus: number
  /** Free now, less what running VMs were promised and have not touched. */
  memoryFreeBytes: number
  diskFreeBytes: number
  /** This host's files of the VM in question, by fileKey. */
  files: Record<string, FileFacts>
  sharedId?: string | undefined
  /** The tap interfaces that exist. */
  taps: readonly string[]
}

type Rule = (needs: VmNeeds, host: HostInfo) => GodwitError | undefined

/** The first reason why the VM cannot move to the host, or undefined. */
export const preflight = (needs: VmNeeds, host: HostInfo): GodwitError | undefined => preflightProblems(needs, host)[0]

/** Every reason, most fundamental first. */
export const preflightProblems = (needs: VmNeeds, host: HostInfo): GodwitError[] =>
  RULES.map(rule => rule(needs, host)).filter(problem => problem !== undefined)

const qemuVersion: Rule = ({ qemuVersion: source, accelerator, method, stopped }, { qemuVersion: target }) => {
  if (target === undefined) return new GodwitError('PREFLIGHT_QEMU_MISSING', 'the target has no QEMU')
  const tooOld = [source, target].find(version => compareVersions(version, QEMU_MINIMUM, 2) < 0)
  if (tooOld)
    return new GodwitError('PREFLIGHT_QEMU_OLD', `QEMU ${tooOld} is older than ${QEMU_MINIMUM}`, {
      hint: `use QEMU >= ${QEMU_MINIMUM} at both sites`,
    })
  if (stopped) return undefined
  if (compareVersions(target, source, 2) < 0)
    return new GodwitError('PREFLIGHT_QEMU_DOWNGRADE', `the source has QEMU ${source}, the target ${target}`)
  if (method === 'cold' || accelerator === 'kvm') return undefined
  const [version, side] = compareVersions(source, LIVE_TCG_MINIMUM, 2) < 0 ? [source, 'source'] : [target, 'target']
  if (compareVersions(version, LIVE_TCG_MINIMUM, 2) >= 0) return undefined
  return new GodwitError(
    'PREFLIGHT_QEMU_OLD',
    `the ${side} has QEMU ${version}: without KVM, live migration before QEMU ${LIVE_TCG_MINIMUM} loses writes of the guest`,
    { hint: `use QEMU >= ${LIVE_TCG_MINIMUM} at both sites, or migrate with --method cold` },
  )
}

/** What the VM would run under at the host: a stopped one is bound to no accelerator that its spec does not name. */
const acceleratorAt = ({ accelerator: source, stopped, spec }: VmNeeds, { accelerators }: HostInfo): Accelerator =>
  !stopped ? source : spec.accelerator === 'auto' ? (accelerators[0] ?? source) : spec.accelerator

const accelerator: Rule = (needs, host) => {
  const { accelerators } = host
  const source = acceleratorAt(needs, host)
  return accelerators.includes(source)
    ? undefined
    : new GodwitError('PREFLIGHT_ACCELERATOR', `the VM runs under ${source}; the target has ${accelerators.join(' and ') || 'none'}`, {
        hint:
          source === 'kvm'
            ? 'choose a site with KVM, or stop the VM and start it with accelerator: tcg'
            : 'choose a site whose QEMU has TCG',
      })
}

const machine: Rule = ({ spec }, { machines }) =>
  machines.includes(spec.machine)
    ? undefined
    : new GodwitError('PREFLIGHT_MACHINE', `the target's QEMU does not know the machine type ${spec.machine}`)

const cpu: Rule = (needs, host) => {
  const { spec } = needs
  const { cpus } = host
  const source = acceleratorAt(needs, host)
  const missing = cpus[source]?.[spec.cpu]
  if (missing === undefined) return new GodwitError('PREFLIGHT_CPU', `the target's QEMU does not know the CPU model ${spec.cpu}`)
  // TCG emulates what it can of any model, alike on every host; the default model is the baseline of every KVM host
  // (QEMU itself takes svm out of it).
  if (source === 'tcg' || spec.cpu === DEFAULT_CPU || missing.length === 0) return undefined
  return new GodwitError('PREFLIGHT_CPU', `the target's CPU cannot run ${spec.cpu}: it lacks ${missing.join(', ')}`)
}

const writableDisk: Rule = ({ spec }) => {
  const disk = spec.disks.find(item => !isLocal(item) && item.mode === 'writable')
  if (!disk || isLocal(disk)) return undefined
  return new GodwitError('PREFLIGHT_WRITABLE_DISK', `${spec.name} writes to its disk ${disk.file}, which would stay behind`, {
    hint: 'use a disk of mode local, which moves with its VM',
  })
}

const memory: Rule = ({ spec, stopped }, { memoryFreeBytes }) => {
  if (stopped === 'stays') return undefined
  const needed = spec.memoryBytes + MEMORY_OVERHEAD_BYTES
  if (memoryFreeBytes >= needed) return undefined
  const [want, have] = [needed, memoryFreeBytes].map(bytes => formatSize(Math.max(0, Math.floor(bytes / MIB)) * MIB))
  return new GodwitError('PREFLIGHT_MEMORY', `the VM needs ${want} of memory at the target, ${have} are free`)
}

const diskSpace: Rule = (_, { diskFreeBytes }) =>
  diskFreeBytes >= DISK_NEEDED_BYTES
    ? undefined
    : new GodwitError(
        'PREFLIGHT_DISK_SPACE',
        `the target's state folder needs ${formatSize(DISK_NEEDED_BYTES)} of free disk, ${Math.floor(diskFreeBytes / MIB)}MiB are free`,
      )

const files: Rule = (needs, host) => fileProblem(needs, host.files, needs.sharedId !== undefined && needs.sharedId === host.sharedId)

/**
 * Why these files of the target are not those of the source, or undefined. `isSameStorage`: both have the same shared
 * folder.
 */
export function fileProblem(needs: VmNeeds, targetFiles: HostInfo['files'], isSameStorage: boolean): GodwitError | undefined {
  for (const item of specFiles(needs.spec)) {
    const [source, target] = [needs.files[fileKey(item)], targetFiles[fileKey(item)]]
    const folder = item.use === 'shared' || item.use === 'firmware' ? item.use : 'images'
    if (source === undefined)
      return new GodwitError('PREFLIGHT_FILE_MISSING', `${item.file} (${item.use}) is not in the source's ${folder} folder`)
    if (target === undefined)
      return new GodwitError('PREFLIGHT_FILE_MISSING', `${item.file} (${item.use}) is not in the target's ${folder} folder`)
    if (item.use === 'shared' && !isSameStorage)
      return new GodwitError('PREFLIGHT_FILE_MISSING', `${item.file}: the two sites' shared folders are not the same storage`, {
        hint: 'mount the same file system at both sites, and set sharedDir in the configuration of both nodes',
      })
    if (item.use !== 'shared' && (source.bytes !== target.bytes || source.root !== target.root))
      return new GodwitError(
        'PREFLIGHT_FILE_MISSING',
        `${item.file} (${item.use}) at the target differs from the file that the VM has open at the source`,
        {
          hint:
            item.use === 'firmware'
              ? 'install the same version of the package ovmf at both sites; a VM uses a new version only after a restart'
              : `copy the same ${item.file} to both sites; a VM uses a replaced file only after a restart`,
        },
      )
  }
  return undefined
}

const devices: Rule = ({ spec }, { taps }) => {
  for (const nic of spec.nics)
    if (nic.type === 'tap' && !taps.includes(nic.tap))
      return new GodwitError('PREFLIGHT_DEVICE', `the target has no tap interface ${nic.tap}`, {
        hint: `ip tuntap add ${nic.tap} mode tap`,
      })
  return undefined
}

const RULES: Rule[] = [qemuVersion, accelerator, writableDisk, machine, cpu, memory, diskSpace, files, devices]

const needsSchema = z.strictObject({
  spec: z.string().max(64 * 1024),
  qemuVersion: z.string().regex(/^[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}$/),
  accelerator: z.enum(['kvm', 'tcg']),
  method: z.enum(['live', 'cold']),
  files: z.record(
    z.string().max(200),
    z.strictObject({
      bytes: z.int().min(0),
      root: z
        .string()
        .regex(/^[0-9a-f]{64}$/)
        .optional(),
    }),
  ),
  sharedId: z.string().max(64).optional(),
  stopped: z.enum(['stays', 'starts']).optional(),
})

/** The needs as a JSON value for the other site. */
export const needsToJson = (needs: VmNeeds): unknown => ({ ...needs, spec: specToYaml(needs.spec) })

/**
 * The needs in a JSON value that another site sent. FRAME_MALFORMED, or VM_SPEC_INVALID for its spec. A need that this
 * version does not know may not be ignored, since nothing would check it: VERSION_UNSUPPORTED.
 */
export function parseNeeds(value: unknown): VmNeeds {
  const unknown = Object.keys(Object(value)).filter(key => !Object.hasOwn(needsSchema.shape, key))
  if (unknown.length > 0)
    throw new GodwitError('VERSION_UNSUPPORTED', `the VM needs ${unknown.join(', ').slice(0, 256)}, which this version does not know`, {
      hint: 'upgrade the target',
    })
  const needs = check(needsSchema, value, { what: 'needs of the VM' })
  return { ...needs, spec: parseSpec(needs.spec) }
}
