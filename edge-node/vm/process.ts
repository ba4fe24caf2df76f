// Which process is our QEMU, also after the agent has been restarted: a pid alone is not enough, the kernel gives it to
// others later.
// Enters: a pid, /proc. Leaves: an identity (pid + start time + boot), and whether that very process still runs.
import { closeSync, constants, openSync, readFileSync, statSync } from 'node:fs'
import { open, readdir, readlink } from 'node:fs/promises'
import { GodwitError } from '../../wire/errors.ts'

export type ProcessIdentity = {
  pid: number
  /** Field 22 of /proc/PID/stat: clock ticks after boot. */
  startTicks: string
  bootId: string
}

/** The kernel's random id of this boot. */
export const bootId = (): string => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()

/** The identity of a process that runs now; undefined when there is none or it is a zombie. */
export function identify(pid: number): ProcessIdentity | undefined {
  let stat: string
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  } catch {
    return undefined
  }
  // The name in field 2 may hold spaces and parentheses; the fields after its last ')' do not.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  const [state, startTicks] = [fields[0], fields[19]]
  if (state === 'Z' || state === 'X' || startTicks === undefined) return undefined
  return { pid, startTicks, bootId: bootId() }
}

/** The effective user of a process (proc_pid_status(5)); undefined when it is gone. */
export function processUser(identity: ProcessIdentity): number | undefined {
  try {
    const uid = Number(/^Uid:\s+\d+\s+(\d+)/m.exec(readFileSync(`/proc/${identity.pid}/status`, 'utf8'))?.[1])
    return isAlive(identity) ? uid : undefined
  } catch {
    return undefined
  }
}

/** Whether the very process of this identity still runs. */
export function isAlive(identity: ProcessIdentity): boolean {
  const now = identify(identity.pid)
  return now !== undefined && now.startTicks === identity.startTicks && now.bootId === identity.bootId
}

/**
 * SIGKILL, to this process and no other. The check and the signal are not one step: the pid could pass on between them
 * only if the kernel wrapped all pids within microseconds.
 */
export function killProcess(identity: ProcessIdentity, signal: NodeJS.Signals = 'SIGKILL'): void {
  if (!isAlive(identity)) return
  try {
    process.kill(identity.pid, signal)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error
  }
}

/**
 * Opens the guest memory of a QEMU process (its memory-backend-memfd) for reading and writing; the caller closes the
 * descriptor. QEMU_EXITED when the process is gone, QEMU_COMMAND when it has no memfd of exactly `sizeBytes`.
 */
export async function openMemoryFd(identity: ProcessIdentity, sizeBytes: number): Promise<number> {
  const folder = `/proc/${identity.pid}/fd`
  const names = await readdir(folder).catch((cause: unknown) => {
    throw new GodwitError('QEMU_EXITED', `QEMU (pid ${identity.pid}) has exited`, { cause })
  })
  for (const name of names) {
    const link = await readlink(`${folder}/${name}`).catch(() => '')
    if (!link.startsWith('/memfd:memory-backend-memfd') || statSync(`${folder}/${name}`).size !== sizeBytes) continue
    const fd = openSync(`${folder}/${name}`, constants.O_RDWR)
    if (isAlive(identity)) return fd
    closeSync(fd)
  }
  if (!isAlive(identity)) throw new GodwitError('QEMU_EXITED', `QEMU (pid ${identity.pid}) has exited`)
  throw new GodwitError('QEMU_COMMAND', `QEMU (pid ${identity.pid}) has no memory file of ${sizeBytes} bytes`)
}

/**
 * Opens for reading what a process has open itself: the file of this device and inode, whatever bears its name by now,
 * also when none does; the caller closes the descriptor. undefined when the process has no such file open; QEMU_EXITED
 * when it is gone.
 */
export async function openHeldFd(identity: ProcessIdentity, { dev, ino }: { dev: string; ino: string }): Promise<number | undefined> {
  const folder = `/proc/${identity.pid}/fd`
  const names = await readdir(folder).catch((cause: unknown) => {
    throw new GodwitError('QEMU_EXITED', `QEMU (pid ${identity.pid}) has exited`, { cause })
  })
  for (const name of names) {
    const path = `${folder}/${name}`
    const found = statSync(path, { bigint: true, throwIfNoEntry: false })
    if (!found?.isFile() || String(found.dev) !== dev || String(found.ino) !== ino) continue
    const fd = openSync(path, constants.O_RDONLY)
    if (isAlive(identity)) return fd
    closeSync(fd)
  }
  if (!isAlive(identity)) throw new GodwitError('QEMU_EXITED', `QEMU (pid ${identity.pid}) has exited`)
  return undefined
}

/** Bytes of guest memory that are really allocated now (the rest is promised); 0 when it cannot be told. */
export async function allocatedMemoryBytes(identity: ProcessIdentity, sizeBytes: number): Promise<number> {
  try {
    const fd = await openMemoryFd(identity, sizeBytes)
    try {
      return statSync(`/proc/self/fd/${fd}`).blocks * 512
    } finally {
      closeSync(fd)
    }
  } catch {
    return 0
  }
}

/** The last `maxBytes` of a file, '' when there is none. */
export async function fileTail(path: string, maxBytes: number): Promise<Buffer> {
  // A QEMU may own the folder: no link of its making is followed, no FIFO waited for.
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK).catch(() => undefined)
  if (!file) return Buffer.alloc(0)
  try {
    const { size } = await file.stat()
    const length = Math.min(size, maxBytes)
    const buffer = Buffer.alloc(length)
    const { bytesRead } = await file.read(buffer, 0, length, size - length)
    return buffer.subarray(0, bytesRead)
  } finally {
    await file.close()
  }
}
