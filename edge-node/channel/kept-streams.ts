// The data streams of a migration over all its meetings, at the source. What the target has not taken is kept here, and
// sent again over the next meeting when a link was lost.
// Enters: frames, each for one stream; the target's counts of the frames that it has taken. Leaves: the same frames,
// over the meeting at hand.
// Always holds:
// - The target gets each frame exactly once, in the order of its stream: it counts what it takes, and a new meeting
//   continues exactly behind that. So what the source knows of the target's memory (pages/table.ts) never has to be
//   revoked, and a frame need not be harmless when it arrives twice.
// - What is kept is what is in flight: the window bounds it (rate/flight.ts), and a target that acknowledges bytes but
//   takes no frames is an error.
// - No stream behind barriers carries anything of interval n+1 before all of them have carried BARRIER n, over this
//   meeting or an earlier one (pages/lanes.ts has the reason).
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import { indexOf, type Role, traitsOf } from '../../wire/roles.ts'
import { FRAME } from '../../wire/types.ts'
import type { SealedWriter } from './sealed-stream.ts'

/** The largest window, and room for what waits before it and for frames that have come but are not yet counted. */
export const KEPT_BYTES_MAX = 96 * 1024 * 1024

export type KeptStreams = {
  /**
   * Resolves when the frame is in records of a meeting that has room for it; waits while there is none. The payload
   * is kept: it must not change.
   */
  send(role: Role, type: number, payload: Uint8Array, options?: { flush?: boolean }): Promise<void>
  /** Nothing more comes: every stream is ended, over this meeting and over any later one. */
  end(): void
  /**
   * A meeting: a writer for each stream, which stand behind `taken` frames. Throws FRAME_MALFORMED when that cannot
   * be.
   */
  attach(writers: SealedWriter[], taken: readonly number[]): void
  /** How many frames of each stream the target has taken in all. Throws FRAME_MALFORMED. */
  taken(counts: readonly number[]): void
  /** The meeting is lost: everything waits. */
  detach(): void
  abort(error: GodwitError): void
  readonly keptBytes: number
  /** Of all meetings. */
  readonly wireBytes: number
}

type KeptStreamsOptions = {
  /** In the order in which writers and counts of frames come. */
  roles: readonly Role[]
  /** All streams have been ended over this meeting. */
  onEnded: (writers: SealedWriter[]) => void
  /** A write of the meeting at hand has failed. */
  onLost: (error: GodwitError) => void
}

type Kept = { type: number; payload: Uint8Array; flush: boolean; sent: PromiseWithResolvers<void> }
type Line = {
  /** Kept frames; the first has the number `taken`. */
  frames: Kept[]
  taken: number
  /** BARRIERs among the frames taken. */
  barriersTaken: number
  /** The next frame that this meeting sends. */
  next: number
  /** BARRIERs before it. */
  barriers: number
  /** Frames that any meeting has begun to send. */
  begun: number
  writer: SealedWriter | undefined
  isBusy: boolean
  isEnded: boolean
}

export const createKeptStreams = (options: KeptStreamsOptions): KeptStreams => new Streams(options)

class Streams implements KeptStreams {
  readonly #options: KeptStreamsOptions
  readonly #lines: Line[]
  readonly #lineAt: ReadonlyMap<number, Line>
  readonly #behindBarriers: readonly Line[]
  #isEnding = false
  #failure: GodwitError | undefined
  #earlierWireBytes = 0
  keptBytes = 0

  constructor(options: KeptStreamsOptions) {
    this.#options = options
    const fresh = { taken: 0, barriersTaken: 0, next: 0, barriers: 0, begun: 0, writer: undefined, isBusy: false, isEnded: false }
    this.#lines = options.roles.map(() => ({ ...fresh, frames: [] }))
    this.#lineAt = new Map(options.roles.map((role, i) => [indexOf(role), this.#lines[i]!]))
    this.#behindBarriers = this.#lines.filter((_, i) => traitsOf(options.roles[i]!).isBehindBarriers)
  }

  get wireBytes(): number {
    return this.#lines.reduce((sum, { writer }) => sum + (writer?.wireBytes ?? 0), this.#earlierWireBytes)
  }

