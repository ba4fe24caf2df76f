// A real UDP path with an emulated link. Enters: datagrams of clients at `listen`. Leaves: the same datagrams at
// `upstream`, from one socket for each client, through the `up` link; answers return through `down`. All clients share
// the two links, as behind one access line. Always holds: a datagram is never released before its time by more than
// half a timer tick (RELEASE_EARLY_MS), never reordered within a direction; memory is bounded by the links' queues and
// rate x delay; at most clientsMax sockets.
import { createSocket, type RemoteInfo, type Socket } from 'node:dgram'
import { once } from 'node:events'
import { isIPv6 } from 'node:net'
import { GodwitError } from '../wire/errors.ts'
import { createDeque } from './deque.ts'
import { createLink, type LinkCounters, type LinkModel, type LinkModelOptions } from './link.ts'

export type UdpProxyOptions = {
  listen: { host: string; port: number }
  upstream: { host: string; port: number }
  /** Client to upstream. */
  up: LinkModelOptions
  /** Upstream to client. */
  down: LinkModelOptions
  seed?: number | string
  /** Header bytes of IP and UDP for each datagram in the model. Default 28 (IPv4). */
  headerBytes?: number
  clientsMax?: number
  /** A client without traffic is forgotten after this. Default 120_000. */
  clientIdleMs?: number
}

export type UdpProxy = {
  readonly address: { host: string; port: number }
  stats(): { up: LinkCounters; down: LinkCounters; clients: number; refusedClients: number; sendErrors: number }
  /** New conditions from now on. */
  change(direction: 'up' | 'down', options: Partial<LinkModelOptions>): void
  /** Cuts both directions, or restores them. */
  cut(isCut: boolean): void
  /**
   * Like a NAT that loses its state: from now on every client reaches the upstream from another port. Upward packets in
   * transit are lost.
   */
  rebind(): void
  close(): Promise<void>
}

/** libuv timers have whole ms and fire on average half a tick late; releasing half a tick early centres the error. */
const RELEASE_EARLY_MS = 0.5
const SWEEP_EVERY_MS = 5000
const KERNEL_BUFFER_BYTES = 4 * 1024 * 1024
/**
 * Released at most in one tick, or three times what the rate sends in 1 ms. A real link never delivers faster than its
 * rate; after 20 ms without CPU time, releasing all overdue packets at once would overflow a receiver's default buffer
 * (208 KiB: 92 datagrams), a loss outside the model.
 */
const BURST_PACKETS_MIN = 64

type Client = { host: string; port: number; upstream: Socket; isReady: boolean; waiting: Uint8Array[]; usedMs: number }
type Packet = { bytes: Uint8Array; client: Client }

/** Starts the proxy; CONNECT_FAILED if the address cannot be bound. */
export async function startUdpProxy(options: UdpProxyOptions): Promise<UdpProxy> {
  const { listen, upstream, seed = 1, headerBytes = 28, clientsMax = 256, clientIdleMs = 120_000 } = options
  const startMs = performance.now()
  const nowMs = () => performance.now() - startMs
  const clients = new Map<string, Client>()
  const counts = { refusedClients: 0, sendErrors: 0 }
  let isClosed = false
  const onSendError = (error: Error | null) => {
    if (error) counts.sendErrors++
  }

  const server = await bind(listen)
  const up = createDriver(createLink<Packet>(options.up, `${seed}/up`), burstOf(options.up), nowMs, ({ bytes, client }) => {
    if (client.isReady) client.upstream.send(bytes, onSendError)
    else if (client.waiting.length < 64) client.waiting.push(bytes)
  })
  const down = createDriver(createLink<Packet>(options.down, `${seed}/down`), burstOf(options.down), nowMs, ({ bytes, client }) =>
    server.send(bytes, client.port, client.host, onSendError),
  )

  const admit = ({ address, port }: RemoteInfo): Client | undefined => {
    const key = `${address} ${port}`
    const known = clients.get(key)
    if (known) return known
    if (clients.size >= clientsMax) {
      counts.refusedClients++
      return undefined
    }
    const socket = newSocket(upstream.host)
    const client: Client = { host: address, port, upstream: socket, isReady: false, waiting: [], usedMs: nowMs() }
    clients.set(key, client)
    socket.on('error', () => counts.sendErrors++) // without an upstream, ICMP errors arrive: for UDP that is loss
    socket.on('message', bytes => {
      client.usedMs = nowMs()
      down.offer(bytes.byteLength + headerBytes, { bytes, client })
    })
    socket.connect(upstream.port, upstream.host, () => {
      if (isClosed) return
      enlargeBuffers(socket)
      client.isReady = true
      for (const bytes of client.waiting.splice(0)) socket.send(bytes, onSendError)
    })
    return client
  }

  server.on('error', () => counts.sendErrors++)
  server.on('message', (bytes, from) => {
    const client = admit(from)
    if (!client) return
    client.usedMs = nowMs()
    up.offer(bytes.byteLength + headerBytes, { bytes, client })
  })
  const sweeper = setInterval(() => forgetIdle(clients, nowMs() - clientIdleMs), SWEEP_EVERY_MS).unref()

  const { address, port } = server.address()
  return {
    address: { host: address, port },
    stats: () => ({ up: up.link.counters(), down: down.link.counters(), clients: clients.size, ...counts }),
    change: (direction, changes) => (direction === 'up' ? up : down).update((link, atMs) => link.change(atMs, changes)),
    cut: isCut => {
      for (const driver of [up, down]) driver.update((link, atMs) => link.cut(atMs, isCut))
    },
    rebind() {
      for (const client of clients.values()) {
        client.isReady = false
        client.upstream.close()
      }
      clients.clear()
    },
    close: async () => {
      if (isClosed) return
      isClosed = true
      clearInterval(sweeper)
      up.stop()
      down.stop()
      for (const client of clients.values()) client.upstream.close()
      clients.clear()
      await new Promise<void>(resolve => server.close(resolve))
    },
  }
}

