// One run with any mover: boots a VM with a disk at a, moves it to b, and, if wanted, back to a some minutes later.
// Enters: a mover. Leaves: an outcome for each move. Always holds: all started processes end; after each move the guest
// compares its memory and its disk; a move beyond the deadline is a failure, and the last one of its run.
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { sleep, within } from '../../ops/deadline.ts'
import { MINUTE_MS } from '../../wire/units.ts'
import { type Bed, type BedEnd, layBed } from '../wan/bed.ts'
import type { Cell } from '../wan/cells.ts'
import { createOracle, memoryPath } from '../wan/compress-distinct.ts'
import { type Watch, watchLogs } from '../wan/watch.ts'
import { type Base, DISK_BYTES, MEMORY_BYTES, type MoverName, specOf } from './cases.ts'
import { writeContent } from './content.ts'
import { meterBed } from './cpu.ts'
import { readDisk } from './files.ts'
import { type Outcome, p99 } from './outcome.ts'

const READY_MS = 180_000
/** Write latency before a move is measured for so long. */
const CALM_MS = 10_000
const AFTER_MS = 1_000
const CHECK_MS = 120_000
const LOG_CHARACTERS = 1500
const [PAGE_BYTES, CHUNK_BYTES] = [4096, 65_536]

/** A program that moves the VM between a and b. */
type DiskMover = AsyncDisposable & {
  logs: Record<BedEnd, string>
  boot(): Promise<void>
  qemuPid(at: BedEnd): Promise<number>
  diskPath(at: BedEnd): string
  /** What an operator does before the move begins. */
  prepare(to: BedEnd): Promise<void>
  /** Resolves when the VM runs at `to`; gives a note. */
  move(to: BedEnd, signal: AbortSignal): Promise<string | undefined>
  /** Writes a line to the guest's console at this site. */
  type(at: BedEnd, line: string): Promise<void>
}
export type DiskMoverOptions = { bed: Bed; cell: Cell; base: Base; specText: string; content: string }
export type MakeDiskMover = (options: DiskMoverOptions) => Promise<DiskMover>
export type DiskRun = {
  cell: Cell
  base: Base
  mover: MoverName
  repetition: number
  timeoutMs: number
  /** Absent: no way back. */
  backAfterMinutes?: number | undefined
  hasOracle: boolean
}
type Scene = { run: DiskRun; bed: Bed; mover: DiskMover; watch: Watch; image?: string | undefined }

export async function runOne(make: MakeDiskMover, run: DiskRun, onOutcome: (outcome: Outcome) => void): Promise<void> {
  const dir = await mkdtemp(join(tmpdir(), 'gwd-'))
  const { cell, base, repetition, backAfterMinutes } = run
  try {
    const content = join(dir, 'content.raw')
    await writeContent(content)
    await using bed = await layBed(cell, 'bbr', { dir, seed: `${cell.name}/${base}/${repetition}` })
    await using mover = await make({ bed, cell, base, specText: specOf(base), content })
    using watch = watchLogs(mover.logs)
    await mover.boot()
    await watch.until('ready', 'a', READY_MS)
    const image = base === 'image' ? content : undefined
    const scene = { run, bed, mover, watch, image }
    const there = await moveOnce(scene, 'b', base, image)
    onOutcome(there)
    if (there.failure !== undefined || backAfterMinutes === undefined) return
    // Site a had this content when the VM left it.
    const left = join(dir, 'left.raw')
    await readDisk(mover.diskPath('b'), left, image)
    await sleep(backAfterMinutes * MINUTE_MS)
    onOutcome(await moveOnce(scene, 'a', `back to ${base}`, left))
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}

async function moveOnce(scene: Scene, to: BedEnd, caseName: string, held: string | undefined): Promise<Outcome> {
  const { run, bed, mover, watch } = scene
  const from = to === 'b' ? 'a' : 'b'
  await mover.prepare(to)
  await sleep(CALM_MS)
  const calm = latenciesSince(watch, performance.now() - CALM_MS)
  const cpu = await meterBed(bed, await mover.qemuPid(from))
  const before = await bed.link.stats()
  const startMs = performance.now()
  const ended = await attempt(mover, to, run.timeoutMs)
  const totalMs = performance.now() - startMs
  const after = await bed.link.stats()
  const cpuSeconds = await cpu.stop()
  const busy = latenciesSince(watch, startMs)
  await sleep(AFTER_MS)
  const silence = watch.witness.silenceBetween(startMs, performance.now())
  const bytes = (side: 'ab' | 'ba') => after[side].link.enteredBytes - before[side].link.enteredBytes
  const isDone = ended.failure === undefined
  return {
    ...{ cell: run.cell.name, mover: run.mover, case: caseName, repetition: run.repetition, ...ended },
    ...(isDone ? { totalMs: Math.round(totalMs), downtimeMs: Math.round(silence?.ms ?? 0) } : {}),
    ...{ bytesForth: bytes(to === 'b' ? 'ab' : 'ba'), bytesBack: bytes(to === 'b' ? 'ba' : 'ab') },
    ...{ cpuSeconds: Math.round(cpuSeconds * 10) / 10, calmP99Us: p99(calm), busyP99Us: p99(busy) },
    ...(isDone ? { bad: await check(scene, to) } : {}),
    ...(isDone && run.hasOracle ? { oracleBytes: await oracle(scene, to, held) } : {}),
  }
}

async function attempt(mover: DiskMover, to: BedEnd, timeoutMs: number): Promise<Pick<Outcome, 'failure' | 'note'>> {
  const deadline = AbortSignal.timeout(timeoutMs)
  try {
    return { note: await within(mover.move(to, deadline), { ms: timeoutMs, what: 'the move' }) }
  } catch (error) {
    return { failure: deadline.aborted ? `not done in ${timeoutMs / 1000} s` : error instanceof Error ? error.message : String(error) }
  }
}

const latenciesSince = (watch: Watch, fromMs: number): number[] => watch.writes().flatMap(({ atMs, us }) => (atMs >= fromMs ? us : []))

/** Pages and blocks that the guest finds wrong. */
async function check({ mover, watch }: Scene, at: BedEnd): Promise<number> {
  const ask = async (command: string, kind: 'audit-disk' | 'audit-full') => {
    await mover.type(at, command)
    try {
      return await watch.until(kind, at, CHECK_MS)
    } catch (error) {
      const tail = (await readFile(mover.logs[at], 'latin1')).slice(-LOG_CHARACTERS)
      throw new Error(`${(error as Error).message}; the end of its console:\n${tail}`, { cause: error })
    }
  }
  const disk = await ask('disk', 'audit-disk')
  const memory = await ask('audit', 'audit-full')
  return [disk, memory].reduce((sum, record) => sum + ('bad' in record ? record.bad : 0), 0)
}

/** `held`: what the target had at the same places of the disk. It has no memory of the VM. */
async function oracle({ bed, mover, image }: Scene, at: BedEnd, held: string | undefined): Promise<number> {
  const raw = join(bed.dir, 'oracle.raw')
  await readDisk(mover.diskPath(at), raw, image)
  const oracle = createOracle()
  await oracle.addFile(raw, DISK_BYTES, CHUNK_BYTES, held)
  await oracle.addFile(await memoryPath(await mover.qemuPid(at)), MEMORY_BYTES, PAGE_BYTES)
  await rm(raw)
  return (await oracle.end()).compressedBytes
}
