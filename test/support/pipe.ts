// Two ends of a stream with a relay between them that a test controls: it sees every chunk and may alter, drop or end
// it.
import type { Stream } from '../../transport/types.ts'
import { GodwitError } from '../../wire/errors.ts'

export type Tamper = (chunk: Uint8Array, n: number) => Uint8Array | null | undefined

/**
 * A stream pair. `forward` sees chunks from a to b, `backward` from b to a: it returns what is delivered, undefined to
 * drop the chunk, null to end that direction there (a relay that cuts a stream short, politely).
 */
export function streamPair({
  forward = chunk => chunk,
  backward = chunk => chunk,
}: {
  forward?: Tamper
  backward?: Tamper
} = {}): [Stream, Stream] {
  const there = direction(forward)
  const back = direction(backward)
  const reset = (reason = 'reset') => {
    there.break(reason)
    back.break(reason)
  }
  const end = (out: Direction, into: Direction, id: number): Stream => ({ id, write: out.write, end: out.end, read: into.read, reset })
  return [end(there, back, 1), end(back, there, 2)]
}

type Direction = ReturnType<typeof direction>

function direction(tamper: Tamper) {
  const queue: (Uint8Array | null)[] = []
  let wake: () => void = () => {}
  let broken: GodwitError | undefined
  let n = 0
  const put = (chunk: Uint8Array | null) => {
    queue.push(chunk)
    wake()
  }
  return {
    async write(chunk: Uint8Array) {
      if (broken) throw broken
      const out = tamper(chunk.slice(), n++)
      if (out !== undefined) put(out)
    },
    async end() {
      if (!broken) put(null)
    },
    async read(): Promise<Uint8Array | null> {
      while (queue.length === 0) {
        if (broken) throw broken
        await new Promise<void>(resolve => {
          wake = resolve
        })
      }
      const chunk = queue[0]!
      if (chunk !== null) queue.shift()
      return chunk
    },
    break(reason: string) {
      broken ??= new GodwitError('STREAM_RESET', reason)
      wake()
    },
  }
}
