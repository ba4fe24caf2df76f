// A host of the simulation as a registry has it (edge-node/registry/vm-host.ts): QEMUs of qemu.ts, small files on the
// host's disk, room enough.
// Enters: calls of a process, which tells the host. Leaves: what a host answers; a dead process hears nothing more.
// Files are durable once written: what they hold (a specification) decides nothing about who runs a VM.
import type { VmHost } from '../../../../edge-node/registry/vm-host.ts'
import type { HostFiles } from '../../../../edge-node/vm/host-files.ts'
import { hostOf } from '../host.ts'
import { pass } from '../stage.ts'
import { never, pause, processNow } from '../time.ts'
import { adoptMachine, startMachine } from './machine.ts'

const ROOM_BYTES = 64 * 1024 ** 3
const QEMU = { binary: 'qemu', version: '10.0.2' }
const ABILITIES = { accelerators: ['tcg' as const], machines: ['pc-i440fx-9.0'], cpus: { tcg: { qemu64: [] } } }
/** Of the VM's one file, which every site has. */
const FACTS = { 'readonly/boot.img': { bytes: 1 } }

const filesHere = () => hostOf(processNow()).disk.files

const step = async (): Promise<void> => {
  const process = processNow()
  if (!process.alive) await never()
  await pause(process, 0.05)
}

const files: HostFiles = {
  makeFolder: step,
  setMode: step,
  async names(folder) {
    await step()
    const names = [...filesHere().keys()]
      .filter(name => name.startsWith(`${folder}/`))
      .map(name => name.slice(folder.length + 1).split('/')[0]!)
    return [...new Set(names)].sort()
  },
  async readText(path) {
    await step()
    const text = filesHere().get(path)
    if (text === undefined) throw Object.assign(new Error(`ENOENT: ${path}`), { code: 'ENOENT' })
    return text
  },
  async writeText(path, text) {
    await pass(`before file ${path.split('/').at(-1)}`)
    await step()
    filesHere().set(path, text)
  },
  async removeFolder(path) {
    await pass(`before rm ${path.split('/').at(-1)}`)
    await step()
    for (const name of [...filesHere().keys()]) if (name.startsWith(`${path}/`)) filesHere().delete(name)
  },
}

/** VMs without disks of their own. */
const siteFiles: VmHost['siteFiles'] = () => ({
  paths: { imagesDir: '/images' },
  digests: { close: async () => {} } as ReturnType<VmHost['siteFiles']>['digests'],
  check: async () => {},
  has: async () => true,
  factsOf: async () => FACTS,
  heldBy: async () => FACTS,
  namedBy: async () => FACTS,
  assertUnchanged: async () => {},
  shared: async () => ({}),
  close: async () => {},
})

const noCopies = {
  ...{ list: async () => [], take: async () => false, keep: async () => false },
  ...{ disown: async () => {}, clear: async () => {}, removeOlder: async () => {}, removeOf: async () => {} },
  withRoom: async <T>(work: () => Promise<T>): Promise<T> => await work(),
} as unknown as ReturnType<VmHost['openCopies']>

export const vmHost: VmHost = {
  startMachine,
  adoptMachine,
  /** Kills what is left in the folder, written down or not. */
  async killLeftover(dir) {
    await pass('before kill leftover')
    for (const qemu of hostOf(processNow()).qemus) if (qemu.dir === dir && qemu.alive) qemu.end('agent')
    await pause(processNow(), 1)
  },
  qemuLogTail: async () => '',
  async isOfEarlierBoot(dir) {
    const host = hostOf(processNow())
    await step()
    const qemu = host.processFiles.get(dir)
    return qemu !== undefined && qemu.bootId !== host.bootId
  },
  findQemu: async () => QEMU,
  readQemuVersion: async () => QEMU.version,
  qemuAbilities: async () => ABILITIES,
  memoryAvailableBytes: () => ROOM_BYTES,
  diskFreeBytes: async () => ROOM_BYTES,
  hostVcpus: () => 8,
  existingTaps: () => [],
  files,
  siteFiles,
  // VMs without local disks leave no warm copies, and nothing of them takes time.
  openCopies: () => noCopies,
  openImages: async () => ({ list: async () => [] }) as unknown as Awaited<ReturnType<VmHost['openImages']>>,
}
