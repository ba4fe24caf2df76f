// zstd for a Node without it: zstd-codec (WebAssembly), 2-3 times slower. The only file that imports it. Same frames as
// node:zlib's (RFC 8878), either way. Its decompress() allocates what the frame's header says, so callers check the
// header first (compress.ts does).
import { createRequire } from 'node:module'
import type { Zstd } from './zstd.ts'

type Simple = { compress(input: Uint8Array, level: number): Uint8Array | null; decompress(frame: Uint8Array): Uint8Array | null }
type Codec = { ZstdCodec: { run(ready: (binding: { Simple: new () => Simple }) => void): void } }

export async function loadPortableZstd(): Promise<Zstd> {
  // It is CommonJS without types, and a megabyte and a half of it: loaded when asked for.
  const { ZstdCodec } = createRequire(import.meta.url)('zstd-codec') as Codec
  const simple = await new Promise<Simple>(resolve => ZstdCodec.run(binding => resolve(new binding.Simple())))
  return {
    name: 'portable',
    compress(input, level) {
      const frame = simple.compress(input, level)
      if (!frame) throw new Error('zstd-codec: compress failed')
      return frame
    },
    decompress(frame) {
      const content = simple.decompress(frame)
      if (!content) throw new Error('zstd-codec: not a zstd frame')
      return content
    },
  }
}
