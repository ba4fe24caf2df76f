// A later meeting, at the target: a new control stream with its own handshake, on which the source speaks first. What
// it says tells why it has come.
// Always holds: nothing is believed of a meeting before its first word has opened: a handshake that is replayed comes
// no further than that.
import { within } from '../../ops/deadline.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Frame } from '../../wire/frame.ts'
import { FRAME } from '../../wire/types.ts'
import { type Channel, type ChannelOptions, openChannel } from '../channel/channel.ts'
import { decodeMessage, encodeMessage, type Message, type MessageOf } from './messages.ts'

export type TargetMeeting = {
  channel: Channel
  /** What the source says after its first word. */
  frames: AsyncGenerator<Frame, void>
  /** CONTINUE: the link was lost before the commit. GRANT: the VM is handed over. */
  first: MessageOf<'CONTINUE' | 'GRANT'>
}

const FIRST_WORD_MS = 15_000

export async function greetSource(options: Omit<ChannelOptions, 'side'>): Promise<TargetMeeting> {
  const channel = await openChannel({ ...options, side: 'target' })
  const frames = channel.frames()
  try {
    const { value } = await within(frames.next(), {
      ms: FIRST_WORD_MS,
      what: 'the first message of a later meeting',
      code: 'MIGRATION_TIMEOUT',
    })
    if (value?.type !== FRAME.MESSAGE) throw new GodwitError('CONNECTION_LOST', 'the source ended a meeting before its first message')
    const first = decodeMessage(value.payload)
    if (first.type !== 'CONTINUE' && first.type !== 'GRANT')
      throw new GodwitError('MIGRATION_STATE', `${first.type} is not valid as the first message of a later meeting`)
    return { channel, frames, first }
  } catch (error) {
    channel.reset('no first message')
    throw error
  }
}

/** The last word of a meeting. */
export async function answerSource({ channel }: TargetMeeting, answer: Message): Promise<void> {
  await channel.send(FRAME.MESSAGE, encodeMessage(answer))
  await channel.finish()
}