  async send(role: Role, type: number, payload: Uint8Array, { flush = false }: { flush?: boolean } = {}): Promise<void> {
    if (this.#failure) throw this.#failure
    if (this.#isEnding) throw new Error('send after the end')
    this.keptBytes += payload.length
    if (this.keptBytes > KEPT_BYTES_MAX) throw new GodwitError('LIMIT_EXCEEDED', 'the target acknowledges bytes but no frames')
    const sent = Promise.withResolvers<void>()
    const line = this.#lineAt.get(indexOf(role))!
    line.frames.push({ type, payload, flush, sent })
    this.#pump(line)
    await sent.promise
  }

  end(): void {
    this.#isEnding = true
    this.#pumpAll()
  }

  attach(writers: SealedWriter[], taken: readonly number[]): void {
    this.detach()
    if (this.#lines.some((line, i) => taken[i]! < line.taken))
      throw new GodwitError('FRAME_MALFORMED', 'the target requests frames that it has already acknowledged')
    this.taken(taken)
    this.#lines.forEach((line, i) => {
      Object.assign(line, { writer: writers[i], next: line.taken, barriers: line.barriersTaken, isBusy: false, isEnded: false })
    })
    this.#pumpAll()
  }

  taken(counts: readonly number[]): void {
    const isPossible =
      counts.length === this.#lines.length && this.#lines.every(({ writer, next, begun }, i) => counts[i]! <= (writer ? next : begun))
    if (!isPossible) throw new GodwitError('FRAME_MALFORMED', 'the target acknowledges more frames than were sent')
    // Acknowledgements come in order over a meeting; a smaller count than before says nothing new.
    this.#lines.forEach((line, i) => {
      while (line.taken < counts[i]!) this.#drop(line)
    })
  }

  #drop(line: Line): void {
    const { type, payload, sent } = line.frames.shift()!
    line.taken++
    if (type === FRAME.BARRIER) line.barriersTaken++
    this.keptBytes -= payload.length
    sent.resolve()
  }

  detach(): void {
    this.#earlierWireBytes = this.wireBytes
    for (const line of this.#lines) line.writer = undefined
  }

  abort(error: GodwitError): void {
    this.#failure ??= error
    this.detach()
    for (const { sent } of this.#lines.flatMap(({ frames }) => frames)) {
      sent.promise.catch(() => {})
      sent.reject(this.#failure)
    }
  }

  #pumpAll(): void {
    for (const line of this.#lines) this.#pump(line)
  }

  /** Sends the next frame of a stream, if it may go. */
  #pump(line: Line): void {
    const { writer } = line
    if (!writer || line.isBusy) return
    const kept = line.frames[line.next - line.taken]
    if (kept && this.#behindBarriers.some(({ barriers }) => barriers < line.barriers)) return
    if (kept) void this.#write(line, writer, () => this.#carry(line, writer, kept))
    else if (this.#isEnding && !line.isEnded) void this.#write(line, writer, () => this.#end(line, writer))
  }

  async #write(line: Line, writer: SealedWriter, work: () => Promise<void>): Promise<void> {
    line.isBusy = true
    try {
      await work()
    } catch (error) {
      if (line.writer === writer) this.#options.onLost(toGodwitError(error))
      return
    }
    // Another meeting may have begun meanwhile: the line is that one's now.
    if (line.writer !== writer) return
    line.isBusy = false
    this.#pumpAll()
  }

  async #carry(line: Line, writer: SealedWriter, { type, payload, flush, sent }: Kept): Promise<void> {
    line.next++
    line.begun = Math.max(line.begun, line.next)
    await writer.send(type, payload)
    if (flush) await writer.flush()
    if (line.writer !== writer) return
    if (type === FRAME.BARRIER) line.barriers++
    sent.resolve()
  }

  async #end(line: Line, writer: SealedWriter): Promise<void> {
    await writer.finish()
    if (line.writer !== writer) return
    line.isEnded = true
    if (this.#lines.every(({ isEnded }) => isEnded)) this.#options.onEnded(this.#lines.map(other => other.writer!))
  }
}
