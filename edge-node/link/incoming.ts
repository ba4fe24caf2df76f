// Streams that the gateway opens towards this node: each begins with JOIN and is then the other site's end-to-end stream.
// Enters: a connection. Leaves: (join, stream) pairs, the stream standing at its first opaque byte.
// Always holds: a stream that says nothing, or something else than JOIN, is reset within its deadline and never reaches the migration.
import { within } from '../../ops/deadline.ts'
import { createFrameStream } from '../../transport/frames.ts'
import type { Connection, Stream } from '../../transport/types.ts'
import { Join } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { checkJson } from '../../wire/schema.ts'
import { allow } from '../../wire/types.ts'

const FIRST_FRAME_MS = 10_000
const NAMELESS_MAX = 64

export type OnRelayStream = (join: Join, stream: Stream) => void

/** Hands on relay streams until the connection ends. */
export async function acceptRelayStreams(connection: Connection, onRelayStream: OnRelayStream, log: Log): Promise<void> {
  let nameless = 0
  for (;;) {
    const stream = await connection.acceptStream()
    if (stream === null) return
    if (nameless >= NAMELESS_MAX) {
      stream.reset('too many streams without a first frame')
      continue
    }
    nameless += 1
    readJoin(stream)
      .then(({ join, rest }) => onRelayStream(join, rest))
      .catch(error => {
        log.warn('an incoming stream was refused', { error })
        stream.reset('not a relay stream')
      })
      .finally(() => {
        nameless -= 1
      })
  }
}

async function readJoin(stream: Stream): Promise<{ join: Join; rest: Stream }> {
  const frames = createFrameStream(stream)
  const frame = await within(frames.next(allow('JOIN')), { ms: FIRST_FRAME_MS, what: 'first frame of a stream' })
  if (frame === null) throw new GodwitError('FRAME_TRUNCATED', 'a stream without a first frame')
  return { join: checkJson(Join, frame.payload, { what: 'JOIN frame' }), rest: frames.rest() }
}
