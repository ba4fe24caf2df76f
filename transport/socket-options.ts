// Kernel socket options that Node does not support. Enters: a descriptor of this process, an option. Leaves: its value,
// or undefined if not available. Never throws: these options only improve speed and measurements. node:ffi is
// experimental (Node 26); on other versions and systems no option is available. Always holds: the descriptor is used
// during the call and not kept.
export type SocketOptions = {
  /** 0 on success. */
  set(fd: number, level: number, option: number, value: Uint8Array): number
  /** The kernel's value, at most `bytes`; undefined on an error. */
  get(fd: number, level: number, option: number, bytes: number): Uint8Array | undefined
  /**
   * The memory address of a buffer (offset 0), for options with pointers. Keep the buffer until the call has returned.
   */
  addressOf(bytes: Uint8Array<ArrayBuffer>): bigint
}

type Ffi = {
  dlopen(library: string | null, symbols: Record<string, { arguments: string[]; return: string }>): { functions: Record<string, unknown> }
  getRawPointer(buffer: ArrayBuffer): bigint
}
type Set = (fd: number, level: number, option: number, value: Uint8Array, bytes: number) => number
type Get = (fd: number, level: number, option: number, value: Uint8Array, bytes: Uint8Array) => number

let loading: Promise<SocketOptions> | undefined

/** Rejects on every call if they cannot be loaded. */
export function loadSocketOptions(): Promise<SocketOptions> {
  loading ??= load()
  return loading
}

async function load(): Promise<SocketOptions> {
  if (process.platform !== 'linux') throw new Error(`not supported on ${process.platform}`)
  const { ffi, functions } = await openLibrary()
  const { setsockopt, getsockopt } = functions as { setsockopt: Set; getsockopt: Get }
  return {
    addressOf: bytes => ffi.getRawPointer(bytes.buffer),
    set: (fd, level, option, value) => setsockopt(fd, level, option, value, value.length),
    get(fd, level, option, bytes) {
      const value = new Uint8Array(bytes)
      const length = new Uint32Array([bytes])
      const result = getsockopt(fd, level, option, value, new Uint8Array(length.buffer))
      return result === 0 ? value.subarray(0, length[0]) : undefined
    },
  }
}

async function openLibrary(): Promise<{ ffi: Ffi; functions: Record<string, unknown> }> {
  const name = 'node:ffi'
  // Suppress its warning about being experimental, which would be in the log of every gateway.
  const { emitWarning } = process
  process.emitWarning = () => {}
  try {
    const ffi = (await import(name)) as Ffi
    const symbols = {
      setsockopt: { arguments: ['i32', 'i32', 'i32', 'pointer', 'u32'], return: 'i32' },
      getsockopt: { arguments: ['i32', 'i32', 'i32', 'pointer', 'pointer'], return: 'i32' },
    }
    return { ffi, functions: ffi.dlopen(null, symbols).functions }
  } finally {
    process.emitWarning = emitWarning
  }
}
