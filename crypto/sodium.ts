// The only importer of libsodium-wrappers (libsodium as WebAssembly): the reference for every byte, and all of key
// agreement and signatures. Enters: nothing. Leaves: after `await loadSodium()`, synchronous functions. Always holds:
// the native build is optional and only for bulk data.
import type * as Wrappers from 'libsodium-wrappers'
import type { KeyedHash, Primitives, SecretStream } from './primitives.ts'
import { loadNative } from './sodium-native.ts'

type Sodium = typeof Wrappers
/**
 * The raw module, which the published types omit: for its allocator (the wrappers never free the state of a
 * secretstream), and for a page hash without allocations: 0.96 GB/s against the wrapper's 0.6-0.9. HEAPU8 changes when
 * the memory grows: read it again for every use.
 */
type Raw = {
  HEAPU8: Uint8Array
  _malloc(bytes: number): number
  _free(address: number): void
  _crypto_generichash(
    out: number,
    outBytes: number,
    input: number,
    lengthLow: number,
    lengthHigh: number,
    key: number,
    keyBytes: number,
  ): number
}

const SECRETSTREAM_STATE_BYTES = 52

let loading: Promise<void> | undefined
let wrappers: Sodium | undefined
let portablePrimitives: Primitives | undefined
let nativePrimitives: Primitives | undefined

/**
 * Loads libsodium, and its native build where there is one. Await it once per thread before anything else in crypto/.
 */
export function loadSodium(): Promise<void> {
  loading ??= load()
  return loading
}

async function load(): Promise<void> {
  const module = (await import('libsodium-wrappers')) as unknown as { default: Sodium }
  await module.default.ready
  wrappers = module.default
  portablePrimitives = makePortable(wrappers)
  nativePrimitives = await loadNative()
}

/** The reference build. Throws if loadSodium() has not been awaited: a bug. */
export function sodium(): Sodium {
  if (!wrappers) throw new Error('loadSodium() has not been awaited')
  return wrappers
}

/** The WebAssembly build, behind the bulk interface. */
export function portable(): Primitives {
  if (!portablePrimitives) throw new Error('loadSodium() has not been awaited')
  return portablePrimitives
}

/** The native build, or undefined if it cannot be loaded. */
export function native(): Primitives | undefined {
  if (!wrappers) throw new Error('loadSodium() has not been awaited')
  return nativePrimitives
}

/** The fastest available build. */
export const fastest = (): Primitives => native() ?? portable()

/**
 * Zeroes secrets. The garbage collector may have copied them before: this shortens their lifetime but cannot guarantee
 * its end.
 */
export function wipe(...secrets: (Uint8Array | undefined)[]): void {
  for (const secret of secrets) secret?.fill(0)
}

/** Compares in constant time (for its length). */
export const equalBytes = (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && sodium().memcmp(a, b)

export const randomBytes = (count: number): Uint8Array => sodium().randombytes_buf(count)

function makePortable(lib: Sodium): Primitives {
  return {
    name: 'portable',
    hash(out, input) {
      out.set(lib.crypto_generichash(out.length, input, null))
    },
    keyedHash: (key, inputBytesMax) => portableKeyedHash(rawOf(lib), key, inputBytesMax),
    secretStream: (key, header) => portableStream(lib, key, header),
  }
}

const rawOf = (lib: Sodium): Raw => (lib as unknown as { libsodium: Raw }).libsodium

function portableKeyedHash(raw: Raw, key: Uint8Array, inputBytesMax: number): KeyedHash {
  if (key.length < 16 || key.length > 64) throw new TypeError('a hash key is 16..64 bytes')
  const bytes = key.length + 64 + inputBytesMax
  let keyAt = raw._malloc(bytes)
  if (keyAt === 0) throw new Error(`no memory for ${bytes} bytes`)
  const outAt = keyAt + key.length
  const inputAt = outAt + 64
  raw.HEAPU8.set(key, keyAt)
  return {
    hash(out, input) {
      if (keyAt === 0) throw new Error('this keyed hash has been wiped')
      if (input.length > inputBytesMax) throw new TypeError(`an input of ${input.length} bytes: announced were ${inputBytesMax}`)
      const heap = raw.HEAPU8
      heap.set(input, inputAt)
      if (raw._crypto_generichash(outAt, out.length, inputAt, input.length, 0, keyAt, key.length) !== 0)
        throw new TypeError('a hash is 16..64 bytes')
      for (let i = 0; i < out.length; i++) out[i] = heap[outAt + i]!
    },
    wipe() {
      if (keyAt === 0) return
      raw.HEAPU8.fill(0, keyAt, keyAt + bytes)
      raw._free(keyAt)
      keyAt = 0
    },
  }
}

function portableStream(lib: Sodium, key: Uint8Array, header: Uint8Array): SecretStream {
  const raw = rawOf(lib)
  // init_push is init_pull with a header of its own choosing (libsodium, secretstream_xchacha20poly1305.c), so one
  // state serves either end.
  let state = lib.crypto_secretstream_xchacha20poly1305_init_pull(header, key) as unknown as number
  const live = () => {
    if (state === 0) throw new Error('this secret stream has been wiped')
    return state as unknown as Wrappers.StateAddress
  }
  return {
    push(out, message, additionalData, tag) {
      out.set(lib.crypto_secretstream_xchacha20poly1305_push(live(), message, additionalData, tag))
    },
    pull(out, record, additionalData) {
      const opened = lib.crypto_secretstream_xchacha20poly1305_pull(live(), record, additionalData) as
        | { message: Uint8Array; tag: number }
        | false
      if (!opened) return -1
      out.set(opened.message)
      opened.message.fill(0)
      return opened.tag
    },
    wipe() {
      if (state === 0) return
      raw.HEAPU8.fill(0, state, state + SECRETSTREAM_STATE_BYTES)
      raw._free(state)
      state = 0
    },
  }
}
