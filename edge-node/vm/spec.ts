// The VM specification: what a person writes, and all that a QEMU command line is built from.
// Enters: YAML text (from a person, or from another site: hostile). Leaves: a VmSpec, or VM_SPEC_INVALID that lists
// every wrong field, its line and what is allowed.
// Always holds: files are names inside the site's own folders, never paths; nothing in a spec can add an option to
// QEMU's command line (each text that reaches QEMU matches a pattern without commas); the same spec gives the same
// guest-visible machine at every site.

import { createHash } from 'node:crypto'
import { parseYaml, toYaml, type YamlValue } from '../../ops/yaml.ts'
import { SERVICES_MAX } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { z } from '../../wire/schema.ts'
import { MIB } from '../../wire/units.ts'

const MEMORY_MIN_BYTES = 16 * MIB
const MEMORY_MAX_BYTES = 1024 * 1024 * MIB

/** Known to every QEMU from 9.0 on; versioned, so that the guest sees the same machine under a newer QEMU. */
export const DEFAULT_MACHINE = 'pc-i440fx-9.0'
/** Runs under TCG and under KVM on any x86-64 host. */
export const DEFAULT_CPU = 'qemu64'

const UNITS: Record<string, number> = { KiB: 1024, MiB: MIB, GiB: 1024 * MIB, TiB: 1024 * 1024 * MIB }

/** Bytes of '384MiB'; undefined when it is no size. */
export function parseSpecSize(text: string): number | undefined {
  const match = /^([1-9][0-9]{0,9})(KiB|MiB|GiB|TiB)$/.exec(text)
  return match ? Number(match[1]) * UNITS[match[2]!]! : undefined
}

export function formatSize(bytes: number): string {
  const unit = ['TiB', 'GiB', 'MiB', 'KiB'].find(name => bytes % UNITS[name]! === 0 && bytes >= UNITS[name]!)
  return unit ? `${bytes / UNITS[unit]!}${unit}` : `${bytes}B`
}

const nameField = z.string().regex(/^[a-z0-9-]{1,64}$/, 'must be 1 to 64 of a-z, 0-9 and -')
const fileField = z
  .string()
  .regex(
    /^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/,
    "must be a file name of A-Z a-z 0-9 . _ - inside the site's images folder: no folders, not starting with a dot",
  )

const memoryField = z.string({ error: 'must be a size with its unit, such as 384MiB or 2GiB' }).transform((text, context) => {
  const bytes = parseSpecSize(text)
  if (bytes !== undefined && bytes % MIB === 0 && bytes >= MEMORY_MIN_BYTES && bytes <= MEMORY_MAX_BYTES) return bytes
  context.addIssue({ code: 'custom', message: 'must be a whole number of MiB, GiB or TiB from 16MiB to 1TiB, such as 384MiB' })
  return z.NEVER
})

const machineField = z.string().superRefine((machine, context) => {
  if (/^pc-(i440fx|q35)-[0-9]{1,2}\.[0-9]{1,2}$/.test(machine)) return
  const known = machine === 'pc' || machine === 'q35' || machine === 'pc-i440fx' || machine === 'pc-q35'
  const message = known
    ? `'${machine}' is a different machine in each QEMU version and would not migrate: add a version, such as ${DEFAULT_MACHINE}`
    : `must be pc-i440fx-VERSION or pc-q35-VERSION, such as ${DEFAULT_MACHINE}`
  context.addIssue({ code: 'custom', message })
})

const cpuField = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, `must be the name of a QEMU CPU model, such as ${DEFAULT_CPU} or Skylake-Client-v1`)
  .refine(cpu => cpu !== 'host' && cpu !== 'max', 'host and max differ from site to site and would not migrate: use a named model')

/** The controller that the guest finds a disk at. Absent is virtio-blk at every site, so it is not written out. */
const busField = z.enum(['virtio-blk', 'virtio-scsi']).optional()

