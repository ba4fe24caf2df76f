// One direction of a link, in virtual time. Enters: packets with their times of entry. Leaves: the same packets with
// their times of arrival, or nothing (queue full, lost, blackout, too large). Pure: no timer, no socket; equal seeds
// and calls give equal results.
//
//   enqueue -> [ queue: drop-tail ] -> [ server: rate, schedule, trace ] -> [ loss ] -> [ delay, jitter ] -> advance
//
// Always holds: packets arrive in order; time never goes back; queued bytes never exceed queueBytes; packets in transit
// are bounded by rate x (delay + jitter).
import { type Blackout, blackoutEnd, checkBlackouts } from './blackout.ts'
import { createDeque } from './deque.ts'
import { createLossModel, type Loss } from './loss.ts'
import { createRandom, type Random, randomAt } from './random.ts'
import { createServer, type Rate, type Server } from './server.ts'

export type LinkModelOptions = {
  rate: Rate
  /** Propagation delay of one direction. */
  delayMs: number
  /** The delay varies within +-jitterMs (at most delayMs). Default 0. */
  jitterMs?: number
  /**
   * Time between the turning points of the variation. Default 4 x jitterMs: slow enough that no packet can overtake
   * another.
   */
  jitterPeriodMs?: number
  loss?: Loss | undefined
  /** Waiting bytes plus the packet that is being sent. */
  queueBytes: number
  blackouts?: Blackout[]
  /** Larger packets are dropped, as by a router that cannot fragment. Absent: no limit. */
  mtuBytes?: number
}

type DropCause = 'queue' | 'loss' | 'blackout' | 'mtu' | 'cut'

export type LinkCounters = {
  enteredPackets: number
  enteredBytes: number
  deliveredPackets: number
  deliveredBytes: number
  droppedPackets: Record<DropCause, number>
  droppedBytes: Record<DropCause, number>
  queueBytes: number
  queueBytesMax: number
  /** Time from entering the queue to the end of sending, over all sent packets. */
  queueDelayMsSum: number
  queueDelayMsMax: number
  sentPackets: number
}

export type Delivery<T> = { atMs: number; bytes: number; packet: T }

export type LinkModel<T> = {
  /** False if the packet was dropped at once (the queue is full, the packet is too large, or the link is cut). */
  enqueue(nowMs: number, bytes: number, packet: T): boolean
  /** All packets that arrive up to and including `nowMs`, in order. */
  advance(nowMs: number): Delivery<T>[]
  /** When to call advance next: never later than the next arrival; undefined if nothing is in transit. */
  nextMs(): number | undefined
  /**
   * New conditions from now on; queued packets stay, and the packet that is being sent starts again (an error of at
   * most one packet's time).
   */
  change(nowMs: number, options: Partial<LinkModelOptions>): void
  /** Cuts the link (true): packets in transit are lost and nothing enters; or restores it (false). */
  cut(nowMs: number, isCut: boolean): void
  counters(): LinkCounters
}

type Waiting<T> = { enteredMs: number; bytes: number; packet: T }

/** A link of these options; equal seeds behave equally. TypeError for invalid options. */
export const createLink = <T>(options: LinkModelOptions, seed: number | string): LinkModel<T> => new SeededLink<T>(options, seed)

class SeededLink<T> implements LinkModel<T> {
  readonly #lossRandom: Random
  readonly #jitterSeed: number
  readonly #queue = createDeque<Waiting<T>>()
  readonly #flight = createDeque<Delivery<T>>()
  readonly #counters = emptyCounters()
  #options: LinkModelOptions
  #server: Server
  #loss: ReturnType<typeof createLossModel>
  #nowMs = 0
  /** Time at which the packet at the head of the queue is sent; undefined if the queue is empty. */
  #headDoneMs: number | undefined
  #lastSentMs = 0
  #lastArrivalMs = 0
  #isCut = false

  constructor(options: LinkModelOptions, seed: number | string) {
    const random = createRandom(seed)
    this.#lossRandom = random.fork('loss')
    this.#jitterSeed = random.fork('jitter').uint32()
    this.#options = checkOptions(options)
    this.#server = createServer(options.rate, options.blackouts ?? [])
    this.#loss = createLossModel(options.loss, this.#lossRandom)
  }

