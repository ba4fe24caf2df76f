// Searches bytes for pieces of known content, at every alignment. Enters: the content, then chunks of a stream. Leaves:
// where 16 or more bytes in a row of the stream are 16 bytes in a row of the content. Method: any such 16 bytes hold a
// whole aligned word of 8 bytes of the content; words are hashed into a bitmap, hits are looked up and then grown byte
// by byte in both directions. Words of one and the same byte are not looked up (zeros say nothing).
type Find = { at: number; text: string }

const PIECE_BYTES = 16
const WORD_BYTES = 8
const BITMAP_BITS = 26
const FINDS_MAX = 100_000

const hashOf = (low: number, high: number): number => (Math.imul(low, 0x9e3779b1) ^ Math.imul(high, 0x85ebca77)) >>> (32 - BITMAP_BITS)

/**
 * Gives a search over the chunks of one stream; a piece may lie across chunks. Quick where few words of the content are
 * the same.
 */
export function createSearch(content: readonly Uint8Array[]): (chunks: readonly Uint8Array[]) => Find[] {
  const all = content.map(bytes => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength))
  const bitmap = new Uint8Array(1 << (BITMAP_BITS - 3))
  const places = new Map<bigint, { bytes: Buffer; at: number }[]>()
  for (const bytes of all) {
    for (let at = 0; at + WORD_BYTES <= bytes.length; at += WORD_BYTES) {
      if (isRun(bytes, at)) continue
      const hash = hashOf(bytes.readInt32LE(at), bytes.readInt32LE(at + 4))
      bitmap[hash >> 3]! |= 1 << (hash & 7)
      const word = bytes.readBigUInt64LE(at)
      const known = places.get(word)
      if (known) known.push({ bytes, at })
      else places.set(word, [{ bytes, at }])
    }
  }
  return chunks => {
    const stream = chunks.length === 1 ? Buffer.from(chunks[0]!) : Buffer.concat(chunks)
    const finds: Find[] = []
    // The word that ends at `end`, little-endian, in two halves that roll along.
    let [low, high] = [0, 0]
    let isFoundTo = 0
    for (let end = 1; end <= stream.length && finds.length < FINDS_MAX; end++) {
      low = (low >>> 8) | (high << 24)
      high = (high >>> 8) | (stream[end - 1]! << 24)
      const at = end - WORD_BYTES
      if (at < isFoundTo) continue
      const hash = hashOf(low, high)
      if ((bitmap[hash >> 3]! & (1 << (hash & 7))) === 0) continue
      const found = longest(stream, at, places.get(stream.readBigUInt64LE(at)) ?? [])
      if (!found) continue
      finds.push({ at: found.from, text: stream.toString('latin1', found.from, found.to) })
      isFoundTo = found.to
    }
    return finds
  }
}

const isRun = (bytes: Buffer, at: number): boolean => bytes.subarray(at, at + WORD_BYTES).every(byte => byte === bytes[at])

/** The longest common run through this word, when it has the length of a piece. */
function longest(stream: Buffer, at: number, known: { bytes: Buffer; at: number }[]): { from: number; to: number } | undefined {
  let best: { from: number; to: number } | undefined
  for (const { bytes, at: place } of known) {
    let before = 0
    while (at - before > 0 && place - before > 0 && stream[at - before - 1] === bytes[place - before - 1]) before++
    let after = WORD_BYTES
    while (at + after < stream.length && place + after < bytes.length && stream[at + after] === bytes[place + after]) after++
    if (before + after >= PIECE_BYTES && (!best || before + after > best.to - best.from)) best = { from: at - before, to: at + after }
  }
  return best
}