const fileDiskField = z.strictObject({
  file: fileField,
  /**
   * readonly: the guest cannot write. The file must be at the target with the same content.
   * ephemeral: as readonly for the host; the guest itself keeps its changes in its own memory (overlayfs over tmpfs).
   *   They travel with the memory and end with the VM. There is deliberately no host-side scratch overlay: a
   *   migration would leave it behind, and the guest's file system would suddenly be an older one. The guest finds
   *   the disk by its serial number ephemeral-N.
   * shared: in the site's shared folder (one file system mounted at both sites); opened without the host's page cache.
   * writable: in the images folder, written by the guest; deprecated: a disk of mode local is in the VM's own folder.
   *   Such a VM is not migrated (PREFLIGHT_WRITABLE_DISK).
   */
  mode: z.enum(['readonly', 'ephemeral', 'shared', 'writable']),
  bus: busField,
  /** The guest sees a read-only CD in an IDE drive. */
  cdrom: z.boolean().optional(),
  /** Named, never probed: a guest that writes a qcow2 header into a raw disk must not make QEMU open what it names. */
  format: z.enum(['raw', 'qcow2']),
})

/** The drives of the i440fx machine's two IDE channels. */
const CDROMS_MAX = 4
const DISK_BYTES_MAX = 8 * 1024 * 1024 * MIB
const diskSizeField = z
  .string({ error: 'must be a size with its unit, such as 20GiB' })
  .refine(text => (parseSpecSize(text) ?? 0) % MIB === 0 && (parseSpecSize(text) ?? 0) > 0 && parseSpecSize(text)! <= DISK_BYTES_MAX, {
    error: 'must be a whole number of MiB, GiB or TiB up to 8TiB, such as 20GiB',
  })

/** In the VM's own folder, made when the VM is created, removed with it: written by the guest, and nobody else's. */
const localDiskField = z.strictObject({
  mode: z.literal('local'),
  /** It begins with the content of this image of the site (godwit image); absent: with zeros. */
  image: fileField.optional(),
  /** Default: the image's. A disk over a smaller image has zeros behind it. */
  size: diskSizeField.optional(),
  bus: busField,
  format: z.enum(['raw', 'qcow2']).default('qcow2'),
})
const diskField = z.discriminatedUnion('mode', [localDiskField, fileDiskField])
const DISK_MODES = ['local', ...fileDiskField.shape.mode.options]

const macField = z
  .string()
  .regex(/^[0-9a-f]{2}(:[0-9a-f]{2}){5}$/, 'must be a MAC address in lower case, such as 52:54:00:12:34:56')
  .refine(mac => (Number.parseInt(mac.slice(0, 2), 16) & 1) === 0, 'must not be a multicast address')

const tapField = z.string().regex(/^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,14}$/, 'must be the name of a tap interface, 1 to 15 characters')
const nicField = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('user'), mac: macField.optional() }),
  z.strictObject({ type: z.literal('tap'), mac: macField.optional(), tap: tapField }),
  z.strictObject({ type: z.literal('none') }),
])

const serviceField = z.strictObject({
  /** What the gateway's configuration calls it. */
  name: nameField,
  /** TCP, in the guest. */
  port: z.int().min(1, 'must be a port from 1 to 65535').max(65_535, 'must be a port from 1 to 65535'),
})

// 2047 bytes is what the Linux boot protocol takes on x86.
const appendField = z.string().regex(/^[\x20-\x7e]{0,2047}$/, 'must be at most 2047 printable ASCII characters on one line')

const cloudText = z.string().min(1, 'must not be empty')
const cloudInitField = z.strictObject({
  userData: cloudText,
  /** Default: an instance-id that follows from the VM's name, and that name as the host's. */
  metaData: cloudText.optional(),
  networkConfig: cloudText.optional(),
})
/** The other site's node does not read a longer one. */
const SPEC_BYTES_MAX = 64 * 1024

