// `zstd -19 --long` over distinct pieces of files: the fewest bytes that a general method needs. Enters: files, the
// size of a piece. Leaves: bytes before and after. Always holds: a piece of zeros, and one that came before, costs
// nothing.
import { createHash } from 'node:crypto'
import { open, readdir, readlink } from 'node:fs/promises'
import { constants, createZstdCompress } from 'node:zlib'
import { MIB } from '../../wire/units.ts'

type Sizes = { compressedBytes: number; distinctBytes: number }
type Oracle = {
  /** `held`: a file whose piece at the same place, if it is equal, costs nothing. */
  addFile(path: string, bytes: number, pieceBytes: number, held?: string): Promise<void>
  end(): Promise<Sizes>
}

/** The memory of a running QEMU. */
export async function memoryPath(pid: number): Promise<string> {
  for (const fd of await readdir(`/proc/${pid}/fd`)) {
    const path = `/proc/${pid}/fd/${fd}`
    if ((await readlink(path).catch(() => '')).startsWith('/memfd:memory-backend-memfd')) return path
  }
  throw new Error('the guest has no memfd')
}

export function createOracle(): Oracle {
  const params = {
    [constants.ZSTD_c_compressionLevel]: 19,
    [constants.ZSTD_c_enableLongDistanceMatching]: 1,
    [constants.ZSTD_c_windowLog]: 27,
  }
  const zstd = createZstdCompress({ params })
  let compressedBytes = 0
  zstd.on('data', (chunk: Buffer) => {
    compressedBytes += chunk.length
  })
  const ended = new Promise((resolve, reject) => zstd.once('end', resolve).once('error', reject))
  const seen = new Set<string>()
  let distinctBytes = 0
  const add = async (piece: Buffer) => {
    if (piece.every(byte => byte === 0)) return
    const hash = createHash('sha1').update(piece).digest('latin1')
    if (seen.has(hash)) return
    seen.add(hash)
    distinctBytes += piece.length
    if (!zstd.write(Buffer.from(piece))) await new Promise(resolve => zstd.once('drain', resolve))
  }
  return {
    async addFile(path, bytes, pieceBytes, held) {
      await using file = await open(path)
      await using other = held === undefined ? undefined : await open(held)
      const [chunk, same] = [Buffer.alloc(MIB), Buffer.alloc(MIB)]
      for (let at = 0; at < bytes; at += chunk.length) {
        await file.read(chunk, 0, chunk.length, at)
        same.fill(0)
        await other?.read(same, 0, same.length, at)
        for (let piece = 0; piece < chunk.length; piece += pieceBytes) {
          const content = chunk.subarray(piece, piece + pieceBytes)
          if (!other || !content.equals(same.subarray(piece, piece + pieceBytes))) await add(content)
        }
      }
    },
    async end() {
      zstd.end()
      await ended
      return { compressedBytes, distinctBytes }
    },
  }
}
