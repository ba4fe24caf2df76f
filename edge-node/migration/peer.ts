// The other node, as a migration sees it: messages by type, and what flows beside them (acknowledgements, return path),
// over one meeting or many.
// Always holds: REFUSE and ABORT end the migration with the other side's own code unless they are waited for; every
// wait has a deadline and ends at once when the migration fails; the end of a meeting before finish() is told. Messages
// and the return path are counted and kept: a later meeting says again what the other side has not taken, so each comes
// once and in order. What belongs to one meeting only is not kept.
import { within } from '../../ops/deadline.ts'
import { fromBody, GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Frame } from '../../wire/frame.ts'
import { FRAME } from '../../wire/types.ts'
import type { Channel } from '../channel/channel.ts'
import { decodeMessage, encodeMessage, type Message, type MessageOf } from './messages.ts'

export type Peer = {
  send(message: Message): Promise<void>
  sendRaw(type: number, payload: Uint8Array): Promise<void>
  /** The next message of one of these types. */
  expect<T extends Message['type']>(types: T[], options: { ms: number; what: string }): Promise<MessageOf<T>>
  /** How many messages of the other side have come that count (kept by it until they have). */
  readonly taken: number
  /** How far the other side is with reading files, by its last sign of life. */
  readonly heard: { hashedBytes: number }
  /**
   * Goes on over a later meeting: its channel, its frames from the one behind the greeting, and how many of our
   * messages the other side has taken (all, unless told).
   */
  resume(channel: Channel, frames: AsyncGenerator<Frame, void>, taken?: number): void
  /** Ends this side of the control stream in order. */
  finish(): Promise<void>
}

type PeerOptions = {
  channel: Channel
  /** What the other side says in it; default: all of it. */
  frames?: AsyncGenerator<Frame, void>
  /** Wire bytes received over this meeting, and frames taken of each data stream over all. */
  onAck?: (receivedBytes: number, taken: number[]) => void
  onReturnPath?: (bytes: Uint8Array) => void
  /** Aborts every wait; its reason is the failure. */
  signal: AbortSignal
  /** `said`: the other side's own REFUSE or ABORT, or a breach of the protocol; `lost`: the meeting has ended. */
  fail: (error: GodwitError, how: 'said' | 'lost') => void
  /** Whether a later meeting will say again what does not get through now: then sending does not fail. */
  heals?: () => boolean
}

/**
 * What a broken link looks like, from either side of it. All else that ends a stream is a fault or an attack, and ends
 * the migration.
 */
export const isLoss = ({ code }: GodwitError): boolean => code === 'CONNECTION_LOST' || code === 'STREAM_RESET'

const UNREAD_MAX = 64
/** A pre-copy has about ten of them in each direction. */
const KEPT_MAX = 1024
/** What is of no use in another meeting. */
const OF_ONE_MEETING: ReadonlySet<string> = new Set<Message['type']>(['CONTINUE', 'HELD', 'EOS', 'HASHING', 'COPY'])

