// The control stream of a copy, as either side sees it. Enters: a channel. Leaves: messages in order, or the other
// side's own error.
// Always holds: a REFUSE of the other side ends the copy with its code; a side that says nothing for SILENCE_MS is
// gone; the end of the stream is CONNECTION_LOST.
import { within } from '../../ops/deadline.ts'
import { fromBody, GodwitError } from '../../wire/errors.ts'
import { FRAME } from '../../wire/types.ts'
import type { Channel } from '../channel/channel.ts'
import { type CopyMessage, type CopyMessageOf, decodeCopyMessage, encodeCopyMessage } from './messages.ts'

const SILENCE_MS = 60_000

export type Talk = {
  send(message: CopyMessage): Promise<void>
  /**
   * The next message, which must be one of these. CONNECTION_LOST, FRAME_MALFORMED, or what the other side refuses
   * with.
   */
  expect<T extends CopyMessage['type']>(types: T[]): Promise<CopyMessageOf<T>>
}

type TalkOptions = {
  /** What the other side has of the image; such messages are for nobody else. */
  onHave?: (have: CopyMessageOf<'HAVE'>) => void
  signal: AbortSignal
}

export function createTalk(channel: Channel, { onHave, signal }: TalkOptions): Talk {
  const frames = channel.frames()
  const next = async (): Promise<CopyMessage> => {
    const arrived = frames.next()
    arrived.catch(() => {})
    const { value } = await within(arrived, { ms: SILENCE_MS, what: 'the other site', code: 'CONNECTION_LOST', signal })
    if (!value) throw new GodwitError('CONNECTION_LOST', 'the other site ended the control stream')
    if (value.type !== FRAME.MESSAGE) throw new GodwitError('FRAME_MALFORMED', `frame ${value.type} on the control stream of a copy`)
    const message = decodeCopyMessage(value.payload)
    if (message.type === 'REFUSE') throw fromBody(message.error)
    if (message.type !== 'HAVE' || onHave === undefined) return message
    onHave(message)
    return await next()
  }
  return {
    send: message => channel.send(FRAME.MESSAGE, encodeCopyMessage(message)),
    async expect<T extends CopyMessage['type']>(types: T[]) {
      const message = await next()
      if (!types.includes(message.type as T))
        throw new GodwitError('FRAME_MALFORMED', `received ${message.type}, expected ${types.join(' or ')}`)
      return message as CopyMessageOf<T>
    },
  }
}
