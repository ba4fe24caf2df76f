// The data streams of a migration at the target, over all its meetings: the other end of kept-streams.ts.
// Enters: relay streams of the meeting at hand. Leaves: frames to whoever works on them, one at a time of each stream, in order; acknowledgements; what went through
// the streams when all have ended whole.
// Always holds: each frame is taken once. It counts from the moment its work begins (which a lost link does not end), and the next meeting begins behind it; a
// stream of an earlier meeting brings nothing any more from the moment that a later one is agreed. A stream's next frame waits for the work on the one before,
// over whichever meeting either came.
import type { Manifest } from '../../crypto/manifest.ts'
import type { Stream } from '../../transport/types.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Frame } from '../../wire/frame.ts'
import type { FrameName } from '../../wire/types.ts'
import type { SealedReader } from './sealed-stream.ts'
import type { Session } from './session.ts'

/** Record bytes after which an acknowledgement goes at once, or as soon as ACK_GAP_MS after the last one; smaller amounts wait for the timer. Each is a
 * record of 1 KiB: at 10 Mbit/s one every 10 ms was 8 % of what the migration itself took. */
const ACK_BYTES = 64 * 1024
const ACK_GAP_MS = 5
const ACK_MS = 30

export type TakenStreamsOptions = {
  /** Indexes `first` to `first + count - 1`. */
  first: number
  count: number
  allowed: (index: number) => FrameName[]
  /** The work on a frame. Its payload stays valid until that is done. */
  take: (index: number, frame: Frame) => Promise<void>
  /** All streams have ended whole, and no work is left; called once. */
  onWhole: () => Promise<void>
  /** Wire bytes received over this meeting; frames taken of each stream over all. */
  onAck: (receivedBytes: number, taken: number[]) => void
  /** A stream of the meeting at hand has failed. */
  onLost: (error: GodwitError) => void
  /** The work on a frame has failed, or a stream has come that is none of the plan. */
  fail: (error: GodwitError) => void
}

export type TakenStreams = {
  /** Goes on over this meeting; gives the frames taken of each stream. Nothing more is taken of streams of earlier ones. */
  meet(session: Session, attempt: number): number[]
  accept(index: number, attempt: number, stream: Stream): void
  /** What went through the streams over the meeting of this attempt, when all have ended whole; undefined when it was lost before. */
  ended(attempt: number): Promise<Manifest | undefined>
  /** The end of the meeting at hand. */
  leave(reason: string): void
}

type Meeting = {
  session: Session
  attempt: number
  streams: Map<number, Stream>
  readers: Map<number, SealedReader>
  running: number
  acks: ReturnType<typeof createAcks>
  ended: PromiseWithResolvers<Manifest | undefined>
}

export function createTakenStreams(options: TakenStreamsOptions): TakenStreams {
  const { first, count, fail } = options
  const lines = Array.from({ length: count }, () => ({ taken: 0, work: Promise.resolve() }))
  let meeting: Meeting | undefined
  let whole: Promise<void> | undefined
  const taken = () => lines.map(line => line.taken)

  const readAll = async (mine: Meeting, index: number, reader: SealedReader) => {
    const line = lines[index - first]!
    // The last frame of an earlier meeting may still be at work (at a barrier: until the others have come to it, over this meeting).
    await line.work
    for await (const frame of reader.frames()) {
      if (mine !== meeting) return
      line.taken += 1
      line.work = options.take(index, frame)
      mine.acks.taken()
      await line.work.catch(error => {
        fail(toGodwitError(error))
        throw error
      })
    }
    mine.acks.flush()
    mine.running -= 1
    if (mine.running > 0 || mine.readers.size < count || mine !== meeting) return
    whole ??= options.onWhole()
    await whole
    const sorted = [...mine.readers].sort(([a], [b]) => a - b)
    mine.ended.resolve({ streams: sorted.map(([at, { records, digest }]) => ({ index: at, records, digest: digest() })) })
  }
  const leave = (reason: string) => {
    meeting?.acks.stop()
    for (const stream of meeting?.streams.values() ?? []) stream.reset(reason)
    meeting?.ended.resolve(undefined)
    meeting = undefined
  }
  return {
    meet(session, attempt) {
      leave('a later meeting goes on')
      const acks = createAcks(bytes => options.onAck(bytes, taken()))
      meeting = { session, attempt, streams: new Map(), readers: new Map(), running: 0, acks, ended: Promise.withResolvers() }
      return taken()
    },
    accept(index, attempt, stream) {
      const mine = meeting
      if (mine?.attempt !== attempt) return stream.reset('not of the meeting at hand')
      const line = lines[index - first]
      if (!line || mine.readers.has(index)) {
        stream.reset('unexpected stream')
        return fail(new GodwitError('MIGRATION_STATE', `stream ${index} is not part of the plan`))
      }
      const reader = mine.session.reader(stream, index, options.allowed(index), mine.acks.received, line.taken)
      mine.streams.set(index, stream)
      mine.readers.set(index, reader)
      mine.running += 1
      readAll(mine, index, reader).catch(error => {
        if (mine === meeting) options.onLost(toGodwitError(error))
      })
    },
    ended: async attempt => (meeting?.attempt === attempt ? await meeting.ended.promise : undefined),
    leave,
  }
}

/** Counts received bytes and says so: soon when much has come, after a short while otherwise. What is taken goes with it. */
function createAcks(send: (receivedBytes: number) => void) {
  let total = 0
  let told = 0
  let toldAtMs = 0
  let isNew = false
  let timer: NodeJS.Timeout | undefined
  const flush = () => {
    clearTimeout(timer)
    timer = undefined
    if (!isNew) return
    told = total
    toldAtMs = performance.now()
    isNew = false
    send(total)
  }
  const soon = () => {
    isNew = true
    timer ??= setTimeout(flush, ACK_MS)
  }
  return {
    received(bytes: number) {
      total += bytes
      soon()
      if (total - told >= ACK_BYTES && performance.now() - toldAtMs >= ACK_GAP_MS) flush()
    },
    taken: soon,
    flush,
    stop: () => clearTimeout(timer),
  }
}
