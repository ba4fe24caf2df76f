// Gives a UDP socket of this process a large receive buffer. quinn's server ignores its own option for it, and with the
// kernel's default (208 KiB) a burst is lost while the process is busy, which CUBIC treats as congestion (seen: half
// the goodput of a 100 Mbit/s link). Enters: a local port. Leaves: the size of the buffer, or the reason why it is
// unchanged. Never throws: it only affects speed. node:ffi is experimental (Node 26); without it, set
// net.core.rmem_default (packaging/godwit-sysctl.conf).
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { loadSocketOptions } from './socket-options.ts'

const UDP_RECEIVE_BYTES = 4 * 1024 * 1024

const SOL_SOCKET = 1
const SO_RCVBUF = 8

/**
 * Descriptors of this process that are UDP sockets bound to `port` (/proc/net/udp: local address in column 2, inode in
 * column 10; proc(5)).
 */
export function descriptorsOf(port: number): number[] {
  const wanted = port.toString(16).toUpperCase().padStart(4, '0')
  const inodes = new Set<string>()
  for (const table of ['/proc/self/net/udp', '/proc/self/net/udp6']) {
    for (const line of readFileSync(table, 'utf8').split('\n').slice(1)) {
      const columns = line.trim().split(/\s+/)
      if (columns[1]?.endsWith(`:${wanted}`)) inodes.add(`socket:[${columns[9]}]`)
    }
  }
  return readdirSync('/proc/self/fd').flatMap(fd => {
    try {
      return inodes.has(readlinkSync(`/proc/self/fd/${fd}`)) ? [Number(fd)] : []
    } catch {
      return [] // closed in the meantime
    }
  })
}

/** Requests `bytes` (the kernel grants at most net.core.rmem_max). */
export async function enlargeReceiveBuffer(port: number, bytes = UDP_RECEIVE_BYTES): Promise<{ ok: boolean; detail: string }> {
  if (process.platform !== 'linux') return { ok: false, detail: `not supported on ${process.platform}` }
  try {
    const options = await loadSocketOptions()
    const value = new Uint8Array(new Int32Array([bytes]).buffer)
    const results = descriptorsOf(port).map(fd => options.set(fd, SOL_SOCKET, SO_RCVBUF, value))
    const ok = results.length > 0 && results.every(result => result === 0)
    return { ok, detail: ok ? `${bytes} bytes requested` : `setsockopt returned ${results.join(', ') || 'no socket'}` }
  } catch (error) {
    return { ok: false, detail: error instanceof Error ? error.message : String(error) }
  }
}
