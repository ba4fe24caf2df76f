// Sets and removes a filter program (classic BPF) on the UDP sockets of this process that are bound to a port. Enters:
// a port, a program or null. Leaves: whether the kernel accepted it. Never throws: without node:ffi, or on systems
// other than Linux, nothing is filtered.
import { loadSocketOptions } from './socket-options.ts'
import { descriptorsOf } from './udp-buffer.ts'

const SOL_SOCKET = 1
const SO_ATTACH_FILTER = 26
const SO_DETACH_FILTER = 27
const INSTRUCTION_BYTES = 8

/** struct sock_fprog: the number of instructions, padding, their address. */
export async function setUdpFilter(port: number, program: Uint8Array | null): Promise<boolean> {
  try {
    const options = await loadSocketOptions()
    const results = descriptorsOf(port).map(fd => {
      if (program === null) return options.set(fd, SOL_SOCKET, SO_DETACH_FILTER, new Uint8Array(4))
      const instructions = new Uint8Array(program)
      const head = Buffer.alloc(16)
      head.writeUInt16LE(program.length / INSTRUCTION_BYTES, 0)
      head.writeBigUInt64LE(options.addressOf(instructions), 8)
      return options.set(fd, SOL_SOCKET, SO_ATTACH_FILTER, new Uint8Array(head))
    })
    return results.length > 0 && results.every(result => result === 0)
  } catch {
    return false
  }
}
