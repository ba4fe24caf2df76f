// The agent's end of a VM's serial port. Enters: bytes from the guest, always read at once. Leaves: the same bytes to
// any number of followers, and a 64 KiB replay.
// Always holds: a slow follower is dropped with a notice and never holds up the guest or the others; memory is bounded
// by ring + followers x queue + writes.
import type { Duplex } from 'node:stream'
import { GodwitError } from '../../wire/errors.ts'

export const RING_BYTES = 64 * 1024
const FOLLOWER_QUEUE_BYTES = 256 * 1024
const MAX_FOLLOWERS = 16
const MAX_UNWRITTEN_BYTES = 64 * 1024

/** The last `capacityBytes` of a stream of bytes. */
export class ByteRing {
  readonly #buffer: Buffer
  #written = 0

  constructor(capacityBytes: number) {
    this.#buffer = Buffer.alloc(capacityBytes)
  }

  write(bytes: Uint8Array): void {
    const capacity = this.#buffer.length
    const kept = bytes.subarray(Math.max(0, bytes.length - capacity))
    const at = (this.#written + bytes.length - kept.length) % capacity
    const first = Math.min(kept.length, capacity - at)
    this.#buffer.set(kept.subarray(0, first), at)
    this.#buffer.set(kept.subarray(first), 0)
    this.#written += bytes.length
  }

  /** A copy, oldest byte first. */
  read(): Buffer {
    const capacity = this.#buffer.length
    if (this.#written <= capacity) return Buffer.from(this.#buffer.subarray(0, this.#written))
    const at = this.#written % capacity
    return Buffer.concat([this.#buffer.subarray(at), this.#buffer.subarray(0, at)])
  }
}

/** What one reader of the console sees. Iterate it once; `close()` ends it. */
type Follower = AsyncIterable<Uint8Array> & { close(): void; readonly dropped: boolean }

type Entry = { push(bytes: Uint8Array): void; end(): void }

export class VmConsole {
  readonly #stream: Duplex
  readonly #ring = new ByteRing(RING_BYTES)
  readonly #followers = new Set<Entry>()
  #ended = false

  /** `seed`: what the guest wrote before (the log's tail), for the replay only. */
  constructor(stream: Duplex, { seed }: { seed?: Uint8Array } = {}) {
    this.#stream = stream
    if (seed) this.#ring.write(seed)
    stream.on('data', (chunk: Buffer) => {
      this.#ring.write(chunk)
      for (const follower of [...this.#followers]) follower.push(chunk)
    })
    for (const event of ['end', 'close', 'error']) stream.on(event, () => this.close())
  }

  get ended(): boolean {
    return this.#ended
  }

  /** The last 64 KiB that the guest wrote. */
  replay(): Buffer {
    return this.#ring.read()
  }

  /**
   * All that the guest writes from now on, with the replay first unless told otherwise. LIMIT_EXCEEDED beyond 16
   * followers.
   */
  follow({ replay = true, queueBytes = FOLLOWER_QUEUE_BYTES }: { replay?: boolean; queueBytes?: number } = {}): Follower {
    if (this.#followers.size >= MAX_FOLLOWERS)
      throw new GodwitError('LIMIT_EXCEEDED', `${MAX_FOLLOWERS} readers already follow this console`)
    const { entry, follower } = createFollower(queueBytes, gone => this.#followers.delete(gone))
    if (replay) {
      const past = this.#ring.read()
      if (past.length > 0) entry.push(past)
    }
    if (this.#ended) entry.end()
    else this.#followers.add(entry)
    return follower
  }

  /**
   * Sends bytes to the guest's serial port; resolves when QEMU has taken them. LIMIT_EXCEEDED when the guest does not
   * read and 64 KiB wait already.
   */
  async write(bytes: Uint8Array): Promise<void> {
    if (this.#ended) throw new GodwitError('QEMU_EXITED', 'the console is closed')
    if (this.#stream.writableLength + bytes.length > MAX_UNWRITTEN_BYTES)
      throw new GodwitError('LIMIT_EXCEEDED', 'the guest does not read its serial port')
    await new Promise<void>((resolve, reject) => {
      this.#stream.write(bytes, error =>
        error ? reject(new GodwitError('QEMU_EXITED', 'the console is closed', { cause: error })) : resolve(),
      )
    })
  }

  /** Ends every follower; the guest's further output goes to the log file only. */
  close(): void {
    if (this.#ended) return
    this.#ended = true
    for (const follower of this.#followers) follower.end()
    this.#followers.clear()
    this.#stream.destroy()
  }
}

const DROP_NOTICE = Buffer.from('\r\n[godwit: disconnected: this reader is too slow]\r\n')

function createFollower(queueBytes: number, remove: (entry: Entry) => void): { entry: Entry; follower: Follower } {
  const queue: Uint8Array[] = []
  let queuedBytes = 0
  let dropped = false
  let ended = false
  let wake = () => {}
  const end = () => {
    ended = true
    wake()
  }
  const entry: Entry = {
    push(bytes) {
      if (ended) return
      if (queuedBytes + bytes.length > queueBytes) {
        dropped = true
        queue.length = 0
        queue.push(DROP_NOTICE)
        remove(entry)
        end()
        return
      }
      queue.push(Uint8Array.from(bytes))
      queuedBytes += bytes.length
      wake()
    },
    end,
  }
  const close = () => {
    remove(entry)
    queue.length = 0
    end()
  }
  async function* iterate(): AsyncGenerator<Uint8Array> {
    try {
      for (;;) {
        const next = queue.shift()
        if (next) {
          queuedBytes -= next.length
          yield next
        } else if (ended) return
        else
          await new Promise<void>(resolve => {
            wake = resolve
          })
      }
    } finally {
      close()
    }
  }
  const follower: Follower = {
    [Symbol.asyncIterator]: iterate,
    close,
    get dropped() {
      return dropped
    },
  }
  return { entry, follower }
}
