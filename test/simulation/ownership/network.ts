// The network below streams: a Connection between a node and the gateway, over a link that delays, stalls, goes one way
// only, and breaks.
// Enters: bytes and resets of either end. Leaves: the same, later. It is an Engine (transport/types.ts), so link, RPC,
// relay and sessions above are production's.
// Always holds: the bytes of one direction of one stream come in order and once, or the stream fails: that is what QUIC
// gives. What is lost on the way is sent again, so loss is delay here, or the end of the connection; a reset may
// overtake bytes. A dead process is silent, or its kernel says so.

import type { CloseReason, Connection, Engine, Listener, Stream } from '../../../transport/types.ts'
import type { Plan } from '../../../wire/control.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { FRAME_HEADER_BYTES } from '../../../wire/frame.ts'
import { FRAME } from '../../../wire/types.ts'
import { pass, say, stage, struck } from './stage.ts'
import { later, never, nowMs, type Process, processNow, runIn } from './time.ts'

export type Direction = 'up' | 'down'

const ORDERS = ['prepare', 'start'] as const
/** As production sends it. */
type Order = { plan: Plan } & Record<string, unknown>
type Asking = (site: string, what: (typeof ORDERS)[number], params: Order) => void

/** The way between one site and the gateway. */
class Wire {
  readonly site: string
  delayMs = 5
  /** A message in this many takes seconds. */
  slowShare = 0
  readonly cut: Record<Direction, boolean> = { up: false, down: false }
  readonly #held: Record<Direction, (() => void)[]> = { up: [], down: [] }
  readonly connections = new Set<Ends>()
  readonly #onAsked: Asking

  constructor(site: string, onAsked: Asking) {
    this.site = site
    this.#onAsked = onAsked
  }

  /** Carries something to a process; the order of `lane` is kept. */
  carry(direction: Direction, to: Process, lane: { lastMs: number } | undefined, deliver: () => void): void {
    const { random } = stage()
    const slow = random.chance(this.slowShare) ? random.between(200, 8_000) : 0
    const dueMs = Math.max(nowMs() + this.delayMs * random.between(0.5, 1.5) + slow, (lane?.lastMs ?? 0) + 0.01)
    if (lane) lane.lastMs = dueMs
    const arrive = () => {
      if (this.cut[direction]) this.#held[direction].push(arrive)
      else if (to.alive) later(to, 0, deliver)
    }
    later(WIRES, dueMs - nowMs(), arrive)
  }

  setCut(direction: Direction, cut: boolean): void {
    if (this.cut[direction] === cut) return
    this.cut[direction] = cut
    say(`link ${this.site} ${direction} ${cut ? 'cut' : 'whole'}`)
    if (cut) return
    for (const arrive of this.#held[direction].splice(0)) later(WIRES, this.delayMs, arrive)
  }

  /** What the gateway writes to the site: each write is one frame. */
  overhear(frame: Uint8Array): void {
    if (frame[4] !== FRAME.RPC) return
    const { method, params } = JSON.parse(Buffer.from(frame.subarray(FRAME_HEADER_BYTES)).toString()) as { method?: string; params: Order }
    const what = ORDERS.find(name => method === `migration.${name}`)
    if (what) this.#onAsked(this.site, what, params)
  }

  /** Every connection breaks; each end learns of it in its own time. */
  sever(): void {
    for (const ends of [...this.connections]) {
      for (const end of [ends.client, ends.server])
        later(end.process, stage().random.between(0, 400), () => end.finish({ code: 'CONNECTION_LOST', message: 'severed' }))
    }
  }
}

const WIRES: Process = { name: 'network', alive: true, host: { clockOffsetMs: 0 } }
type Ends = { client: End; server: End }
const lost = (message: string) => new GodwitError('CONNECTION_LOST', message)

/** One direction of one stream at its reader. */
class Inlet {
  readonly chunks: Uint8Array[] = []
  ended = false
  failure: GodwitError | undefined
  wake: (() => void) | undefined

