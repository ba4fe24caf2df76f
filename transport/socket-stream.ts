// A TCP socket as a Stream (types.ts): what joins users' and guests' plain connections with streams of ours.
// Enters: a connected socket with allowHalfOpen. Leaves: its bytes. Always holds: nothing is read ahead of the reader but what the socket itself
// buffers; a write waits until the kernel has taken the bytes; a reset is one for the peer too (RST), never an orderly end.
import type { Socket } from 'node:net'
import { GodwitError } from '../wire/errors.ts'
import type { Stream } from './types.ts'

export function createSocketStream(socket: Socket, id = 0): Stream {
  // destroyOnReturn: the end of reading must leave our own direction open.
  const chunks = socket.iterator({ destroyOnReturn: false })
  // An error between two calls belongs to the next one: the iterator and the callback of write() give it.
  socket.on('error', () => {})
  const broken = (cause: unknown) => new GodwitError('STREAM_RESET', 'the connection broke', { cause })
  return {
    id,
    write: bytes =>
      new Promise((resolve, reject) => {
        if (bytes.length === 0) return resolve()
        socket.write(bytes, error => (error ? reject(broken(error)) : resolve()))
      }),
    end: () => new Promise((resolve, reject) => socket.end((error?: Error) => (error ? reject(broken(error)) : resolve()))),
    async read() {
      try {
        const { done, value } = await chunks.next()
        if (done && !socket.readableEnded) throw new Error('closed')
        return done ? null : (value as Uint8Array)
      } catch (error) {
        throw broken(error)
      }
    },
    reset: () => void socket.resetAndDestroy(),
  }
}
