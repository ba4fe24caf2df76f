// One direction of a link, in virtual time. Enters: packets with the moment they come. Leaves: the same packets with the moment they arrive, or
// nothing (queue full, lost, blackout, too large). Pure: no timer, no socket; equal seeds and calls give equal results.
//
//   enqueue -> [ queue: bytes bounded, drop-tail ] -> [ server: rate, schedule or trace ] -> [ loss ] -> [ delay + jitter ] -> advance
//
// Always holds: packets arrive in the order they came; time never goes back; queued bytes never exceed queueBytes; what is on the way is
// bounded by rate x (delay + jitter).
import { type Blackout, blackoutEnd, checkBlackouts } from './blackout.ts'
import { createDeque } from './deque.ts'
import { createLossModel, type Loss } from './loss.ts'
import { createRandom, randomAt } from './random.ts'
import { createServer, type Rate } from './server.ts'

export type LinkOptions = {
  rate: Rate
  /** Propagation, one way. */
  delayMs: number
  /** The delay wanders within +-jitterMs (at most delayMs). Default 0. */
  jitterMs?: number
  /** Time between the turns of that wander. Default 4 x jitterMs: slow enough that no packet can overtake another. */
  jitterPeriodMs?: number
  loss?: Loss | undefined
  /** Waiting and being sent together. */
  queueBytes: number
  blackouts?: Blackout[]
  /** Larger packets are dropped, as where a router cannot fragment. Absent: no limit. */
  mtuBytes?: number
}

export type DropCause = 'queue' | 'loss' | 'blackout' | 'mtu' | 'cut'

export type LinkCounters = {
  enteredPackets: number
  enteredBytes: number
  deliveredPackets: number
  deliveredBytes: number
  droppedPackets: Record<DropCause, number>
  droppedBytes: Record<DropCause, number>
  queueBytes: number
  queueBytesMax: number
  /** From entering the queue to having been sent, over all packets that were sent. */
  queueDelayMsSum: number
  queueDelayMsMax: number
  sentPackets: number
}

export type Delivery<T> = { atMs: number; bytes: number; packet: T }

export type Link<T> = {
  /** False when the packet was dropped at once (its queue is full, it is too large, or the link is cut). */
  enqueue(nowMs: number, bytes: number, packet: T): boolean
  /** All that has arrived up to and including `nowMs`, in order. */
  advance(nowMs: number): Delivery<T>[]
  /** When to call advance next: never later than the next arrival; undefined when nothing is under way. */
  nextMs(): number | undefined
  /** New conditions from now on; what is queued stays, the packet being sent starts anew (an error of at most one packet's time). */
  change(nowMs: number, options: Partial<LinkOptions>): void
  /** Pulls the plug (true): all under way is lost and nothing enters; or puts it back (false). */
  cut(nowMs: number, isCut: boolean): void
  counters(): LinkCounters
}

type Waiting<T> = { enteredMs: number; bytes: number; packet: T }

