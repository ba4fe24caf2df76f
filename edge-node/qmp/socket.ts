// Connects to a socket of QEMU by its name in the `run` folder, which belongs to QEMU. Enters: a path. Leaves: a
// connected stream. Always holds: the socket was created by the owner of this folder. A QEMU that a guest controls
// cannot redirect its agent, by a link with that name, to another VM's monitor or a service of the host: the descriptor
// is opened without following links, checked, and then connected to (unix(7), open(2) O_PATH).
import { constants } from 'node:fs'
import { open, stat } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { dirname } from 'node:path'
import { within } from '../../ops/deadline.ts'
import { GodwitError } from '../../wire/errors.ts'

/** linux/fcntl.h; Node does not export it. */
const O_PATH = 0o10000000

/**
 * A connected unix socket. Rejects with the system's error, TIMEOUT (or `code`), or QEMU_UNTRUSTED if the path is not a
 * socket of the folder's owner.
 */
export async function connectUnix(path: string, timeoutMs: number, { signal, code }: Options = {}): Promise<Socket> {
  const file = await open(path, O_PATH | constants.O_NOFOLLOW)
  let socket: Socket | undefined
  try {
    const [found, folder] = await Promise.all([file.stat(), stat(dirname(path))])
    if (!found.isSocket() || found.uid !== folder.uid)
      throw new GodwitError('QEMU_UNTRUSTED', `${path} is not a socket of user ${folder.uid}, who runs the QEMU of this VM`)
    socket = connect({ path: `/proc/self/fd/${file.fd}` })
    await connected(socket, { ms: timeoutMs, what: path, signal, ...(code && { code }) })
    return socket
  } catch (error) {
    socket?.destroy()
    throw error
  } finally {
    await file.close()
  }
}

type Options = { signal?: AbortSignal | undefined; code?: 'QEMU_TIMEOUT' }

async function connected(socket: Socket, deadline: Parameters<typeof within>[1]): Promise<void> {
  const opened = new Promise<void>((resolve, reject) => {
    socket.once('connect', resolve)
    socket.once('error', reject)
  })
  opened.catch(() => {})
  await within(opened, deadline)
  socket.removeAllListeners('error')
  socket.on('error', () => {}) // a 'close' follows; the caller adds its own listener
}
