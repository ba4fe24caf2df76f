// Streams that the gateway opens to this node: JOIN begins the other site's end-to-end stream, SERVICE a user's
// connection to a VM. Enters: a connection. Leaves: first frames with their streams, positioned after the frame. Always
// holds: a stream without a valid first frame is reset within its deadline and reaches neither migration nor VM.
import { within } from '../../ops/deadline.ts'
import { createFrameStream, type FrameStream } from '../../transport/frames.ts'
import type { Connection, Stream } from '../../transport/types.ts'
import { Join, ServiceRequest } from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { checkJson } from '../../wire/schema.ts'
import { allow, FRAME } from '../../wire/types.ts'

const FIRST_FRAME_MS = 10_000
const NAMELESS_MAX = 64

export type OnRelayStream = (join: Join, stream: Stream) => void
export type OnServiceStream = (request: ServiceRequest, frames: FrameStream) => void
export type OnStream = {
  onRelayStream: OnRelayStream
  /** Absent: this node has no services. */
  onServiceStream?: OnServiceStream | undefined
  /** Called for any other stream. */
  onBreach?: ((error: GodwitError) => void) | undefined
}

/** Forwards streams until the connection ends. */
export async function acceptStreams(connection: Connection, on: OnStream, log: Log): Promise<void> {
  let nameless = 0
  for (;;) {
    const stream = await connection.acceptStream()
    if (stream === null) return
    if (nameless >= NAMELESS_MAX) {
      stream.reset('too many streams without a first frame')
      continue
    }
    nameless += 1
    handOn(stream, on)
      .catch(error => {
        log.warn('incoming stream rejected', { error })
        const coded = toGodwitError(error)
        if (coded.code.startsWith('FRAME_')) on.onBreach?.(coded)
        stream.reset('not a stream for this node')
      })
      .finally(() => {
        nameless -= 1
      })
  }
}

async function handOn(stream: Stream, { onRelayStream, onServiceStream }: OnStream): Promise<void> {
  const frames = createFrameStream(stream)
  const allowed = onServiceStream ? allow('JOIN', 'SERVICE') : allow('JOIN')
  const frame = await within(frames.next(allowed), { ms: FIRST_FRAME_MS, what: 'first frame of a stream' })
  if (frame === null) throw new GodwitError('FRAME_TRUNCATED', 'the stream ended before its first frame')
  if (frame.type === FRAME.SERVICE) onServiceStream?.(checkJson(ServiceRequest, frame.payload, { what: 'SERVICE frame' }), frames)
  else onRelayStream(checkJson(Join, frame.payload, { what: 'JOIN frame' }), frames.rest())
}
