// A model of QEMU, as it was observed: run states, migration states, who resumes by itself and when. Enters: QMP
// commands, bytes of the two migration sockets. Leaves: answers, events, bytes; and to whom it may concern: that a
// guest runs, or has ended.
// Always holds: the guest is one number that grows while it runs (its memory is that number on every page), so a copy
// that lost something is seen.
import { GodwitError } from '../../../wire/errors.ts'
import type { FakeSocket } from './fakes/net.ts'
import type { Host } from './host.ts'
import { say, stage } from './stage.ts'
import { later, nowMs, type Process, runIn } from './time.ts'

export const PAGES = 3
const TICK_MS = 10
/** Shapes of the stream: type, then content. Only this file and fakes/parse.ts read them. */
export const RECORD = { blocks: 1, page: 2, ramEnd: 3, device: 4 } as const
const SHUT_OK = Uint8Array.of(0, 1, 0, 4, 0, 0, 0, 0)
const TAIL = new TextEncoder().encode('{"devices":[]}')

type RunState = 'prelaunch' | 'inmigrate' | 'running' | 'paused' | 'finish-migrate' | 'postmigrate'
type MigrationStatus = 'none' | 'setup' | 'active' | 'device' | 'cancelling' | 'completed' | 'failed' | 'cancelled'

/** What the simulation watches. */
export const watchers = {
  runs: (_: Qemu) => {},
  ended: (_: Qemu, _by: 'fault' | 'agent') => {},
}

let lastPid = 100
let lastFd = 1000
export const memoryOf = new Map<number, Qemu>()
export function resetQemu(): void {
  lastPid = 100
  lastFd = 1000
  memoryOf.clear()
}

export class Qemu {
  readonly host: Host
  readonly vm: string
  readonly dir: string
  readonly incoming: boolean
  readonly pid = ++lastPid
  readonly bootId: string
  readonly process: Process
  state: RunState
  status: MigrationStatus = 'none'
  /** It holds a whole guest: it was booted here, or has loaded one. */
  whole: boolean
  /** The guest, while it stands still. */
  #ticks = 0
  #runsSinceMs = 0
  /** What has arrived of a guest, page by page. */
  readonly pages: number[] = Array.from({ length: PAGES }, () => -1)
  #device = -1
  #resumes = false
  #autostart = false
  #socket: FakeSocket | undefined
  #bytesIn: number[] = []
  readonly onEvent = new Set<(event: string) => void>()
  readonly onEnd = new Set<() => void>()

  constructor(host: Host, vm: string, dir: string, incoming: boolean) {
    this.host = host
    this.vm = vm
    this.dir = dir
    this.incoming = incoming
    this.bootId = host.bootId
    this.state = incoming ? 'inmigrate' : 'prelaunch'
    this.whole = !incoming
    this.process = { name: `${host.name}:qemu${this.pid}`, alive: true, host } as Process
  }

