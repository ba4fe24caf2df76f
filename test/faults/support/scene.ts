// The stage of a fault case: sites a and b as processes of their own over QUIC, a gateway, and at a a Linux guest that
// runs, rewrites memory and beats.
// Enters: wishes. Leaves: a scene to break. Always holds: guest RAM is compared byte for byte each time a VM stands
// loaded at its target; whatever a case does, nothing of it lives on when the scene is disposed.

import { closeSync, readSync } from 'node:fs'
import { join } from 'node:path'
import { openMemoryFd } from '../../../edge-node/vm/process.ts'
import { readProcessFile } from '../../../edge-node/vm/runtime-folder.ts'
import { guestAppend } from '../../../guest/image.ts'
import { eventually } from '../../../ops/deadline.ts'
import { requestUpgrade } from '../../../ops/http-client.ts'
import { toYaml } from '../../../ops/yaml.ts'
import type { LinkModelOptions } from '../../../sim-network/link.ts'
import { startUdpProxy, type UdpProxy } from '../../../sim-network/udp-proxy.ts'
import type { MigrationRecord, MigrationRequest } from '../../../wire/admin.ts'
import { MIB } from '../../../wire/units.ts'
import { type Lab, type LabOptions, openLab } from '../../support/lab.ts'
import { logTailOf } from '../../support/lab-site.ts'
import { type Eyes, openEyes, qemuWithEyes } from './eyes.ts'
import { readSerial, type Serial } from './serial.ts'
import { addFaultSite, type FaultSite, type Point, type SiteWish } from './site.ts'

const MEMORY_BYTES = 128 * MIB
const FILL_BYTES = 24 * MIB
const CHUNK_BYTES = 4 * MIB
const READY_MS = 90_000
export const VM = 'vm-1'

type SceneOptions = {
  a?: Partial<SiteWish>
  b?: Partial<SiteWish>
  guest?: { dirtyBytesPerSecond?: number; spec?: Record<string, unknown>; memoryMiB?: number }
  /** A link between these sites and the gateway that a case may spoil. */
  links?: Partial<Record<'a' | 'b', { up: LinkModelOptions; down: LinkModelOptions }>>
  lab?: Partial<LabOptions>
  /** Before the sites are furnished. */
  beforeSites?: (lab: Lab) => Promise<void>
  /** With everything furnished, before the agents start. */
  beforeStart?: (stage: { lab: Lab; a: FaultSite; b: FaultSite }) => Promise<void>
}

type Compared = { pages: number; different: number }

export type Scene = AsyncDisposable & {
  readonly lab: Lab
  readonly a: FaultSite
  readonly b: FaultSite
  readonly eyes: Eyes
  readonly serial: Serial
  readonly links: Partial<Record<'a' | 'b', UdpProxy>>
  /** Of each VM that was loaded at a target so far. */
  readonly compared: Compared[]
  /** When the last migration was asked for, Unix ms. */
  readonly begunAt: number
  readonly migrationId: string
  site(name: string): FaultSite
  /** A migration that somebody else asks for comes to this site: its memory is compared when it is loaded. */
  expectMove(to: string): Promise<void>
  /** That is its id: oracles look at its records. */
  follow(migrationId: string): void
  /** Asks for a migration, to b unless told. */
  begin(request?: Partial<MigrationRequest>): Promise<string>
  /** The same, and waits until pages flow; they stop there until `lab.valve.open()`. */
  midway(request?: Partial<MigrationRequest>): Promise<string>
  /** The record of the last migration at its end. */
  ended(ms?: number): Promise<MigrationRecord>
  type(site: string, line: string): Promise<void>
  log(): Promise<string>
}

export const FAST: LinkModelOptions = { rate: { bitsPerSecond: 400e6 }, delayMs: 1, queueBytes: 4 * MIB }

export async function openScene(options: SceneOptions = {}): Promise<Scene> {
  const qemuBinary = await qemuWithEyes()
  const lab = await openLab({ engine: 'quic', sites: [], ...options.lab })
  const undo: (() => unknown)[] = [() => lab[Symbol.asyncDispose]()]
  const dispose = async () => {
    for (const step of undo.splice(0).reverse()) await step()
  }
  try {
    await options.beforeSites?.(lab)
    const links: Scene['links'] = {}
    const sites = new Map<string, FaultSite>()
    for (const name of ['a', 'b'] as const) {
      const wish = options[name] ?? {}
      const link = options.links?.[name]
      if (link) {
        const proxy = await startUdpProxy({ listen: LOOPBACK, upstream: { ...LOOPBACK, port: lab.door.port }, ...link })
        links[name] = proxy
        undo.push(() => proxy.close())
      }
      const gatewayPort = links[name] ? { gatewayPort: links[name].address.port } : {}
      sites.set(name, await addFaultSite(lab, name, VM, { qemuBinary, ...wish, site: { ...wish.site, ...gatewayPort } }))
    }
    const [a, b] = [sites.get('a')!, sites.get('b')!]
    undo.push(async () => console.log(await logs(lab, [a, b])))
    // A stopped process does not hear SIGTERM.
    undo.push(() => void [a, b].map(site => site.process?.kill('SIGCONT')))
    await options.beforeStart?.({ lab, a, b })
    await Promise.all([a.start(), b.start()])
    const eyes = openEyes([a, b], VM)
    undo.push(() => eyes[Symbol.dispose]())
    const serial = readSerial([a, b], VM)
    undo.push(() => serial[Symbol.asyncDispose]())
    const stage = { lab, a, b, eyes, serial, links, site: (name: string) => sites.get(name)! }
    await boot(stage, options.guest ?? {})
    return Object.assign(act(stage), { [Symbol.asyncDispose]: dispose })
  } catch (error) {
    await dispose()
    throw error
  }
}

