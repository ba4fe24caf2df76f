// Reads and sets kernel properties of a TCP socket. Enters: a socket. Leaves: BBR as its congestion control if the
// kernel has it; the path statistics of tcp_info. Never throws. CUBIC treats each lost packet as congestion and
// collapses on a long path with random loss (measured at 200 Mbit/s, 150 ms, 1 %: below 6 Mbit/s; BBR 74), and Node
// cannot choose. A process may set the algorithms in net.ipv4.tcp_allowed_congestion_control, root those in
// tcp_available_congestion_control.
import type { Socket } from 'node:net'
import { loadSocketOptions, type SocketOptions } from './socket-options.ts'

const SOL_SOCKET = 1
const SO_MAX_PACING_RATE = 47
const IPPROTO_TCP = 6
const TCP_INFO = 11
const TCP_CONGESTION = 13
const TCP_NOTSENT_LOWAT = 25
const NAME_BYTES = 16
const TCP_INFO_BYTES = 232

export type TcpPath = {
  rttMs: number
  rttMinMs: number
  /** Mean deviation of round trips. */
  rttDeviationMs: number
  congestionWindowBytes: number
  sentPackets: number
  lostPackets: number
  deliveryBytesPerSecond: number
  /** Delivered bytes, also those after a lost packet. */
  deliveredBytes: number
}

/** Offsets in struct tcp_info (linux/tcp.h; only ever extended at its end). */
const AT = {
  mss: 16,
  rtt: 68,
  deviation: 72,
  window: 80,
  retransmitted: 100,
  rttMin: 148,
  dataSegments: 156,
  deliveryRate: 160,
  delivered: 192,
} as const

let options: SocketOptions | undefined

/** Loads the functions for the other calls; false: not available, and the other calls return undefined. */
export async function loadTcpInfo(): Promise<boolean> {
  options ??= await loadSocketOptions().catch(() => undefined)
  return options !== undefined
}

/** Node has no public API for a handle's descriptor. */
function descriptorOf(socket: Socket): number | undefined {
  const { fd } = (socket as unknown as { _handle?: { fd?: number } | null })._handle ?? {}
  return fd !== undefined && fd >= 0 ? fd : undefined
}

/** Requests BBR; returns the congestion control of the socket after that, undefined if unknown. */
export function preferBbr(socket: Socket): string | undefined {
  const fd = descriptorOf(socket)
  if (!options || fd === undefined) return undefined
  options.set(fd, IPPROTO_TCP, TCP_CONGESTION, Buffer.from('bbr'))
  return congestionOf(socket)
}

function congestionOf(socket: Socket): string | undefined {
  const fd = descriptorOf(socket)
  const name = options && fd !== undefined ? options.get(fd, IPPROTO_TCP, TCP_CONGESTION, NAME_BYTES) : undefined
  return name && Buffer.from(name).toString('latin1').split('\0')[0]
}

/** Limits the unsent bytes in the kernel: they delay the end when the guest stops, and QEMU counts them as sent. */
export function limitUnsent(socket: Socket, bytes: number): void {
  const fd = descriptorOf(socket)
  if (options && fd !== undefined) options.set(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, new Uint8Array(new Uint32Array([bytes]).buffer))
}

/** Maximum send rate, evenly paced; undefined: as the congestion control decides. */
export function limitPace(socket: Socket, bytesPerSecond: number | undefined): void {
  const fd = descriptorOf(socket)
  const value = bytesPerSecond === undefined ? 0xffff_ffff_ffff_ffffn : BigInt(Math.max(1, Math.round(bytesPerSecond)))
  if (options && fd !== undefined) options.set(fd, SOL_SOCKET, SO_MAX_PACING_RATE, new Uint8Array(new BigUint64Array([value]).buffer))
}

/** The socket's path as the kernel sees it now. */
export function tcpPath(socket: Socket): TcpPath | undefined {
  const fd = descriptorOf(socket)
  const info = options && fd !== undefined ? options.get(fd, IPPROTO_TCP, TCP_INFO, TCP_INFO_BYTES) : undefined
  if (!info || info.length < AT.delivered + 4) return undefined
  const view = new DataView(info.buffer, info.byteOffset, info.length)
  const word = (at: number) => view.getUint32(at, true)
  return {
    rttMs: word(AT.rtt) / 1000,
    rttMinMs: word(AT.rttMin) / 1000,
    rttDeviationMs: word(AT.deviation) / 1000,
    congestionWindowBytes: word(AT.window) * word(AT.mss),
    sentPackets: word(AT.dataSegments),
    lostPackets: word(AT.retransmitted),
    deliveryBytesPerSecond: Number(view.getBigUint64(AT.deliveryRate, true)),
    deliveredBytes: word(AT.delivered) * word(AT.mss),
  }
}
