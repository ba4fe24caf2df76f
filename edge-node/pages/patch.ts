// A page as the pieces in which it differs from what the target holds. Pure.
// Enters: a page and what was said of it before (source); pieces and new bytes from the peer (target). Leaves: pieces,
// or the page made new.
//
//   per piece: varint, place - end of the piece before | varint, 2 * bytes + (1 where another piece follows)
//
// The new bytes of all pieces stand apart from these, so zstd sees like beside like. New bytes, not differences:
// measured on counters, records and text they compress as well or better (by half on text), and a patch applied twice
// gives the same page, so a batch may be sent again after a break of the link.
// Always holds: pieces ascend, do not touch, have at least a byte each and stay within the page. Any other input is
// FRAME_MALFORMED.
import { PAGE_BYTES } from '../../wire/types.ts'
import { malformed, type VarintReader, writeVarint } from './varint.ts'

/** Pieces and new bytes of one page together, bytes: no page is worth more as a patch. */
export const PATCH_BYTES_MAX = PAGE_BYTES
/** New bytes compress about as the whole page would: a patch of nearly a page only costs the target time. */
export const WORTH_BYTES_MAX = (PAGE_BYTES * 3) / 4
/** Equal bytes between two pieces that are fewer than this travel with them: naming the second piece costs as much. */
const GAP_BYTES_MIN = 4

/**
 * A patch as it is made: pieces from the start of `pieces`, new bytes from the start of `literals`. Used again for the
 * next.
 */
type Patch = { readonly pieces: Uint8Array; pieceBytes: number; readonly literals: Uint8Array; literalBytes: number }

export const createPatch = (): Patch => ({
  // Two varints of at most two bytes for each piece, and a piece for every five bytes at most.
  pieces: new Uint8Array(PAGE_BYTES),
  pieceBytes: 0,
  literals: new Uint8Array(PAGE_BYTES),
  literalBytes: 0,
})

/**
 * The patch from `base` to `page`, or false where it would take more than `worthBytes` (or nothing differs). Both pages
 * are 4096 bytes, 4-aligned.
 */
export function makePatch(base: Uint8Array, page: Uint8Array, patch: Patch, worthBytes = WORTH_BYTES_MAX): boolean {
  const baseWords = wordsOf(base)
  const pageWords = wordsOf(page)
  let end = 0
  let lastPieceAt = -1
  patch.pieceBytes = 0
  patch.literalBytes = 0
  for (let at = 0; at < PAGE_BYTES; ) {
    if ((at & 3) === 0) {
      let word = at >> 2
      while (word < pageWords.length && baseWords[word] === pageWords[word]) word++
      at = word << 2
      if (at === PAGE_BYTES) break
    }
    if (base[at] === page[at]) {
      at++
      continue
    }
    const pieceEnd = endOfPiece(base, page, at)
    const bytes = pieceEnd - at
    if (patch.pieceBytes + patch.literalBytes + bytes + 4 > worthBytes) return false
    if (lastPieceAt >= 0) patch.pieces[lastPieceAt]! |= 1
    patch.pieceBytes = writeVarint(patch.pieces, patch.pieceBytes, at - end)
    // The flag is the lowest bit of the varint's first byte.
    lastPieceAt = patch.pieceBytes
    patch.pieceBytes = writeVarint(patch.pieces, patch.pieceBytes, 2 * bytes)
    patch.literals.set(page.subarray(at, pieceEnd), patch.literalBytes)
    patch.literalBytes += bytes
    end = pieceEnd
    at = pieceEnd
  }
  return lastPieceAt >= 0
}

const wordsOf = (page: Uint8Array): Uint32Array => new Uint32Array(page.buffer, page.byteOffset, PAGE_BYTES / 4)

/** Behind the last byte that differs before GAP_BYTES_MIN equal ones. */
function endOfPiece(base: Uint8Array, page: Uint8Array, from: number): number {
  let end = from + 1
  for (let at = end; at < PAGE_BYTES && at - end < GAP_BYTES_MIN; at++) if (base[at] !== page[at]) end = at + 1
  return end
}

/** Reads and checks the pieces of one page; gives how many new bytes they take. Throws FRAME_MALFORMED. */
export function readPieces(reader: VarintReader): number {
  let end = 0
  let literalBytes = 0
  for (let first = true; ; first = false) {
    const gap = reader.unsigned()
    const word = reader.unsigned()
    const bytes = Math.floor(word / 2)
    if (bytes === 0) throw malformed('an empty piece')
    if (!first && gap === 0) throw malformed('pieces that touch')
    end += gap + bytes
    if (end > PAGE_BYTES) throw malformed('a piece beyond its page')
    literalBytes += bytes
    if (word % 2 === 0) return literalBytes
  }
}

/** Applies checked pieces to `page`; the new bytes stand at `at` of `literals`. Gives the place behind them. */
export function applyPieces(reader: VarintReader, literals: Uint8Array, at: number, page: Uint8Array): number {
  let end = 0
  for (;;) {
    const place = end + reader.unsigned()
    const word = reader.unsigned()
    const bytes = word >> 1
    page.set(literals.subarray(at, at + bytes), place)
    at += bytes
    end = place + bytes
    if ((word & 1) === 0) return at
  }
}
