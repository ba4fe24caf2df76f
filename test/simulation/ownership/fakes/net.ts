// The two sockets between an agent and its QEMU: unix sockets of a host, in memory. Enters: paths. Leaves: sockets.
// Always holds: bytes come in order; when either side's process is gone, or destroys its end, the other hears the end
// after what was sent before.
import { hostOf } from '../host.ts'
import { later, type Process, pause, processNow, runIn } from '../time.ts'

export type Listening = { process: Process; accept: (socket: FakeSocket) => void; connect: (from: Process) => FakeSocket }
type Listener = (value?: unknown) => void

const WAY_MS = 0.2

/**
 * One end, in its process. The same object is what production holds (on, write, destroy, iteration) and what QEMU holds
 * (send, onBytes, drop).
 */
export class FakeSocket {
  readonly process: Process
  other: FakeSocket | undefined
  closed = false
  readonly #chunks: Uint8Array[] = []
  readonly #listeners = new Map<string, Set<Listener>>()
  #wake: (() => void) | undefined

  constructor(process: Process) {
    this.process = process
  }

  send(bytes: Uint8Array): void {
    const { other } = this
    const chunk = bytes.slice()
    if (other) this.#in(other, () => other.#take(chunk))
  }
  onBytes(listener: (bytes: Uint8Array) => void): void {
    this.on('data', bytes => listener(bytes as Uint8Array))
  }
  onClose(listener: () => void): void {
    this.on('close', () => listener())
  }
  /** This end is gone. */
  drop(): void {
    if (this.closed) return
    this.closed = true
    const { other } = this
    if (other) later(KERNEL, WAY_MS, () => other.process.alive && runIn(other.process, () => other.#end()))
    this.#end()
  }
  #in(other: FakeSocket, run: () => void): void {
    // A dead process's bytes that are in the kernel still arrive.
    later(KERNEL, WAY_MS, () => {
      if (other.process.alive && !other.closed) runIn(other.process, run)
    })
  }
  #take(chunk: Uint8Array): void {
    const listeners = this.#listeners.get('data')
    if (listeners?.size) for (const listener of [...listeners]) listener(chunk)
    else {
      this.#chunks.push(chunk)
      this.#wakeUp()
    }
  }
  #end(): void {
    this.closed = true
    this.#wakeUp()
    for (const listener of [...(this.#listeners.get('close') ?? [])]) listener()
  }
  emit(event: string, value?: unknown): void {
    for (const listener of [...(this.#listeners.get(event) ?? [])]) listener(value)
  }
  #wakeUp(): void {
    this.#wake?.()
    this.#wake = undefined
  }

  // --- as production sees it ---

  on(event: string, listener: Listener): this {
    const listeners = this.#listeners.get(event) ?? new Set()
    this.#listeners.set(event, listeners.add(listener))
    if (event === 'data') for (const chunk of this.#chunks.splice(0)) listener(chunk)
    return this
  }
  once(event: string, listener: Listener): this {
    return this.on(event, listener)
  }
  off(event: string, listener: Listener): this {
    this.#listeners.get(event)?.delete(listener)
    return this
  }
  removeListener(event: string, listener: Listener): this {
    return this.off(event, listener)
  }
  write(bytes: Uint8Array, done?: (error?: Error | null) => void): boolean {
    if (!processNow().alive) return false
    if (this.closed) {
      later(this.process, 0, () => done?.(new Error('EPIPE')))
      return false
    }
    this.send(bytes)
    later(this.process, 0, () => done?.())
    return true
  }
  destroy(): this {
    if (processNow().alive) this.drop()
    return this
  }
  end(): this {
    return this.destroy()
  }
  pause(): this {
    return this
  }
  resume(): this {
    return this
  }
  get destroyed(): boolean {
    return this.closed
  }
  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array> {
    for (;;) {
      const chunk = this.#chunks.shift()
      if (chunk) yield chunk
      else if (this.closed) return
      else await new Promise<void>(resolve => (this.#wake = resolve))
    }
  }
}

const KERNEL: Process = { name: 'kernel', alive: true, host: { clockOffsetMs: 0 } }

/** Both ends; the agent's sockets end with its process. */
function pair(a: Process, b: Process): [FakeSocket, FakeSocket] {
  const ends: [FakeSocket, FakeSocket] = [new FakeSocket(a), new FakeSocket(b)]
  ends[0].other = ends[1]
  ends[1].other = ends[0]
  for (const end of ends) opened.push(end)
  return ends
}

let opened: FakeSocket[] = []
export function resetSockets(): void {
  opened = []
}
/** The kernel closes what a dead process had open. */
export function dropSocketsOf(process: Process): void {
  for (const socket of opened) if (socket.process === process) socket.drop()
}

/** To the socket of a process of this host. */
export async function connectUnix(path: string): Promise<FakeSocket> {
  const process = processNow()
  const listening = hostOf(process).sockets.get(path)
  if (!listening?.process.alive) {
    await pause(process, WAY_MS)
    throw new Error(`ECONNREFUSED ${path}`)
  }
  const [ours, theirs] = pair(process, listening.process)
  const connected = Promise.withResolvers<FakeSocket>()
  later(KERNEL, WAY_MS, () => {
    if (listening.process.alive) runIn(listening.process, () => listening.accept(theirs))
    if (process.alive) runIn(process, () => connected.resolve(ours))
  })
  return await connected.promise
}

/** A socket of the process's host that takes one connection. */
export async function listenUnix(path: string): Promise<{ connection: Promise<FakeSocket>; close(): Promise<void> }> {
  const process = processNow()
  const { sockets } = hostOf(process)
  const connected = Promise.withResolvers<FakeSocket>()
  const close = async () => {
    if (sockets.get(path)?.process === process) sockets.delete(path)
  }
  sockets.set(path, {
    process,
    accept: () => {},
    connect(from) {
      const [theirs, ours] = pair(from, process)
      later(KERNEL, WAY_MS, () => {
        if (!process.alive) return
        void close()
        runIn(process, () => connected.resolve(ours))
      })
      return theirs
    },
  })
  await pause(process, 0)
  return { connection: connected.promise, close }
}
