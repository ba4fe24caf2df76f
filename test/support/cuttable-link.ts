// The way between two stories that a test cuts: after so many chunks or bytes everything on the way is lost, a moment
// later both ends see it, and for a while nothing opens.
// Enters: when to cut. Leaves: an `openStream` for the source; what was carried. Always holds: what is cut comes back
// in no later stream.
import type { Stream } from '../../transport/types.ts'
import { GodwitError } from '../../wire/errors.ts'
import { streamPair } from './pipe.ts'

export type Cut = {
  /** Counted over both directions since the last cut; whichever comes first. */
  afterChunks?: number
  afterBytes?: number
  /** How long both ends hear nothing before they know, and how long nothing opens after that, ms. */
  silentMs?: number
  awayMs?: number
}

export type CuttableLink = {
  openStream: (index: number, attempt: number) => Promise<Stream>
  readonly carried: { chunks: number; bytes: number }
  readonly cuts: number
  /** Cuts it now. */
  sever(): void
}

/** `next` gives the next cut, or undefined for none any more. */
export function cuttableLink(accept: (index: number, attempt: number, stream: Stream) => void, next: () => Cut | undefined): CuttableLink {
  const carried = { chunks: 0, bytes: 0 }
  const open = new Set<[Stream, Stream]>()
  let cut = next()
  let since = { chunks: 0, bytes: 0 }
  let isDead = false
  let isAway = false
  let cuts = 0

  const die = ({ silentMs = 0, awayMs = 0 }: Cut) => {
    isDead = true
    cuts++
    setTimeout(() => {
      isAway = true
      for (const ends of open) for (const end of ends) end.reset('the link was cut')
      open.clear()
      since = { chunks: 0, bytes: 0 }
      cut = next()
      setTimeout(() => {
        isDead = false
        isAway = false
      }, awayMs).unref()
    }, silentMs)
  }
  const pass = (chunk: Uint8Array): Uint8Array | undefined => {
    if (isDead) return undefined
    const left = (cut?.afterBytes ?? Number.POSITIVE_INFINITY) - since.bytes
    for (const count of [carried, since]) {
      count.chunks++
      count.bytes += chunk.length
    }
    if (!cut || (chunk.length <= left && since.chunks <= (cut.afterChunks ?? Number.POSITIVE_INFINITY))) return chunk
    die(cut)
    // A link does not break between two records.
    return chunk.subarray(0, Math.max(0, Math.min(left, chunk.length)))
  }
  /** An end gets through a dead link no more than the bytes before it. */
  const ofLink = (end: Stream): Stream => ({ ...end, end: async () => await (isDead ? undefined : end.end()) })
  return {
    async openStream(index, attempt) {
      if (isAway) throw new GodwitError('CONNECTION_LOST', 'the link is away')
      const ends = streamPair({ forward: pass, backward: pass }).map(ofLink) as [Stream, Stream]
      open.add(ends)
      accept(index, attempt, ends[1])
      return ends[0]
    },
    carried,
    sever: () => die({}),
    get cuts() {
      return cuts
    },
  }
}
