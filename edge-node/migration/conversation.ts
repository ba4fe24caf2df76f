// The source's side of its conversation with the target, over one meeting or many. A meeting is a control stream with
// its own handshake and attempt number, and the data streams beside it. conversation-states.ts has the table of
// states; this file performs what it lists.
// Enters: a way to open relay streams; the corridor to carry (outgoing.ts). Leaves: the peer, one through all
// meetings; a failure when a lost link does not come back in time.
// Always holds: from accepted() to settle() a lost meeting is followed by another, which continues exactly from where
// the target stands (HELD). A change-over leaves a meeting that still carries: the new handshake is complete before
// the old meeting falls silent. Only a broken link is healed: a breach of the protocol, and the target's own REFUSE
// or ABORT, end the migration at once.
import { sleep, within } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import { type ErrorCode, GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { FRAME } from '../../wire/types.ts'
import type { Channel, ChannelOptions } from '../channel/channel.ts'
import type { Bulk } from '../link/link.ts'
import type { Carriers } from '../rate/carriers.ts'
import { Flight, firstWindowBytes } from '../rate/flight.ts'
import { createGate, type Gate } from '../rate/gate.ts'
import {
  type ConversationEffect,
  type ConversationEvent,
  type ConversationState,
  carries,
  heals,
  stepConversation,
} from './conversation-states.ts'
import { encodeMessage } from './messages.ts'
import { inTime, openControl, openData, readHeld, resetAll, shakeHands } from './open-meeting.ts'
import type { Outgoing } from './outgoing.ts'
import { createPeer, isLoss, type Peer } from './peer.ts'

/**
 * How long a lost link may stay away, ms: while the guest runs (or a cold migration copies), and while it stands
 * still for the switch-over.
 */
export type Patience = { reconnectMs: number; switchoverMs: number /** First wait between two tries. Default 100. */; retryMs?: number }
const PATIENCE: Patience = { reconnectMs: 30_000, switchoverMs: 2_000 }

/**
 * A meeting's keys serve so long: then there is a new handshake, as after a lost link. Not while the guest stands
 * still. (Within it libsodium's secretstream changes a stream's key every GiB; a new handshake keeps what a thief of
 * the process's memory learns to an hour.)
 */
export type KeyLifetime = { bytes: number; ms: number }
const RENEWAL: KeyLifetime = { bytes: 64 * 2 ** 30, ms: 3_600_000 }

type ConversationOptions = Omit<ChannelOptions, 'side' | 'stream'> & {
  openStream: (index: number, attempt: number) => Promise<Stream>
  patience?: Patience | undefined
  renewal?: KeyLifetime | undefined
  /** performance.now() of the guest's stop in a live migration; undefined while it runs. */
  stoppedAtMs: () => number | undefined
  onReturnPath: (bytes: Uint8Array) => void
  /** What the engine that carries the pages says of its way. */
  bulk?: (() => Bulk | null) | undefined
  signal: AbortSignal
  fail: (error: GodwitError) => void
  log: Log
}

export type Conversation = {
  readonly peer: Peer
  /** Of the meeting at hand. */
  readonly gate: Gate
  /** Of the first meeting. */
  readonly rootKey: Uint8Array
  /** Of the last meeting that was tried. */
  readonly attempt: number
  /** Frames of the data streams that the target has taken: grows as long as anything arrives. */
  readonly arrived: number
  /** Of the control streams. */
  readonly wireBytes: number
  /** Meetings after lost ones, and how long there was none, ms. */
  readonly lost: { reconnects: number; awayMs: number }
  /** Meetings that were left for another one. */
  readonly changeOvers: number
  /** What carries the meeting at hand; undefined while there is none, or where it is not known. */
  readonly carriers: Carriers | undefined
  /** Opens the data streams for the corridor. */
  carry(outgoing: Outgoing): Promise<void>
  /** The target has accepted: from now on lost links are healed. */
  accepted(): void
  /** All has arrived: from now on the loss of a meeting is not healed here. */
  settle(): void
  /**
   * Leaves the meeting for a new one, over what carries best now; not once the guest stands still. Harmless where it
   * cannot be.
   */
  changeOver(reason: string): void
  /** A stream of the corridor has failed. */
  onLost(error: GodwitError): void
  reset(reason: string): void
}

type SourceMeeting = {
  attempt: number
  channel: Channel
  gate: Gate
  streams: Stream[]
  carriers: Carriers | undefined
  sinceMs: number /** Frames that the target had taken when it began. */
  taken: number
  /** Why a data stream has ended before the target accepted. */
  lost?: GodwitError
}

/** What an event's effects need: the failure, the reason for a change-over. */
type Details = { error?: GodwitError; reason?: string }

/** Why there may be no new meeting yet. Anything else is not a matter of time. */
const PASSING: ReadonlySet<ErrorCode> = new Set<ErrorCode>(['CONNECTION_LOST', 'STREAM_RESET', 'TIMEOUT', 'SITE_OFFLINE', 'LIMIT_EXCEEDED'])
const ATTEMPT_MS = 5_000
const HANDSHAKE_MS = 20_000
/** How long what is on the way may take to arrive before a meeting is left. */
const QUIET_MS = 500
const QUIET_LOOK_MS = 5
/** From a change-over that failed to the next one. */
const CHANGE_AGAIN_MS = 5_000
const RETRY_FIRST_MS = 100
const RETRY_MAX_MS = 1_000

/** The first meeting: its handshake. */
export async function openConversation(options: ConversationOptions): Promise<Conversation> {
  const talk = new Talk(options)
  await talk.open()
  return talk
}

class Talk implements Conversation {
  readonly #options: ConversationOptions
  #state: ConversationState = 'OPENING'
  readonly gate: Gate
  readonly lost = { reconnects: 0, awayMs: 0 }
  #peer: Peer | undefined
  #rootKey: Uint8Array = new Uint8Array(0)
  #attempt: number
  /** The one that carries; undefined while the link is lost. */
  #meeting: SourceMeeting | undefined
  /** The last channel, also while its link is lost: a word of the target may still be in it. */
  #channel: Channel | undefined
  #earlierWireBytes = 0
  #outgoing: Outgoing | undefined
  /** No change-over before that: the last one has failed. */
  #changeAgainAtMs = 0
  changeOvers = 0
  arrived = 0

  constructor(options: ConversationOptions) {
    this.#options = options
    this.#attempt = options.plan.attempt
    this.gate = this.#gateAtHand()
    // The control stream stays: the target is to hear why (source.ts, giveUp).
    options.signal.addEventListener('abort', () => resetAll(this.#meeting?.streams ?? [], 'aborted'), { once: true })
  }

  get peer(): Peer {
    return this.#peer!
  }
  get rootKey(): Uint8Array {
    return this.#rootKey
  }
  get attempt(): number {
    return this.#attempt
  }
  get carriers(): Carriers | undefined {
    return this.#meeting?.carriers
  }
  get wireBytes(): number {
    return this.#earlierWireBytes + (this.#channel?.wireBytes ?? 0)
  }

  /** The only place where the state changes. */
  #step(event: ConversationEvent, details: Details = {}): void {
    const { state, effects } = stepConversation(this.#state, event)
    this.#state = state
    for (const effect of effects) this.#perform(effect, details)
  }

  #perform(effect: ConversationEffect, { error = new GodwitError('CONNECTION_LOST'), reason = '' }: Details): void {
    const { fail } = this.#options
    const orFail = (work: Promise<void>) => void work.catch(thrown => fail(toGodwitError(thrown, 'CONNECTION_LOST')))
    if (effect === 'fail') fail(error)
    else if (effect === 'keepError') this.#meeting!.lost = error
    else if (effect === 'lose') this.onLost(error)
    else if (effect === 'drop') this.#drop(error)
    else if (effect === 'leave') this.#leave()
    else if (effect === 'reconnect') orFail(this.#reconnect(error))
    else if (effect === 'meetAgain') orFail(this.#changeOver(reason, this.#meeting!))
  }

  async open(): Promise<void> {
    const { signal, onReturnPath } = this.#options
    const stream = await openControl(this.#options, this.#attempt, { ms: ATTEMPT_MS, signal })
    const handshake = shakeHands(this.#options, stream, this.#attempt)
    const channel = await inTime(handshake, { ms: HANDSHAKE_MS, what: 'the handshake', signal }, late => late.reset('too late'))
    this.#rootKey = channel.rootKey
    this.#step('meet')
    this.#use(channel)
    this.#peer = createPeer({
      channel,
      onAck: (total, frames) => this.#acked(total, frames),
      onReturnPath,
      signal,
      fail: (error, how) => (how === 'lost' ? this.onLost(error) : this.#options.fail(error)),
      heals: () => heals(this.#state),
    })
  }

  async carry(outgoing: Outgoing): Promise<void> {
    const meeting = this.#meeting!
    meeting.streams = await openData(this.#options, this.#attempt)
    this.#step('carry')
    this.#outgoing = outgoing
    outgoing.attach({ ...meeting, taken: meeting.streams.map(() => 0) })
    this.#watchStreams(meeting)
  }

  /**
   * A sender that waits for acknowledgements does not write, so it would not notice that the connection of its stream
   * is gone. The target writes nothing on a data stream: a read there ends when the stream is lost.
   */
  #watchStreams(meeting: SourceMeeting): void {
    const onEnd = (error: unknown) => {
      if (this.#meeting === meeting) this.#step('streamEnd', { error: toGodwitError(error) })
    }
    for (const stream of meeting.streams) stream.read().catch(onEnd)
  }

  accepted(): void {
    this.#step('accept')
    if (this.#meeting?.lost) this.onLost(this.#meeting.lost)
  }

  settle(): void {
    this.#step('settle')
  }

  reset(reason: string): void {
    this.#channel?.reset(reason)
    resetAll(this.#meeting?.streams ?? [], reason)
  }

  #acked(total: number, frames: number[]): void {
    this.#meeting?.gate.acked(total)
    this.arrived = Math.max(this.arrived, sum(frames))
    if (carries(this.#state)) this.#outgoing!.taken(frames)
    if (this.#meeting && this.#isWornOut(this.#meeting, total, frames)) this.changeOver('session keys have expired')
  }

  changeOver(reason: string): void {
    if (performance.now() >= this.#changeAgainAtMs) this.#step('changeOver', { reason })
  }

  async #changeOver(reason: string, from: SourceMeeting): Promise<void> {
    const { log, signal } = this.#options
    try {
      await this.#meetAgain(ATTEMPT_MS)
      this.changeOvers += 1
      log.info('migration changed over to new connections or keys', { attempt: this.#attempt, reason })
    } catch (thrown) {
      signal.throwIfAborted()
      this.#changeAgainAtMs = performance.now() + CHANGE_AGAIN_MS
      const error = toGodwitError(thrown)
      if (this.#meeting === from) log.debug('change-over failed; migration keeps its connections', { reason, error })
      else if (!PASSING.has(error.code)) throw error
      this.#step('stay', { error })
    }
  }

  /**
   * Stops sending over the old meeting, and waits a moment for what is in flight: then next to nothing is sent twice.
   */
  async #quiet(): Promise<void> {
    const { signal, stoppedAtMs } = this.#options
    const meeting = this.#meeting
    if (!meeting) return
    if (!carries(this.#state) || stoppedAtMs() !== undefined) throw new GodwitError('STREAM_RESET', 'no time left for another meeting')
    this.#outgoing!.detach()
    const endMs = performance.now() + QUIET_MS
    while (this.#meeting === meeting && meeting.gate.flight.inFlightBytes > 0 && performance.now() < endMs)
      await sleep(QUIET_LOOK_MS, signal)
    if (this.#meeting === meeting) this.#step('quiet')
  }

  #leave(): void {
    const { gate, streams } = this.#meeting!
    this.#meeting = undefined
    gate.close(new GodwitError('CONNECTION_LOST', 'another meeting is active'))
    resetAll(streams, 'another meeting is active')
  }

  /** Only once it has brought the transfer on: meetings that follow each other without that would never end. */
  #isWornOut({ sinceMs, taken }: SourceMeeting, bytes: number, frames: number[]): boolean {
    if (sum(frames) <= taken) return false
    const { renewal = RENEWAL, stoppedAtMs } = this.#options
    return stoppedAtMs() === undefined && (bytes >= renewal.bytes || performance.now() - sinceMs >= renewal.ms)
  }

  /** Whatever notices the loss first reports it; later reports of the same loss change nothing. */
  onLost(error: GodwitError): void {
    const { signal, fail } = this.#options
    // The migration has failed, and that is what ended the streams: no meeting follows.
    if (signal.aborted) return
    if (isLoss(error)) this.#step('loss', { error })
    else fail(error)
  }

  #drop(error: GodwitError): void {
    const { gate, streams } = this.#meeting!
    this.#meeting = undefined
    this.#outgoing!.detach()
    gate.close(error)
    resetAll(streams, 'lost')
  }

  async #reconnect(cause: GodwitError): Promise<void> {
    const { log, plan, signal, patience = PATIENCE } = this.#options
    const lostAtMs = performance.now()
    log.warn('link lost; migration reconnects', { attempt: this.#attempt, error: cause })
    let last = cause
    for (let waitMs = patience.retryMs ?? RETRY_FIRST_MS; this.#state === 'AWAY'; waitMs = Math.min(RETRY_MAX_MS, 2 * waitMs)) {
      const leftMs = this.#endOfPatienceMs(lostAtMs) - performance.now()
      if (leftMs <= 0) {
        const awayMs = Math.round(performance.now() - lostAtMs)
        throw new GodwitError('CONNECTION_LOST', `no link to ${plan.target} for ${awayMs} ms: ${last.message}`, { cause: last })
      }
      try {
        await this.#meetAgain(Math.min(ATTEMPT_MS, leftMs))
        this.lost.reconnects += 1
        this.lost.awayMs += performance.now() - lostAtMs
        log.info('link restored; migration continues', { attempt: this.#attempt, awayMs: Math.round(performance.now() - lostAtMs) })
        return
      } catch (error) {
        signal.throwIfAborted()
        last = toGodwitError(error)
        if (!PASSING.has(last.code)) throw last
        log.debug('reconnect attempt failed', { attempt: this.#attempt, error: last })
      }
      await sleep(Math.min(waitMs, Math.max(1, leftMs)), signal)
    }
  }

  /** Downtime is dear: a guest that stands still is not kept waiting as long as one that runs. */
  #endOfPatienceMs(lostAtMs: number): number {
    const { reconnectMs, switchoverMs } = this.#options.patience ?? PATIENCE
    const stoppedAtMs = this.#options.stoppedAtMs()
    const ends = stoppedAtMs === undefined ? [] : [Math.max(lostAtMs, stoppedAtMs) + switchoverMs]
    return Math.min(lostAtMs + reconnectMs, ...ends)
  }

  /** A new control stream with the next attempt number; both sides say where they stand; then the data streams. */
  async #meetAgain(ms: number): Promise<void> {
    const { signal } = this.#options
    const attempt = this.#attempt + 1
    const endMs = performance.now() + ms
    const deadline = (what: string) => ({ ms: Math.max(1, endMs - performance.now()), what, signal })
    const stream = await openControl(this.#options, attempt, { ms, signal })
    // The gateway may have seen this number now: it counts, whatever becomes of it.
    this.#attempt = attempt
    try {
      const channel = await within(shakeHands(this.#options, stream, attempt), deadline('the handshake'))
      await this.#quiet()
      const frames = channel.frames()
      await channel.send(FRAME.MESSAGE, encodeMessage({ type: 'CONTINUE', taken: this.peer.taken }))
      const held = await within(readHeld(frames), deadline('the position of the target'))
      const data = held.frames ? openData(this.#options, attempt) : Promise.resolve([])
      const streams = await inTime(data, deadline('the data streams'), late => resetAll(late, 'too late'))
      this.#step('meet')
      this.#channel?.reset('another meeting is active')
      this.#use(channel, attempt, streams, held.frames || [])
      // A target that has everything has heard everything, though it may be another life of its agent, which did not
      // count.
      this.peer.resume(channel, frames, held.frames && held.taken)
      if (held.frames) {
        this.#outgoing!.attach({ ...this.#meeting!, taken: held.frames })
        this.#watchStreams(this.#meeting!)
      }
    } catch (error) {
      stream.reset('no active meeting')
      throw error
    }
  }

  #use(channel: Channel, attempt = this.#attempt, streams: Stream[] = [], taken: number[] = []): void {
    this.#earlierWireBytes = this.wireBytes
    this.#channel = channel
    this.#meeting = {
      attempt,
      channel,
      streams,
      gate: createGate(new Flight({ windowInitialBytes: firstWindowBytes(this.#options.bulk?.()?.rttMs) }), () => performance.now()),
      carriers: this.#options.bulk?.()?.carriers,
      sinceMs: performance.now(),
      taken: sum(taken),
    }
  }

  /** The gate of whichever meeting there is, for those who only look (progress.ts). */
  #gateAtHand(): Gate {
    const before = createGate(new Flight(), () => performance.now())
    const atHand = () => this.#meeting?.gate ?? before
    return {
      pass: (bytes, name) => atHand().pass(bytes, name),
      acked: total => atHand().acked(total),
      stalledMs: () => atHand().stalledMs(),
      close: error => atHand().close(error),
      get flight() {
        return atHand().flight
      },
    }
  }
}

const sum = (numbers: number[]): number => numbers.reduce((all, each) => all + each, 0)
