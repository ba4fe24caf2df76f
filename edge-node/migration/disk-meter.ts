// Watches the migration of a VM that does not run: tells the operator how far its disks are, ends it when it stalls.
// Enters: the gate, the figures of the disks. Leaves: progress messages twice a second, a failure on a stall.
import type { MigrationProgress, Plan } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { CHUNK_BYTES } from '../disks/chunk-tree.ts'
import type { DiskFigures } from '../disks/sender.ts'
import type { Conversation } from './conversation.ts'
import type { Outgoing } from './outgoing.ts'
import { type Meter, STALL_MS } from './progress.ts'

type DiskMeterOptions = {
  plan: Plan
  talk: Pick<Conversation, 'gate' | 'lost'>
  outgoing: Pick<Outgoing, 'wireBytes'>
  figures: () => DiskFigures | undefined
  onProgress: (progress: MigrationProgress) => void
  signal: AbortSignal
  fail: (error: GodwitError) => void
}

const PROGRESS_MS = 500

export function createDiskMeter({ plan, talk, outgoing, figures, onProgress, signal, fail }: DiskMeterOptions): Meter {
  const path = () => talk.gate.flight.estimate()
  const begunMs = performance.now()
  const tick = () => {
    if (talk.gate.stalledMs() > STALL_MS)
      return fail(new GodwitError('MIGRATION_TIMEOUT', `${plan.target} has received nothing for ${STALL_MS / 1000} s`))
    const now = figures()
    if (!now) return
    const { done, total } = diskBytes(now)
    onProgress({
      migrationId: plan.migrationId,
      side: 'source',
      phase: 'disks',
      bytesTotal: total,
      bytesSent: done,
      wireBytes: outgoing.wireBytes,
      rateBytesPerSecond: Math.round(path().rateBytesPerSecond),
      rttMs: Math.round(path().rttMs),
      reconnects: talk.lost.reconnects,
      awayMs: Math.round(talk.lost.awayMs),
      // What is left goes as fast as what has gone: chunks that the target holds, and zeros, cost only their reading.
      etaMs: done === 0 ? null : Math.round(((total - done) / done) * (performance.now() - begunMs)),
    })
  }
  const timer = setInterval(tick, PROGRESS_MS)
  const stop = () => clearInterval(timer)
  signal.addEventListener('abort', stop, { once: true })
  return {
    rounds: 1,
    get rateBytesPerSecond() {
      return path().rateBytesPerSecond
    },
    get rttMs() {
      return path().rttMinMs
    },
    changes: [],
    etaError: () => null,
    stop,
  }
}

/** Looked at, and all that is to be looked at as far as that is known. */
export const diskBytes = ({ sentChunks, zeroChunks, heldChunks, pendingChunks }: DiskFigures) => {
  const done = (sentChunks + zeroChunks + heldChunks) * CHUNK_BYTES
  return { done, total: done + pendingChunks * CHUNK_BYTES }
}