  /** Its working folder: sockets are named from there. */
  get runDir(): string {
    return `${this.dir}/run`
  }
  #pathOf(uri: string): string {
    return `${this.runDir}/${uri.slice('unix:'.length)}`
  }

  get alive(): boolean {
    return this.process.alive
  }
  get running(): boolean {
    return this.alive && this.state === 'running'
  }
  get ticks(): number {
    return this.state === 'running' ? this.#ticks + Math.floor((nowMs() - this.#runsSinceMs) / TICK_MS) : this.#ticks
  }

  enter(state: RunState): void {
    if (this.state === state || !this.alive) return
    const ticks = this.ticks
    const wasRunning = this.state === 'running'
    this.#ticks = ticks
    this.state = state
    runIn(this.process, () => say(`${state} (guest ${ticks})`))
    if (state === 'running') {
      this.#runsSinceMs = nowMs()
      watchers.runs(this)
      this.#emit('RESUME')
    } else if (wasRunning) this.#emit('STOP')
  }

  #emit(event: string): void {
    for (const listener of [...this.onEvent]) listener(event)
  }

  end(by: 'fault' | 'agent'): void {
    if (!this.alive) return
    runIn(this.process, () => say(`ends (${by})`))
    watchers.ended(this, by)
    this.#ticks = this.ticks
    this.process.alive = false
    for (const path of [...this.host.sockets].filter(([, { process }]) => process === this.process).map(([path]) => path))
      this.host.sockets.delete(path)
    this.#socket?.drop()
    for (const listener of [...this.onEnd]) listener()
  }

  openMemory(): number {
    memoryOf.set(++lastFd, this)
    return lastFd
  }

  /** A QMP command, in QEMU's own time. */
  execute(command: string, args: Record<string, unknown> | undefined): unknown {
    switch (command) {
      case 'query-status':
        return { status: this.state, running: this.state === 'running' }
      case 'query-migrate':
        return this.status === 'none' ? {} : { status: this.status, ram: { total: 1, remaining: 0 } }
      case 'cont':
        return this.#cont()
      case 'stop':
        if (this.state === 'running') this.enter('paused')
        return {}
      case 'migrate':
        return this.#migrate(String(args?.uri))
      case 'migrate_cancel':
        return this.#cancel()
      case 'migrate-incoming':
        return this.#listen(String(args?.uri))
      case 'quit':
        this.end('agent')
        return {}
      default:
        return {}
    }
  }

  #cont(): unknown {
    if (this.state === 'finish-migrate') throw new GodwitError('QEMU_COMMAND', 'cont: migration is not finalized yet')
    if (this.state === 'inmigrate') {
      this.#autostart = true
      return {}
    }
    this.enter('running')
    return {}
  }

  // --- source ---

  #migrate(uri: string): unknown {
    if (this.state === 'postmigrate') throw new GodwitError('QEMU_COMMAND', 'migrate: the guest is in postmigrate')
    if (['setup', 'active', 'device', 'cancelling'].includes(this.status)) throw new GodwitError('QEMU_COMMAND', 'migrate: there is one')
    const listening = this.host.sockets.get(this.#pathOf(uri))
    this.status = 'setup'
    this.#resumes = this.state === 'running'
    if (!listening) {
      this.status = 'failed'
      return {}
    }
    const socket = listening.connect(this.process)
    this.#socket = socket
    socket.onClose(() => this.#broken())
    socket.onBytes(bytes => this.#returned(bytes))
    later(this.process, 1, () => this.#rounds(1 + Math.floor(stage().random.next() * 2)))
    return {}
  }

  #rounds(left: number): void {
    if (this.status !== 'setup' && this.status !== 'active') return
    if (this.status === 'setup') this.#write(RECORD.blocks)
    this.status = 'active'
    this.#emit('MIGRATION_PASS')
    if (left === 0) {
      this.#final()
      return
    }
    this.#page(0, () => later(this.process, stage().random.between(2, 40), () => this.#rounds(left - 1)))
  }

  /** The pages one by one, as they are then. */
  #page(at: number, after: () => void): void {
    if (this.status !== 'active' && this.status !== 'device') return
    if (at === PAGES) {
      after()
      return
    }
    this.#write(RECORD.page, at, this.ticks)
    later(this.process, stage().random.between(0.2, 3), () => this.#page(at + 1, after))
  }

  #final(): void {
    this.enter('finish-migrate')
    this.#page(0, () => {
      this.#write(RECORD.ramEnd)
      this.status = 'device'
      this.#write(RECORD.device, this.ticks)
    })
  }

  #write(...record: number[]): void {
    const bytes = new Uint8Array(1 + 4 * (record.length - 1))
    bytes[0] = record[0]!
    const view = new DataView(bytes.buffer)
    for (let at = 1; at < record.length; at++) view.setUint32(1 + 4 * (at - 1), record[at]!)
    this.#socket?.send(bytes)
  }

  #returned(bytes: Uint8Array): void {
    if (this.status === 'device' && Buffer.compare(bytes, SHUT_OK) === 0) {
      this.status = 'completed'
      this.enter('postmigrate')
    }
  }

  /** The socket is gone. Before SHUT(0) has come that is a failure, and a guest that ran before runs on. */
  #broken(): void {
    if (!['setup', 'active', 'device', 'cancelling'].includes(this.status)) return
    this.status = this.status === 'cancelling' ? 'cancelled' : 'failed'
    this.#after()
  }

  #cancel(): unknown {
    if (!['setup', 'active', 'device'].includes(this.status)) return {}
    this.status = 'cancelling'
    later(this.process, stage().random.between(1, 30), () => {
      if (this.status !== 'cancelling') return
      this.status = 'cancelled'
      this.#socket?.drop()
      this.#after()
    })
    return {}
  }

  #after(): void {
    if (this.#resumes) this.enter('running')
    else if (this.state === 'finish-migrate') this.enter('paused')
  }

  // --- target ---

  #listen(uri: string): unknown {
    const path = this.#pathOf(uri)
    this.status = 'setup'
    this.host.sockets.set(path, {
      process: this.process,
      accept: socket => {
        this.#socket = socket
        socket.onBytes(bytes => this.#loading(bytes))
        socket.onClose(() => {
          if (this.state === 'inmigrate') this.status = 'failed'
        })
      },
      connect: () => {
        throw new Error('only for accept')
      },
    })
    return {}
  }

  /** The skeleton: device state with the guest's number, then the tail that ends QEMU's streams. */
  #loading(bytes: Uint8Array): void {
    this.#bytesIn.push(...bytes)
    const all = Buffer.from(this.#bytesIn)
    if (this.state !== 'inmigrate' || this.status === 'completed' || !all.subarray(-TAIL.length).equals(TAIL)) return
    this.#device = all.readUInt32BE(all.length - TAIL.length - 6 - 4)
    this.status = 'completed'
    later(this.process, stage().random.between(1, 20), () => {
      this.whole = true
      this.#ticks = this.#device
      this.enter(this.#autostart ? 'running' : 'paused')
      later(this.process, 1, () => this.#socket?.send(SHUT_OK))
    })
  }
}

/** Device state as it stands in the stream: the number, then EOF and VMDESCRIPTION. */
export function deviceBytes(ticks: number): Uint8Array {
  const head = Buffer.alloc(4 + 6)
  head.writeUInt32BE(ticks, 0)
  head[4] = 0
  head[5] = 6
  head.writeUInt32BE(TAIL.length, 6)
  return new Uint8Array(Buffer.concat([head, TAIL]))
}
