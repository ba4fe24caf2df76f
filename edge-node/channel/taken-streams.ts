// The data streams of a migration at the target, over all its meetings: the other end of kept-streams.ts.
// Enters: relay streams of the meeting at hand. Leaves: frames for the work on them, one at a time of each stream, in
// order; acknowledgements; the manifest, when all streams have ended whole.
// Always holds: each frame is taken once. It counts from the moment its work begins (a lost link does not end that
// work), and the next meeting continues behind it. From the moment that a later meeting is agreed, streams of an
// earlier one count no more. A stream's next frame waits for the work on the one before, over whichever meeting either
// arrived.
import type { Manifest } from '../../crypto/channel/manifest.ts'
import type { Stream } from '../../transport/types.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Frame } from '../../wire/frame.ts'
import { framesOf, indexOf, type Role } from '../../wire/roles.ts'
import type { Channel } from './channel.ts'
import type { SealedReader } from './sealed-stream.ts'

/**
 * Record bytes after which an acknowledgement goes at once, or as soon as ACK_GAP_MS after the last one; smaller
 * amounts wait for the timer. Each is a record of 1 KiB: at 10 Mbit/s one every 10 ms was 8 % of what the migration
 * itself took.
 */
const ACK_BYTES = 64 * 1024
const ACK_GAP_MS = 5
const ACK_MS = 30

type TakenStreamsOptions = {
  /** In the order in which acknowledgements count them. */
  roles: readonly Role[]
  /** Of the VM: then page streams carry DISK frames too. */
  hasDisks: boolean
  /** The work on a frame. Its payload stays valid until that is done. */
  take: (role: Role, frame: Frame) => Promise<void>
  /** All streams have ended whole, and no work is left; called once. */
  onWhole: () => Promise<void>
  /** Wire bytes received over this meeting; frames taken of each stream over all. */
  onAck: (receivedBytes: number, taken: number[]) => void
  /** A stream of the meeting at hand has failed. */
  onLost: (error: GodwitError) => void
  /** The work on a frame has failed, or a stream has come that is none of the plan. */
  fail: (error: GodwitError) => void
}

type TakenStreams = {
  /**
   * Goes on over this meeting; gives the frames taken of each stream. Nothing more is taken of streams of earlier
   * ones.
   */
  meet(channel: Channel, attempt: number): number[]
  accept(index: number, attempt: number, stream: Stream): void
  /**
   * What went through the streams over the meeting of this attempt, when all have ended whole; undefined when it was
   * lost before.
   */
  ended(attempt: number): Promise<Manifest | undefined>
  /** The end of the meeting at hand. */
  leave(reason: string): void
}

type Line = { role: Role; taken: number; work: Promise<void> }

type MeetingStreams = {
  channel: Channel
  attempt: number
  streams: Map<number, Stream>
  readers: Map<number, SealedReader>
  running: number
  acks: ReturnType<typeof createAcks>
  ended: PromiseWithResolvers<Manifest | undefined>
}

export function createTakenStreams(options: TakenStreamsOptions): TakenStreams {
  const { roles, hasDisks, fail } = options
  const lines = new Map(roles.map(role => [indexOf(role), { role, taken: 0, work: Promise.resolve() }]))
  let meeting: MeetingStreams | undefined
  let whole: Promise<void> | undefined
  const taken = () => [...lines.values()].map(line => line.taken)

  const readAll = async (mine: MeetingStreams, line: Line, reader: SealedReader) => {
    // The last frame of an earlier meeting may still be at work (at a barrier: until the others have come to it, over
    // this meeting).
    await line.work
    for await (const frame of reader.frames()) {
      if (mine !== meeting) return
      line.taken += 1
      line.work = options.take(line.role, frame)
      mine.acks.taken()
      await line.work.catch(error => {
        fail(toGodwitError(error))
        throw error
      })
    }
    mine.acks.flush()
    mine.running -= 1
    if (mine.running > 0 || mine.readers.size < roles.length || mine !== meeting) return
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
    meet(channel, attempt) {
      leave('a newer meeting replaced this one')
      const acks = createAcks(bytes => options.onAck(bytes, taken()))
      meeting = { channel, attempt, streams: new Map(), readers: new Map(), running: 0, acks, ended: Promise.withResolvers() }
      return taken()
    },
    accept(index, attempt, stream) {
      const mine = meeting
      if (mine?.attempt !== attempt) return stream.reset('stream of another meeting')
      const line = lines.get(index)
      if (!line || mine.readers.has(index)) {
        stream.reset('unexpected stream')
        return fail(new GodwitError('MIGRATION_STATE', `stream ${index} is not part of the plan`))
      }
      const reader = mine.channel.reader(stream, line.role, framesOf(line.role, hasDisks), mine.acks.received, line.taken)
      mine.streams.set(index, stream)
      mine.readers.set(index, reader)
      mine.running += 1
      readAll(mine, line, reader).catch(error => {
        if (mine === meeting) options.onLost(toGodwitError(error))
      })
    },
    ended: async attempt => (meeting?.attempt === attempt ? await meeting.ended.promise : undefined),
    leave,
  }
}

/**
 * Counts received bytes and says so: soon when much has come, after a short while otherwise. What is taken goes with
 * it.
 */
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
