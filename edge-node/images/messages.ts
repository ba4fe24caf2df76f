// What two sites say to each other while one sends an image to the other, inside the sealed control stream (MESSAGE
// frames, JSON). The gateway never sees these.
//
//   IMAGE -> (THERE | LIST) -> LEAVES.. LISTED -> WANT.. -> DISK frames on the page streams -> THERE
//
// Always holds: a message is checked against its schema before anything acts on it; an unknown type is FRAME_MALFORMED.

import { ErrorBody, type ImagePlan } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { parseJson, z } from '../../wire/schema.ts'
import type { ChannelPlan } from '../channel/channel.ts'
import { IMPORT_FORMATS } from '../disks/tools.ts'

/** Both sites keep 32 bytes for each 64 KiB of the image in memory. */
export const IMAGE_BYTES_MAX = 1024 ** 4
/** Of one LEAVES message, and runs of one WANT: a message has at most 64 KiB. */
export const LEAVES_MAX = 1024
export const RUNS_MAX = 2048

const hash = z.string().regex(/^[0-9a-f]{64}$/, 'expected 32 bytes in hex')
const count = z.number().int().nonnegative()

const CopyMessage = z.discriminatedUnion('type', [
  /** Source: what it sends. */
  z.object({
    type: z.literal('IMAGE'),
    name: z.string().regex(/^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$/),
    root: hash,
    sizeBytes: count.min(1).max(IMAGE_BYTES_MAX),
    source: z.string().max(300),
    sourceFormat: z.enum(IMPORT_FORMATS),
    sourceSha256: hash,
  }),
  /** Target: the list of chunks, please. */
  z.object({ type: z.literal('LIST') }),
  /** Source: SHA-256 leaves of chunks from `first` on, base64. Chunks that no message names are zeros. */
  z.object({ type: z.literal('LEAVES'), first: count, hashes: z.string().max((LEAVES_MAX * 32 * 4) / 3 + 4) }),
  z.object({ type: z.literal('LISTED') }),
  /** Target: chunks that it lacks, as first and count, ascending; `isLast`: all of them are named. */
  z.object({ type: z.literal('WANT'), runs: z.array(z.tuple([count, count.min(1)])).max(RUNS_MAX), isLast: z.boolean() }),
  /** Target, at least every 5 s: how much of the image it has. */
  z.object({ type: z.literal('HAVE'), bytesDone: count, bytesTotal: count }),
  /** Target: the image is there, whole and durable. */
  z.object({ type: z.literal('THERE') }),
  /** Either side: it ends here, and why. */
  z.object({ type: z.literal('REFUSE'), error: ErrorBody }),
])
export type CopyMessage = z.infer<typeof CopyMessage>
export type CopyMessageOf<T extends CopyMessage['type']> = Extract<CopyMessage, { type: T }>

export const encodeCopyMessage = (message: CopyMessage): Uint8Array => new TextEncoder().encode(JSON.stringify(message))

/** FRAME_MALFORMED. */
export function decodeCopyMessage(payload: Uint8Array): CopyMessage {
  try {
    return CopyMessage.parse(parseJson(payload, { what: 'MESSAGE frame' }))
  } catch (error) {
    throw new GodwitError('FRAME_MALFORMED', 'a message about an image does not match its type', { cause: error })
  }
}

/** What the end-to-end channel of a copy is bound to: all of the plan, in the places that a migration's has. */
export const sessionPlanOf = (plan: ImagePlan): ChannelPlan & ImagePlan => ({ ...plan, vm: 'image', epoch: 0, attempt: 1 })
