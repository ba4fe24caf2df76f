// QEMU's command line for a VM. Pure. Enters: a spec that parseSpec gave, local folders. Leaves: the argument vector
// (without the program).
// Always holds: source and target differ only in the images and shared folders and in `-incoming defer`, so block ids,
// PCI slots and device order match and the stream loads; QEMU runs in the VM's `run` folder (its working directory), so
// sockets are named the same everywhere; kernels, disks and its logs it gets as open descriptors: it needs no right to
// any folder of ours; -S always: a QEMU never runs guest code until its agent says so; a short list of devices, no
// defaults, formats named, never probed; no path comes from a spec: a spec has names in the site's own folders.
import { join } from 'node:path'
import {
  DEFAULT_CPU,
  type DiskSpec,
  diskItem,
  disksOf,
  FIRMWARE,
  type FileDisk,
  isCdrom,
  isLocal,
  isVariables,
  type LocalDisk,
  nicMac,
  type SpecFile,
  type VmSpec,
  vmUuid,
} from './spec.ts'

export type Accelerator = 'kvm' | 'tcg'
export type ArgvPaths = {
  /** Absolute folder of kernels, initrds and local disks. */
  imagesDir: string
  /** Absolute folder of shared disks: the same file system at both ends of a migration. */
  sharedDir?: string | undefined
}
type ArgvOptions = {
  accelerator: Accelerator
  incoming: boolean
  /**
   * QEMU inherits `openedFiles`; otherwise it opens them itself, by path, with its log in its working directory
   * (benchmarks without an agent).
   */
  areOpened?: boolean
  /** The VM's folder: where its local disks are. */
  dir?: string
}

/** Names inside the VM's folder, which is the agent's. */
export const VM_FILES = {
  process: 'process.json',
  spec: 'spec.yaml',
  qemuLog: 'qemu.log',
  serialLog: 'serial.log',
  run: 'run',
  /** Local disks: 0.qcow2, 1.raw, by their place in the spec. */
  disks: 'disks',
} as const

/**
 * Names inside its `run` folder: QEMU's working directory, the only folder that it can write to, empty when it starts.
 */
export const RUNTIME_FILES = {
  qmp: 'qmp.sock',
  serial: 'serial.sock',
  /** The guest agent's channel, and the screen (VNC). */
  agent: 'agent.sock',
  display: 'vnc.sock',
  pid: 'qemu.pid',
  /** Only where it opens its log itself. */
  serialLog: 'serial.log',
  /** Where the source's QEMU writes its migration stream, and where the target's reads it. */
  outgoing: 'outgoing.sock',
  incoming: 'incoming.sock',
} as const

/** Where Debian's package ovmf puts its files. */
const FIRMWARE_DIR = '/usr/share/OVMF'
export const firmwarePath = join(FIRMWARE_DIR, FIRMWARE.file)
/** What the variables of a new VM are. */
export const variablesPath = join(FIRMWARE_DIR, 'OVMF_VARS_4M.fd')

/** The RAM block's name in QEMU's migration stream; its content is the memfd. The parser captures this block alone. */
export const RAM_BLOCK = 'ram0'

/** The first descriptor that QEMU inherits beside stdin, stdout and stderr. */
export const FIRST_FD = 3

/** A file that the agent opens for QEMU: descriptor FIRST_FD + its place in `openedFiles`. */
export type OpenedFile = {
  path: string
  use: 'log' | 'kernel' | 'initrd' | 'disk'
  isWritten: boolean
  /** Past the host's page cache: QEMU takes a descriptor only when it was opened as it would open the file. */
  isDirect?: boolean
  /** Which file of the spec it is; absent for a log and for a local disk. */
  item?: SpecFile
  /** The place in `disksOf` of the disk whose content it holds. */
  disk?: number
}

