// A TCP socket as a Stream (types.ts): joins plain connections of users and guests with streams. Enters: a connected
// socket with allowHalfOpen. Leaves: its bytes. Always holds: only the socket's own buffer reads ahead; a write waits
// until the kernel has accepted the bytes; a reset is a reset for the peer too (RST), never a clean end.
import type { Socket } from 'node:net'
import { GodwitError } from '../wire/errors.ts'
import type { Stream } from './types.ts'

export function createSocketStream(socket: Socket, id = 0): Stream {
  // destroyOnReturn: the end of reading must keep the write direction open.
  const chunks = socket.iterator({ destroyOnReturn: false })
  // An error between two calls is reported by the next call, through the iterator or the callback of write().
  socket.on('error', () => {})
  const broken = (cause: unknown) => new GodwitError('STREAM_RESET', 'the connection failed', { cause })
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
