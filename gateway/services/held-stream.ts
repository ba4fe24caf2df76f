// A stream whose first chunk can be read without consuming it: the user's first data is sent to a site that may still
// reject the connection, and is available again for the next site. Always holds: at most one chunk is kept; a reader
// gets every byte once, in order.
import type { Stream } from '../../transport/types.ts'

export type HeldStream = Stream & {
  /** The first chunk (null: the peer has ended), without consuming it. */
  peek(): Promise<Uint8Array | null>
  /** Call when the first chunk was delivered: the next read() returns the data after it. */
  taken(): void
}

export function holdFirst(stream: Stream): HeldStream {
  let first: Promise<Uint8Array | null> | undefined = stream.read()
  first.catch(() => {})
  const peeked = first
  return {
    id: stream.id,
    write: bytes => stream.write(bytes),
    end: () => stream.end(),
    reset: reason => stream.reset(reason),
    peek: () => peeked,
    taken() {
      first = undefined
    },
    read() {
      if (!first) return stream.read()
      const chunk = first
      first = undefined
      return chunk
    },
  }
}
