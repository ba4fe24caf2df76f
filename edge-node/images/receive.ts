// One attempt to receive an image: the other half of send.ts.
// Enters: a channel, page streams as they come, the image store. Leaves: the image, or a coded error that the other
// side is told.
// Always holds: what counts is what incoming-image.ts has checked; a source that sends nothing for STILL_MS is gone,
// and what came stays for the next attempt.
import { within } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import type { ImagePlan } from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import { roleAt } from '../../wire/roles.ts'
import type { Channel } from '../channel/channel.ts'
import type { ChunkSet } from '../disks/chunk-set.ts'
import type { Image, Images } from '../disks/images.ts'
import type { ImageFigures, IncomingImage } from '../disks/incoming-image.ts'
import { inflate, loadZstd } from '../pages/compress.ts'
import { type CopyMessageOf, RUNS_MAX } from './messages.ts'
import type { Talk } from './talk.ts'

const STILL_MS = 60_000
const SAY_MS = 1_000

type ReceiveOptions = {
  plan: ImagePlan
  channel: Channel
  talk: Talk
  images: Images
  image: CopyMessageOf<'IMAGE'>
  /** Page streams, from now on. */
  onStream: (take: (index: number, stream: Stream) => void) => void
  onFigures: (figures: ImageFigures) => void
  /** Right before the image becomes one of this site's. */
  check: () => Promise<void>
  signal: AbortSignal
}

export async function receiveImage(options: ReceiveOptions): Promise<Image> {
  const {
    plan,
    talk,
    images,
    check,
    onFigures,
    image: { type: _, ...offer },
  } = options
  const zstd = await loadZstd()
  let figures: ImageFigures = { bytesTotal: 0, bytesDone: 0, bytesReceived: 0 }
  const timer = setInterval(() => {
    onFigures(figures)
    const { bytesDone, bytesTotal } = figures
    talk.send({ type: 'HAVE', bytesDone, bytesTotal }).catch(() => {})
  }, SAY_MS)
  try {
    const image = await images.receive({ ...offer, copiedFrom: plan.source }, async incoming => {
      figures = incoming.figures
      await fill(options, incoming, (frame, bytes) => inflate(zstd, frame, bytes))
      await check()
    })
    await talk.send({ type: 'THERE' })
    return image
  } finally {
    clearInterval(timer)
  }
}

async function fill(options: ReceiveOptions, incoming: IncomingImage, inflating: (frame: Uint8Array, bytes: number) => Uint8Array) {
  const { talk, signal } = options
  await talk.send({ type: 'LIST' })
  for (;;) {
    const message = await talk.expect(['LEAVES', 'LISTED'])
    if (message.type === 'LISTED') break
    incoming.list(message.first, Buffer.from(message.hashes, 'base64'))
  }
  const missing = await incoming.missing({ signal })
  const failed = Promise.withResolvers<never>()
  failed.promise.catch(() => {})
  const taken = takeStreams(options, incoming, inflating, error => failed.reject(error))
  await sendWanted(talk, missing)
  // The source says nothing more, but why it gives up.
  talk.expect([]).catch(error => failed.reject(error))
  let before = -1
  const whole = Promise.race([incoming.whole.then(() => true as const), failed.promise])
  whole.catch(() => {})
  for (;;) {
    const isWhole = await within(whole, { ms: STILL_MS, what: 'the next chunk', signal }).catch(error => {
      if (!(error instanceof GodwitError) || error.code !== 'TIMEOUT') throw error
      if (taken.bytes === before) throw new GodwitError('CONNECTION_LOST', `no byte of the image came for ${STILL_MS / 1000} s`)
      before = taken.bytes
      return false
    })
    if (isWhole) return
  }
}

/** Reads the page streams. Errors of what they carry end the copy; a stream that is lost does as well. */
function takeStreams(
  { plan, channel, onStream }: ReceiveOptions,
  incoming: IncomingImage,
  inflating: (frame: Uint8Array, bytes: number) => Uint8Array,
  fail: (error: unknown) => void,
): { readonly bytes: number } {
  const taken = { bytes: 0 }
  const seen = new Set<number>()
  const read = async (index: number, stream: Stream) => {
    const role = roleAt(index)
    if (role.kind !== 'pages' || role.n >= plan.streams || seen.has(index)) return stream.reset('not a stream of this copy')
    seen.add(index)
    const onReceived = (bytes: number) => {
      taken.bytes += bytes
    }
    for await (const { payload } of channel.reader(stream, role, ['DISK'], onReceived).frames()) await incoming.apply(payload, inflating)
  }
  onStream((index, stream) => void read(index, stream).catch(error => fail(toGodwitError(error))))
  return taken
}

async function sendWanted(talk: Talk, missing: ChunkSet): Promise<void> {
  let runs: [number, number][] = []
  for (const { first, count } of missing.runs()) {
    runs.push([first, count])
    if (runs.length < RUNS_MAX) continue
    await talk.send({ type: 'WANT', runs, isLast: false })
    runs = []
  }
  await talk.send({ type: 'WANT', runs, isLast: true })
}