const specSchema = z
  .strictObject({
    name: nameField,
    vcpus: z.int().min(1).max(64).default(1),
    memory: memoryField,
    machine: machineField.default(DEFAULT_MACHINE),
    cpu: cpuField.default(DEFAULT_CPU),
    /** Absent is bios at every site. */
    firmware: z.enum(['bios', 'uefi']).optional(),
    accelerator: z.enum(['auto', 'kvm', 'tcg']).default('auto'),
    kernel: fileField.optional(),
    initrd: fileField.optional(),
    append: appendField.optional(),
    disks: z.array(diskField).max(8).default([]),
    nics: z.array(nicField).max(4).default([]),
    /** What the guest serves to users through the gateway; needs a NIC of type user. */
    services: z.array(serviceField).max(SERVICES_MAX).default([]),
    serial: z.boolean().default(true),
    /** Devices: absent is off at every site, so it is not written out. */
    agent: z.boolean().optional(),
    rng: z.boolean().optional(),
    balloon: z.boolean().optional(),
    display: z.boolean().optional(),
    /** What the guest's cloud-init reads from a disk that is made with the VM (disks/seed.ts). */
    cloudInit: cloudInitField.optional(),
    compression: z.enum(['zstd', 'off']).default('zstd'),
    /** Wishes for the gateway's placement policy; carried along, not read here. */
    policy: z.record(z.string(), z.json()).optional(),
  })
  .superRefine((spec, context) => {
    const wrong = (path: string, message: string) => context.addIssue({ code: 'custom', path: [path], message })
    if (spec.kernel === undefined && spec.initrd !== undefined) wrong('initrd', 'needs a kernel')
    if (spec.kernel === undefined && spec.append !== undefined) wrong('append', 'needs a kernel')
    if (spec.kernel === undefined && spec.disks.length === 0) wrong('kernel', 'a kernel or at least one disk is required to boot')
    if (spec.services.length > 0 && !spec.nics.some(nic => nic.type === 'user')) wrong('services', 'need a NIC of type user')
    if (spec.disks.filter(isCdrom).length > CDROMS_MAX) wrong('disks', `at most ${CDROMS_MAX} of them may be a cdrom`)
    for (const disk of spec.disks) {
      if (!isCdrom(disk)) continue
      if (disk.mode !== 'readonly' || disk.format !== 'raw') wrong('disks', `${disk.file}: a cdrom needs mode readonly and format raw`)
      if (disk.bus !== undefined) wrong('disks', `${disk.file}: a cdrom is in an IDE drive and has no bus`)
    }
    const placeOf = (disk: DiskSpec) => (isLocal(disk) ? '' : `${disk.mode === 'shared' ? 'shared' : 'images'} ${disk.file}`)
    for (const disk of spec.disks) {
      if (isLocal(disk)) {
        if (disk.image === undefined && disk.size === undefined) wrong('disks', 'a local disk needs an image, a size, or both')
        continue
      }
      if (disk.mode !== 'shared' && disk.mode !== 'writable') continue
      if (spec.disks.some(other => other !== disk && placeOf(other) === placeOf(disk)))
        wrong('disks', `${disk.file} is listed twice, and the guest writes to it: QEMU can open such a file only once`)
    }
    if (new Set(spec.services.map(service => service.name)).size < spec.services.length) wrong('services', 'two have the same name')
  })

export type DiskSpec = z.output<typeof diskField>
export type LocalDisk = z.output<typeof localDiskField>
export type FileDisk = z.output<typeof fileDiskField>
export const isLocal = (disk: DiskSpec): disk is LocalDisk => disk.mode === 'local'
/**
 * Every disk of the VM: those of its spec, then its seed, then its firmware's variables. The place in this list is the
 * disk's number everywhere. Seed and variables are local disks that are made with content: they travel as the others
 * do, so the target makes nothing.
 */
export const disksOf = (spec: VmSpec): DiskSpec[] => [
  ...spec.disks,
  ...(spec.cloudInit === undefined ? [] : [SEED_DISK]),
  ...(spec.firmware === 'uefi' ? [VARIABLES_DISK] : []),
]
const SEED_DISK: LocalDisk = { mode: 'local', size: '1MiB', format: 'raw' }
/** As large as Debian's OVMF_VARS_4M.fd: code and variables fill 4 MiB together. */
const VARIABLES_DISK: LocalDisk = { mode: 'local', size: '528KiB', format: 'raw' }
export const isSeed = (disk: DiskSpec): boolean => disk === SEED_DISK
/** The guest sees it as flash, not as a disk. */
export const isVariables = (disk: DiskSpec): boolean => disk === VARIABLES_DISK