  take(chunk: Uint8Array | null): void {
    if (this.failure) return
    if (chunk === null) this.ended = true
    else this.chunks.push(chunk)
    this.#wakeUp()
  }
  fail(error: GodwitError): void {
    this.failure ??= error
    this.chunks.length = 0
    this.#wakeUp()
  }
  async read(): Promise<Uint8Array | null> {
    while (!this.failure && this.chunks.length === 0 && !this.ended) await new Promise<void>(resolve => (this.wake = resolve))
    if (this.failure) throw this.failure
    return this.chunks.shift() ?? null
  }
  #wakeUp(): void {
    this.wake?.()
    this.wake = undefined
  }
}

type Half = { inlet: Inlet; failure: GodwitError | undefined; lane: { lastMs: number } }

/** One end of a connection. */
class End {
  readonly process: Process
  readonly wire: Wire
  readonly out: Direction
  peer: End | undefined
  over: CloseReason | undefined
  readonly halves = new Map<number, Half>()
  readonly #accepted: Stream[] = []
  #waiting: ((stream: Stream | null) => void) | undefined
  #close: (reason: CloseReason) => void = () => {}
  readonly closed: Promise<CloseReason>
  nextId: number

  constructor(process: Process, wire: Wire, out: Direction) {
    this.process = process
    this.wire = wire
    this.out = out
    this.nextId = out === 'up' ? 0 : 1
    this.closed = new Promise(resolve => {
      this.#close = resolve
    })
  }

  finish(reason: CloseReason): void {
    if (this.over || !this.process.alive) return
    this.over = reason
    for (const half of this.halves.values()) failHalf(half, lost(reason.message))
    this.halves.clear()
    this.#waiting?.(null)
    this.#waiting = undefined
    this.#close(reason)
  }

  /** To the other end, in the stream's order; what it says of a connection that is over there is dropped. */
  #send(lane: { lastMs: number } | undefined, deliver: (peer: End) => void): void {
    const { peer } = this
    if (!peer) return
    this.wire.carry(this.out, peer.process, lane, () => {
      if (!peer.over) deliver(peer)
    })
  }

  #half(id: number): Half {
    let half = this.halves.get(id)
    if (!half) {
      half = { inlet: new Inlet(), failure: undefined, lane: { lastMs: 0 } }
      this.halves.set(id, half)
    }
    return half
  }

  #arrive(id: number, chunk: Uint8Array | null): void {
    const isNew = !this.halves.has(id) && id % 2 !== this.nextId % 2
    if (!isNew && !this.halves.has(id)) return
    this.#half(id).inlet.take(chunk)
    if (isNew) this.#announce(this.#stream(id))
  }

  #announce(stream: Stream): void {
    const waiting = this.#waiting
    this.#waiting = undefined
    if (waiting) waiting(stream)
    else this.#accepted.push(stream)
  }

  #stream(id: number): Stream {
    const half = this.#half(id)
    const check = () => {
      if (half.failure) throw half.failure
    }
    return {
      id,
      write: async bytes => {
        check()
        if (this.out === 'down') this.wire.overhear(bytes)
        const label = labelOf(bytes)
        if (label) await pass(`before send ${label}`)
        const chunk = bytes.slice()
        this.#send(half.lane, peer => peer.#arrive(id, chunk))
        if (label) await pass(`after send ${label}`)
      },
      end: async () => {
        check()
        if (struck('end')) return await never()
        this.#send(half.lane, peer => peer.#arrive(id, null))
      },
      read: () => half.inlet.read(),
      reset: reason => {
        if (half.failure || !processNow().alive) return
        const error = new GodwitError('STREAM_RESET', `stream ${id} reset${reason ? `: ${reason}` : ''}`)
        failHalf(half, error)
        this.#send(undefined, peer => {
          const theirs = peer.halves.get(id)
          if (theirs) failHalf(theirs, error)
        })
      },
    }
  }

  connection(): Connection {
    return {
      engine: 'quic',
      remoteAddress: this.wire.site,
      binding: new Uint8Array(32),
      openStream: async () => {
        if (this.over) throw lost(this.over.message)
        const id = this.nextId
        this.nextId += 2
        return this.#stream(id)
      },
      acceptStream: async () => {
        const ready = this.#accepted.shift()
        if (ready || this.over) return ready ?? null
        return new Promise(resolve => {
          this.#waiting = resolve
        })
      },
      stats: () => ({ rttMs: this.wire.delayMs * 2, sentBytes: 0, receivedBytes: 0 }),
      close: async reason => {
        if (!processNow().alive || this.over) return
        const why: CloseReason = { code: 'CLOSED', message: reason ?? 'closed' }
        this.#send(undefined, peer => peer.finish(why))
        this.finish(why)
      },
      closed: this.closed,
    }
  }
}

