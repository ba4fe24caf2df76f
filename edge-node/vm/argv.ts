// QEMU's command line for a VM. Pure. Enters: a spec that parseSpec gave, local folders. Leaves: the argument vector (without the program).
// Always holds: source and target differ only in the images and shared folders and in `-incoming defer`, so block ids, PCI slots and device order match
// and the stream loads; QEMU runs in the VM's own folder (its working directory), so sockets and logs are named the same everywhere;
// -S always: a QEMU never runs guest code until its agent says so; a short list of devices, no defaults, formats named, never probed.
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
export type ArgvOptions = { accelerator: Accelerator; incoming: boolean }

/** The RAM block's name in QEMU's migration stream; its content is the memfd. The parser captures this block alone. */
export const RAM_BLOCK = 'ram0'

/** Names inside the VM's folder (QEMU's working directory). */
export const RUNTIME_FILES = {
  qmp: 'qmp.sock',
  serial: 'serial.sock',
  serialLog: 'serial.log',
  qemuLog: 'qemu.log',
  process: 'process.json',
  pid: 'qemu.pid',
  spec: 'spec.yaml',
} as const

/** The arguments of qemu-system-x86_64. The spec's names have no commas (spec.ts), folders may: they go in as JSON or as arguments of their own. */
export function buildArgv(spec: VmSpec, paths: ArgvPaths, { accelerator, incoming }: ArgvOptions): string[] {
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
    serialArguments(spec),
    bootArguments(spec, paths),
    spec.disks.flatMap((disk, index) => diskArguments(disk, index, paths, spec.kernel === undefined)),
    spec.nics.flatMap((_, index) => nicArguments(spec, index)),
    ['-pidfile', RUNTIME_FILES.pid, '-S'],
    incoming ? ['-incoming', 'defer'] : [],
  ].flat()
}

const serialArguments = (spec: VmSpec): string[] =>
  spec.serial
    ? [
        '-chardev',
        `socket,id=serial0,path=${RUNTIME_FILES.serial},server=on,wait=off,logfile=${RUNTIME_FILES.serialLog},logappend=on`,
        '-serial',
        'chardev:serial0',
      ]
    : []

function bootArguments(spec: VmSpec, paths: ArgvPaths): string[] {
  if (spec.kernel === undefined) return []
  const initrd = spec.initrd === undefined ? [] : ['-initrd', join(paths.imagesDir, spec.initrd)]
  return ['-kernel', join(paths.imagesDir, spec.kernel), ...initrd, '-append', spec.append ?? '']
}

/** The local path of a disk. */
export function diskPath(disk: DiskSpec, paths: ArgvPaths): string {
  if (disk.mode !== 'shared') return join(paths.imagesDir, disk.file)
  if (paths.sharedDir === undefined) throw new TypeError(`disk ${disk.file} is shared, and the site has no shared folder`)
  return join(paths.sharedDir, disk.file)
}

function diskArguments(disk: DiskSpec, index: number, paths: ArgvPaths, bootable: boolean): string[] {
  const readOnly = disk.mode === 'readonly' || disk.mode === 'ephemeral'
  const cache = { direct: disk.mode === 'shared', 'no-flush': false } // another site's page cache is not coherent with ours
  const file = { driver: 'file', 'node-name': `file${index}`, filename: diskPath(disk, paths), 'read-only': readOnly, cache }
  const format = { driver: disk.format, 'node-name': `disk${index}`, 'read-only': readOnly, cache, file: `file${index}` }
  const boot = bootable && index === 0 ? ',bootindex=0' : ''
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
