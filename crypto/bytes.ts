// Canonical bytes for what is signed or hashed: a writer and a reader of fixed-width integers and length-prefixed
// fields, big-endian. Always holds: each value has one encoding, the reader accepts no other, and remaining bytes are
// an error.

export const concatBytes = (...parts: Uint8Array[]): Uint8Array => {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0))
  let at = 0
  for (const part of parts) {
    out.set(part, at)
    at += part.length
  }
  return out
}

const encoder = new TextEncoder()
export const utf8 = (text: string): Uint8Array => encoder.encode(text)

export function toHex(bytes: Uint8Array): string {
  let text = ''
  for (const byte of bytes) text += byte.toString(16).padStart(2, '0')
  return text
}

/** Throws TypeError on anything but an even number of lower-case hex digits. */
export function fromHex(text: string): Uint8Array {
  if (!/^(?:[0-9a-f]{2})*$/.test(text)) throw new TypeError('not lower-case hex')
  return Uint8Array.from({ length: text.length / 2 }, (_, i) => Number.parseInt(text.slice(i * 2, i * 2 + 2), 16))
}

export const toBase64 = (bytes: Uint8Array): string => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('base64')

/** Throws TypeError on anything but canonical padded base64. */
export function fromBase64(text: string): Uint8Array {
  const bytes = new Uint8Array(Buffer.from(text, 'base64'))
  if (toBase64(bytes) !== text) throw new TypeError('not base64')
  return bytes
}

/** u8, u16be, u32be, u64be (a safe integer) as bytes. */
export const u8 = (value: number): Uint8Array => integer(value, 1)
export const u16 = (value: number): Uint8Array => integer(value, 2)
export const u32 = (value: number): Uint8Array => integer(value, 4)
export const u64 = (value: number): Uint8Array => integer(value, 8)

function integer(value: number, width: number): Uint8Array {
  if (!Number.isSafeInteger(value) || value < 0 || value >= 256 ** width) throw new TypeError(`${value} does not fit u${width * 8}`)
  const out = new Uint8Array(width)
  let rest = value
  for (let i = width - 1; i >= 0; i--) {
    out[i] = rest % 256
    rest = Math.floor(rest / 256)
  }
  return out
}

/** u16be length | bytes: two different lists of fields never have the same bytes. */
export const field = (bytes: Uint8Array): Uint8Array => concatBytes(u16(bytes.length), bytes)

/**
 * Reads the output of the functions above. Every method throws RangeError at the end of the input: callers turn it into
 * their coded error.
 */
export class Reader {
  readonly #bytes: Uint8Array
  #at = 0

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes
  }

  get offset(): number {
    return this.#at
  }

  /** A copy of the next `count` bytes. */
  take(count: number): Uint8Array {
    if (this.#at + count > this.#bytes.length) throw new RangeError('too short')
    const out = this.#bytes.slice(this.#at, this.#at + count)
    this.#at += count
    return out
  }

  number(width: 1 | 2 | 4 | 8): number {
    const value = this.take(width).reduce((sum, byte) => sum * 256 + byte, 0)
    if (!Number.isSafeInteger(value)) throw new RangeError('the number is too large')
    return value
  }

  field(): Uint8Array {
    return this.take(this.number(2))
  }

  /** Throws RangeError if bytes remain. */
  end(): void {
    if (this.#at !== this.#bytes.length) throw new RangeError('trailing bytes')
  }
}
