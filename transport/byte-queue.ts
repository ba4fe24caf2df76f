// Received bytes that wait for their reader. Enters: pieces as received. Leaves: the same bytes in order, in pieces of
// any size. Always holds: memory is proportional to the stored bytes. Small pieces are copied together, so a peer that
// sends single bytes causes neither an object for each nor keeps each network buffer.

type ByteQueue = {
  push(piece: Uint8Array): void
  shift(): Uint8Array | undefined
  clear(): void
  /** Stored bytes. */
  readonly length: number
}

const SMALL_BYTES = 2048
const BLOCK_BYTES = 16 * 1024

export function createByteQueue(): ByteQueue {
  const pieces: Uint8Array[] = []
  let length = 0
  /** The last piece, if it is an own block with free space after `used`. */
  let block: { bytes: Buffer; used: number } | undefined

  const copyIn = (piece: Uint8Array) => {
    if (!block || block.bytes.length - block.used < piece.length) {
      seal()
      block = { bytes: Buffer.allocUnsafeSlow(BLOCK_BYTES), used: 0 }
      pieces.push(block.bytes)
    }
    block.bytes.set(piece, block.used)
    block.used += piece.length
  }
  return {
    push(piece) {
      if (piece.length === 0) return
      length += piece.length
      if (piece.length < SMALL_BYTES) return copyIn(piece)
      seal()
      pieces.push(piece)
    },
    shift() {
      if (pieces.length === 1) seal()
      const piece = pieces.shift()
      length -= piece?.length ?? 0
      return piece
    },
    clear() {
      pieces.length = length = 0
      block = undefined
    },
    get length() {
      return length
    },
  }

  /** Cuts the open block to its used part; always before another piece is added. */
  function seal(): void {
    if (!block) return
    pieces[pieces.length - 1] = block.bytes.subarray(0, block.used)
    block = undefined
  }
}
