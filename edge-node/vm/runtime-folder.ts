// What a VM's folder holds while its QEMU runs: who the process is, its logs, its sockets.
// Always holds: a process is recorded by identity, never by pid alone; logs are bounded; what is left of a dead QEMU is
// removed before a new one starts; QEMU's user owns the `run` folder and nothing else: what the agent (perhaps root)
// writes, shortens or believes is not there.
import { readFile, readlink, realpath, rename, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually } from '../../ops/deadline.ts'
import type { FileIdentity } from '../disks/digests.ts'
import { type Accelerator, RUNTIME_FILES, VM_FILES } from './argv.ts'
import { RING_BYTES } from './console.ts'
import { bootId, fileTail, identify, isAlive, killProcess, type ProcessIdentity } from './process.ts'

/** A file that QEMU was given open: which, and what it was then. */
export type GivenFile = { key: string; identity: FileIdentity }
export type MachineFacts = {
  accelerator: Accelerator
  incoming: boolean
  qemuVersion: string
  /** Absent where an earlier version of the agent started it. */
  files?: GivenFile[] | undefined
}
type ProcessFile = MachineFacts & { version: 1; identity: ProcessIdentity; memoryBytes: number }

const KILL_TIMEOUT_MS = 5_000
const LOG_TAIL_BYTES = 4096
const LOG_LIMIT_BYTES = 8 * 1024 * 1024

/** Kills a QEMU that an earlier agent left in this folder, without asking it. For a VM that must not live here. */
export async function killLeftover(dir: string): Promise<void> {
  const identity = (await readProcessFile(dir))?.identity ?? (await unrecordedProcess(dir))
  if (identity && isAlive(identity)) {
    killProcess(identity)
    await eventually(() => !isAlive(identity) || undefined, { ms: KILL_TIMEOUT_MS, what: `the end of QEMU ${identity.pid}`, everyMs: 20 })
  }
  await removeRuntimeFiles(dir)
}

/** The last lines of qemu.log, whole. */
export const qemuLogTail = async (dir: string): Promise<string> =>
  (await fileTail(join(dir, VM_FILES.qemuLog), LOG_TAIL_BYTES)).toString('utf8').trimEnd()

/**
 * A guest can write to its serial port for ever, not to our disk: beyond 8 MiB a log keeps its last 64 KiB in `.old`
 * and starts anew (QEMU appends, so it follows).
 */
export async function boundLogs(dir: string): Promise<void> {
  for (const name of [VM_FILES.serialLog, VM_FILES.qemuLog]) {
    const path = join(dir, name)
    const size = await stat(path).then(
      found => found.size,
      () => 0,
    )
    if (size <= LOG_LIMIT_BYTES) continue
    await writeFile(`${path}.old`, await fileTail(path, RING_BYTES), { mode: 0o600 })
    await truncate(path, 0)
  }
}

/**
 * Removes the `run` folder, whatever a QEMU that is dead has left in it, and the record of the process; logs and spec
 * stay.
 */
export async function removeRuntimeFiles(dir: string): Promise<void> {
  await rm(join(dir, VM_FILES.process), { force: true })
  await rm(join(dir, VM_FILES.run), { recursive: true, force: true })
}

export async function writeProcessFile(dir: string, file: ProcessFile): Promise<void> {
  const path = join(dir, VM_FILES.process)
  await writeFile(`${path}.new`, JSON.stringify(file), { mode: 0o600 })
  await rename(`${path}.new`, path)
}

/**
 * A QEMU of this folder that its agent could not write down before it died: the guest never ran in it (it starts
 * paused).
 */
async function unrecordedProcess(dir: string): Promise<ProcessIdentity | undefined> {
  try {
    const run = join(dir, VM_FILES.run)
    // QEMU writes this file: no more is believed of it than that the process works in this very folder.
    const pid = Number.parseInt((await fileTail(join(run, RUNTIME_FILES.pid), 32)).toString('latin1'), 10)
    const ours = (await readlink(`/proc/${pid}/cwd`)) === (await realpath(run))
    return ours ? identify(pid) : undefined
  } catch {
    return undefined
  }
}

/** Whether the QEMU that is recorded here was started before this host booted. */
export async function isOfEarlierBoot(dir: string): Promise<boolean> {
  const file = await readProcessFile(dir)
  return file !== undefined && file.identity.bootId !== bootId()
}

/** The record of the process; undefined when there is none that can be read. */
export async function readProcessFile(dir: string): Promise<ProcessFile | undefined> {
  try {
    const file = JSON.parse(await readFile(join(dir, VM_FILES.process), 'utf8')) as ProcessFile
    return typeof file.identity?.pid === 'number' ? file : undefined
  } catch {
    return undefined
  }
}
