// The target's side of its conversation with the source, over one meeting or many (the source's side:
// conversation.ts).
// Enters: control streams. Leaves: the peer, one through all meetings; a failure when a source whose link is lost
// does not come back in time.
// Always holds: attempts only rise, and one counts only after its handshake, so a replayed stream changes nothing.
// From the acceptance until the VM is loaded a lost meeting is waited for; before that its loss fails the migration;
// once the VM is loaded the loss decides nothing.
import type { Stream } from '../../transport/types.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Frame } from '../../wire/frame.ts'
import type { Log } from '../../wire/log.ts'
import { FRAME } from '../../wire/types.ts'
import { type Channel, type ChannelOptions, openChannel } from '../channel/channel.ts'
import { greetSource, type TargetMeeting } from './meeting.ts'
import { encodeMessage, type Message } from './messages.ts'
import { createPeer, isLoss, type Peer } from './peer.ts'

type TargetTalkOptions = Omit<ChannelOptions, 'side' | 'stream'> & {
  /** How long to wait for a source whose link is lost, ms. Default 45 s. */
  sourceAwayMs?: number | undefined
  /** The VM is loaded here: a lost meeting decides nothing. */
  isLoaded: () => boolean
  /** The migration has failed already. */
  hasFailed: () => boolean
  signal: AbortSignal
  fail: (error: GodwitError) => void
  log: Log
}

/**
 * How long a VM that is not loaded yet waits for a source whose link is lost: longer than a source waits
 * (conversation.ts), which decides.
 */
const SOURCE_AWAY_MS = 45_000
/** Only this side may notice that a stream breaks: after this long the source is made to notice it too. */
const NOTICE_MS = 500
const SEND_MS = 500
const ABORTED_MS = 500
const REFUSED_MS = 1_000

export class TargetTalk {
  readonly #options: TargetTalkOptions
  peer: Peer | undefined
  /** Of the last meeting that both sides took part in. */
  attempt: number
  /** ACCEPT is sent: from now on a lost meeting may be followed by another one. */
  isAccepted = false
  /** RUNNING is sent: the source ends the meeting when it has it, and asks in a later one if it never arrives. */
  isRunningSent = false
  /** The last meeting's. */
  #channel: Channel | undefined
  /** Runs while the source is lost. */
  #away: NodeJS.Timeout | undefined

  constructor(options: TargetTalkOptions) {
    this.#options = options
    this.attempt = options.plan.attempt
  }

  /** The first meeting. */
  async open(stream: Stream): Promise<{ channel: Channel; peer: Peer }> {
    const abort = () => {
      this.#channel?.reset('aborted')
      stream.reset('aborted')
    }
    this.#options.signal.addEventListener('abort', () => setTimeout(abort, ABORTED_MS), { once: true })
    const channel = await openChannel({ side: 'target', stream, ...this.#options })
    return { channel, peer: this.use(channel, channel.frames()) }
  }

  /** A peer of its own for this meeting. */
  use(channel: Channel, frames: AsyncGenerator<Frame, void>): Peer {
    const { signal, fail } = this.#options
    this.#channel = channel
    this.peer = createPeer({
      channel,
      frames,
      signal,
      fail: (error, how) => (how === 'lost' ? this.onLost(error) : fail(error)),
      heals: () => this.isAccepted,
    })
    return this.peer
  }

  /** A meeting, or a stream of it, is lost: while the source may come back for it, it is waited for. */
  onLost(error: GodwitError): void {
    const { log, fail, isLoaded, hasFailed, sourceAwayMs = SOURCE_AWAY_MS } = this.#options
    if (isLoaded()) {
      // The source leaves once it has RUNNING: that is how a migration ends.
      if (this.isRunningSent) log.debug('source closed the meeting', { error })
      else log.warn('source lost; waiting for it to reconnect', { error })
      return
    }
    if (!this.isAccepted || !isLoss(error)) {
      fail(error)
      return
    }
    if (this.#away || hasFailed()) return
    log.warn('link to the source lost; waiting for it to reconnect', { attempt: this.attempt, error })
    const channel = this.#channel
    setTimeout(() => this.#away && this.#channel === channel && channel?.reset('stream lost'), NOTICE_MS).unref()
    this.#away = setTimeout(() => {
      if (isLoaded()) return
      fail(new GodwitError('CONNECTION_LOST', `the source did not reconnect within ${sourceAwayMs} ms`, { cause: error }))
    }, sourceAwayMs).unref()
  }

  /** A later meeting, after its handshake and its first message; undefined for an attempt that is too old. */
  async meet(attempt: number, stream: Stream): Promise<TargetMeeting | undefined> {
    if (attempt <= this.attempt) return void stream.reset('not a new attempt')
    const meeting = await greetSource({ ...this.#options, plan: { ...this.#options.plan, attempt }, stream })
    // Only now: who opened this stream is the source, and this is no replay.
    if (attempt <= this.attempt) return void stream.reset('not a new attempt')
    this.attempt = attempt
    return meeting
  }

  /** Ends the meeting at hand: a later one goes on. */
  leave(): void {
    this.stopWaiting()
    this.#away = undefined
    this.#channel?.reset('a newer meeting replaced this one')
  }

  /** Reports this side's position over the later meeting, which counts from now on. */
  answer({ channel }: TargetMeeting, held: { frames?: number[] }): Promise<void> {
    const answered = channel.send(FRAME.MESSAGE, encodeMessage({ type: 'HELD', taken: this.peer?.taken ?? 0, ...held }))
    this.#channel = channel
    return answered
  }

  stopWaiting(): void {
    clearTimeout(this.#away)
  }

  /** Best effort: the other site may be gone. */
  async trySend(message: Message): Promise<void> {
    await Promise.race([this.peer?.send(message).catch(() => {}), new Promise(resolve => setTimeout(resolve, SEND_MS))])
  }

  /** Ends the meeting when what was sent has had time to arrive. */
  resetSoon(reason: string): void {
    const channel = this.#channel
    setTimeout(() => channel?.reset(reason), REFUSED_MS).unref()
  }
}
