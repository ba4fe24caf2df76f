// Source and target of one migration in one process: two real QEMUs, the two stories, and streams that a test may cut.
// No gateway, no agents. The guest is a boot sector that counts in memory, so a pair is up in half a second.
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { generateSiteKeys, loadSodium } from '../../crypto/identity.ts'
import { type SourceMigration, startSource } from '../../edge-node/migration/source.ts'
import type { SourceState, TargetState } from '../../edge-node/migration/states.ts'
import { startTarget, type TargetMigration } from '../../edge-node/migration/target.ts'
import { bootSectorDisk } from '../../edge-node/vm/accelerators.ts'
import { type RunningVm, startMachine } from '../../edge-node/vm/machine.ts'
import { findQemu } from '../../edge-node/vm/qemu.ts'
import { parseSpec } from '../../edge-node/vm/spec.ts'
import type { Stream } from '../../transport/types.ts'
import type { Plan, Report } from '../../wire/control.ts'
import { type Log, silentLog } from '../../wire/log.ts'
import { streamPair } from './pipe.ts'
import { tempFolder } from './temp-folder.ts'

/** Counts in the u32 at 0x8000, for ever. */
const COUNTER = Uint8Array.of(0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x66, 0xff, 0x06, 0x00, 0x80, 0xeb, 0xf9)

type PairOptions = {
  method?: 'live' | 'cold'
  patienceMs?: number
  grantPatienceMs?: number
  log?: Log
  /** Called before a state is recorded; may throw (a disk that refuses). */
  onSource?: (state: SourceState, pair: Pair) => void | Promise<void>
  onTarget?: (state: TargetState, pair: Pair) => void | Promise<void>
  /** What each direction of the control streams delivers: false drops everything. */
  passes?: (direction: 'forward' | 'backward', attempt: number) => boolean
}

type Pair = AsyncDisposable & {
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

const PLAN: Omit<Plan, 'method'> = {
  version: 1,
  migrationId: 'c0ffee00'.repeat(4),
  vm: 'counter',
  epoch: 5,
  source: 'a',
  target: 'b',
  downtimeMs: 300,
  streams: 2,
  attempt: 1,
  compression: 'zstd',
  createdAt: 0,
}

export async function migrationPair(options: PairOptions = {}): Promise<Pair> {
  const stage = await setStage(options)
  const { folder, sourceVm, onTarget } = stage
  const pair = {} as Pair
  const states: Pick<Pair, 'sourceStates' | 'targetStates'> = { sourceStates: [], targetStates: [] }
  const target = startTarget({
    ...onTarget,
    grantPatienceMs: options.grantPatienceMs,
    async record(state) {
      await options.onTarget?.(state, pair)
      states.targetStates.push(state)
    },
  })
  const link = joinSides(options, target)
  const source = startSource({
    ...stage.onSource,
    openStream: link.openStream,
    patienceMs: options.patienceMs,
    async record(state) {
      await options.onSource?.(state, pair)
      states.sourceStates.push(state)
    },
  })
  source.done.catch(() => {})
  target.done.catch(() => {})
  return Object.assign(pair, {
    ...states,
    source,
    target,
    sourceVm,
    targetVm: stage.targetVm,
    committedEpoch: stage.committedEpoch,
    attempts: () => link.control.size,
    cut: (attempt = 1) => link.control.get(attempt)?.[0].reset('cut'),
    async [Symbol.asyncDispose]() {
      await Promise.all([sourceVm.kill(), stage.targetVm()?.kill()])
      await Promise.allSettled([source.done, target.done])
      await folder[Symbol.asyncDispose]()
    },
  })
}

/** The guest that runs, the place of the one to come, and what both stories start from. */
async function setStage(options: PairOptions) {
  await loadSodium()
  const folder = await tempFolder()
  const images = join(folder.path, 'images')
  await mkdir(images)
  await writeFile(join(images, 'boot.img'), bootSectorDisk(COUNTER))
  const spec = parseSpec(SPEC)
  const qemu = await findQemu()
  const machine = (name: string, incoming: boolean) =>
    startMachine({ spec, dir: join(folder.path, name), paths: { imagesDir: images }, accelerator: 'tcg', incoming, qemu })
  const sourceVm = await machine('s', false)
  await sourceVm.commands.cont()
  let targetVm: RunningVm | undefined
  let committed: number | undefined
  const keys = { source: generateSiteKeys(), target: generateSiteKeys() }
  const shared = {
    plan: { ...PLAN, method: options.method ?? 'live' },
    sourceCertificate: Buffer.from('a'),
    targetCertificate: Buffer.from('b'),
    log: options.log ?? silentLog,
    onProgress: () => {},
  }
  const offer = { type: 'OFFER', needs: {} } as const
  const qemuSide = { qemu: { qmp: sourceVm.qmp, exited: sourceVm.exited, dir: sourceVm.runDir }, offer, transport: 'memory' }
  const hooks = {
    async reserve() {
      targetVm = await machine('t', true)
      return targetVm
    },
    async drop() {
      await targetVm?.kill()
      targetVm = undefined
    },
    async commit(epoch: number) {
      committed = epoch
    },
  }
  return {
    folder,
    sourceVm,
    targetVm: () => targetVm,
    committedEpoch: () => committed,
    onSource: { ...shared, ...qemuSide, keys: keys.source, peerBoxPublic: keys.target.boxPublic },
    onTarget: { ...shared, ...hooks, keys: keys.target, peerBoxPublic: keys.source.boxPublic },
  }
}

/** Streams from the source to the target; `control` holds both ends of each attempt's control stream. */
function joinSides(options: PairOptions, target: TargetMigration) {
  const control = new Map<number, [Stream, Stream]>()
  const openStream = async (index: number, attempt: number) => {
    const passes = (direction: 'forward' | 'backward') => index !== 0 || options.passes?.(direction, attempt) !== false
    const ends = streamPair({
      forward: chunk => (passes('forward') ? chunk : undefined),
      backward: chunk => (passes('backward') ? chunk : undefined),
    })
    if (index === 0) control.set(attempt, ends)
    target.accept(index, attempt, ends[1])
    return ends[0]
  }
  return { control, openStream }
}

/** How many copies of the guest execute: the invariant is at most one. */
export async function runningCopies(pair: Pair): Promise<{ source: boolean; target: boolean }> {
  const runs = async (vm: RunningVm | undefined) => {
    try {
      return vm?.alive === true && (await vm.commands.queryStatus()).running
    } catch (error) {
      // It may be ended while it is asked: then it does not run.
      if (vm) await vm.exited
      if ((error as { code?: unknown }).code === 'QEMU_EXITED') return false
      throw error
    }
  }
  return { source: await runs(pair.sourceVm), target: await runs(pair.targetVm()) }
}

type Outcome = { report?: Report; code?: string }

export async function outcomeOf(done: Promise<unknown>): Promise<Outcome> {
  try {
    const report = (await done) as Report | undefined
    return report ? { report } : {}
  } catch (error) {
    return { code: String((error as { code?: unknown }).code) }
  }
}
