// Connections to a forwarded port of a guest (forward.ts), one after the other. QEMU's user network listens with a
// backlog of 1: when users who waited for a VM come all at once, the kernel drops what does not fit, and a dropped
// handshake or its data comes back only after 1 s, or with timers that double (seen: 2 to 9 s). So the next one knocks
// when the last was let in.
//
// The guest sees our own port as its peer's, and remembers the connections of the site before for a minute (TIME_WAIT),
// with sequence numbers that a new user network begins below. A port that was used there would be answered as an old
// connection, refused, and tried again after 6 s. So each epoch of a VM has a range of ports of its own. (A user
// network sees the other ports too; they are taken only where the range is used up.)
//
// Enters: a port, an epoch. Leaves: connected sockets. Always holds: at most one connection waits to be accepted; each
// has its own deadline, whatever those before it do.
import { closeSync, openSync, readSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { sleep, within } from '../../ops/deadline.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'

const LOOPBACK = '127.0.0.1'
const CONNECT_MS = 2_000
const LOOK_EVERY_MS = 1
/** Below the ports that Linux gives away by itself (32768 and up, unless told otherwise). */
const RANGES = { from: 16_384, count: 16, ports: 1024 }
const PORTS_TRIED = 8

/**
 * How many connections wait to be accepted at a port of the loopback; undefined when nobody, or not this user, listens
 * there.
 */
type QueueOf = (port: number, uid: number | undefined) => number | undefined

export class GuestDoor {
  readonly #port: number
  readonly #firstPort: number
  readonly #queueOf: QueueOf
  readonly #uid: number | undefined
  #used = 0
  #last: Promise<unknown> = Promise.resolve()

  /**
   * `uid`: the user that runs the VM's QEMU. A port that another user listens at is none of the VM's, whatever its QEMU
   * reports.
   */
  constructor({ port, epoch, uid, queueOf = acceptQueue }: { port: number; epoch: number; uid?: number | undefined; queueOf?: QueueOf }) {
    this.#port = port
    this.#uid = uid
    this.#firstPort = RANGES.from + (epoch % RANGES.count) * RANGES.ports
    this.#queueOf = queueOf
  }

  /** CONNECT_FAILED when QEMU does not let it in in time. */
  connect(): Promise<Socket> {
    const endMs = performance.now() + CONNECT_MS
    const mine = this.#last.then(() => this.#enter(endMs))
    this.#last = mine.catch(() => {})
    return mine
  }

  async #enter(endMs: number): Promise<Socket> {
    for (;;) {
      const waiting = this.#queueOf(this.#port, this.#uid)
      if (waiting === undefined) throw new GodwitError('CONNECT_FAILED', `the QEMU of the VM does not listen on port ${this.#port}`)
      if (performance.now() >= endMs) throw new GodwitError('CONNECT_FAILED', 'QEMU does not accept connections to the guest')
      if (waiting === 0) return await this.#dial(endMs)
      await sleep(LOOK_EVERY_MS)
    }
  }

  /** From the next free port of the epoch's range; from any when several in a row are taken. */
  async #dial(endMs: number): Promise<Socket> {
    for (let tried = 0; tried < PORTS_TRIED; tried++) {
      const localPort = this.#firstPort + (this.#used++ % RANGES.ports)
      try {
        return await dial({ port: this.#port, localAddress: LOOPBACK, localPort }, endMs - performance.now())
      } catch (error) {
        const { code } = ((error as GodwitError).cause ?? {}) as NodeJS.ErrnoException
        if (code !== 'EADDRINUSE' && code !== 'EADDRNOTAVAIL') throw error
      }
    }
    return await dial({ port: this.#port }, endMs - performance.now())
  }
}

async function dial(to: { port: number; localAddress?: string; localPort?: number }, ms: number): Promise<Socket> {
  const socket = connect({ host: LOOPBACK, ...to, noDelay: true, allowHalfOpen: true })
  const connected = new Promise<void>((resolve, reject) => socket.once('connect', resolve).once('error', reject))
  try {
    await within(connected, { ms, what: 'the guest network', code: 'CONNECT_FAILED' })
    return socket
  } catch (error) {
    socket.destroy()
    throw toGodwitError(error, 'CONNECT_FAILED')
  }
}

const PART_BYTES = 16 * 1024
const TEXT_BYTES_MAX = 1024 * 1024

/**
 * Linux, proc_net_tcp: of a listening socket rx_queue is the accept queue. Listening sockets come first, so a part of
 * the file is enough.
 */
function acceptQueue(port: number, uid: number | undefined): number | undefined {
  const file = openSync('/proc/net/tcp', 'r')
  try {
    const part = Buffer.allocUnsafe(PART_BYTES)
    let text = ''
    for (let bytes = readSync(file, part); bytes > 0 && text.length < TEXT_BYTES_MAX; bytes = readSync(file, part)) {
      text += part.toString('latin1', 0, bytes)
      const found = findAcceptQueue(text, port, uid)
      if (found !== undefined) return found
    }
    return undefined
  } finally {
    closeSync(file)
  }
}

/** In the text of /proc/net/tcp. `uid`: only a socket of this user counts (column 8). */
export function findAcceptQueue(text: string, port: number, uid?: number): number | undefined {
  const place = `0100007F:${port.toString(16).toUpperCase().padStart(4, '0')}`
  const pattern = `^ *\\d+: ${place} 00000000:0000 0A [0-9A-F]{8}:([0-9A-F]{8}) [0-9A-F]{2}:[0-9A-F]{8} [0-9A-F]{8} +(\\d+) `
  const line = new RegExp(pattern, 'm').exec(text)
  return line && (uid === undefined || Number(line[2]) === uid) ? Number.parseInt(line[1]!, 16) : undefined
}
