// Two ends of a pipe within the process: bytes written at one end are read at the other. For the gateway's own
// connection to its broker. Always holds: bytes arrive in a later turn of the event loop, as from a socket: aedes reads
// once for each 'readable' event, and node:stream's duplexPair, which delivers bytes during a read, does not emit
// another event (seen with Node 26 and aedes 1.2).
import { Duplex } from 'node:stream'

class End extends Duplex {
  #other: End | undefined
  /** The peer's write that waits for free space. */
  #waiting: (() => void) | undefined

  join(other: End): void {
    this.#other = other
  }

  override _writev(chunks: { chunk: Buffer }[], done: (error?: Error | null) => void): void {
    const bytes = Buffer.concat(chunks.map(({ chunk }) => chunk))
    setImmediate(() => this.#other?.receive(bytes, done))
  }

  receive(bytes: Buffer, done: () => void): void {
    if (this.destroyed || this.push(bytes)) done()
    else this.#waiting = done
  }

  override _read(): void {
    const done = this.#waiting
    this.#waiting = undefined
    if (done) setImmediate(done)
  }

  override _final(done: () => void): void {
    setImmediate(() => {
      this.#other?.push(null)
      done()
    })
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#waiting?.()
    const other = this.#other
    setImmediate(() => other?.destroy())
    done(error)
  }
}

export function pipePair(): [Duplex, Duplex] {
  const [one, two] = [new End(), new End()]
  one.join(two)
  two.join(one)
  return [one, two]
}
