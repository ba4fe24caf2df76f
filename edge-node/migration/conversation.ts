// What source and target say to each other, at the source, over as many meetings as it takes. A meeting is a control stream with its own handshake and attempt
// number, and the data streams beside it.
// Enters: a way to open relay streams; the corridor that is to be carried (outgoing.ts). Leaves: the peer, one through all meetings; a failure when a lost link
// does not come back in time.
// Always holds: from accepted() to settle() a lost meeting is followed by another, which goes on exactly where the target stands (HELD); before and after, its loss is the
// migration's. A meeting may also be left for a better one while it still carries (changeOver): the new one has shaken hands before the old one is quiet. Only a link that breaks is healed: what looks like an attack, and what the target says itself, ends the migration at once.
import { sleep, within } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import type { Plan } from '../../wire/control.ts'
import { type ErrorCode, fromBody, GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Frame } from '../../wire/frame.ts'
import type { Log } from '../../wire/log.ts'
import { FRAME } from '../../wire/types.ts'
import { openSession, type Session, type SessionOptions } from '../channel/session.ts'
import type { Bulk } from '../link/link.ts'
import type { Carriers } from '../rate/carriers.ts'
import { Flight, firstWindowBytes } from '../rate/flight.ts'
import { createGate, type Gate } from '../rate/gate.ts'
import { decodeMessage, encodeMessage, type MessageOf } from './messages.ts'
import type { Outgoing } from './outgoing.ts'
import { createPeer, isLoss, type Peer } from './peer.ts'

/** How long a lost link may stay away, ms: while the guest runs (or a cold migration copies), and while it stands still for the switch-over. */
export type Patience = { reconnectMs: number; switchoverMs: number /** First wait between two tries. Default 100. */; retryMs?: number }
export const PATIENCE: Patience = { reconnectMs: 30_000, switchoverMs: 2_000 }

/** A meeting's keys serve so long: then there is a new handshake, as after a lost link. Not while the guest stands still. (Within it libsodium's secretstream
 * changes a stream's key every GiB; a new handshake keeps what a thief of the process's memory learns to an hour.) */
export type Renewal = { bytes: number; ms: number }
export const RENEWAL: Renewal = { bytes: 64 * 2 ** 30, ms: 3_600_000 }

export type ConversationOptions = Omit<SessionOptions, 'side' | 'stream'> & {
  openStream: (index: number, attempt: number) => Promise<Stream>
  patience?: Patience | undefined
  renewal?: Renewal | undefined
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
  /** Leaves the meeting for a new one, over what carries best now; not once the guest stands still. Harmless where it cannot be. */
  changeOver(reason: string): void
  /** A stream of the corridor has failed. */
  onLost(error: GodwitError): void
  reset(reason: string): void
}

type Meeting = {
  attempt: number
  session: Session
  gate: Gate
  streams: Stream[]
  carriers: Carriers | undefined
  sinceMs: number /** Frames that the target had taken when it began. */
  taken: number
}

/** Why there may be no new meeting yet. Anything else is not a matter of time. */
const PASSING: ReadonlySet<ErrorCode> = new Set<ErrorCode>(['CONNECTION_LOST', 'STREAM_RESET', 'TIMEOUT', 'SITE_OFFLINE', 'LIMIT_EXCEEDED'])
const ATTEMPT_MS = 5_000
const HANDSHAKE_MS = 20_000
/** How long what is on the way may take to arrive before a meeting is left. */
const QUIET_MS = 500
const QUIET_LOOK_MS = 5
/** After one that came to nothing. */
const MOVE_AGAIN_MS = 5_000
const RETRY_FIRST_MS = 100
const RETRY_MAX_MS = 1_000
/** Index 0 is control. */
const FIRST_DATA_INDEX = 1

/** The first meeting: its handshake. */
export async function openConversation(options: ConversationOptions): Promise<Conversation> {
  const talk = new Talk(options)
  await talk.open()
  return talk
}

