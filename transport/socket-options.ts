// The kernel's socket options that Node has no word for. Enters: a descriptor of this process, an option. Leaves: its value, or nothing where it cannot be had.
// Never throws: this is speed and measurement, not correctness. node:ffi is experimental (Node 26); elsewhere, and on other systems, nothing is had.
// Always holds: the descriptor is used within the call and not kept.
export type SocketOptions = {
  /** 0 when it was taken. */
  set(fd: number, level: number, option: number, value: Uint8Array): number
  /** What the kernel wrote, at most `bytes`; undefined when it refused. */
  get(fd: number, level: number, option: number, bytes: number): Uint8Array | undefined
}

type Ffi = {
  dlopen(library: string | null, symbols: Record<string, { arguments: string[]; return: string }>): { functions: Record<string, unknown> }
}
type Set = (fd: number, level: number, option: number, value: Uint8Array, bytes: number) => number
type Get = (fd: number, level: number, option: number, value: Uint8Array, bytes: Uint8Array) => number

let loading: Promise<SocketOptions> | undefined

/** Rejects, each time, where they cannot be loaded. */
export function loadSocketOptions(): Promise<SocketOptions> {
  loading ??= load()
  return loading
}

async function load(): Promise<SocketOptions> {
  if (process.platform !== 'linux') throw new Error(`not known how on ${process.platform}`)
  const { setsockopt, getsockopt } = (await openLibrary()) as { setsockopt: Set; getsockopt: Get }
  return {
    set: (fd, level, option, value) => setsockopt(fd, level, option, value, value.length),
    get(fd, level, option, bytes) {
      const value = new Uint8Array(bytes)
      const length = new Uint32Array([bytes])
      const result = getsockopt(fd, level, option, value, new Uint8Array(length.buffer))
      return result === 0 ? value.subarray(0, length[0]) : undefined
    },
  }
}

async function openLibrary(): Promise<Record<string, unknown>> {
  const name = 'node:ffi'
  // Its warning that it is experimental would be a line in every log of every gateway.
  const { emitWarning } = process
  process.emitWarning = () => {}
  try {
    const ffi = (await import(name)) as Ffi
    const symbols = {
      setsockopt: { arguments: ['i32', 'i32', 'i32', 'pointer', 'u32'], return: 'i32' },
      getsockopt: { arguments: ['i32', 'i32', 'i32', 'pointer', 'pointer'], return: 'i32' },
    }
    return ffi.dlopen(null, symbols).functions
  } finally {
    process.emitWarning = emitWarning
  }
}
