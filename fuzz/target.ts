// The definition of a fuzz target. Enters: bytes of a possible peer. Leaves: nothing, a GodwitError with an allowed
// code, or a finding: anything else. Always holds: a target depends only on its input (a sequence seeded with the input
// cuts chunks), so its bytes replay a finding.
import { createRandom, type Random } from '../sim-network/random.ts'
import { type ErrorCode, GodwitError } from '../wire/errors.ts'

export type Target = {
  readonly name: string
  /** For the list of targets. */
  readonly what: string
  /** Allowed codes: any other error is a finding. */
  readonly codes: readonly ErrorCode[]
  /** Valid inputs as a start. */
  seeds(): Uint8Array[]
  /** Expensive inputs by name; run unchanged. */
  hostile?(): Record<string, Uint8Array>
  /** Values for the format's fields, besides numbers. */
  readonly words?: readonly (string | Uint8Array)[]
  /** From this byte on an input is JSON text and is also mutated as JSON. */
  readonly jsonAt?: number
  /** Maximum length of mutated inputs. Default 16 KiB. */
  readonly bytesMax?: number
  /** Allowed memory of one execution, besides 32 times its input, bytes. Default 8 MiB. */
  readonly memoryBytes?: number
  /** Executions in `npm test`: about a second. */
  readonly testRuns: number
  /** Called once, before the first seed. */
  setup?(): Promise<void>
  run(input: Uint8Array): void | Promise<void>
}

/** A violated invariant. */
class Finding extends Error {
  override readonly name = 'Finding'
}

/** Throws a Finding unless the invariant holds. */
export function demand(holds: boolean, what: string): asserts holds {
  if (!holds) throw new Finding(what)
}

/** A sequence determined by the input. */
export const randomOf = (input: Uint8Array): Random => {
  let hash = input.length
  for (const byte of input.subarray(0, 4096)) hash = (Math.imul(hash ^ byte, 0x01000193) ^ (hash >>> 15)) >>> 0
  return createRandom(hash)
}

/** The input in pieces; the input itself determines their lengths: single bytes, some, many. */
export function pieces(input: Uint8Array): Uint8Array[] {
  const random = randomOf(input)
  // At most a few thousand pieces.
  const longest = Math.max([1, 7, 100, 5000][Math.floor(random.between(0, 4))] ?? 1, Math.ceil(input.length / 2000))
  const out: Uint8Array[] = []
  for (let at = 0; at < input.length; ) {
    const length = 1 + Math.floor(random.between(0, longest))
    out.push(new Uint8Array(input.subarray(at, at + length)))
    at += length
  }
  return out
}

/** The result of `body`, or the GodwitError that it throws. */
export function attempt<T>(body: () => T): { value: T; error?: undefined } | { error: GodwitError } {
  try {
    return { value: body() }
  } catch (error) {
    if (error instanceof GodwitError) return { error }
    throw error
  }
}

/** Like attempt, for promises. */
export async function attemptAsync<T>(body: () => Promise<T>): Promise<{ value: T; error?: undefined } | { error: GodwitError }> {
  try {
    return { value: await body() }
  } catch (error) {
    if (error instanceof GodwitError) return { error }
    throw error
  }
}

export const sameBytes = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0

/** Sequential reader of a target's own input; returns zeros after its end. */
export class Choices {
  readonly #bytes: Uint8Array
  #at = 0

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes
  }

  get left(): number {
    return this.#bytes.length - this.#at
  }

  number(width: 1 | 2 | 3 | 4): number {
    let value = 0
    for (let i = 0; i < width; i++) value = value * 256 + (this.#bytes[this.#at++] ?? 0)
    return value
  }

  take(count: number): Uint8Array {
    const out = this.#bytes.slice(this.#at, this.#at + count)
    this.#at += count
    return out
  }

  rest(): Uint8Array {
    return this.take(Math.max(0, this.left))
  }
}
