// The seam of compression: one zstd frame in, one out. Two engines fill it (compress.ts: node:zlib; zstd-portable.ts:
// WebAssembly). Types only.
export type Zstd = {
  readonly name: 'node' | 'portable'
  /** One zstd frame that declares its content size. */
  compress(input: Uint8Array, level: number): Uint8Array
  /** The content of a checked frame of `bytes`. May throw anything. */
  decompress(frame: Uint8Array, bytes: number): Uint8Array
}