/** What QEMU is given open, in the order of its descriptors. Paths are the agent's; `dir` is the VM's folder. */
export function openedFiles(spec: VmSpec, paths: ArgvPaths, dir: string): OpenedFile[] {
  const files: OpenedFile[] = spec.serial ? [{ path: join(dir, VM_FILES.serialLog), use: 'log', isWritten: true }] : []
  const boot = (file: string, use: 'kernel' | 'initrd') =>
    files.push({ path: join(paths.imagesDir, file), use, isWritten: false, item: { file, use } })
  if (spec.kernel !== undefined) boot(spec.kernel, 'kernel')
  if (spec.initrd !== undefined) boot(spec.initrd, 'initrd')
  for (const [index, disk] of disksOf(spec).entries()) {
    const item = diskItem(disk)
    if (!isLocal(disk))
      files.push({
        path: diskPath(disk, paths),
        use: 'disk',
        isWritten: !isFixed(disk),
        isDirect: isDirect(disk),
        item: item!,
        disk: index,
      })
    else {
      files.push({ path: localDiskPath(dir, index, disk), use: 'disk', isWritten: true, disk: index })
      if (item) files.push({ path: join(paths.imagesDir, item.file), use: 'disk', isWritten: false, item })
    }
  }
  if (spec.firmware === 'uefi') files.push({ path: firmwarePath, use: 'disk', isWritten: false, item: FIRMWARE })
  return files
}

/** Another site's page cache is not coherent with ours. */
const isDirect = ({ mode }: FileDisk): boolean => mode === 'shared'

/** A disk that nobody writes to. */
const isFixed = ({ mode }: FileDisk): boolean => mode === 'readonly' || mode === 'ephemeral'

type Names = (path: string, use: OpenedFile['use']) => string

/**
 * QEMU's names of what it is given open. It knows /dev/fdset where it opens disks and logs; kernels are read with
 * fopen.
 */
function namesOfOpened(spec: VmSpec, paths: ArgvPaths, dir: string): Names {
  const files = openedFiles(spec, paths, dir)
  return (path, use) => {
    const fd = FIRST_FD + files.findIndex(file => file.path === path && file.use === use)
    return use === 'disk' ? fdset(fd) : `/proc/self/fd/${fd}`
  }
}

const fdset = (fd: number): string => `/dev/fdset/${fd}`

/**
 * The arguments of qemu-system-x86_64. The spec's names have no commas (spec.ts), folders may: they go in as JSON or as
 * arguments of their own.
 */
