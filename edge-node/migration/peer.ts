// The other node, as a migration sees it: messages by type, and what flows beside them (acknowledgements, return path).
// Always holds: REFUSE and ABORT end the migration with the other side's own code unless they are waited for; every wait has a deadline and
// ends at once when the migration fails; the end of the control stream before finish() is a failure.
import { within } from '../../ops/deadline.ts'
import { fromBody, GodwitError, toGodwitError } from '../../wire/errors.ts'
import { FRAME } from '../../wire/types.ts'
import type { Session } from '../channel/session.ts'
import { decodeMessage, encodeMessage, type Message, type MessageOf } from './messages.ts'

export type Peer = {
  send(message: Message): Promise<void>
  sendRaw(type: number, payload: Uint8Array): Promise<void>
  /** The next message of one of these types. */
  expect<T extends Message['type']>(types: T[], options: { ms: number; what: string }): Promise<MessageOf<T>>
  /** Ends this side of the control stream in order. */
  finish(): Promise<void>
}

export type PeerOptions = {
  session: Session
  onAck?: (receivedBytes: number) => void
  onReturnPath?: (bytes: Uint8Array) => void
  /** Aborts every wait; its reason is the failure. */
  signal: AbortSignal
  /** `said`: the other side's own REFUSE or ABORT, or a breach of the protocol; `lost`: the meeting has ended. */
  fail: (error: GodwitError, how: 'said' | 'lost') => void
}

const UNREAD_MAX = 64

export function createPeer({ session, onAck, onReturnPath, signal, fail }: PeerOptions): Peer {
  const unread: Message[] = []
  const waiting = new Set<{ types: string[]; take: (message: Message) => void }>()
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
    if (unread.length >= UNREAD_MAX) return fail(new GodwitError('LIMIT_EXCEEDED', 'too many messages out of turn'), 'said')
    unread.push(message)
  }
  const listen = async () => {
    for await (const { type, payload } of session.frames()) {
      if (type === FRAME.MESSAGE) deliver(decodeMessage(payload))
      else if (type === FRAME.ACK) onAck?.(readAck(payload))
      else if (type === FRAME.RETURN_PATH) onReturnPath?.(payload.slice())
    }
    if (!finished) throw new GodwitError('CONNECTION_LOST', 'the other site ended the control stream')
  }
  listen().catch(error => {
    if (!finished) fail(toGodwitError(error, 'CONNECTION_LOST'), 'lost')
  })
  return {
    send: message => session.send(FRAME.MESSAGE, encodeMessage(message)),
    sendRaw: (type, payload) => session.send(type, payload),
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
    async finish() {
      finished = true
      await session.finish()
    },
  }
}

/** ACK: u64be, all record bytes received so far on all data streams. */
export function encodeAck(receivedBytes: number): Uint8Array {
  const out = new Uint8Array(8)
  new DataView(out.buffer).setBigUint64(0, BigInt(receivedBytes))
  return out
}

function readAck(payload: Uint8Array): number {
  if (payload.length !== 8) throw new GodwitError('FRAME_MALFORMED', 'an acknowledgement has 8 bytes')
  return Number(new DataView(payload.buffer, payload.byteOffset, 8).getBigUint64(0))
}