function forgetIdle(clients: Map<string, Client>, beforeMs: number): void {
  for (const [key, client] of clients) {
    if (client.usedMs >= beforeMs) continue
    clients.delete(key)
    client.upstream.close()
  }
}

type Driver = {
  link: LinkModel<Packet>
  offer(bytes: number, packet: Packet): void
  /** `atMs`: the link's current time, which may be slightly ahead of the clock. */
  update(change: (link: LinkModel<Packet>, atMs: number) => void): void
  stop(): void
}

function burstOf({ rate }: LinkModelOptions): number {
  const bitsPerSecond = 'trace' in rate ? 0 : 'steps' in rate ? Math.max(...rate.steps.map(step => step.bitsPerSecond)) : rate.bitsPerSecond
  return Math.max(BURST_PACKETS_MIN, Math.ceil((3 * bitsPerSecond) / 8000 / 1400))
}

/** Runs a link in real time: one timer releases all due packets, up to `burstPackets` a tick. */
function createDriver(link: LinkModel<Packet>, burstPackets: number, nowMs: () => number, release: (packet: Packet) => void): Driver {
  const due = createDeque<Packet>()
  let timer: NodeJS.Timeout | undefined
  let isStopped = false
  let linkMs = 0
  /** The link's time never goes back, and runs half a tick ahead when releasing. */
  const time = (aheadMs: number) => {
    linkMs = Math.max(linkMs, nowMs() + aheadMs)
    return linkMs
  }
  const arm = () => {
    if (timer !== undefined || isStopped) return
    const next = due.length > 0 ? 0 : link.nextMs()
    if (next === undefined) return
    timer = setTimeout(pump, Math.max(1, Math.round(next - RELEASE_EARLY_MS - nowMs())))
  }
  const pump = () => {
    timer = undefined
    for (const { packet } of link.advance(time(RELEASE_EARLY_MS))) due.push(packet)
    for (let count = 0; count < burstPackets && due.length > 0; count++) release(due.shift()!)
    arm()
  }
  return {
    link,
    offer: (bytes, packet) => {
      link.enqueue(time(0), bytes, packet)
      arm()
    },
    update: change => {
      clearTimeout(timer)
      timer = undefined
      change(link, time(0))
      arm()
    },
    stop: () => {
      isStopped = true
      clearTimeout(timer)
    },
  }
}

const newSocket = (host: string): Socket =>
  // Own lookup, because dgram's default calls dns for every send, even for numeric addresses.
  createSocket({
    type: isIPv6(host) ? 'udp6' : 'udp4',
    lookup: (name, _options, done) => done(null, name, isIPv6(name) ? 6 : 4),
  })

async function bind({ host, port }: { host: string; port: number }): Promise<Socket> {
  const socket = newSocket(host)
  try {
    const listening = once(socket, 'listening') // before bind: with the own lookup the event is emitted at once
    socket.bind(port, host)
    await listening
  } catch (error) {
    socket.close()
    throw new GodwitError('CONNECT_FAILED', `cannot listen on UDP ${host}:${port}: ${error instanceof Error ? error.message : error}`, {
      cause: error,
    })
  }
  enlargeBuffers(socket)
  return socket
}

/** The kernel may give less (net.core.rmem_max); a burst that does not fit is lost before the model. */
function enlargeBuffers(socket: Socket): void {
  try {
    socket.setRecvBufferSize(KERNEL_BUFFER_BYTES)
    socket.setSendBufferSize(KERNEL_BUFFER_BYTES)
  } catch {
    // Rejected: the default stays.
  }
}
