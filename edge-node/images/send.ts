// One attempt to send an image, from top to bottom: what it is, the list of its chunks, then the chunks that the other
// site lacks.
// Enters: a channel, the image with its leaves, a way to open page streams. Leaves: the image at the other site, or a
// coded error.
// Always holds: only chunks that were asked for are read and sent; what is in memory is bounded by the queue and the
// transport.
import { open } from 'node:fs/promises'
import { sleep } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import type { ImagePlan } from '../../wire/control.ts'
import { GodwitError, hasCode } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { indexOf, pages } from '../../wire/roles.ts'
import { FRAME } from '../../wire/types.ts'
import type { Channel } from '../channel/channel.ts'
import type { SealedWriter } from '../channel/sealed-stream.ts'
import { BATCH_CHUNKS_MAX, regionOf } from '../disks/batch.ts'
import { ChunkSet } from '../disks/chunk-set.ts'
import { CHUNK_BYTES } from '../disks/chunk-tree.ts'
import type { Leaves } from '../disks/leaves.ts'
import { createBatcher } from '../disks/sender.ts'
import { createPayloadQueue } from '../pages/payload-queue.ts'
import { type CopyMessageOf, LEAVES_MAX } from './messages.ts'
import type { Talk } from './talk.ts'

const REASON_MS = 500

type SendOptions = {
  plan: ImagePlan
  channel: Channel
  talk: Talk
  /** The raw file. */
  path: string
  image: Omit<CopyMessageOf<'IMAGE'>, 'type'>
  leaves: Leaves
  openStream: (index: number) => Promise<Stream>
  signal: AbortSignal
  log: Log
}

export async function sendImage(options: SendOptions): Promise<void> {
  const { talk, image, leaves } = options
  await talk.send({ type: 'IMAGE', ...image })
  if ((await talk.expect(['LIST', 'THERE'])).type === 'THERE') return
  for (const { first, hashes } of leaves.runs(LEAVES_MAX))
    await talk.send({ type: 'LEAVES', first, hashes: Buffer.from(hashes).toString('base64') })
  await talk.send({ type: 'LISTED' })
  const wanted = await readWanted(options)
  // What the other side says from here on ends the sending, too: it may refuse in the middle.
  const there = talk.expect(['THERE'])
  there.catch(() => {})
  try {
    await Promise.race([sendChunks(options, wanted), there])
  } catch (error) {
    // A reset is usually a symptom: the other side's own reason may arrive a little later.
    if (hasCode(error, 'STREAM_RESET')) await Promise.race([there, sleep(REASON_MS)])
    throw error
  }
  await there
}

async function readWanted({ talk, leaves }: SendOptions): Promise<ChunkSet> {
  const wanted = new ChunkSet(leaves.chunks)
  for (;;) {
    const { runs, isLast } = await talk.expect(['WANT'])
    for (const [first, count] of runs) {
      if (first + count > leaves.chunks) throw new GodwitError('FRAME_MALFORMED', `chunk ${first + count} of ${leaves.chunks}`)
      for (let i = 0; i < count; i++) wanted.add(first + i)
    }
    if (isLast) return wanted
  }
}

async function sendChunks(options: SendOptions, wanted: ChunkSet): Promise<void> {
  const { plan, path, image, signal, log } = options
  const writers = await openWriters(options)
  const queue = createPayloadQueue({
    ...{ streams: writers.length, compression: plan.compression, streamOf: regionOf, log },
    send: (stream, payload) => writers[stream]!.send(FRAME.DISK, payload),
  })
  try {
    await using file = await open(path)
    const batch = createBatcher(0, queue.send)
    for (const { first, count } of wanted.runs(BATCH_CHUNKS_MAX)) {
      signal.throwIfAborted()
      const bytes = Buffer.allocUnsafe(Math.min(image.sizeBytes, (first + count) * CHUNK_BYTES) - first * CHUNK_BYTES)
      const { bytesRead } = await file.read(bytes, 0, bytes.length, first * CHUNK_BYTES).catch(cause => {
        throw new GodwitError('DISK_IO', `${path}: cannot be read at byte ${first * CHUNK_BYTES}`, { cause })
      })
      if (bytesRead < bytes.length) throw new GodwitError('IMAGE_CHANGED', `${path} became shorter while it was sent`)
      for (let i = 0; i < count; i++) await batch.add(first + i, bytes.subarray(i * CHUNK_BYTES, (i + 1) * CHUNK_BYTES))
    }
    await batch.flush()
    await queue.drained()
    await Promise.all(writers.map(writer => writer.finish()))
  } finally {
    await queue.close()
  }
}

async function openWriters({ plan, channel, openStream }: SendOptions): Promise<SealedWriter[]> {
  const roles = Array.from({ length: plan.streams }, (_, n) => pages(n))
  const streams = await Promise.all(roles.map(role => openStream(indexOf(role))))
  return streams.map((stream, n) => channel.writer(stream, pages(n)))
}
