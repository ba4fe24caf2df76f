// One run with any mover: boots the guest at a, waits until it settles, starts the migration, observes, and measures
// until the end. Enters: a mover. Leaves: an outcome. Always holds: all started processes end; a migration beyond the
// deadline is 'not done'.
import { rmSync } from 'node:fs'
import { mkdtemp, readFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sleep, within } from '../../ops/deadline.ts'
import type { PacketLinkStats } from '../../sim-network/packet-link.ts'
import { type Bed, layBed } from './bed.ts'
import type { Cell, GuestKind } from './cells.ts'
import { busiestThread, meterCpu } from './cpu.ts'
import type { BenchRun } from './outcome.ts'
import { specOf } from './spec.ts'
import type { Variant } from './variants.ts'
import { type Watch, watchLogs, workRate } from './watch.ts'

const READY_MS = 90_000
const SETTLE_MS = 2_500
/** Time for beats in transit when the mover reports completion. */
const AFTER_MS = 700

/** A program that can migrate the VM between a and b. */
type Mover = AsyncDisposable & {
  /** Serial logs of the QEMUs. */
  logs: Record<'a' | 'b', string>
  /** Starts the guest at a. */
  boot(): Promise<void>
  /** The QEMU at a, once booted. */
  qemuPid(): Promise<number>
  /** All current processes whose CPU time counts. */
  pids(): Promise<number[]>
  /** Resolves when the migration is completed; rejects if it failed. */
  move(signal: AbortSignal): Promise<string | undefined>
}
export type MoverOptions = { bed: Bed; variant: Variant; specText: string; cell: Cell }
export type MakeMover = (options: MoverOptions) => Promise<Mover>

export type RunOneOptions = { cell: Cell; guest: GuestKind; variant: Variant; repetition: number; timeoutMs: number; keep: boolean }

export async function runOne(make: MakeMover, options: RunOneOptions): Promise<BenchRun> {
  const { cell, guest, variant, repetition, keep } = options
  const dir = await mkdtemp(join(tmpdir(), 'gwb-'))
  const clear = () => keep || rmSync(dir, { recursive: true, force: true })
  process.once('exit', clear)
  const seed = `${cell.name}/${guest.name}/${repetition}`
  try {
    await using bed = await layBed(cell, variant.congestion, { dir, seed })
    await using mover = await make({ bed, variant, cell, specText: specOf(guest, cell) })
    using watch = watchLogs(mover.logs)
    await mover.boot()
    await watch.until('ready', 'a', READY_MS)
    await sleep(SETTLE_MS)
    return await measure(bed, mover, watch, options)
  } finally {
    process.off('exit', clear)
    clear()
  }
}

async function measure(
  bed: Bed,
  mover: Mover,
  watch: Watch,
  { cell, guest, variant, repetition, timeoutMs }: RunOneOptions,
): Promise<BenchRun> {
  const qemu = await mover.qemuPid()
  const cpu = meterCpu(await mover.pids(), { pid: qemu, thread: busiestThread(qemu) })
  const before = await bed.link.stats()
  const stealBefore = await stealOf()
  const workBefore = workRate(watch.work(), performance.now() - SETTLE_MS, performance.now())
  await bed.begin()
  const startMs = performance.now()
  const deadline = AbortSignal.timeout(timeoutMs)
  let failure: string | undefined
  let note: string | undefined
  try {
    note = await within(mover.move(deadline), { ms: timeoutMs, what: 'the move' })
  } catch (error) {
    failure = deadline.aborted ? `not done in ${timeoutMs / 1000} s` : error instanceof Error ? error.message : String(error)
  }
  const endMs = performance.now()
  const cpuSeconds = cpu.seconds()
  const after = await bed.link.stats()
  await sleep(AFTER_MS)
  const silence = watch.witness.silenceBetween(startMs, performance.now())
  const { badLines } = watch.witness.summary()
  const workDuring = workRate(watch.work(), startMs, endMs)
  const downtimeMs = Math.round(silence?.ms ?? 0)
  const lossMs = Math.min(downtimeMs, (endMs - startMs) / 2)
  const aliveMs = endMs - startMs - lossMs
  const slowdown = workBefore && workDuring ? 1 - (workDuring * (endMs - startMs)) / aliveMs / workBefore : undefined
  const moved = difference(before, after)
  return {
    ...{ cell: cell.name, guest: guest.name, variant: variant.name, repetition },
    ...(failure === undefined
      ? { totalMs: Math.round(endMs - startMs), downtimeMs, isAtSwitchover: silence?.acrossConsoles ?? false }
      : { failure }),
    ...moved,
    ...(slowdown === undefined ? {} : { slowdown: Math.round(slowdown * 1000) / 1000 }),
    cpuSeconds: Math.round(cpuSeconds * 10) / 10,
    steal: stealShare(stealBefore, await stealOf()),
    badLines,
    ...(note === undefined ? {} : { note }),
  }
}

function difference(
  before: PacketLinkStats,
  after: PacketLinkStats,
): Pick<BenchRun, 'bytesAb' | 'bytesBa' | 'deliveredAb' | 'late1' | 'late5'> {
  const late = (from: number) => {
    const sum = (stats: PacketLinkStats, at: number) =>
      [stats.ab, stats.ba].reduce((total, { lateCount }) => total + lateCount.slice(at).reduce((a, b) => a + b, 0), 0)
    const all = sum(after, 0) - sum(before, 0)
    return all === 0 ? 0 : Math.round(((sum(after, from) - sum(before, from)) / all) * 1e4) / 1e4
  }
  return {
    bytesAb: after.ab.link.enteredBytes - before.ab.link.enteredBytes,
    bytesBa: after.ba.link.enteredBytes - before.ba.link.enteredBytes,
    deliveredAb: after.ab.link.deliveredBytes - before.ab.link.deliveredBytes,
    late1: late(4),
    late5: late(6),
  }
}

/** Ticks of all processors since the start: [stolen, all] (proc_stat(5)). */
async function stealOf(): Promise<[stolen: number, all: number]> {
  const [, ...fields] = (await readFile('/proc/stat', 'utf8')).split('\n')[0]!.split(/\s+/)
  const ticks = fields.slice(0, 8).map(Number)
  return [ticks[7] ?? 0, ticks.reduce((a, b) => a + b, 0)]
}

const stealShare = (before: [number, number], after: [number, number]): number =>
  Math.round((1000 * (after[0] - before[0])) / Math.max(1, after[1] - before[1])) / 1000
