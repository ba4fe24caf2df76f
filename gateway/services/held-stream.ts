// A stream whose first chunk can be looked at before it is taken: what the user says first is sent along to a site that may still say no, and is
// there again for the next site. Always holds: one chunk is held, no more; a reader gets every byte once, in order.
import type { Stream } from '../../transport/types.ts'

export type HeldStream = Stream & {
  /** The first chunk (null: the peer has ended), without taking it. */
  peek(): Promise<Uint8Array | null>
  /** The first chunk has gone its way: the next read() gives what follows it. */
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
