// QEMU's command line for a VM. Pure. Enters: a spec that parseSpec gave, local folders. Leaves: the argument vector (without the program).
// Always holds: source and target differ only in the images and shared folders and in `-incoming defer`, so block ids, PCI slots and device order match
// and the stream loads; QEMU runs in the VM's `run` folder (its working directory), so sockets are named the same everywhere; kernels, disks and
// its logs it gets as open descriptors: it needs no right to any folder of ours; -S always: a QEMU never runs guest code until its agent says so;
// a short list of devices, no defaults, formats named, never probed; no path comes from a spec: a spec has names in the site's own folders.
import { join } from 'node:path'
import { type DiskSpec, nicMac, type VmSpec, vmUuid } from './spec.ts'

export type Accelerator = 'kvm' | 'tcg'
export type QemuVersion = { major: number; minor: number; micro: number }
export type ArgvPaths = {
  /** Absolute folder of kernels, initrds and local disks. */
  imagesDir: string
  /** Absolute folder of shared disks: the same file system at both ends of a migration. */
  sharedDir?: string | undefined
}
export type ArgvOptions = {
  accelerator: Accelerator
  incoming: boolean
  /** QEMU inherits `openedFiles`; otherwise it opens them itself, by path, with its log in its working directory (benchmarks without an agent). */
  areOpened?: boolean
}

/** Names inside the VM's folder, which is the agent's. */
export const VM_FILES = { process: 'process.json', spec: 'spec.yaml', qemuLog: 'qemu.log', serialLog: 'serial.log', run: 'run' } as const

/** Names inside its `run` folder: QEMU's working directory, the only folder that it can write to, empty when it starts. */
export const RUNTIME_FILES = {
  qmp: 'qmp.sock',
  serial: 'serial.sock',
  pid: 'qemu.pid',
  /** Only where it opens its log itself. */
  serialLog: 'serial.log',
  /** Where the source's QEMU writes its migration stream, and where the target's reads it. */
  outgoing: 'outgoing.sock',
  incoming: 'incoming.sock',
} as const

/** The RAM block's name in QEMU's migration stream; its content is the memfd. The parser captures this block alone. */
export const RAM_BLOCK = 'ram0'

/** The first descriptor that QEMU inherits beside stdin, stdout and stderr. */
export const FIRST_FD = 3

/** A file that the agent opens for QEMU: descriptor FIRST_FD + its place in `openedFiles`. */
export type OpenedFile = { path: string; use: 'log' | 'kernel' | 'initrd' | 'disk'; isWritten: boolean }

/** What QEMU is given open, in the order of its descriptors. Paths are the agent's; `dir` is the VM's folder. */
export function openedFiles(spec: VmSpec, paths: ArgvPaths, dir: string): OpenedFile[] {
  const files: OpenedFile[] = spec.serial ? [{ path: join(dir, VM_FILES.serialLog), use: 'log', isWritten: true }] : []
  if (spec.kernel !== undefined) files.push({ path: join(paths.imagesDir, spec.kernel), use: 'kernel', isWritten: false })
  if (spec.initrd !== undefined) files.push({ path: join(paths.imagesDir, spec.initrd), use: 'initrd', isWritten: false })
  for (const disk of spec.disks) files.push({ path: diskPath(disk, paths), use: 'disk', isWritten: !isFixed(disk) })
  return files
}

/** A disk that nobody writes to. */
const isFixed = ({ mode }: DiskSpec): boolean => mode === 'readonly' || mode === 'ephemeral'

type Names = (path: string, use: OpenedFile['use']) => string

/** QEMU's names of what it is given open. It knows /dev/fdset where it opens disks and logs; kernels are read with fopen. */
function namesOfOpened(spec: VmSpec, paths: ArgvPaths): Names {
  const files = openedFiles(spec, paths, '')
  return (path, use) => {
    const fd = FIRST_FD + files.findIndex(file => file.path === path && file.use === use)
    return use === 'disk' ? fdset(fd) : `/proc/self/fd/${fd}`
  }
}