export function createLink<T>(initial: LinkOptions, seed: number | string): Link<T> {
  const random = createRandom(seed)
  const lossRandom = random.fork('loss')
  const jitterSeed = random.fork('jitter').uint32()
  let options = checkOptions(initial)
  let server = createServer(options.rate, options.blackouts ?? [])
  let loss = createLossModel(options.loss, lossRandom)
  const queue = createDeque<Waiting<T>>()
  const flight = createDeque<Delivery<T>>()
  const counters = emptyCounters()
  let now = 0
  let headDoneMs: number | undefined
  let lastSentMs = 0
  let lastArrivalMs = 0
  let isCut = false

  const drop = (cause: DropCause, bytes: number) => {
    counters.droppedPackets[cause]++
    counters.droppedBytes[cause] += bytes
  }
  const startHead = (fromMs: number) => {
    const head = queue.first()
    headDoneMs = head ? server.serve(fromMs, head.bytes) : undefined
  }
  /** The packet at the head is out at `sentMs`: lose it or let it fly, and start the next. */
  const sendHead = (sentMs: number) => {
    const { enteredMs, bytes, packet } = queue.shift()!
    counters.queueBytes -= bytes
    counters.sentPackets++
    counters.queueDelayMsSum += sentMs - enteredMs
    counters.queueDelayMsMax = Math.max(counters.queueDelayMsMax, sentMs - enteredMs)
    lastSentMs = sentMs
    const isLost = loss.lost()
    if (blackoutEnd(options.blackouts ?? [], 'drop', sentMs) !== undefined) drop('blackout', bytes)
    else if (isLost) drop('loss', bytes)
    else {
      lastArrivalMs = Math.max(lastArrivalMs, sentMs + options.delayMs + jitterAt(options, jitterSeed, sentMs))
      flight.push({ atMs: lastArrivalMs, bytes, packet })
    }
    startHead(sentMs)
  }
  const moveTo = (nowMs: number) => {
    if (nowMs < now) throw new TypeError(`a link at ${now} ms cannot go back to ${nowMs} ms`)
    now = nowMs
    while (headDoneMs !== undefined && headDoneMs <= nowMs) sendHead(headDoneMs)
  }

  return {
    enqueue: (nowMs, bytes, packet) => {
      moveTo(nowMs)
      counters.enteredPackets++
      counters.enteredBytes += bytes
      const cause = isCut
        ? 'cut'
        : bytes > (options.mtuBytes ?? Number.POSITIVE_INFINITY)
          ? 'mtu'
          : counters.queueBytes + bytes > options.queueBytes
            ? 'queue'
            : undefined
      if (cause) {
        drop(cause, bytes)
        return false
      }
      queue.push({ enteredMs: nowMs, bytes, packet })
      counters.queueBytes += bytes
      counters.queueBytesMax = Math.max(counters.queueBytesMax, counters.queueBytes)
      if (headDoneMs === undefined) startHead(Math.max(nowMs, lastSentMs))
      return true
    },
    advance: nowMs => {
      moveTo(nowMs)
      const arrived: Delivery<T>[] = []
      for (let first = flight.first(); first && first.atMs <= nowMs; first = flight.first()) {
        flight.shift()
        counters.deliveredPackets++
        counters.deliveredBytes += first.bytes
        arrived.push(first)
      }
      return arrived
    },
    // What is in flight arrives before what is still queued, so the first of it decides.
    nextMs: () => {
      const next = flight.first()?.atMs ?? headDoneMs
      return next === Number.POSITIVE_INFINITY ? undefined : next
    },
    change: (nowMs, changes) => {
      moveTo(nowMs)
      options = checkOptions({ ...options, ...changes })
      if ('loss' in changes) loss = createLossModel(options.loss, lossRandom)
      server = createServer(options.rate, options.blackouts ?? [])
      startHead(nowMs)
    },
    cut: (nowMs, cutNow) => {
      moveTo(nowMs)
      isCut = cutNow
      if (!cutNow) return
      for (const { bytes } of [...queue.clear(), ...flight.clear()]) drop('cut', bytes)
      counters.queueBytes = 0
      headDoneMs = undefined
    },
    counters: () => structuredClone(counters),
  }
}

/** The delay's deviation at a moment: straight lines between random turning points, so it falls by at most half a ms a ms. */
function jitterAt({ jitterMs = 0, jitterPeriodMs = 4 * jitterMs }: LinkOptions, seed: number, ms: number): number {
  if (jitterMs === 0) return 0
  const turn = Math.floor(ms / jitterPeriodMs)
  const part = ms / jitterPeriodMs - turn
  const from = randomAt(seed, turn) * 2 - 1
  const to = randomAt(seed, turn + 1) * 2 - 1
  return jitterMs * (from + (to - from) * part)
}

function checkOptions(options: LinkOptions): LinkOptions {
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