  enqueue(nowMs: number, bytes: number, packet: T): boolean {
    this.#moveTo(nowMs)
    const counters = this.#counters
    counters.enteredPackets++
    counters.enteredBytes += bytes
    const cause = this.#refusal(bytes)
    if (cause) {
      this.#drop(cause, bytes)
      return false
    }
    this.#queue.push({ enteredMs: nowMs, bytes, packet })
    counters.queueBytes += bytes
    counters.queueBytesMax = Math.max(counters.queueBytesMax, counters.queueBytes)
    if (this.#headDoneMs === undefined) this.#startHead(Math.max(nowMs, this.#lastSentMs))
    return true
  }

  advance(nowMs: number): Delivery<T>[] {
    this.#moveTo(nowMs)
    const arrived: Delivery<T>[] = []
    for (let first = this.#flight.first(); first && first.atMs <= nowMs; first = this.#flight.first()) {
      this.#flight.shift()
      this.#counters.deliveredPackets++
      this.#counters.deliveredBytes += first.bytes
      arrived.push(first)
    }
    return arrived
  }

  // Packets in flight arrive before queued ones, so the first of them decides.
  nextMs(): number | undefined {
    const next = this.#flight.first()?.atMs ?? this.#headDoneMs
    return next === Number.POSITIVE_INFINITY ? undefined : next
  }

  change(nowMs: number, changes: Partial<LinkModelOptions>): void {
    this.#moveTo(nowMs)
    this.#options = checkOptions({ ...this.#options, ...changes })
    if ('loss' in changes) this.#loss = createLossModel(this.#options.loss, this.#lossRandom)
    this.#server = createServer(this.#options.rate, this.#options.blackouts ?? [])
    this.#startHead(nowMs)
  }

  cut(nowMs: number, isCut: boolean): void {
    this.#moveTo(nowMs)
    this.#isCut = isCut
    if (!isCut) return
    for (const { bytes } of [...this.#queue.clear(), ...this.#flight.clear()]) this.#drop('cut', bytes)
    this.#counters.queueBytes = 0
    this.#headDoneMs = undefined
  }

  counters(): LinkCounters {
    return structuredClone(this.#counters)
  }

  #moveTo(nowMs: number): void {
    if (nowMs < this.#nowMs) throw new TypeError(`a link at ${this.#nowMs} ms cannot go back to ${nowMs} ms`)
    this.#nowMs = nowMs
    while (this.#headDoneMs !== undefined && this.#headDoneMs <= nowMs) this.#sendHead(this.#headDoneMs)
  }

  #refusal(bytes: number): DropCause | undefined {
    if (this.#isCut) return 'cut'
    if (bytes > (this.#options.mtuBytes ?? Number.POSITIVE_INFINITY)) return 'mtu'
    return this.#counters.queueBytes + bytes > this.#options.queueBytes ? 'queue' : undefined
  }

  #startHead(fromMs: number): void {
    const head = this.#queue.first()
    this.#headDoneMs = head ? this.#server.serve(fromMs, head.bytes) : undefined
  }

  /** The packet at the head is sent at `sentMs`: lose it or put it in flight, and start the next. */
  #sendHead(sentMs: number): void {
    const { enteredMs, bytes, packet } = this.#queue.shift()!
    const { delayMs, blackouts = [] } = this.#options
    const counters = this.#counters
    counters.queueBytes -= bytes
    counters.sentPackets++
    counters.queueDelayMsSum += sentMs - enteredMs
    counters.queueDelayMsMax = Math.max(counters.queueDelayMsMax, sentMs - enteredMs)
    this.#lastSentMs = sentMs
    const isLost = this.#loss.lost()
    if (blackoutEnd(blackouts, 'drop', sentMs) !== undefined) this.#drop('blackout', bytes)
    else if (isLost) this.#drop('loss', bytes)
    else {
      this.#lastArrivalMs = Math.max(this.#lastArrivalMs, sentMs + delayMs + jitterAt(this.#options, this.#jitterSeed, sentMs))
      this.#flight.push({ atMs: this.#lastArrivalMs, bytes, packet })
    }
    this.#startHead(sentMs)
  }

  #drop(cause: DropCause, bytes: number): void {
    this.#counters.droppedPackets[cause]++
    this.#counters.droppedBytes[cause] += bytes
  }
}

/**
 * The deviation of the delay at a moment: linear between random turning points, so it decreases by at most 0.5 ms per
 * ms.
 */
function jitterAt({ jitterMs = 0, jitterPeriodMs = 4 * jitterMs }: LinkModelOptions, seed: number, ms: number): number {
  if (jitterMs === 0) return 0
  const turn = Math.floor(ms / jitterPeriodMs)
  const part = ms / jitterPeriodMs - turn
  const from = randomAt(seed, turn) * 2 - 1
  const to = randomAt(seed, turn + 1) * 2 - 1
  return jitterMs * (from + (to - from) * part)
}

function checkOptions(options: LinkModelOptions): LinkModelOptions {
  const { delayMs, jitterMs = 0, jitterPeriodMs, queueBytes, blackouts = [], mtuBytes } = options
  if (!(delayMs >= 0 && Number.isFinite(delayMs))) throw new TypeError(`delayMs must not be negative, not ${delayMs}`)
  if (!(jitterMs >= 0 && jitterMs <= delayMs)) throw new TypeError(`jitterMs must be between 0 and delayMs, not ${jitterMs}`)
  if (jitterPeriodMs !== undefined && !(jitterPeriodMs > 0)) throw new TypeError('jitterPeriodMs must be above 0')
  if (!(queueBytes >= 1 && Number.isFinite(queueBytes))) throw new TypeError(`queueBytes must be above 0 and finite, not ${queueBytes}`)
  if (mtuBytes !== undefined && !(mtuBytes >= 1)) throw new TypeError('mtuBytes must be above 0')
  checkBlackouts(blackouts)
  return options
}

function emptyCounters(): LinkCounters {
  const causes = (): Record<DropCause, number> => ({ queue: 0, loss: 0, blackout: 0, mtu: 0, cut: 0 })
  return {
    enteredPackets: 0,
    enteredBytes: 0,
    deliveredPackets: 0,
    deliveredBytes: 0,
    droppedPackets: causes(),
    droppedBytes: causes(),
    queueBytes: 0,
    queueBytesMax: 0,
    queueDelayMsSum: 0,
    queueDelayMsMax: 0,
    sentPackets: 0,
  }
}