export function buildArgv(spec: VmSpec, paths: ArgvPaths, { accelerator, incoming, areOpened = false, dir = '' }: ArgvOptions): string[] {
  const names = areOpened ? namesOfOpened(spec, paths, dir) : (path: string) => path
  return [
    ['-name', `guest=${spec.name}`],
    ['-nodefaults', '-no-user-config', '-display', 'none'],
    // Machine types before 4.0 name the block '/objects/ram0' unless told otherwise: the parser would not know it.
    ['-object', `memory-backend-memfd,id=${RAM_BLOCK},size=${spec.memoryBytes},share=on,x-use-canonical-path-for-ramblock-id=off`],
    ['-machine', `${spec.machine},accel=${accelerator},memory-backend=${RAM_BLOCK}${flashOf(spec)}`],
    ['-m', `size=${spec.memoryBytes}B`],
    ['-cpu', cpuArgument(spec, accelerator)],
    ['-smp', `cpus=${spec.vcpus},sockets=1,cores=${spec.vcpus},threads=1`],
    ['-uuid', vmUuid(spec.name)],
    ['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
    // A guest that powers off leaves QEMU paused in status 'shutdown': the agent sees it even after its own restart,
    // and a migration in progress ends in order.
    ['-action', 'shutdown=pause'],
    // A guest whose kernel panics says so through this device; it stands still then instead of turning in a loop. The
    // device has no state that travels.
    ['-device', 'pvpanic', '-action', 'panic=pause'],
    ['-chardev', `socket,id=qmp0,path=${RUNTIME_FILES.qmp},server=on,wait=off`, '-mon', 'chardev=qmp0,mode=control'],
    areOpened ? addFds(spec) : [],
    serialArguments(spec, areOpened ? fdset(FIRST_FD) : RUNTIME_FILES.serialLog),
    bootArguments(spec, paths, names),
    firmwareArguments(spec, names),
    spec.disks.some(disk => disk.bus === 'virtio-scsi') ? ['-device', 'virtio-scsi-pci,id=scsi0'] : [],
    disksOf(spec).flatMap((_, index) => diskArguments(spec, index, paths, names, dir)),
    spec.nics.flatMap((_, index) => nicArguments(spec, index)),
    DEVICES.flatMap(([field, args]) => (spec[field] ? args : [])),
    ['-pidfile', RUNTIME_FILES.pid, '-S'],
    incoming ? ['-incoming', 'defer'] : [],
  ].flat()
}

/**
 * In this order: a PCI device gets its place by its turn. A display without a USB tablet: the guest needs no driver for
 * a PS/2 mouse.
 */
const DEVICES = [
  [
    'agent',
    [
      ...['-chardev', `socket,id=agent0,path=${RUNTIME_FILES.agent},server=on,wait=off`, '-device', 'virtio-serial-pci,id=serials0'],
      ...['-device', 'virtserialport,bus=serials0.0,nr=1,chardev=agent0,name=org.qemu.guest_agent.0'],
    ],
  ],
  ['rng', ['-object', 'rng-builtin,id=entropy0', '-device', 'virtio-rng-pci,id=rng0,rng=entropy0']],
  ['balloon', ['-device', 'virtio-balloon-pci,id=balloon0']],
  ['display', ['-device', 'VGA,id=vga0,vgamem_mb=16', '-vnc', `unix:${RUNTIME_FILES.display}`]],
] as const satisfies [keyof VmSpec, string[]][]

/**
 * Under KVM a model is whole or QEMU does not start; TCG emulates what it can, and QEMU takes out of the default model
 * what a host lacks.
 */
const cpuArgument = ({ cpu }: VmSpec, accelerator: Accelerator): string =>
  accelerator === 'kvm' && cpu !== DEFAULT_CPU ? `${cpu},enforce` : cpu

const serialArguments = (spec: VmSpec, logFile: string): string[] =>
  spec.serial
    ? [
        '-chardev',
        `socket,id=serial0,path=${RUNTIME_FILES.serial},server=on,wait=off,logfile=${logFile},logappend=on`,
        '-serial',
        'chardev:serial0',
      ]
    : []

/** `opaque` tells a person who looks at the process what the descriptor is. */
const addFds = (spec: VmSpec): string[] =>
  openedFiles(spec, { imagesDir: '', sharedDir: '' }, '').flatMap(({ path, use }, at) =>
    use === 'log' || use === 'disk' ? ['-add-fd', `fd=${FIRST_FD + at},set=${FIRST_FD + at},opaque=${path}`] : [],
  )

function bootArguments(spec: VmSpec, { imagesDir }: ArgvPaths, names: Names): string[] {
  if (spec.kernel === undefined) return []
  const initrd = spec.initrd === undefined ? [] : ['-initrd', names(join(imagesDir, spec.initrd), 'initrd')]
  return ['-kernel', names(join(imagesDir, spec.kernel), 'kernel'), ...initrd, '-append', spec.append ?? '']
}

function firmwareArguments({ firmware }: VmSpec, names: Names): string[] {
  if (firmware !== 'uefi') return []
  const file = { driver: 'file', 'node-name': 'code0', filename: names(firmwarePath, 'disk'), 'read-only': true, 'auto-read-only': false }
  const nodes = [file, { driver: 'raw', 'node-name': 'firmware0', 'read-only': true, file: 'code0' }]
  return nodes.flatMap(node => ['-blockdev', JSON.stringify(node)])
}

const flashOf = (spec: VmSpec): string =>
  spec.firmware === 'uefi' ? `,pflash0=firmware0,pflash1=${diskNode(disksOf(spec).findIndex(isVariables))}` : ''

/** The file of a local disk in the VM's folder. */
export const localDiskPath = (dir: string, index: number, { format }: Pick<LocalDisk, 'format'>): string =>
  join(dir, VM_FILES.disks, `${index}.${format}`)

/** The path of a disk that is a file of the images or shared folder. */
export function diskPath(disk: FileDisk, paths: ArgvPaths): string {
  if (disk.mode !== 'shared') return join(paths.imagesDir, disk.file)
  if (paths.sharedDir === undefined) throw new TypeError(`disk ${disk.file} is shared, but the site has no shared folder`)
  return join(paths.sharedDir, disk.file)
}

function diskArguments(spec: VmSpec, index: number, paths: ArgvPaths, names: Names, dir: string): string[] {
  const disk = disksOf(spec)[index]!
  const nodes = isLocal(disk) ? localNodes(disk, index, paths, names, dir) : fileNodes(disk, index, names(diskPath(disk, paths), 'disk'))
  const blockdevs = nodes.flatMap(node => ['-blockdev', JSON.stringify(node)])
  if (isVariables(disk)) return blockdevs
  const drive = `drive=${diskNode(index)},serial=${disk.mode}-${index}${bootOrder(spec, index)}`
  return [...blockdevs, ...['-device', `${diskDevice(disk, index)},${drive}`]]
}

/** The first disk is booted from, and each CD: a disk without a boot sector leads to the next one. */
const bootOrder = (spec: VmSpec, index: number): string =>
  spec.kernel === undefined && (index === 0 || isCdrom(disksOf(spec)[index]!)) ? `,bootindex=${index}` : ''

/** QEMU gives IDE drives their places in the order of the list. */
function diskDevice(disk: DiskSpec, index: number): string {
  if (isCdrom(disk)) return `ide-cd,id=blk${index}`
  return disk.bus === 'virtio-scsi' ? `scsi-hd,id=blk${index},bus=scsi0.0,scsi-id=${index}` : `virtio-blk-pci,id=blk${index}`
}

/** QEMU's name of the node through which the guest, bitmaps and exports see a disk. */
export const diskNode = (index: number): string => `disk${index}`

function fileNodes(disk: FileDisk, index: number, filename: string): object[] {
  const readOnly = isFixed(disk)
  const cache = { direct: isDirect(disk), 'no-flush': false }
  const file = { driver: 'file', 'node-name': `file${index}`, filename, 'read-only': readOnly, cache, 'auto-read-only': false }
  return [file, { driver: disk.format, 'node-name': diskNode(index), 'read-only': readOnly, cache, file: `file${index}` }]
}

/**
 * A name in the header of a qcow2 is never followed: its image is named here, or there is none. What the guest discards
 * is given back to the host.
 */
function localNodes(disk: LocalDisk, index: number, { imagesDir }: ArgvPaths, names: Names, dir: string): object[] {
  const filename = names(localDiskPath(dir, index, disk), 'disk')
  const file = { driver: 'file', 'node-name': `file${index}`, filename, 'read-only': false, 'auto-read-only': false, discard: 'unmap' }
  const format = { driver: disk.format, 'node-name': diskNode(index), 'read-only': false, discard: 'unmap', file: `file${index}` }
  const image = diskItem(disk)
  if (!image) return [file, disk.format === 'qcow2' ? { ...format, backing: null } : format]
  const base = { driver: 'file', 'node-name': `base${index}`, filename: names(join(imagesDir, image.file), 'disk') }
  return [
    { ...base, 'read-only': true, 'auto-read-only': false },
    { driver: 'raw', 'node-name': `image${index}`, 'read-only': true, file: `base${index}` },
    file,
    { ...format, backing: `image${index}` },
  ]
}

function nicArguments(spec: VmSpec, index: number): string[] {
  const nic = spec.nics[index]
  if (nic === undefined || nic.type === 'none') return []
  const backend = nic.type === 'user' ? `user,id=net${index}` : `tap,id=net${index},ifname=${nic.tap},script=no,downscript=no,vhost=off`
  // No boot ROM: it would be one more RAM block that must match at both ends.
  return ['-netdev', backend, '-device', `virtio-net-pci,id=nic${index},netdev=net${index},mac=${nicMac(spec, index)},romfile=`]
}
