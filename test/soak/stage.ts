// The stage of the soak run: a gateway process, three agents as processes, five Linux guests, and a link to the gateway
// for each site.
// Enters: a seed. Leaves: a stage on which faults are injected. Always holds: every QEMU has a second monitor that no
// agent owns, so where a VM runs is known while agents are dead; nothing of the stage lives on when it is disposed.

import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { isAlive, killProcess } from '../../edge-node/vm/process.ts'
import { readProcessFile } from '../../edge-node/vm/runtime-folder.ts'
import { guestAppend } from '../../guest/image.ts'
import { eventually } from '../../ops/deadline.ts'
import { requestUpgrade } from '../../ops/http-client.ts'
import { toYaml } from '../../ops/yaml.ts'
import type { LinkModelOptions } from '../../sim-network/link.ts'
import { startUdpProxy, type UdpProxy } from '../../sim-network/udp-proxy.ts'
import type { VmFacts } from '../../wire/control.ts'
import { MIB } from '../../wire/units.ts'
import { type Eyes, openEyes, qemuWithEyes } from '../faults/support/eyes.ts'
import { type GatewayProcess, gatewayProcess } from '../faults/support/gateway-process.ts'
import { readSerial, type Serial } from '../faults/support/serial.ts'
import { addFaultSite, type FaultSite } from '../faults/support/site.ts'
import { type Lab, openLab } from '../support/lab.ts'

const GUEST_MIB = 128
const FILL_BYTES = 16 * MIB
const LOCAL_DISKS = [
  { mode: 'local', size: '16MiB', format: 'qcow2' },
  { mode: 'local', size: '8MiB', format: 'raw' },
]
const READY_MS = 180_000
const LOOK_MS = 50
const LOOPBACK = { host: '127.0.0.1', port: 0 }
/** A clean link between a site and the gateway. */
export const CLEAN: LinkModelOptions = { rate: { bitsPerSecond: 400e6 }, delayMs: 2, queueBytes: 4 * MIB, loss: undefined }
const SITES = ['a', 'b', 'c'] as const

export type SoakVm = {
  readonly name: string
  readonly eyes: Eyes
  readonly serial: Serial /** Boots that a host crash cost. */
  boots: number
}

export type Stage = AsyncDisposable & {
  readonly lab: Lab
  readonly gateway: GatewayProcess
  readonly sites: readonly FaultSite[]
  readonly vms: readonly SoakVm[]
  readonly links: Readonly<Record<string, UdpProxy>>
  site(name: string): FaultSite
  /** The names of the sites where this VM executes now, as its QEMUs answer. */
  runsAt(vm: SoakVm): Promise<string[]>
  /**
   * What the agents of all sites report of a VM, in the order of the sites. An agent that does not answer gives
   * nothing.
   */
  reports(vm: SoakVm): Promise<{ site: string; state: string; epoch: number }[]>
  /** Starts a VM that stands stopped at a site, and waits until its guest is ready. */
  boot(vm: SoakVm, site: string): Promise<void>
  type(vm: SoakVm, site: string, line: string): Promise<void>
  /** kill -9 of the QEMU of a VM at a site. False where there is none. */
  killQemu(vm: SoakVm, site: string): Promise<boolean>
  signalQemu(vm: SoakVm, site: string, signal: NodeJS.Signals): Promise<void>
  /**
   * Agent and all QEMUs of a site end at once; the next boot of that host has another id. Gives the VMs that ran there.
   */
  powerLoss(site: string): Promise<SoakVm[]>
}

export async function openStage({ seed, vms: count }: { seed: number; vms: number }): Promise<Stage> {
  const qemuBinary = await qemuWithEyes()
  let gateway: GatewayProcess | undefined
  const keeper = async (place: Parameters<typeof gatewayProcess>[0]) => (gateway = await gatewayProcess(place))
  const lab = await openLab({ engine: 'quic', sites: [], keeper })
  const undo: (() => unknown)[] = [() => lab[Symbol.asyncDispose]()]
  const dispose = async () => {
    for (const step of undo.splice(0).reverse()) await step()
  }
  try {
    const links: Record<string, UdpProxy> = {}
    const sites: FaultSite[] = []
    for (const name of SITES) {
      const upstream = { ...LOOPBACK, port: lab.door.port }
      const proxy = await startUdpProxy({ listen: LOOPBACK, upstream, up: CLEAN, down: CLEAN, seed: `${seed}/${name}` })
      undo.push(() => proxy.close())
      links[name] = proxy
      sites.push(await addFaultSite(lab, name, 'vm-1', { qemuBinary, site: { gatewayPort: proxy.address.port } }))
    }
    // A stopped process does not receive SIGTERM before it goes on.
    undo.push(() => void sites.map(site => site.process?.kill('SIGCONT')))
    await Promise.all(sites.map(site => site.start()))
    const vms = Array.from({ length: count }, (_, at) => watch(sites, `vm-${at + 1}`, undo))
    const stage = act({ lab, gateway: gateway!, sites, vms, links })
    for (const [at, vm] of vms.entries()) await create(stage, vm, SITES[at % SITES.length]!, seed + at)
    return Object.assign(stage, { [Symbol.asyncDispose]: dispose })
  } catch (error) {
    await dispose()
    throw error
  }
}