export function createPeer({
  channel: first,
  frames: spoken = first.frames(),
  onAck,
  onReturnPath,
  signal,
  fail,
  heals = () => false,
}: PeerOptions): Peer {
  const unread: Message[] = []
  const waiting = new Set<{ types: string[]; take: (message: Message) => void }>()
  const kept: { type: number; payload: Uint8Array }[] = []
  let channel = first
  let [keptFrom, taken] = [0, 0]
  const heard = { hashedBytes: 0 }
  let finished = false

  const deliver = (message: Message) => {
    // The last word of a migration: the other side ends its stream right behind it.
    if (message.type === 'RUNNING') finished = true
    for (const waiter of waiting) {
      if (!waiter.types.includes(message.type)) continue
      waiting.delete(waiter)
      waiter.take(message)
      return
    }
    if (message.type === 'REFUSE' || message.type === 'ABORT') return fail(fromBody(message.error), 'said')
    if (unread.length >= UNREAD_MAX) return fail(new GodwitError('LIMIT_EXCEEDED', 'too many unexpected messages'), 'said')
    unread.push(message)
  }
  const take = ({ type, payload }: Frame) => {
    if (type === FRAME.ACK) {
      const { receivedBytes, frames } = readAck(payload)
      return onAck?.(receivedBytes, frames)
    }
    if (type === FRAME.RETURN_PATH) {
      taken += 1
      return onReturnPath?.(payload.slice())
    }
    const message = decodeMessage(payload)
    if (message.type === 'HASHING') heard.hashedBytes = message.bytesDone
    if (!OF_ONE_MEETING.has(message.type)) taken += 1
    deliver(message)
  }
  const listen = async (meeting: Channel, frames: AsyncGenerator<Frame, void>) => {
    try {
      for await (const frame of frames) {
        if (meeting !== channel) return
        take(frame)
      }
      throw new GodwitError('CONNECTION_LOST', 'the other site ended the control stream')
    } catch (error) {
      if (!finished && meeting === channel) fail(toGodwitError(error, 'CONNECTION_LOST'), 'lost')
    }
  }
  const transmit = async (type: number, payload: Uint8Array) => {
    await channel.send(type, payload).catch(error => {
      if (!heals()) throw error
    })
  }
  const sendKept = async (type: number, payload: Uint8Array) => {
    if (kept.length >= KEPT_MAX) throw new GodwitError('LIMIT_EXCEEDED', `more than ${KEPT_MAX} unacknowledged messages to the other site`)
    kept.push({ type, payload })
    await transmit(type, payload)
  }
  void listen(channel, spoken)
  return {
    send: message => (OF_ONE_MEETING.has(message.type) ? transmit : sendKept)(FRAME.MESSAGE, encodeMessage(message)),
    sendRaw: (type, payload) => (type === FRAME.ACK ? transmit : sendKept)(type, payload),
    async expect<T extends Message['type']>(types: T[], { ms, what }: { ms: number; what: string }) {
      const at = unread.findIndex(message => types.includes(message.type as T))
      if (at >= 0) return unread.splice(at, 1)[0] as MessageOf<T>
      const waiter = { types: types as string[], take: (_: Message) => {} }
      const arrived = new Promise<Message>(resolve => {
        waiter.take = resolve
        waiting.add(waiter)
      })
      try {
        return (await within(arrived, { ms, what, code: 'MIGRATION_TIMEOUT', signal })) as MessageOf<T>
      } finally {
        waiting.delete(waiter)
      }
    },
    get taken() {
      return taken
    },
    heard,
    resume(next, frames, count = keptFrom + kept.length) {
      if (count < keptFrom || count > keptFrom + kept.length)
        throw new GodwitError('FRAME_MALFORMED', `the other site acknowledges ${count} messages, sent were ${keptFrom + kept.length}`)
      kept.splice(0, count - keptFrom)
      keptFrom = count
      channel = next
      // In one go: a channel keeps the order of its sends, and whoever sends next comes behind these.
      for (const { type, payload } of kept) transmit(type, payload).catch(() => {})
      void listen(next, frames)
    },
    async finish() {
      finished = true
      await channel.finish()
    },
  }
}

/**
 * ACK: u64be, record bytes received over this meeting on all data streams; then for each of them u64be, frames taken
 * over all meetings.
 */
export function encodeAck(receivedBytes: number, taken: readonly number[] = []): Uint8Array {
  const out = new Uint8Array(8 * (1 + taken.length))
  const view = new DataView(out.buffer)
  for (const [i, value] of [receivedBytes, ...taken].entries()) view.setBigUint64(8 * i, BigInt(value))
  return out
}

function readAck(payload: Uint8Array): { receivedBytes: number; frames: number[] } {
  if (payload.length < 8 || payload.length % 8 !== 0)
    throw new GodwitError('FRAME_MALFORMED', 'an acknowledgement must be a multiple of 8 bytes')
  const view = new DataView(payload.buffer, payload.byteOffset, payload.length)
  const [receivedBytes = 0, ...frames] = Array.from({ length: payload.length / 8 }, (_, i) => Number(view.getBigUint64(8 * i)))
  return { receivedBytes, frames }
}