const fdset = (fd: number): string => `/dev/fdset/${fd}`

/** The arguments of qemu-system-x86_64. The spec's names have no commas (spec.ts), folders may: they go in as JSON or as arguments of their own. */
export function buildArgv(spec: VmSpec, paths: ArgvPaths, { accelerator, incoming, areOpened = false }: ArgvOptions): string[] {
  const names = areOpened ? namesOfOpened(spec, paths) : (path: string) => path
  return [
    ['-name', `guest=${spec.name}`],
    ['-nodefaults', '-no-user-config', '-display', 'none'],
    ['-object', `memory-backend-memfd,id=${RAM_BLOCK},size=${spec.memoryBytes},share=on`],
    ['-machine', `${spec.machine},accel=${accelerator},memory-backend=${RAM_BLOCK}`],
    ['-m', `size=${spec.memoryBytes}B`],
    ['-cpu', spec.cpu],
    ['-smp', `cpus=${spec.vcpus},sockets=1,cores=${spec.vcpus},threads=1`],
    ['-uuid', vmUuid(spec.name)],
    ['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
    // A guest that powers off leaves QEMU paused in status 'shutdown': the agent sees it even after its own restart, and a migration in progress ends in order.
    ['-action', 'shutdown=pause'],
    ['-chardev', `socket,id=qmp0,path=${RUNTIME_FILES.qmp},server=on,wait=off`, '-mon', 'chardev=qmp0,mode=control'],
    areOpened ? addFds(spec) : [],
    serialArguments(spec, areOpened ? fdset(FIRST_FD) : RUNTIME_FILES.serialLog),
    bootArguments(spec, paths, names),
    spec.disks.flatMap((_, index) => diskArguments(spec, index, paths, names)),
    spec.nics.flatMap((_, index) => nicArguments(spec, index)),
    ['-pidfile', RUNTIME_FILES.pid, '-S'],
    incoming ? ['-incoming', 'defer'] : [],
  ].flat()
}

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

/** The local path of a disk. */
export function diskPath(disk: DiskSpec, paths: ArgvPaths): string {
  if (disk.mode !== 'shared') return join(paths.imagesDir, disk.file)
  if (paths.sharedDir === undefined) throw new TypeError(`disk ${disk.file} is shared, and the site has no shared folder`)
  return join(paths.sharedDir, disk.file)
}

function diskArguments(spec: VmSpec, index: number, paths: ArgvPaths, names: Names): string[] {
  const disk = spec.disks[index]!
  const filename = names(diskPath(disk, paths), 'disk')
  const readOnly = isFixed(disk)
  const cache = { direct: disk.mode === 'shared', 'no-flush': false } // another site's page cache is not coherent with ours
  const file = { driver: 'file', 'node-name': `file${index}`, filename, 'read-only': readOnly, cache }
  const format = { driver: disk.format, 'node-name': `disk${index}`, 'read-only': readOnly, cache, file: `file${index}` }
  const boot = spec.kernel === undefined && index === 0 ? ',bootindex=0' : ''
  return [
    ['-blockdev', JSON.stringify({ ...file, 'auto-read-only': false })],
    ['-blockdev', JSON.stringify(format)],
    ['-device', `virtio-blk-pci,id=blk${index},drive=disk${index},serial=${disk.mode}-${index}${boot}`],
  ].flat()
}

function nicArguments(spec: VmSpec, index: number): string[] {
  const nic = spec.nics[index]
  if (nic === undefined || nic.type === 'none') return []
  const backend = nic.type === 'user' ? `user,id=net${index}` : `tap,id=net${index},ifname=${nic.tap},script=no,downscript=no,vhost=off`
  // No boot ROM: it would be one more RAM block that must match at both ends.
  return ['-netdev', backend, '-device', `virtio-net-pci,id=nic${index},netdev=net${index},mac=${nicMac(spec, index)},romfile=`]
}
