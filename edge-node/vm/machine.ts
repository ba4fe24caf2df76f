// One QEMU process of a VM. Enters: a spec and the VM's folder. Leaves: a RunningVm with QMP, console, guest memory and
// an end that is always heard of.
// Always holds: QEMU outlives the agent (own session, own log) and is found again by `adoptMachine`; it starts paused
// and only `cont` lets the guest run; nobody else can reach its sockets (folder 0700, sockets 0600); only the very
// process that was started is ever signalled; where it has a user of its own, that user can write to the `run` folder
// alone, and the agent trusts nothing in it.

import { type ChildProcess, spawn } from 'node:child_process'
import { closeSync, constants, fstatSync, openSync } from 'node:fs'
import { chmod, chown, mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { Duplex } from 'node:stream'
import { setTimeout as wait } from 'node:timers/promises'
import { cagedCommand, cleanEnvironment, NOT_FOUND } from '../../ops/cage.ts'
import { eventually, within } from '../../ops/deadline.ts'
import { GodwitError, hasCode } from '../../wire/errors.ts'
import { type Log, silentLog } from '../../wire/log.ts'
import { type FileIdentity, identityOf } from '../disks/digests.ts'
import { connectQmp, type QmpClient } from '../qmp/client.ts'
import { type QmpCommands, qmpCommands } from '../qmp/commands.ts'
import { connectUnix } from '../qmp/socket.ts'
import { type Accelerator, type ArgvPaths, buildArgv, FIRST_FD, openedFiles, RUNTIME_FILES, VM_FILES } from './argv.ts'
import { fileSizeLimit } from './cage.ts'
import { enterCgroup } from './cgroup.ts'
import { assertUsable } from './confine.ts'
import { RING_BYTES, VmConsole } from './console.ts'
import { exitError, type MachineExit } from './exit.ts'
import { type GuestFilter, isSilent } from './guest-filter.ts'
import {
  allocatedMemoryBytes,
  fileTail,
  identify,
  isAlive,
  killProcess,
  openMemoryFd,
  type ProcessIdentity,
  processUser,
} from './process.ts'
import {
  boundLogs,
  type GivenFile,
  killLeftover,
  type MachineFacts,
  qemuLogTail,
  readProcessFile,
  removeRuntimeFiles,
  writeProcessFile,
} from './runtime-folder.ts'
import { disksOf, fileKey, type VmSpec } from './spec.ts'
import { assertTapsFree } from './taps.ts'

export type RunningVm = MachineFacts & {
  name: string
  pid: number
  identity: ProcessIdentity
  /** Whether this agent found the process rather than started it. */
  adopted: boolean
  dir: string
  /** QEMU's working directory, which is its user's. */
  runDir: string
  memoryBytes: number
  qmp: QmpClient
  commands: QmpCommands
  /** undefined when the spec says serial: false. */
  console: VmConsole | undefined
  /** A descriptor of the guest's memory, O_RDWR, checked to be `memoryBytes` long; the caller closes it. */
  memoryFd(): Promise<number>
  /** Of that memory, what has been taken from the host. */
  memoryTakenBytes(): Promise<number>
  /** The effective user of the process; undefined when it is gone. */
  user(): number | undefined
  /** Settles when the process has ended, however; never rejects. */
  exited: Promise<MachineExit>
  readonly alive: boolean
  /**
   * Ends QEMU at once (`quit`, SIGKILL where that is not heard): the guest is not asked. Resolves when the process has
   * ended.
   */
  stop(): Promise<MachineExit>
  /** SIGKILL. Resolves when the process has ended. */
  kill(): Promise<MachineExit>
  /** The last lines of qemu.log. */
  logTail(): Promise<string>
  /** Lets go of the process: connections end, QEMU goes on. */
  detach(): void
}

export type LaunchOptions = {
  spec: VmSpec
  /** The VM's own folder; created 0700. */
  dir: string
  paths: ArgvPaths
  accelerator: Accelerator
  incoming: boolean
  qemu: { binary: string; version: string }
  /** Runs QEMU as this user, with no other group and no capability (the agent must be root). */
  runAs?: { uid: number; gid: number } | undefined
  /** Keeps a QEMU whose NICs need no network of the host from it; only with a user of its own. */
  filter?: GuestFilter | undefined
  startTimeoutMs?: number
  signal?: AbortSignal | undefined
  log?: Log
}

const START_TIMEOUT_MS = 15_000
const QUIT_TIMEOUT_MS = 5_000
const POLL_MS = 250
const LOG_CHECK_MS = 10_000
// sun_path holds 108 bytes with the final NUL (unix(7)).
const MAX_SOCKET_PATH_BYTES = 107

/**
 * Starts QEMU, paused (status 'prelaunch', or 'inmigrate' with `incoming`). PREFLIGHT_QEMU_MISSING when there is no
 * such program, QEMU_EXITED with the log's tail when it ends at once, QEMU_TIMEOUT when it does not answer; in each
 * case no process is left behind.
 */
export async function startMachine(options: LaunchOptions): Promise<RunningVm> {
  const { spec, dir, signal, startTimeoutMs = START_TIMEOUT_MS } = options
  assertTapsFree(spec)
  await prepareFolder(options)
  const { child, files } = await spawnQemu(options)
  const identity = identify(child.pid!) ?? { pid: child.pid!, startTicks: '0', bootId: '' }
  const exited = new Promise<MachineExit>(resolve => {
    child.once('exit', () => options.runAs && options.filter?.forget(options.runAs.uid))
    child.once('exit', (code, by) => void qemuLogTail(dir).then(logTail => resolve({ code, signal: by, logTail })))
  })
  const { accelerator, incoming, qemu } = options
  const facts: MachineFacts = { accelerator, incoming, qemuVersion: qemu.version, files }
  const stopWaiting = new AbortController()
  const died = exited.then(exit => {
    if (exit.code === NOT_FOUND) throw new GodwitError('PREFLIGHT_QEMU_MISSING', `${options.qemu.binary}: program not found`)
    throw exitError(`QEMU of ${spec.name}`, exit)
  })
  died.catch(() => {})
  try {
    enterCgroup(identity.pid, spec)
    await writeProcessFile(dir, { version: 1, identity, memoryBytes: spec.memoryBytes, ...facts })
    const signals = signal ? AbortSignal.any([signal, stopWaiting.signal]) : stopWaiting.signal
    const parts = await Promise.race([connectParts(spec, dir, startTimeoutMs, signals, options.log), died])
    child.unref()
    const own = ownVersion(facts, parts.qmp)
    if (own !== facts) await writeProcessFile(dir, { version: 1, identity, memoryBytes: spec.memoryBytes, ...own })
    return runningVm({ spec, dir, identity, facts: own, exited, adopted: false, log: options.log ?? silentLog, ...parts })
  } catch (error) {
    stopWaiting.abort(error)
    child.kill('SIGKILL')
    await within(exited, { ms: QUIT_TIMEOUT_MS, what: 'the end of QEMU' }).catch(() => {})
    await removeRuntimeFiles(dir)
    throw error
  }
}

/**
 * Finds the QEMU that an earlier agent started in this folder. undefined when it has ended (the folder is cleaned of
 * its sockets); QEMU_TIMEOUT when it lives and does not answer.
 */
export async function adoptMachine(options: {
  spec: VmSpec
  dir: string
  timeoutMs?: number
  signal?: AbortSignal | undefined
  log?: Log
}): Promise<RunningVm | undefined> {
  const { spec, dir, timeoutMs = START_TIMEOUT_MS, signal, log = silentLog } = options
  const file = await readProcessFile(dir)
  if (!file || !isAlive(file.identity)) {
    await killLeftover(dir)
    return undefined
  }
  const parts = await connectParts(spec, dir, timeoutMs, signal, log)
  const detached = new AbortController()
  const exited = pollExit(file.identity, parts.qmp, detached.signal).then(async () => ({
    code: null,
    signal: null,
    logTail: await qemuLogTail(dir),
  }))
  const { accelerator, incoming, qemuVersion, identity, files } = file
  return runningVm({
    spec,
    dir,
    identity,
    facts: ownVersion({ accelerator, incoming, qemuVersion, files }, parts.qmp),
    exited,
    adopted: true,
    log,
    onDetach: () => detached.abort(),
    ...parts,
  })
}

/**
 * The version that the running process gave in its greeting: the program may have been upgraded since it was measured.
 */
function ownVersion(facts: MachineFacts, { version }: QmpClient): MachineFacts {
  const qemuVersion = `${version.major}.${version.minor}.${version.micro}`
  return qemuVersion === facts.qemuVersion ? facts : { ...facts, qemuVersion }
}

async function prepareFolder({ dir, runAs, spec }: LaunchOptions): Promise<void> {
  const longest = join(dir, VM_FILES.run, RUNTIME_FILES.outgoing)
  if (Buffer.byteLength(longest) > MAX_SOCKET_PATH_BYTES)
    throw new GodwitError('CONFIG_INVALID', `${longest}: the path of a socket must not exceed ${MAX_SOCKET_PATH_BYTES} bytes`, {
      hint: 'use a shorter state folder',
    })
  await mkdir(dir, { recursive: true, mode: 0o700 })
  await chmod(dir, 0o700)
  const running = await readProcessFile(dir)
  if (running && isAlive(running.identity))
    throw new GodwitError('VM_STATE', `${spec.name}: a QEMU (pid ${running.identity.pid}) already runs in ${dir}`)
  await killLeftover(dir)
  const logs = [VM_FILES.qemuLog, ...(spec.serial ? [VM_FILES.serialLog] : [])].map(name => join(dir, name))
  for (const path of logs) closeSync(openSync(path, 'w', 0o600))
  const run = join(dir, VM_FILES.run)
  await mkdir(run, { mode: 0o700 })
  if (runAs) await chown(run, runAs.uid, runAs.gid)
}

/** The files that QEMU gets open, in the order of `openedFiles`. */
function openFiles({ spec, paths, dir }: LaunchOptions, opened: number[]): number[] {
  for (const { path, use, isWritten, isDirect } of openedFiles(spec, paths, dir)) {
    const access = isWritten ? constants.O_RDWR : constants.O_RDONLY
    const flags = use === 'log' ? constants.O_WRONLY | constants.O_APPEND : access | (isDirect ? constants.O_DIRECT : 0)
    try {
      opened.push(openSync(path, flags))
    } catch (cause) {
      const missing = (cause as NodeJS.ErrnoException).code === 'ENOENT'
      throw new GodwitError(missing ? 'PREFLIGHT_FILE_MISSING' : 'CONFIG_UNREADABLE', `${path}: cannot be opened for ${spec.name}`, {
        cause,
      })
    }
  }
  return opened
}

const identityOfFd = (fd: number): FileIdentity => identityOf(fstatSync(fd, { bigint: true }))

/** Sockets that QEMU makes are 0600 from the first moment. The mask is the process's: nothing else may run between. */
function spawnMasked(...args: Parameters<typeof spawn>): ChildProcess {
  const before = process.umask(0o177)
  try {
    return spawn(...args)
  } finally {
    process.umask(before)
  }
}

async function spawnQemu(options: LaunchOptions): Promise<{ child: ChildProcess; files: GivenFile[] }> {
  const { spec, dir, paths, accelerator, incoming, qemu, runAs } = options
  const fds = [openSync(join(dir, VM_FILES.qemuLog), 'a', 0o600)]
  try {
    openFiles(options, fds)
    const opened = openedFiles(spec, paths, dir)
    if (runAs) await assertUsable({ spec, user: runAs, files: opened, fds: fds.slice(1) })
    if (runAs) await options.filter?.set(runAs.uid, { isSilent: isSilent(spec) })
    const files = opened.flatMap(({ item }, at) => (item ? [{ key: fileKey(item), identity: identityOfFd(fds[at + 1]!) }] : []))
    const argv = buildArgv(spec, paths, { accelerator, incoming, areOpened: true, dir })
    const firstUngiven = FIRST_FD + fds.length - 1
    const command = cagedCommand(qemu.binary, argv, fileSizeLimit(spec, writtenDisks(options, fds)), { firstUngiven })
    const child = spawnMasked(command.file, command.args, {
      cwd: join(dir, VM_FILES.run),
      env: cleanEnvironment(),
      detached: true, // its own session: signals to the agent's terminal do not reach it
      // stdout and stderr to the log, then the opened files from FIRST_FD on
      stdio: ['ignore', fds[0]!, ...fds],
      ...(runAs ?? {}),
    })
    await within(
      new Promise<void>((resolve, reject) => {
        child.once('spawn', resolve)
        child.once('error', reject)
      }),
      { ms: START_TIMEOUT_MS, what: `start of ${qemu.binary}` },
    )
    return { child, files }
  } finally {
    for (const fd of fds) closeSync(fd)
  }
}

/** `fds`: qemu.log, then `openedFiles`. */
function writtenDisks({ spec, paths, dir }: LaunchOptions, fds: number[]): Parameters<typeof fileSizeLimit>[1] {
  return openedFiles(spec, paths, dir).flatMap(({ isWritten, disk }, at) => {
    const fd = fds[at + 1]!
    return isWritten && disk !== undefined ? [{ disk: disksOf(spec)[disk]!, fd, bytes: fstatSync(fd).size }] : []
  })
}

type Parts = { qmp: QmpClient; console: VmConsole | undefined }

async function connectParts(
  spec: VmSpec,
  dir: string,
  timeoutMs: number,
  signal: AbortSignal | undefined,
  log: Log = silentLog,
): Promise<Parts> {
  const end = performance.now() + timeoutMs
  const qmp = await connectQmp({ path: join(dir, VM_FILES.run, RUNTIME_FILES.qmp), timeoutMs, signal, log })
  try {
    if (!spec.serial) return { qmp, console: undefined }
    const path = join(dir, VM_FILES.run, RUNTIME_FILES.serial)
    const leftMs = () => Math.max(1, end - performance.now())
    const connect = () =>
      connectUnix(path, leftMs(), { signal }).catch(error => (hasCode(error, 'QEMU_UNTRUSTED') ? Promise.reject(error) : undefined))
    const stream = await eventually<Duplex>(connect, { ms: leftMs(), what: path, code: 'QEMU_TIMEOUT', signal })
    // What the guest wrote while no agent was there is in the log only; a byte written during these lines may be
    // replayed twice, none is lost.
    return { qmp, console: new VmConsole(stream, { seed: await fileTail(join(dir, VM_FILES.serialLog), RING_BYTES) }) }
  } catch (error) {
    qmp.close()
    throw error
  }
}

type Inside = Parts & {
  spec: VmSpec
  dir: string
  identity: ProcessIdentity
  facts: MachineFacts
  exited: Promise<MachineExit>
  adopted: boolean
  log: Log
  onDetach?: () => void
}

function runningVm({ spec, dir, identity, facts, exited, adopted, log, onDetach, qmp, console }: Inside): RunningVm {
  let alive = true
  const commands = qmpCommands(qmp)
  const keepShort = setInterval(
    () => void boundLogs(dir).catch(error => log.warn('logs could not be shortened', { vm: spec.name, error })),
    LOG_CHECK_MS,
  )
  keepShort.unref()
  let detached = false
  const detach = () => {
    detached = true
    onDetach?.()
    clearInterval(keepShort)
    qmp.close()
    console?.close()
  }
  const ended = exited.then(async exit => {
    alive = false
    // After detach() the folder belongs to whoever adopted it: perhaps a new QEMU runs there.
    if (!detached) await removeRuntimeFiles(dir).catch(() => {})
    detach()
    return exit
  })
  const kill = async () => {
    killProcess(identity)
    return within(ended, { ms: QUIT_TIMEOUT_MS, what: `the end of QEMU ${identity.pid} after SIGKILL`, code: 'QEMU_TIMEOUT' })
  }
  const stop = async () => {
    await commands.quit({ timeoutMs: QUIT_TIMEOUT_MS }).catch(() => {})
    return within(ended, { ms: QUIT_TIMEOUT_MS, what: 'the end of QEMU' }).catch(kill)
  }
  return {
    ...facts,
    name: spec.name,
    pid: identity.pid,
    identity,
    adopted,
    dir,
    runDir: join(dir, VM_FILES.run),
    memoryBytes: spec.memoryBytes,
    qmp,
    commands,
    console,
    memoryFd: () => openMemoryFd(identity, spec.memoryBytes),
    memoryTakenBytes: () => allocatedMemoryBytes(identity, spec.memoryBytes),
    user: () => processUser(identity),
    exited: ended,
    get alive() {
      return alive
    },
    stop,
    kill,
    logTail: () => qemuLogTail(dir),
    detach,
  }
}

/** Resolves when the process is gone: asked at once when QMP ends, otherwise every 250 ms. */
async function pollExit(identity: ProcessIdentity, qmp: QmpClient, detached: AbortSignal): Promise<void> {
  let closed = false
  void qmp.closed.then(() => {
    closed = true
  })
  while (isAlive(identity)) {
    if (detached.aborted) return new Promise(() => {}) // nobody asks any more
    const tick = wait(closed ? 20 : POLL_MS, undefined, { ref: false })
    await (closed ? tick : Promise.race([tick, qmp.closed]))
  }
}