/** The ends of all logs: the runner shows them where a case is red. */
async function logs(lab: Lab, sites: FaultSite[]): Promise<string> {
  const tails = await Promise.all(sites.map(async ({ name, dir }) => `--- ${name}\n${await logTailOf(dir)}`))
  return [...tails, `--- gateway\n${lab.logTail()}`].join('\n')
}

const LOOPBACK = { host: '127.0.0.1', port: 0 }

type Stage = Pick<Scene, 'lab' | 'a' | 'b' | 'eyes' | 'serial' | 'links' | 'site'>

async function boot(
  { a, serial }: Stage,
  { dirtyBytesPerSecond = 8 * MIB, spec, memoryMiB }: NonNullable<SceneOptions['guest']>,
): Promise<void> {
  const ready = serial.next('ready', READY_MS)
  ready.catch(() => {})
  const append = guestAppend({ fillBytes: FILL_BYTES, dirtyBytesPerSecond, seed: 5 })
  const memory = memoryMiB === undefined ? MEMORY_BYTES / MIB : memoryMiB
  const text = toYaml({ name: VM, memory: `${memory}MiB`, kernel: 'vmlinuz', initrd: 'initrd.img', append, ...spec })
  await a.api('POST', '/v1/vms', { spec: text })
  await a.api('POST', `/v1/vms/${VM}/start`, {})
  await ready
  await serial.next('beat', 30_000)
}

function act(stage: Stage): Omit<Scene, typeof Symbol.asyncDispose> {
  const { lab, site } = stage
  const compared: Compared[] = []
  const last = { begunAt: 0, migrationId: '' }
  const whenLoaded = async (loaded: Point, to: string) => {
    try {
      await loaded.arrival
      const from = to === 'b' ? 'a' : 'b'
      await stage.eyes.status(from)
      const sinceMs = Date.now()
      const found = await compareMemory(site(from), site(to))
      // A source that was cancelled before it had heard of this copy runs on meanwhile: its answer comes after whatever
      // it did.
      await stage.eyes.status(from)
      if (!stage.eyes.ranAt(from, sinceMs)) compared.push(found)
      await loaded.release()
    } catch {
      // It never came so far: the oracle asks for what was compared.
    }
  }
  const expectMove: Scene['expectMove'] = async to => {
    const target = site(to)
    const loaded = target.process?.connected ? await target.arm('target:loaded', 'before', 'hold') : undefined
    if (loaded) void whenLoaded(loaded, to)
    last.begunAt = Date.now()
  }
  const begin: Scene['begin'] = async request => {
    const to = request?.to ?? 'b'
    await expectMove(to)
    // The gateway hears of what a case has done to a VM or a site a moment later.
    const soon = ['VM_STATE', 'VM_UNKNOWN', 'SITE_OFFLINE', 'MIGRATION_BUSY', 'VM_EXISTS']
    const isKnown = () =>
      lab.begin({ vm: VM, ...request, to }).catch(error => (soon.includes(error.code) ? undefined : Promise.reject(error)))
    last.migrationId = await eventually(isKnown, { ms: 60_000, everyMs: 50, what: 'a migration that may begin' })
    return last.migrationId
  }
  return Object.assign(
    Object.create(null, {
      begunAt: { get: () => last.begunAt, enumerable: true },
      migrationId: { get: () => last.migrationId, enumerable: true },
    }),
    {
      ...stage,
      compared,
      expectMove,
      follow(migrationId: string) {
        last.migrationId = migrationId
      },
      begin,
      async midway(request: Partial<MigrationRequest> = {}) {
        lab.valve.hold(index => index >= 2, { afterBytes: 4 * MIB })
        const migrationId = await begin(request)
        await lab.valve.reached()
        return migrationId
      },
      ended: (ms?: number) => lab.until(last.migrationId, undefined, ms),
      async type(at: string, line: string) {
        const socket = await requestUpgrade({ socketPath: site(at).socketPath, path: `/v1/vms/${VM}/console?replay=0` })
        await new Promise(resolve => socket.write(`${line}\n`, resolve))
        setTimeout(() => socket.destroy(), 500).unref()
      },
      log: () => logs(lab, [stage.a, stage.b]),
    },
  )
}

/** All RAM of two paused QEMUs, read from their memory files beside them. */
async function compareMemory(source: FaultSite, target: FaultSite): Promise<Compared> {
  const fds: number[] = []
  try {
    for (const { dir } of [source, target]) {
      const file = await readProcessFile(join(dir, 'state', 'vms', VM))
      fds.push(await openMemoryFd(file!.identity, file!.memoryBytes))
    }
    return compareFiles(fds[0]!, fds[1]!)
  } finally {
    for (const fd of fds) closeSync(fd)
  }
}

function compareFiles(left: number, right: number): Compared {
  const [one, other] = [Buffer.allocUnsafe(CHUNK_BYTES), Buffer.allocUnsafe(CHUNK_BYTES)]
  const found: Compared = { pages: 0, different: 0 }
  for (let at = 0; ; at += CHUNK_BYTES) {
    const length = readSync(left, one, 0, CHUNK_BYTES, at)
    if (readSync(right, other, 0, CHUNK_BYTES, at) !== length) throw new Error('the memories are not of one size')
    if (length === 0) return found
    for (let page = 0; page < length; page += 4096) {
      found.pages++
      if (one.compare(other, page, page + 4096, page, page + 4096) !== 0) found.different++
    }
  }
}
