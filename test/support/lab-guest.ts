// A Linux guest in a lab: boots at a site, is watched from outside wherever it goes, and says whether its memory is
// right.
// Enters: a lab. Leaves: a guest with its observer; comparisons of guest memory. Always holds: the observer counts
// every beat at every site.

import { readdirSync, readlinkSync } from 'node:fs'
import { open, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { type Observer, observe } from '../../cli/demo/observer.ts'
import type { RunningVm } from '../../edge-node/vm/machine.ts'
import type { GuestRecord } from '../../guest/beats.ts'
import { type GuestOptions, guestAppend } from '../../guest/image.ts'
import { toYaml } from '../../ops/yaml.ts'
import type { VmFacts } from '../../wire/control.ts'
import { PAGE_BYTES } from '../../wire/types.ts'
import { MIB } from '../../wire/units.ts'
import type { Lab } from './lab.ts'
import { assert } from './suite.ts'

const READY_MS = 60_000
const AUDIT_MS = 60_000

type LabGuestOptions = GuestOptions & {
  name?: string
  memoryMiB?: number
  /** Further fields of its specification. */
  spec?: Record<string, unknown>
  /** Added to the kernel's command line. */
  appendMore?: string
}

type FullAudit = Extract<GuestRecord, { kind: 'audit-full' }>

export type LabGuest = Disposable & {
  readonly name: string
  readonly memoryBytes: number
  readonly observer: Observer
  /** Counts beats from now on: what the guest says while its site has no agent is heard by nobody. */
  watchAnew(): Promise<void>
  /** The names of sites whose agents say that it runs there. */
  runsAt(): Promise<string[]>
  /** The guest compares every page with what it must hold. */
  audit(): Promise<FullAudit>
  /** It beats; its audit finds nothing bad; no beat was lost or came twice; it rewrites memory. */
  assertSound(): Promise<FullAudit>
}

/** 48 MiB filled in a VM of 128 MiB, unless told. */
export async function bootGuest(lab: Pick<Lab, 'site' | 'sites'>, siteName: string, options: LabGuestOptions = {}): Promise<LabGuest> {
  const { name = 'vm-1', memoryMiB = 128, spec = {}, appendMore = '', fillBytes = 48 * MIB, ...rest } = options
  const append = `${guestAppend({ fillBytes, ...rest })}${appendMore === '' ? '' : ` ${appendMore}`}`
  const site = lab.site(siteName)
  const consoles = lab.sites().map(({ name: at, socketPath }) => ({ site: at, socketPath }))
  let observer = observe(name, consoles)
  try {
    const ready = observer.next('ready', READY_MS)
    ready.catch(() => {})
    const text = toYaml({ name, memory: `${memoryMiB}MiB`, kernel: 'vmlinuz', initrd: 'initrd.img', append, ...spec })
    await site.api('POST', '/v1/vms', { spec: text })
    await site.api('POST', `/v1/vms/${name}/start`, {})
    await ready
    await observer.next('beat', 5_000)
  } catch (error) {
    observer.close()
    throw error
  }
  const isSteady = options.dirtyBytesPerSecond === 0
  const audit = async () => {
    const answer = observer.next('audit-full', AUDIT_MS)
    observer.type('audit')
    return await answer
  }
  return {
    ...{ name, audit, memoryBytes: memoryMiB * MIB },
    get observer() {
      return observer
    },
    async watchAnew() {
      observer.close()
      observer = observe(name, consoles)
      await observer.next('beat', 5_000)
    },
    async runsAt() {
      const found = await Promise.all(
        lab.sites().map(async at => {
          const { vms } = await at.api<{ vms: VmFacts[] }>('GET', '/v1/vms')
          return vms.some(vm => vm.name === name && vm.state === 'running') ? [at.name] : []
        }),
      )
      return found.flat()
    },
    async assertSound() {
      await observer.next('beat', 5_000)
      const full = await audit()
      const { missing, duplicates, restarts, badLines, bad } = observer.summary()
      assert.equal({ bad: full.bad, ever: full.ever }, { bad: 0, ever: 0 }, `the guest's own audit: ${bad.join('; ')}`)
      assert.ok(full.versions > 0 || isSteady, 'the guest rewrote nothing: its audit would prove nothing')
      assert.equal({ missing, duplicates, restarts, badLines }, { missing: 0, duplicates: 0, restarts: 0, badLines: 0 })
      return full
    },
    [Symbol.dispose]: () => observer.close(),
  }
}

export type Comparison = {
  pages: number
  zeroPages: number
  /** Page numbers that are not the same, at most 16. */
  different: number[]
}

/**
 * Dumps all guest-physical memory of two paused VMs through their own QEMUs (pmemsave) and compares it byte for byte.
 */
export async function compareMemory(source: RunningVm, target: RunningVm): Promise<Comparison> {
  // In QEMU's own folder: it can write nowhere else, and cannot come there by the whole path.
  const paths = { source: join(source.runDir, 'source.mem'), target: join(target.runDir, 'target.mem') }
  try {
    for (const vm of [source, target]) assert.is((await vm.commands.queryStatus()).running, false, `${vm.name} runs while it is dumped`)
    await Promise.all([
      source.commands.pmemsave(0, source.memoryBytes, 'source.mem'),
      target.commands.pmemsave(0, target.memoryBytes, 'target.mem'),
    ])
    return await compareFiles(paths.source, paths.target, source.memoryBytes)
  } finally {
    for (const path of Object.values(paths)) await rm(path, { force: true })
  }
}

/** All guest-physical memory of a paused VM. */
export async function readMemory(vm: RunningVm): Promise<Buffer> {
  const path = join(vm.runDir, 'whole.mem')
  try {
    await vm.commands.pmemsave(0, vm.memoryBytes, 'whole.mem')
    return await readFile(path)
  } finally {
    await rm(path, { force: true })
  }
}

const zeroPage = Buffer.alloc(PAGE_BYTES)

async function compareFiles(left: string, right: string, bytes: number): Promise<Comparison> {
  await using a = await open(left)
  await using b = await open(right)
  assert.equal([(await a.stat()).size, (await b.stat()).size], [bytes, bytes], 'the dumps hold all of the memory')
  const [one, other] = [Buffer.allocUnsafe(4 * MIB), Buffer.allocUnsafe(4 * MIB)]
  const result: Comparison = { pages: bytes / PAGE_BYTES, zeroPages: 0, different: [] }
  for (let at = 0; at < bytes; at += one.length) {
    const length = Math.min(one.length, bytes - at)
    const read = await Promise.all([a.read(one, 0, length, at), b.read(other, 0, length, at)])
    assert.equal(
      read.map(({ bytesRead }) => bytesRead),
      [length, length],
    )
    for (let page = 0; page < length; page += PAGE_BYTES) {
      if (one.compare(other, page, page + PAGE_BYTES, page, page + PAGE_BYTES) !== 0 && result.different.length < 16)
        result.different.push((at + page) / PAGE_BYTES)
      if (one.compare(zeroPage, 0, PAGE_BYTES, page, page + PAGE_BYTES) === 0) result.zeroPages++
    }
  }
  return result
}

/** Descriptors of guest memory that this process still holds: each would keep a dead VM's memory allocated. */
export const heldMemories = (): number =>
  readdirSync('/proc/self/fd').filter(fd => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).startsWith('/memfd:memory-backend')
    } catch {
      return false
    }
  }).length
