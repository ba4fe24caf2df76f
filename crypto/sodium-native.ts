// The only importer of sodium-native (libsodium as a native addon, optional): the same bytes as the WebAssembly build,
// for bulk data only. Leaves: Primitives, or undefined if the addon is missing or cannot be loaded. Calls allocate
// nothing beyond what the caller passes in.
import type { KeyedHash, Primitives, SecretStream } from './primitives.ts'

type Bytes = Uint8Array
type Addon = {
  crypto_generichash(out: Bytes, input: Bytes, key?: Bytes): void
  crypto_secretstream_xchacha20poly1305_STATEBYTES: number
  crypto_secretstream_xchacha20poly1305_init_pull(state: Bytes, header: Bytes, key: Bytes): void
  crypto_secretstream_xchacha20poly1305_push(state: Bytes, out: Bytes, message: Bytes, additionalData: Bytes, tag: number): number
  crypto_secretstream_xchacha20poly1305_pull(state: Bytes, out: Bytes, tag: Bytes, record: Bytes, additionalData: Bytes): number
  sodium_memzero(buffer: Bytes): void
}

/** Never throws: without the native build everything works, only slower. */
export async function loadNative(): Promise<Primitives | undefined> {
  try {
    // An optional dependency: the specifier is not a literal type, so that the type check passes where it is not
    // installed.
    const module = (await import('sodium-native' as string)) as { default: Addon }
    return makeNative(module.default)
  } catch {
    return undefined
  }
}

function makeNative(addon: Addon): Primitives {
  return {
    name: 'native',
    hash: (out, input) => addon.crypto_generichash(out, input),
    keyedHash: (key, inputBytesMax) => nativeKeyedHash(addon, key, inputBytesMax),
    secretStream: (key, header) => nativeStream(addon, key, header),
  }
}

function nativeKeyedHash(addon: Addon, key: Uint8Array, inputBytesMax: number): KeyedHash {
  const kept = key.slice()
  let live = true
  return {
    hash(out, input) {
      if (!live) throw new Error('this keyed hash has been wiped')
      if (input.length > inputBytesMax) throw new TypeError(`an input of ${input.length} bytes: announced were ${inputBytesMax}`)
      addon.crypto_generichash(out, input, kept)
    },
    wipe() {
      live = false
      addon.sodium_memzero(kept)
    },
  }
}

function nativeStream(addon: Addon, key: Uint8Array, header: Uint8Array): SecretStream {
  const state = new Uint8Array(addon.crypto_secretstream_xchacha20poly1305_STATEBYTES)
  const tagOut = new Uint8Array(1)
  let live = true
  addon.crypto_secretstream_xchacha20poly1305_init_pull(state, header, key)
  return {
    push(out, message, additionalData, tag) {
      if (!live) throw new Error('this secret stream has been wiped')
      addon.crypto_secretstream_xchacha20poly1305_push(state, out, message, additionalData, tag)
    },
    pull(out, record, additionalData) {
      if (!live) throw new Error('this secret stream has been wiped')
      try {
        addon.crypto_secretstream_xchacha20poly1305_pull(state, out, tagOut, record, additionalData)
      } catch {
        return -1
      }
      return tagOut[0]!
    },
    wipe() {
      live = false
      addon.sodium_memzero(state)
    },
  }
}
