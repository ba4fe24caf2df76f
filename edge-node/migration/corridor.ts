// The corridor of one migration at its source, with what its parts say to the target and to the story (source.ts).
// Enters: the conversation, ways to note steps and to fail. Leaves: the corridor (outgoing.ts); the manifests that were
// sent, over every meeting in which all streams ended, until one of them gets through.
import { toHex } from '../../crypto/bytes.ts'
import { manifestHash } from '../../crypto/channel/manifest.ts'
import { raceAbort } from '../../ops/deadline.ts'
import type { Plan } from '../../wire/control.ts'
import { type GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { Conversation } from './conversation.ts'
import type { MemoryPath } from './memory-path.ts'
import { createOutgoing, manifestToMessage, type Outgoing, type OutgoingOptions } from './outgoing.ts'
import { isLoss } from './peer.ts'
import type { Timeline } from './report.ts'

type CorridorOptions = {
  memoryPath: MemoryPath
  plan: Plan
  talk: Conversation
  compressionLevel?: number | 'auto' | undefined
  workers?: number | undefined
  /** What the target has of the VM's disks, for pages that have the same content. */
  held: OutgoingOptions['held']
  reached: (step: keyof Timeline) => void
  signal: AbortSignal
  fail: (error: GodwitError) => void
  log: Log
}

export type Corridor = {
  outgoing: Outgoing
  /** Hashes of the manifests that were sent. */
  sent: ReadonlySet<string>
  /** A manifest has got through. */
  allSent: Promise<void>
}

export function createCorridor({
  memoryPath,
  plan,
  talk,
  compressionLevel = 'auto',
  workers = 1,
  held,
  reached,
  signal,
  fail,
  log,
}: CorridorOptions): Corridor {
  const { peer, rootKey } = talk
  const sent = new Set<string>()
  const end = Promise.withResolvers<void>()
  const failUnlessLost = (error: unknown) => {
    const coded = toGodwitError(error)
    if (!isLoss(coded)) fail(coded)
  }
  const outgoing = createOutgoing({
    memoryPath,
    rootKey,
    pageStreams: plan.streams,
    compression: plan.compression,
    level: compressionLevel,
    workers,
    held,
    log,
    onBlocks: blocks => void peer.send({ type: 'PAGES', blocks }).catch(failUnlessLost),
    onRamEnd: () => reached('ramEndMs'),
    onEnd: manifest => {
      reached('endMs')
      sent.add(toHex(manifestHash(manifest)))
      peer.send({ type: 'EOS', attempt: talk.attempt, streams: manifestToMessage(manifest) }).then(end.resolve, failUnlessLost)
    },
    onOpaque: reason => log.warn('unknown part of the QEMU stream: the rest passes unchanged', { reason }),
    onLost: error => talk.onLost(error),
    fail,
  })
  return { outgoing, sent, allSent: raceAbort(end.promise, signal) }
}
