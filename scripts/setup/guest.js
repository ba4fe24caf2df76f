// The guest image of demo and tests: .cache/guest/{vmlinuz,initrd.img}, from Debian's cloud kernel, busybox and the
// sources in guest/. Always holds: image and stamp match; downloads stay in .cache/guest-parts, so a change of the
// sources needs no network.
import { execFileSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { findNode } from '../../bin/launch.js'
import { hasApt, installCompiler, kernelPackage, unpackPackages } from './debian.js'
import { cache, findProgram, hashFiles, Missing, must, readText, root, say } from './tools.js'

const KERNEL_META = 'linux-image-cloud-amd64'
const BUSYBOX = 'busybox-static'
/** Drivers that are modules in Debian's kernel: power button, and virtio for VMs that have it. */
const MODULES = [
  'button',
  'evdev',
  'virtio',
  'virtio_ring',
  'virtio_pci_legacy_dev',
  'virtio_pci_modern_dev',
  'virtio_pci',
  'failover',
].concat(['net_failover', 'virtio_net', 'virtio_blk'])
const image = join(cache, 'guest')
const parts = join(cache, 'guest-parts')
const sources = ['guest.c', 'disk.h', 'init', 'build.ts', 'cpio.ts'].map(name => join(root, 'guest', name))

const ownKernel = process.env.GODWIT_GUEST_KERNEL
const ownBusybox = process.env.GODWIT_GUEST_BUSYBOX
const imageHash = () => hashFiles([...sources, fileURLToPath(import.meta.url), ...[ownKernel, ownBusybox].filter(Boolean)])
const partsReady = () => ['vmlinuz', 'busybox'].every(name => existsSync(join(parts, name)))

/** Whether the image exists and was built from the current sources. */
export const guestReady = () =>
  ['vmlinuz', 'initrd.img'].every(name => existsSync(join(image, name))) && readText(join(image, 'stamp')).trim() === imageHash()

function* filesUnder(folder) {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name)
    if (entry.isDirectory()) yield* filesUnder(path)
    else yield path
  }
}

/**
 * Copies the wanted modules from an unpacked kernel package; compressed ones are unpacked with xz, or skipped without
 * xz.
 */
function takeModules(unpacked, into) {
  mkdirSync(into)
  for (const path of filesUnder(unpacked)) {
    const name = /([^/]+)\.ko(\.xz)?$/.exec(path)
    if (!name || !MODULES.includes(name[1])) continue
    const target = join(into, `${name[1]}.ko`)
    if (!name[2]) copyFileSync(path, target)
    else if (findProgram('xz')) writeFileSync(target, execFileSync('xz', ['-dc', path], { maxBuffer: 64 * 1024 * 1024 }))
  }
}

/** Kernel, busybox and modules into .cache/guest-parts. Throws Missing. */
async function fetchParts() {
  const byHand =
    'Set GODWIT_GUEST_KERNEL to a Linux kernel with a serial console and GODWIT_GUEST_BUSYBOX to a static busybox, then run this again.'
  if (process.arch !== 'x64') throw new Missing('a guest image', `The guest image is made for amd64 only; this machine is ${process.arch}.`)
  if (ownKernel && ownBusybox) {
    mkdirSync(join(parts, 'modules'), { recursive: true })
    copyFileSync(ownKernel, join(parts, 'vmlinuz'))
    copyFileSync(ownBusybox, join(parts, 'busybox'))
    return
  }
  if (partsReady()) return
  if (!hasApt()) throw new Missing('a kernel and busybox for the guest image', byHand)
  say('fetching a Linux kernel and busybox for the guest image')
  const kernel = await kernelPackage(KERNEL_META)
  if (!kernel) throw new Missing(`the Debian package ${KERNEL_META}`, `Run 'apt-get update' as root, then this again. Or: ${byHand}`)
  const work = mkdtempSync(join(cache, 'guest-parts-'))
  try {
    const unpacked = join(work, 'unpacked')
    await unpackPackages([kernel, BUSYBOX], unpacked)
    const ready = join(work, 'ready')
    mkdirSync(ready)
    const files = [...filesUnder(unpacked)]
    const find = pattern => files.find(path => pattern.test(path)) ?? ''
    copyFileSync(find(/\/boot\/vmlinuz-[^/]+$/), join(ready, 'vmlinuz'))
    copyFileSync(find(/\/bin\/busybox$/), join(ready, 'busybox'))
    takeModules(unpacked, join(ready, 'modules'))
    rmSync(parts, { recursive: true, force: true })
    renameSync(ready, parts)
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

/** Builds the image if it is missing or out of date. Throws Missing. */
export async function buildGuest() {
  if (guestReady()) return
  await fetchParts()
  const compiler = await installCompiler()
  say('building the guest image')
  const help = 'The whole output is in .cache/setup.log.'
  const args = [join(root, 'guest/build.ts'), '--parts', parts, '--out', image]
  await must(findNode(), args, 'the guest image', help, { env: { CC: compiler } })
  writeFileSync(join(image, 'stamp'), `${imageHash()}\n`)
}