/** The files of the seed, as cloud-init names them; undefined when the VM has none. */
export function seedFiles({ name, cloudInit }: VmSpec): Record<string, string> | undefined {
  if (cloudInit === undefined) return undefined
  const { userData, metaData = `instance-id: ${vmUuid(name)}\nlocal-hostname: ${name}\n`, networkConfig } = cloudInit
  return { 'user-data': userData, 'meta-data': metaData, ...(networkConfig === undefined ? {} : { 'network-config': networkConfig }) }
}

export const isCdrom = (disk: DiskSpec): disk is FileDisk => !isLocal(disk) && disk.cdrom === true
/** Of a local disk whose size is known: it is written out when its VM is created. */
export const localBytes = ({ size }: LocalDisk): number => parseSpecSize(size ?? '') ?? 0
export type NicSpec = z.output<typeof nicField>
export type VmSpec = Omit<z.output<typeof specSchema>, 'memory'> & { memoryBytes: number }

/** The spec in a YAML text. VM_SPEC_INVALID lists all problems: field path, line, what is allowed. */
export function parseSpec(text: string): VmSpec {
  const yaml = parseYaml(text, { what: 'VM specification', code: 'VM_SPEC_INVALID' })
  const result = specSchema.safeParse(yaml.value)
  if (!result.success) throw new GodwitError('VM_SPEC_INVALID', problemsText(result.error.issues, yaml))
  const { memory, ...rest } = result.data
  const spec = { ...rest, memoryBytes: memory }
  if (spec.cloudInit !== undefined && Buffer.byteLength(specToYaml(spec)) > SPEC_BYTES_MAX)
    throw new GodwitError('VM_SPEC_INVALID', 'VM specification: cloudInit: the whole specification must not exceed 64 KiB')
  return spec
}

type Issue = z.core.$ZodIssue

/** A specification may come from another site: the message must not grow with it. */
const PROBLEMS_SHOWN = 20
const PROBLEM_LENGTH_MAX = 300

function problemsText(issues: readonly Issue[], yaml: YamlValue): string {
  const problems = issues.flatMap(issue => problemsOf(issue, yaml.value))
  const shown = problems.slice(0, PROBLEMS_SHOWN)
  const lines = shown.map(({ path, message }) => `${place(path, yaml)}: ${message}`.slice(0, PROBLEM_LENGTH_MAX))
  if (problems.length === 1) return `VM specification: ${lines[0]}`
  const left = problems.length - lines.length
  const more = left > 0 ? [`and ${left} more`] : []
  return `VM specification: ${problems.length} problems\n${[...lines, ...more].map(line => `  ${line}`).join('\n')}`
}

const place = (path: (string | number)[], yaml: YamlValue): string => {
  const line = yaml.lineOf(path)
  const name = path.reduce<string>(
    (text, part) => (typeof part === 'number' ? `${text}[${part}]` : text === '' ? part : `${text}.${part}`),
    '',
  )
  return `${name === '' ? 'the document' : name}${line === undefined ? '' : ` (line ${line})`}`
}

function problemsOf(issue: Issue, value: unknown): { path: (string | number)[]; message: string }[] {
  const path = issue.path.map(part => (typeof part === 'symbol' ? String(part) : part))
  if (issue.code === 'unrecognized_keys')
    return issue.keys.map(key => ({
      path: [...path, key],
      message: (path.length === 0 && REFUSED[key]) || `unknown field; allowed are ${allowedKeys(path, value).join(', ')}`,
    }))
  if (issue.code === 'invalid_union')
    return [{ path, message: `must be one of ${path[0] === 'disks' ? DISK_MODES.join(', ') : 'user, tap, none'}` }]
  const given = at(value, path)
  if (given === undefined && path.length > 0 && issue.code !== 'custom')
    return [{ path, message: `is missing: ${issue.message.replace(', received undefined', '')}` }]
  return [
    {
      path,
      message: path.length === 0 && issue.code === 'invalid_type' ? 'must be a mapping of fields, such as name: web-1' : issue.message,
    },
  ]
}

/** Fields that others have for a VM, and why none here has them. */
const REFUSED: Record<string, string> = {
  hugePages:
    'is refused: a node writes guest memory through its file at the target, and Linux does not write to files of huge pages. ' +
    'Set /sys/kernel/mm/transparent_hugepage/shmem_enabled to advise at the host instead',
}

