// The parts of one meeting, at the source: its control stream, the handshake, the target's position, its data streams.
// Enters: a way to open relay streams, the attempt's number. Leaves: open streams, a channel; or a coded error.
// Always holds: what opens after its deadline is reset; the data streams open all, or none stays open.
import { within } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import { fromBody, GodwitError } from '../../wire/errors.ts'
import type { Frame } from '../../wire/frame.ts'
import { CONTROL, countedRoles, indexOf } from '../../wire/roles.ts'
import { FRAME } from '../../wire/types.ts'
import { type Channel, type ChannelOptions, openChannel } from '../channel/channel.ts'
import { decodeMessage, type MessageOf } from './messages.ts'

type MeetingOptions = Omit<ChannelOptions, 'side' | 'stream'> & {
  openStream: (index: number, attempt: number) => Promise<Stream>
}
type Deadline = { ms: number; signal: AbortSignal }

export const openControl = ({ openStream }: MeetingOptions, attempt: number, deadline: Deadline): Promise<Stream> =>
  inTime(openStream(indexOf(CONTROL), attempt), { ...deadline, what: 'a control stream' }, late => late.reset('too late'))

export const shakeHands = (options: MeetingOptions, stream: Stream, attempt: number): Promise<Channel> =>
  openChannel({ ...options, side: 'source', stream, plan: { ...options.plan, attempt } })

/** The data streams, in the order of countedRoles. */
export async function openData({ plan, openStream }: MeetingOptions, attempt: number): Promise<Stream[]> {
  const opening = countedRoles(plan.streams).map(role => openStream(indexOf(role), attempt))
  const opened = await Promise.allSettled(opening)
  const streams = opened.flatMap(result => (result.status === 'fulfilled' ? [result.value] : []))
  const failed = opened.find(result => result.status === 'rejected')
  if (!failed) return streams
  resetAll(streams, 'opening the streams failed')
  throw failed.reason
}

/** The target's position. MIGRATION_REFUSED when it has given up, which no further meeting changes. */
export async function readHeld(frames: AsyncGenerator<Frame, void>): Promise<MessageOf<'HELD'>> {
  const { value } = await frames.next()
  if (value?.type !== FRAME.MESSAGE) throw new GodwitError('CONNECTION_LOST', 'the target did not answer')
  const message = decodeMessage(value.payload)
  if (message.type === 'REFUSE' || message.type === 'ABORT')
    throw new GodwitError('MIGRATION_REFUSED', `the target aborted: ${message.error.code} ${message.error.message}`, {
      cause: fromBody(message.error),
    })
  if (message.type !== 'HELD') throw new GodwitError('MIGRATION_STATE', `received ${message.type}, expected HELD`)
  return message
}

/** The promise's value before the deadline; `undo` gets a value that comes later. */
export async function inTime<T>(opening: Promise<T>, deadline: Parameters<typeof within>[1], undo: (late: T) => void): Promise<T> {
  return await within(opening, deadline).catch(error => {
    opening.then(undo).catch(() => {})
    throw error
  })
}

export const resetAll = (streams: Stream[], reason: string): void => {
  for (const stream of streams) stream.reset(reason)
}
