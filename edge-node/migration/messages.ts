// What source and target say to each other inside the sealed control stream (MESSAGE frames, JSON). The gateway never
// sees these.
// Always holds: a message is checked against its schema before anything acts on it; an unknown type is FRAME_MALFORMED.
import { ErrorBody, Id, INDEX_MAX } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { parseJson, z } from '../../wire/schema.ts'

const hash = z.string().regex(/^[0-9a-f]{64}$/, 'expected 32 bytes in hex')
const count = z.number().int().nonnegative()
const ms = z.number().nonnegative()

/**
 * What the VM needs at the target (vm/preflight.ts reads it): specification, versions, digests of its files. Checked
 * there before a byte moves. `copies`: the target may say by COPY what it holds of the disks.
 */
const Offer = z.object({ type: z.literal('OFFER'), needs: z.unknown(), copies: z.literal(true).optional() })

const Message = z.discriminatedUnion('type', [
  Offer,
  z.object({ type: z.literal('ACCEPT') }),
  /** Target, before ACCEPT: chunks of a local disk that it has besides the disk's base (disks/held.ts). */
  z.object({ type: z.literal('COPY'), disk: count.max(15), runs: count.max(5000), body: z.base64().max(56_000) }),
  /**
   * Either side, while it reads files to name their content: the offer, or the answer to it, takes that long. At least
   * every 5 s.
   */
  z.object({ type: z.literal('HASHING'), file: z.string().max(256), bytesDone: count, bytesTotal: count }),
  /** Target, before its answer: it accepts the VM once the source has sent it these images (images/). */
  z.object({ type: z.literal('IMAGES'), names: z.array(z.string().max(128)).min(1).max(8) }),
  z.object({ type: z.literal('REFUSE'), error: ErrorBody }),
  /** RAM blocks that travel as pages; their index is the block's number in batches. */
  z.object({ type: z.literal('PAGES'), blocks: z.array(z.object({ name: z.string().max(256), bytes: count })).max(16) }),
  /**
   * Target: its QEMU has read the whole stream and loaded it. Lets a source end its streams that could not see the end
   * itself.
   */
  z.object({ type: z.literal('SHUT'), code: count }),
  /** Source: all streams have ended over the meeting of this attempt; this is what went into each. */
  z.object({
    type: z.literal('EOS'),
    attempt: count.min(1),
    streams: z
      .array(z.object({ index: count.max(INDEX_MAX), records: count, digest: hash }))
      .max(INDEX_MAX + 1)
      .refine(streams => new Set(streams.map(({ index }) => index)).size === streams.length, 'a stream named twice'),
  }),
  /**
   * Source, of a VM with local disks: the roots of all of them, when the guest stands still and all chunks have been
   * sent.
   */
  z.object({ type: z.literal('DISKS'), roots: z.array(hash).min(1).max(8) }),
  z.object({ type: z.literal('LOADED'), manifestHash: hash, stateMs: ms, loadMs: ms }),
  z.object({ type: z.literal('GRANT'), vm: Id, epoch: count, migrationId: z.string().max(64), manifestHash: hash }),
  /** The VM is the target's. `startError`: it is stopped there, and could not be started as the plan wants. */
  z.object({ type: z.literal('RUNNING'), resumeMs: ms, startError: ErrorBody.optional() }),
  z.object({ type: z.literal('ABORT'), error: ErrorBody }),
  /**
   * Source: the first word of a later meeting, before the commit. `taken`: of the target's messages (peer.ts), how many
   * have come in all.
   */
  z.object({ type: z.literal('CONTINUE'), taken: count }),
  /**
   * Target: the answer. `frames`: of each data stream, how many are taken; absent: all has arrived, and the VM is
   * loaded.
   */
  z.object({ type: z.literal('HELD'), taken: count, frames: z.array(count).max(INDEX_MAX).optional() }),
])

export type Message = z.infer<typeof Message>
export type MessageOf<T extends Message['type']> = Extract<Message, { type: T }>

export const encodeMessage = (message: Message): Uint8Array => new TextEncoder().encode(JSON.stringify(message))

/** Throws FRAME_MALFORMED. */
export function decodeMessage(payload: Uint8Array): Message {
  try {
    return Message.parse(parseJson(payload, { what: 'MESSAGE frame' }))
  } catch (error) {
    throw new GodwitError('FRAME_MALFORMED', 'a control message between the nodes does not match its type', { cause: error })
  }
}
