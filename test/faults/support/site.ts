// A site of a fault test: an agent of its own process that a test holds, kills, stops, starves of disk or puts into
// another time, and its host's power switch.
import { execFile } from 'node:child_process'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { isAlive, killProcess } from '../../../edge-node/vm/process.ts'
import { readProcessFile } from '../../../edge-node/vm/runtime-folder.ts'
import { eventually, within } from '../../../ops/deadline.ts'
import type { Lab } from '../../support/lab.ts'
import type { LabSite, SiteOptions } from '../../support/lab-site.ts'
import type { Doing, FaultNodeOptions, Order } from './fault-node.ts'

const PROGRAM = fileURLToPath(new URL('./fault-node.ts', import.meta.url))
/**
 * Patience of a hanging test, not a limit for the product: a guest under TCG on a busy machine takes half a minute to
 * move.
 */
const REACH_MS = 90_000

export type SiteWish = FaultNodeOptions & { site?: SiteOptions }

export type Point = { arrival: Promise<void>; reached(ms?: number): Promise<void>; release(): Promise<void> }

export type FaultSite = LabSite & {
  /** Arms a place of the agent that runs now (fault-node.ts). */
  arm(place: Order['place'], when: Order['when'], doing: Doing): Promise<Point>
  /** kill -9 of the agent, and the next one. */
  restart(): Promise<void>
  qemuPid(): Promise<number>
  signalQemu(signal: NodeJS.Signals): Promise<void>
  signalAgent(signal: NodeJS.Signals): void
  /** Everything of this host is gone at once: agent and QEMUs. What was synced stays. The next boot has another id. */
  powerLoss(): Promise<void>
  /**
   * From now on no file of the agent may grow: every write to its disk fails (RLIMIT_FSIZE 0). Guest memory is a file
   * too, so not while pages arrive.
   */
  fillDisk(isFull: boolean): Promise<void>
  /** Other options for the next agent. */
  next: FaultNodeOptions
}

export async function addFaultSite(lab: Lab, name: string, vm: string, { site: more = {}, ...wish }: SiteWish): Promise<FaultSite> {
  const words = [PROGRAM, JSON.stringify(wish)]
  const site = await lab.addSite(name, { ...(more.isProcess ? {} : { program: words }), ...more, isStopped: true })
  const abilities = join(site.dir, 'state', 'qemu-abilities.json')
  // Measured for the QEMU without eyes, which is the same.
  if (!more.isProcess) await writeFile(abilities, (await readFile(abilities, 'utf8')).replace('qemu-system-x86_64 ', `${wish.qemuBinary} `))
  const folder = join(site.dir, 'state', 'vms', vm)
  const identity = async () => {
    const file = await readProcessFile(folder)
    if (!file) throw new Error(`${name} has no QEMU of ${vm}`)
    return file.identity
  }
  const arm: FaultSite['arm'] = async (place, when, doing) => {
    const child = site.process!
    const message = (key: string) =>
      new Promise<void>(resolve => {
        const take = (said: { reached: string; when: string }) => {
          if (said.reached !== key || said.when !== when) return
          child.off('message', take)
          resolve()
        }
        child.on('message', take)
      })
    const order = async (what: Doing) => {
      const taken = message('armed')
      child.send({ place, when, doing: what } satisfies Order, () => {})
      await within(taken, { ms: REACH_MS, what: `${name} armed at ${place}` })
    }
    const arrival = doing === 'free' ? new Promise<never>(() => {}) : message(place)
    await order(doing)
    const reached = (ms = REACH_MS) => within(arrival, { ms, what: `${name} at ${when} ${place}` })
    return { arrival, reached, release: () => order('free') }
  }
  const fault: FaultSite = Object.defineProperties({} as FaultSite, {
    ...Object.getOwnPropertyDescriptors(site),
    ...Object.getOwnPropertyDescriptors({
      arm,
      async restart() {
        if (site.process) await site.kill()
        await site.start()
      },
      qemuPid: async () => (await identity()).pid,
      signalQemu: async (signal: NodeJS.Signals) => killProcess(await identity(), signal),
      signalAgent: (signal: NodeJS.Signals) => void site.process!.kill(signal),
      async powerLoss() {
        const qemu = await identity().catch(() => undefined)
        // The agent first: it must not write down how its QEMU ended.
        if (site.process) await site.kill()
        if (qemu) killProcess(qemu)
        await eventually(() => (qemu && isAlive(qemu) ? undefined : true), { ms: 5_000, what: 'the end of QEMU' })
        const path = join(folder, 'process.json')
        const text = await readFile(path, 'utf8').catch(() => undefined)
        if (text) await writeFile(path, text.replace(/"bootId":"[^"]*"/, '"bootId":"another-boot"'))
      },
      async fillDisk(isFull: boolean) {
        await promisify(execFile)('prlimit', ['--pid', String(site.pid), `--fsize=${isFull ? '0' : 'unlimited'}:`])
      },
      get next() {
        return wish
      },
      set next(other: FaultNodeOptions) {
        Object.assign(wish, other)
        words[1] = JSON.stringify(wish)
      },
    }),
  })
  return fault
}