function watch(sites: FaultSite[], name: string, undo: (() => unknown)[]): SoakVm {
  const eyes = openEyes(sites, name, LOOK_MS)
  undo.push(() => eyes[Symbol.dispose]())
  const serial = readSerial(sites, name, LOOK_MS)
  undo.push(() => serial[Symbol.asyncDispose]())
  return { name, eyes, serial, boots: 0 }
}

type Acting = Omit<Stage, typeof Symbol.asyncDispose>

/** A VM of its own content, started at a site. */
async function create(stage: Acting, vm: SoakVm, site: string, seed: number): Promise<void> {
  const options = {
    fillBytes: FILL_BYTES,
    dirtyBytesPerSecond: MIB / 2,
    auditBytesPerSecond: 2 * MIB,
    beatMs: 50,
    seed: (seed % 60_000) + 1,
  }
  // Every other VM has local disks: they travel, and their files and servers must not stay anywhere.
  const disks = seed % 2 === 0 ? LOCAL_DISKS : []
  const fields = { name: vm.name, memory: `${GUEST_MIB}MiB`, kernel: 'vmlinuz', initrd: 'initrd.img', append: guestAppend(options), disks }
  await stage.site(site).api('POST', '/v1/vms', { spec: toYaml(fields) })
  await stage.boot(vm, site)
}

function act(parts: Pick<Stage, 'lab' | 'gateway' | 'sites' | 'vms' | 'links'>): Acting {
  const { sites, vms } = parts
  const site = (name: string) => sites.find(each => each.name === name)!
  const folderOf = (name: string, vm: SoakVm) => join(site(name).dir, 'state', 'vms', vm.name)
  const identity = async (name: string, vm: SoakVm) => (await readProcessFile(folderOf(name, vm)).catch(() => undefined))?.identity
  return {
    ...parts,
    site,
    async runsAt(vm) {
      const seen = await Promise.all(sites.map(async ({ name }) => ((await vm.eyes.status(name)) === 'running' ? [name] : [])))
      return seen.flat()
    },
    async reports(vm) {
      const all = await Promise.all(
        sites.map(async ({ name, api }) => {
          const { vms: known } = await api<{ vms: VmFacts[] }>('GET', '/v1/vms').catch(() => ({ vms: [] as VmFacts[] }))
          return known.filter(each => each.name === vm.name).map(({ state, epoch }) => ({ site: name, state, epoch }))
        }),
      )
      return all.flat()
    },
    async boot(vm, name) {
      const ready = vm.serial.next('ready', READY_MS)
      ready.catch(() => {})
      await site(name).api('POST', `/v1/vms/${vm.name}/start`, {})
      await ready
    },
    async type(vm, name, line) {
      const path = `/v1/vms/${vm.name}/console?replay=0`
      const socket = await requestUpgrade({ socketPath: site(name).socketPath, path })
      await new Promise(resolve => socket.write(`${line}\n`, resolve))
      setTimeout(() => socket.destroy(), 500).unref()
    },
    async killQemu(vm, name) {
      const qemu = await identity(name, vm)
      if (!qemu || !isAlive(qemu)) return false
      killProcess(qemu)
      await eventually(() => (isAlive(qemu) ? undefined : true), { ms: 5_000, what: `the end of the QEMU of ${vm.name}` })
      return true
    },
    async signalQemu(vm, name, signal) {
      const qemu = await identity(name, vm)
      if (qemu && isAlive(qemu)) killProcess(qemu, signal)
    },
    async powerLoss(name) {
      // The agent first: it must not record how its QEMUs ended.
      if (site(name).process) await site(name).kill()
      const lost: SoakVm[] = []
      for (const vm of vms) {
        const qemu = await identity(name, vm)
        if (!qemu) continue
        killProcess(qemu)
        await eventually(() => (isAlive(qemu) ? undefined : true), { ms: 5_000, what: `the end of the QEMU of ${vm.name}` })
        const path = join(folderOf(name, vm), 'process.json')
        const text = await readFile(path, 'utf8').catch(() => undefined)
        if (text) await writeFile(path, text.replace(/"bootId":"[^"]*"/, '"bootId":"another-boot"'))
        lost.push(vm)
      }
      return lost
    },
  }
}
