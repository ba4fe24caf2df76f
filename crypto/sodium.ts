// The only importer of libsodium-wrappers (libsodium as WebAssembly): the reference for every byte, and all of key agreement and signatures.
// Enters: nothing. Leaves: after `await loadSodium()`, synchronous functions. Always holds: the native build is used for bulk only, never needed.
import type * as Wrappers from 'libsodium-wrappers'
import type { Primitives, SecretStream } from './primitives.ts'
import { loadNative } from './sodium-native.ts'

type Sodium = typeof Wrappers
/** What the published types leave out: the raw module, for its allocator (secretstream states are never freed by the wrappers). */
type Raw = { libsodium: { _free(address: number): void; HEAPU8: Uint8Array } }

const SECRETSTREAM_STATE_BYTES = 52

let loading: Promise<void> | undefined
let wrappers: Sodium | undefined
let portablePrimitives: Primitives | undefined
let nativePrimitives: Primitives | undefined

/** Loads libsodium, and its native build where there is one. Await it once per thread before anything else in crypto/. */
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

/** The reference build. Throws when loadSodium() has not been awaited: our bug. */
export function sodium(): Sodium {
  if (!wrappers) throw new Error('loadSodium() has not been awaited')
  return wrappers
}

/** The WebAssembly build, behind the bulk interface. */
export function portable(): Primitives {
  if (!portablePrimitives) throw new Error('loadSodium() has not been awaited')
  return portablePrimitives
}

/** The native build, or undefined where it does not load. */
export function native(): Primitives | undefined {
  if (!wrappers) throw new Error('loadSodium() has not been awaited')
  return nativePrimitives
}

/** The fastest build that loads here. */
export const fastest = (): Primitives => native() ?? portable()

/** Zeroes secrets. JavaScript may have copied them before (garbage collection): this shortens their life, it cannot end it for certain. */
export function wipe(...secrets: (Uint8Array | undefined)[]): void {
  for (const secret of secrets) secret?.fill(0)
}

/** Compares in constant time (for its length). */
export const equalBytes = (a: Uint8Array, b: Uint8Array): boolean => a.length === b.length && sodium().memcmp(a, b)

export const randomBytes = (count: number): Uint8Array => sodium().randombytes_buf(count)

function makePortable(lib: Sodium): Primitives {
  return {
    name: 'portable',
    hash(out, input, key) {
      out.set(lib.crypto_generichash(out.length, input, key ?? null))
    },
    secretStream: (key, header) => portableStream(lib, key, header),
  }
}

function portableStream(lib: Sodium, key: Uint8Array, header: Uint8Array): SecretStream {
  const raw = (lib as unknown as Raw).libsodium
  // init_push is init_pull with a header of its own choosing (libsodium, secretstream_xchacha20poly1305.c), so one state serves either end.
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