class Talk implements Conversation {
  readonly #options: ConversationOptions
  readonly gate: Gate
  readonly lost = { reconnects: 0, awayMs: 0 }
  #peer: Peer | undefined
  #rootKey: Uint8Array = new Uint8Array(0)
  #attempt: number
  /** The one that carries; undefined while the link is lost. */
  #meeting: Meeting | undefined
  /** The last session, also while its link is lost: a word of the target may still be in it. */
  #session: Session | undefined
  #earlierWireBytes = 0
  #outgoing: Outgoing | undefined
  #heals = false
  #isMoving = false
  #moveAgainAtMs = 0
  changeOvers = 0

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
    return this.#earlierWireBytes + (this.#session?.wireBytes ?? 0)
  }

  async open(): Promise<void> {
    const { signal, onReturnPath, openStream } = this.#options
    const stream = await inTime(openStream(0, this.#attempt), { ms: ATTEMPT_MS, what: 'a control stream', signal }, late =>
      late.reset('too late'),
    )
    const session = await inTime(this.#handshake(stream), { ms: HANDSHAKE_MS, what: 'the handshake', signal }, late =>
      late.reset('too late'),
    )
    this.#rootKey = session.rootKey
    this.#take(session)
    this.#peer = createPeer({
      session,
      onAck: (total, frames) => this.#acked(total, frames),
      onReturnPath,
      signal,
      fail: (error, how) => (how === 'lost' ? this.onLost(error) : this.#options.fail(error)),
      heals: () => this.#heals,
    })
  }

  async carry(outgoing: Outgoing): Promise<void> {
    const meeting = this.#meeting!
    meeting.streams = await this.#openData(this.#attempt)
    this.#outgoing = outgoing
    outgoing.attach({ ...meeting, taken: meeting.streams.map(() => 0) })
  }

  accepted(): void {
    this.#heals = true
  }

  settle(): void {
    this.#heals = false
    this.#outgoing = undefined
  }

  reset(reason: string): void {
    this.#session?.reset(reason)
    resetAll(this.#meeting?.streams ?? [], reason)
  }

  #acked(total: number, frames: number[]): void {
    this.#meeting?.gate.acked(total)
    if (this.#meeting) this.#outgoing?.taken(frames)
    if (this.#meeting && this.#heals && this.#isWornOut(this.#meeting, total, frames)) this.changeOver('its keys have done their time')
  }

  changeOver(reason: string): void {
    if (!this.#heals || !this.#meeting || this.#isMoving || performance.now() < this.#moveAgainAtMs) return
    this.#isMoving = true
    this.#move(reason, this.#meeting).catch(thrown => this.#options.fail(toGodwitError(thrown, 'CONNECTION_LOST')))
  }

  async #move(reason: string, from: Meeting): Promise<void> {
    const { log, signal } = this.#options
    try {
      await this.#meetAgain(ATTEMPT_MS)
      this.changeOvers += 1
      log.info('the migration has changed over', { attempt: this.#attempt, reason })
    } catch (error) {
      signal.throwIfAborted()
      this.#isMoving = false
      this.#moveAgainAtMs = performance.now() + MOVE_AGAIN_MS
      const coded = toGodwitError(error)
      if (this.#meeting === from) log.debug('the migration stays where it is', { reason, error })
      else if (!PASSING.has(coded.code)) throw coded
      else if (!this.#meeting) await this.#reconnect(coded)
    }
  }

  /** Nothing more goes over the meeting there is, and what is on the way has a moment to arrive: so next to nothing is sent twice. */
  async #quiet(): Promise<void> {
    const { signal, stoppedAtMs } = this.#options
    const meeting = this.#meeting
    if (!meeting) return
    if (!this.#heals || stoppedAtMs() !== undefined) throw new GodwitError('STREAM_RESET', 'no time for another meeting')
    this.#outgoing?.detach()
    const endMs = performance.now() + QUIET_MS
    while (this.#meeting === meeting && meeting.gate.flight.inFlightBytes > 0 && performance.now() < endMs)
      await sleep(QUIET_LOOK_MS, signal)
    if (this.#meeting !== meeting) return
    this.#meeting = undefined
    meeting.gate.close(new GodwitError('CONNECTION_LOST', 'another meeting goes on'))
    resetAll(meeting.streams, 'another meeting goes on')
  }

  /** Only once it has brought the transfer on: meetings that follow each other without that would never end. */
  #isWornOut({ sinceMs, taken }: Meeting, bytes: number, frames: number[]): boolean {
    if (sum(frames) <= taken) return false
    const { renewal = RENEWAL, stoppedAtMs } = this.#options
    return stoppedAtMs() === undefined && (bytes >= renewal.bytes || performance.now() - sinceMs >= renewal.ms)
  }

  /** Told by whatever notices first; the others' word is the echo. */
  onLost(error: GodwitError): void {
    // The migration has failed, and that is what ended the streams: nobody is to be met again.
    if (this.#options.signal.aborted) return
    if (!this.#outgoing || !this.#heals || !isLoss(error)) this.#options.fail(error)
    else if (this.#meeting) this.#part(error, this.#meeting, this.#outgoing)
  }

  #part(error: GodwitError, { gate, streams }: Meeting, outgoing: Outgoing): void {
    this.#meeting = undefined
    outgoing.detach()
    gate.close(error)
    resetAll(streams, 'lost')
    // Who is on the way to another meeting already sees to it.
    if (!this.#isMoving) this.#reconnect(error).catch(thrown => this.#options.fail(toGodwitError(thrown, 'CONNECTION_LOST')))
  }

  async #reconnect(cause: GodwitError): Promise<void> {
    const { log, plan, signal, patience = PATIENCE } = this.#options
    const lostAtMs = performance.now()
    log.warn('the link is lost: the migration waits for it', { attempt: this.#attempt, error: cause })
    let last = cause
    for (let waitMs = patience.retryMs ?? RETRY_FIRST_MS; this.#outgoing; waitMs = Math.min(RETRY_MAX_MS, 2 * waitMs)) {
      const leftMs = this.#endOfPatienceMs(lostAtMs) - performance.now()
      if (leftMs <= 0) {
        const awayMs = Math.round(performance.now() - lostAtMs)
        throw new GodwitError('CONNECTION_LOST', `no link to ${plan.target} for ${awayMs} ms: ${last.message}`, { cause: last })
      }
      try {
        await this.#meetAgain(Math.min(ATTEMPT_MS, leftMs))
        this.lost.reconnects += 1
        this.lost.awayMs += performance.now() - lostAtMs
        log.warn('the link is back: the migration goes on', { attempt: this.#attempt, awayMs: Math.round(performance.now() - lostAtMs) })
        return
      } catch (error) {
        signal.throwIfAborted()
        last = toGodwitError(error)
        if (!PASSING.has(last.code)) throw last
        log.debug('no new meeting yet', { attempt: this.#attempt, error: last })
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
    const { signal, openStream } = this.#options
    const attempt = this.#attempt + 1
    const endMs = performance.now() + ms
    const deadline = (what: string) => ({ ms: Math.max(1, endMs - performance.now()), what, signal })
    const stream = await inTime(openStream(0, attempt), deadline('a control stream'), late => late.reset('too late'))
    // The gateway may have seen this number now: it counts, whatever becomes of it.
    this.#attempt = attempt
    try {
      const session = await within(this.#handshake(stream, attempt), deadline('the handshake'))
      await this.#quiet()
      const frames = session.frames()
      await session.send(FRAME.MESSAGE, encodeMessage({ type: 'CONTINUE', taken: this.peer.taken }))
      const held = await within(readHeld(frames), deadline('where the target stands'))
      const data = held.frames ? this.#openData(attempt) : Promise.resolve([])
      const streams = await inTime(data, deadline('the data streams'), late => resetAll(late, 'too late'))
      if (!this.#outgoing) throw new GodwitError('STREAM_RESET', 'no meeting is needed any more')
      this.#session?.reset('another meeting goes on')
      this.#take(session, attempt, streams, held.frames || [])
      // A target that has everything has heard everything, though it may be another life of its agent, which did not count.
      this.peer.resume(session, frames, held.frames && held.taken)
      if (held.frames) this.#outgoing.attach({ ...this.#meeting!, taken: held.frames })
    } catch (error) {
      stream.reset('no meeting')
      throw error
    }
  }

  #handshake(stream: Stream, attempt = this.#attempt): Promise<Session> {
    return openSession({ ...this.#options, side: 'source', stream, plan: this.#planOf(attempt) })
  }

  #planOf(attempt: number): Plan {
    return { ...this.#options.plan, attempt }
  }

  #take(session: Session, attempt = this.#attempt, streams: Stream[] = [], taken: number[] = []): void {
    this.#earlierWireBytes = this.wireBytes
    this.#session = session
    // From here on a loss is this meeting's.
    this.#isMoving = false
    this.#meeting = {
      attempt,
      session,
      streams,
      gate: createGate(new Flight({ windowInitialBytes: firstWindowBytes(this.#options.bulk?.()?.rttMs) }), () => performance.now()),
      carriers: this.#options.bulk?.()?.carriers,
      sinceMs: performance.now(),
      taken: sum(taken),
    }
  }

  /** The skeleton stream and the page streams: all, or none. */
  async #openData(attempt: number): Promise<Stream[]> {
    const { plan, openStream } = this.#options
    const opening = Array.from({ length: plan.streams + 1 }, (_, i) => openStream(FIRST_DATA_INDEX + i, attempt))
    const opened = await Promise.allSettled(opening)
    const streams = opened.flatMap(result => (result.status === 'fulfilled' ? [result.value] : []))
    const failed = opened.find(result => result.status === 'rejected')
    if (!failed) return streams
    resetAll(streams, 'not all streams could be opened')
    throw failed.reason
  }

  /** The gate of whichever meeting there is, for those who only look (progress.ts). */
  #gateAtHand(): Gate {
    const before = createGate(new Flight(), () => performance.now())
    const atHand = () => this.#meeting?.gate ?? before
    return {
      pass: bytes => atHand().pass(bytes),
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

const resetAll = (streams: Stream[], reason: string): void => {
  for (const stream of streams) stream.reset(reason)
}

/** The promise's value in time; what comes too late is undone. */
async function inTime<T>(opening: Promise<T>, deadline: Parameters<typeof within>[1], undo: (late: T) => void): Promise<T> {
  return await within(opening, deadline).catch(error => {
    opening.then(undo).catch(() => {})
    throw error
  })
}

/** Where the target stands; or its own word that it is over, which no further meeting changes. */
async function readHeld(frames: AsyncGenerator<Frame, void>): Promise<MessageOf<'HELD'>> {
  const { value } = await frames.next()
  if (value?.type !== FRAME.MESSAGE) throw new GodwitError('CONNECTION_LOST', 'the target did not answer')
  const message = decodeMessage(value.payload)
  if (message.type === 'REFUSE' || message.type === 'ABORT')
    throw new GodwitError('MIGRATION_REFUSED', `the target gave up: ${message.error.code} ${message.error.message}`, {
      cause: fromBody(message.error),
    })
  if (message.type !== 'HELD') throw new GodwitError('MIGRATION_STATE', `${message.type} where HELD is due`)
  return message
}
