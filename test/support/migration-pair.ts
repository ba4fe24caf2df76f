// Source and target of one migration in one process: two real QEMUs, the two stories, and streams that a test may cut. No gateway, no agents.
// The guest is a boot sector that counts in memory, so a pair is up in half a second.
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { generateSiteKeys, loadSodium } from '../../crypto/identity.ts'
import { type SourceMigration, startSource } from '../../edge-node/migration/source.ts'
import type { SourceState, TargetState } from '../../edge-node/migration/states.ts'
import { startTarget, type TargetMigration } from '../../edge-node/migration/target.ts'
import { type RunningVm, startMachine } from '../../edge-node/vm/machine.ts'
import { bootSectorDisk, findQemu } from '../../edge-node/vm/qemu.ts'
import { parseSpec } from '../../edge-node/vm/spec.ts'
import type { Stream } from '../../transport/types.ts'
import type { Plan, Report } from '../../wire/control.ts'
import { silentLog } from '../../wire/log.ts'
import { streamPair } from './pipe.ts'
import { tempFolder } from './temp-folder.ts'

/** Counts in the u32 at 0x8000, for ever. */
const COUNTER = Uint8Array.of(0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0xff, 0x06, 0x00, 0x80, 0xeb, 0xf9)

export type PairOptions = {
  method?: 'live' | 'cold'
  patienceMs?: number
  grantPatienceMs?: number
  /** Called before a state is recorded; may throw (a disk that refuses). */
  onSource?: (state: SourceState, pair: Pair) => void | Promise<void>
  onTarget?: (state: TargetState, pair: Pair) => void | Promise<void>
  /** What each direction of the control streams delivers: false drops everything. */
  passes?: (direction: 'forward' | 'backward', attempt: number) => boolean
}

export type Pair = AsyncDisposable & {
  source: SourceMigration
  target: TargetMigration
  sourceVm: RunningVm
  targetVm(): RunningVm | undefined
  sourceStates: SourceState[]
  targetStates: TargetState[]
  committedEpoch(): number | undefined
  /** Ends the control stream of an attempt as a dying link does. */
  cut(attempt?: number): void
  attempts(): number
}

const SPEC = `name: counter
memory: 32MiB
machine: pc-i440fx-9.0
disks: [{ file: boot.img, mode: readonly, format: raw }]
serial: false
`

export async function migrationPair(options: PairOptions = {}): Promise<Pair> {
  await loadSodium()
  const folder = await tempFolder()
  const images = join(folder.path, 'images')
  await mkdir(images)
  await writeFile(join(images, 'boot.img'), bootSectorDisk(COUNTER))
  const spec = parseSpec(SPEC)
  const qemu = await findQemu()
  const machine = async (name: string, incoming: boolean) => {
    const dir = join(folder.path, name)
    return await startMachine({ spec, dir, paths: { imagesDir: images }, accelerator: 'tcg', incoming, qemu })
  }
  const sourceVm = await machine('s', false)
  await sourceVm.commands.cont()
  const pair = {} as Pair
  const control = new Map<number, [Stream, Stream]>()
  let targetVm: RunningVm | undefined
  let committed: number | undefined
  const keys = { source: generateSiteKeys(), target: generateSiteKeys() }
  const plan: Plan = {
    version: 1,
    migrationId: 'c0ffee00'.repeat(4),
    vm: 'counter',
    epoch: 5,
    source: 'a',
    target: 'b',
    method: options.method ?? 'live',
    downtimeMs: 300,
    streams: 2,
    attempt: 1,
    compression: 'zstd',
    createdAt: 0,
  }
  const shared = { plan, sourceCertificate: Buffer.from('a'), targetCertificate: Buffer.from('b'), log: silentLog, onProgress: () => {} }
  const sourceStates: SourceState[] = []
  const targetStates: TargetState[] = []
  const dirs = { source: join(folder.path, 'ms'), target: join(folder.path, 'mt') }
  await Promise.all(Object.values(dirs).map(dir => mkdir(dir)))
  const target = startTarget({
    ...shared,
    keys: keys.target,
    peerBoxPublic: keys.source.boxPublic,
    dir: dirs.target,
    grantPatienceMs: options.grantPatienceMs,
    async reserve() {
      targetVm = await machine('t', true)
      return targetVm
    },
    async drop() {
      await targetVm?.kill()
      targetVm = undefined
    },
    async commit(epoch) {
      committed = epoch
    },
    async record(state) {
      await options.onTarget?.(state, pair)
      targetStates.push(state)
    },
  })
  const openStream = async (index: number, attempt: number) => {
    const passes = (direction: 'forward' | 'backward') => index !== 0 || options.passes?.(direction, attempt) !== false
    const ends = streamPair({
      forward: chunk => (passes('forward') ? chunk : undefined),
      backward: chunk => (passes('backward') ? chunk : undefined),
    })
    if (index === 0) control.set(attempt, ends)
    if (attempt === plan.attempt) target.accept(index, ends[1])
    else target.rejoin(attempt, ends[1])
    return ends[0]
  }
  const source = startSource({
    ...shared,
    keys: keys.source,
    peerBoxPublic: keys.target.boxPublic,
    dir: dirs.source,
    offer: { type: 'OFFER', needs: {} },
    qmp: sourceVm.qmp,
    qemuExited: sourceVm.exited,
    openStream,
    transport: 'memory',
    patienceMs: options.patienceMs,
    async record(state) {
      await options.onSource?.(state, pair)
      sourceStates.push(state)
    },
  })
  source.done.catch(() => {})
  target.done.catch(() => {})
  return Object.assign(pair, {
    source,
    target,
    sourceVm,
    sourceStates,
    targetStates,
    targetVm: () => targetVm,
    committedEpoch: () => committed,
    attempts: () => control.size,
    cut: (attempt = 1) => control.get(attempt)?.[0].reset('cut'),
    async [Symbol.asyncDispose]() {
      await Promise.all([sourceVm.kill(), targetVm?.kill()])
      await Promise.allSettled([source.done, target.done])
      await folder[Symbol.asyncDispose]()
    },
  })
}

/** How many copies of the guest execute: the invariant is at most one. */
export async function runningCopies(pair: Pair): Promise<{ source: boolean; target: boolean }> {
  const runs = async (vm: RunningVm | undefined) => vm?.alive === true && (await vm.commands.queryStatus()).running
  return { source: await runs(pair.sourceVm), target: await runs(pair.targetVm()) }
}

export type Outcome = { report?: Report; code?: string }

export async function outcomeOf(done: Promise<Report | void>): Promise<Outcome> {
  try {
    const report = await done
    return report ? { report } : {}
  } catch (error) {
    return { code: String((error as { code?: unknown }).code) }
  }
}