function failHalf(half: Half, error: GodwitError): void {
  half.failure ??= error
  half.inlet.fail(error)
}

/** What a message is called in traces; '' for heartbeats and for acknowledgements, which are no points of interest. */
function labelOf(bytes: Uint8Array): string {
  return bytes.length <= 5 ? '' : `${bytes[4]}`
}

/** Where the gateway listens; each site's engine comes over its own wire. */
export class Network {
  readonly wires = new Map<string, Wire>()
  readonly #onAsked: Asking
  #listener: { process: Process; accept: (connection: Connection) => void } | undefined

  /** `onAsked` is told of each migration that the gateway orders of a site, as it sends the order. */
  constructor(onAsked: Asking) {
    this.#onAsked = onAsked
  }

  wire(site: string): Wire {
    let wire = this.wires.get(site)
    if (!wire) {
      wire = new Wire(site, this.#onAsked)
      this.wires.set(site, wire)
    }
    return wire
  }

  /** The engine of the gateway's process. */
  listening(process: Process): Engine {
    const queue: Connection[] = []
    let waiting: ((connection: Connection | null) => void) | undefined
    const accept = (connection: Connection) => {
      const take = waiting
      waiting = undefined
      if (take) take(connection)
      else queue.push(connection)
    }
    return {
      name: 'quic',
      available: async () => ({ ok: true }),
      connect: () => never(),
      listen: async (): Promise<Listener> => {
        this.#listener = { process, accept }
        return {
          address: { host: 'gateway', port: 1 },
          accept: async () => queue.shift() ?? new Promise(resolve => (waiting = resolve)),
          close: async () => {},
        }
      },
    }
  }

  /** The engine of a site's process. */
  dialling(process: Process, site: string): Engine {
    const wire = this.wire(site)
    const connect = () =>
      new Promise<Connection>((resolve, reject) => {
        wire.carry('up', WIRES, undefined, () => {
          const listener = this.#listener
          if (!listener?.process.alive)
            return wire.carry('down', process, undefined, () => reject(new GodwitError('CONNECT_FAILED', 'nothing listens')))
          const client = new End(process, wire, 'up')
          const server = new End(listener.process, wire, 'down')
          client.peer = server
          server.peer = client
          const ends = { client, server }
          wire.connections.add(ends)
          runIn(listener.process, () => listener.accept(server.connection()))
          wire.carry('down', process, undefined, () => resolve(client.connection()))
        })
      })
    return { name: 'quic', available: async () => ({ ok: true }), listen: () => never(), connect }
  }

  /** The kernel of a dead process tells its peers that its sockets are gone, or nobody does. */
  died(process: Process, loud: boolean): void {
    for (const wire of this.wires.values()) {
      for (const ends of wire.connections) {
        const [dead, other] = ends.client.process === process ? [ends.client, ends.server] : [ends.server, ends.client]
        if (dead.process !== process) continue
        wire.connections.delete(ends)
        if (loud)
          wire.carry(dead.out, other.process, undefined, () => other.finish({ code: 'CONNECTION_LOST', message: 'the peer is gone' }))
      }
    }
  }
}