/** What stands at a path of a value. */
const at = (value: unknown, path: (string | number)[]): unknown =>
  path.reduce<unknown>(
    (found, part) => (typeof found === 'object' && found !== null ? (found as Record<string | number, unknown>)[part] : undefined),
    value,
  )

function allowedKeys(path: (string | number)[], value: unknown): string[] {
  if (path[0] === 'disks') return Object.keys((at(value, [...path, 'mode']) === 'local' ? localDiskField : fileDiskField).shape)
  if (path[0] === 'services') return Object.keys(serviceField.shape)
  if (path[0] === 'cloudInit') return Object.keys(cloudInitField.shape)
  if (path[0] === 'nics') return ['type', 'mac', 'tap (type tap only)']
  return Object.keys(specSchema.shape)
}

/** YAML that parseSpec reads back to the same spec. Defaults are written out: another site must not fill in its own. */
export function specToYaml(spec: VmSpec): string {
  const { name, vcpus, memoryBytes, ...rest } = spec
  return toYaml({ name, vcpus, memory: formatSize(memoryBytes), ...rest })
}

/**
 * A UUID that follows from the VM's name alone (RFC 9562 version 8), so that both ends of a migration give the guest
 * the same one.
 */
export function vmUuid(name: string): string {
  const bytes = createHash('sha256').update(`godwit vm uuid ${name}`).digest().subarray(0, 16)
  bytes[6] = (bytes[6]! & 0x0f) | 0x80
  bytes[8] = (bytes[8]! & 0x3f) | 0x80
  const hex = bytes.toString('hex')
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join('-')
}

/**
 * The NIC's MAC address: the spec's, or one that follows from the VM's name and the NIC's index (locally administered,
 * QEMU's 52:54:00 range).
 */
export function nicMac(spec: VmSpec, index: number): string {
  const nic = spec.nics[index]
  if (nic && nic.type !== 'none' && nic.mac !== undefined) return nic.mac
  const hex = createHash('sha256').update(`godwit vm mac ${spec.name} ${index}`).digest('hex')
  return `52:54:00:${hex.slice(0, 2)}:${hex.slice(2, 4)}:${hex.slice(4, 6)}`
}

/**
 * `firmware`: in the host's folder of firmware. `image`: what a local disk stands on. The local disk itself is no file
 * that a spec names.
 */
export type SpecFile = { file: string; use: 'kernel' | 'initrd' | 'readonly' | 'ephemeral' | 'shared' | 'writable' | 'image' | 'firmware' }

/** UEFI's code, of Debian's package ovmf. */
export const FIRMWARE: SpecFile = { file: 'OVMF_CODE_4M.fd', use: 'firmware' }

/** Every file the VM needs, each once, in a stable order. */
export function specFiles(spec: VmSpec): SpecFile[] {
  const files: SpecFile[] = []
  if (spec.kernel !== undefined) files.push({ file: spec.kernel, use: 'kernel' })
  if (spec.initrd !== undefined) files.push({ file: spec.initrd, use: 'initrd' })
  for (const disk of spec.disks) {
    const item = diskItem(disk)
    if (item && !files.some(known => fileKey(known) === fileKey(item))) files.push(item)
  }
  if (spec.firmware === 'uefi') files.push(FIRMWARE)
  return files
}

/**
 * The file that a disk's spec names; undefined for a blank local disk, and for a raw one: it has its own copy of the
 * image.
 */
export function diskItem(disk: DiskSpec): SpecFile | undefined {
  if (!isLocal(disk)) return { file: disk.file, use: disk.mode }
  return disk.image === undefined || disk.format === 'raw' ? undefined : { file: disk.image, use: 'image' }
}

/** Nobody writes to it: then its content is compared, and must stay as it is while the VM runs. */
export const isFixedUse = (use: SpecFile['use']): boolean => use !== 'shared' && use !== 'writable'

/**
 * `root`: the Merkle root of its content (disks/chunk-tree.ts) in hex; absent for a shared or writable disk, whose
 * content changes while we look.
 */
export type FileFacts = { bytes: number; root?: string | undefined }

/** The name of a file of a VM among its files. */
export const fileKey = ({ file, use }: SpecFile): string => `${use}/${file}`
