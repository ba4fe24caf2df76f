// Watches a running migration: samples it for the controller (steering.ts), tells the operator how far it is, ends it
// when it stalls or QEMU has given it up.
// Enters: QEMU's counters, the gate, the pipeline. Leaves: progress messages twice a second, samples ten times a
// second, a failure on a stall.
import type { MigrationProgress, Plan } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { PAGE_BYTES } from '../../wire/types.ts'
import type { Bulk } from '../link/link.ts'
import type { QmpClient } from '../qmp/client.ts'
import { type MigrationInfo, qmpCommands } from '../qmp/commands.ts'
import type { Change } from '../rate/controller.ts'
import { Eta } from '../rate/eta.ts'
import type { Conversation } from './conversation.ts'
import type { Outgoing } from './outgoing.ts'
import type { Timeline } from './report.ts'
import { createSteering } from './steering.ts'

const SAMPLE_MS = 100
const PROGRESS_MS = 500
/** No acknowledgement for this long while bytes are on the way: the path or the target is gone. */
export const STALL_MS = 30_000

export type MeterOptions = {
  plan: Plan
  qmp: QmpClient
  talk: Pick<Conversation, 'gate' | 'lost' | 'carriers' | 'changeOver'>
  outgoing: Outgoing
  /** Fixed zstd level, or 'auto': the controller's. */
  compressionLevel?: number | 'auto' | undefined
  workers?: number | undefined
  transport: string
  bulk?: (() => Bulk | null) | undefined
  /** What of the guest's memory is not zero, by samples, once that is known. */
  contentBytes?: (() => number | undefined) | undefined
  timeline: Timeline
  onProgress: (progress: MigrationProgress) => void
  signal: AbortSignal
  fail: (error: GodwitError) => void
  log: Log
}

export type Meter = {
  /** Rounds that QEMU began (MIGRATION_PASS). */
  readonly rounds: number
  readonly rateBytesPerSecond: number
  readonly rttMs: number
  /** What was decided, and why (rate/controller.ts). */
  readonly changes: readonly Change[]
  /** How wrong the times to go were that were told, as shares of the whole. */
  etaError(): { medianRatio: number; worstRatio: number } | null
  stop(): void
}

export function createMeter(options: MeterOptions): Meter {
  const { qmp, timeline, plan, log } = options
  const { gate } = options.talk
  const commands = qmpCommands(qmp)
  const steering = createSteering({ ...options, commands, gate: () => options.talk.gate })
  let rounds = 0
  const eta = new Eta()
  let busy = false
  let progressAtMs = 0
  const offs = [
    qmp.on('MIGRATION_PASS', () => {
      rounds += 1
    }),
    qmp.on('STOP', () => {
      timeline.stopMs ??= performance.now()
    }),
  ]
  const tick = async () => {
    if (gate.stalledMs() > STALL_MS) {
      return options.fail(new GodwitError('MIGRATION_TIMEOUT', `${plan.target} has received nothing for ${STALL_MS / 1000} s`))
    }
    // Before `migrate` was answered QEMU's status is that of an earlier migration.
    const isOurs = timeline.qemuMs !== undefined
    const info = await commands.queryMigrate({ timeoutMs: 2_000 }).catch(() => undefined)
    if (isOurs && (info?.status === 'failed' || info?.status === 'cancelled')) {
      const why = info.errorText ? `: ${info.errorText}` : ''
      return options.fail(new GodwitError('MIGRATION_FAILED', `the source's QEMU ended its migration (${info.status})${why}`))
    }
    await steering.step(performance.now(), info, timeline.stopMs !== undefined)
    if (!info || performance.now() - progressAtMs < PROGRESS_MS) return
    progressAtMs = performance.now()
    options.onProgress(progressOf(options, info, Math.max(1, rounds), eta))
  }
  const timer = setInterval(() => {
    if (busy) return
    busy = true
    tick()
      .catch(error => log.debug('sampling failed', { error }))
      .finally(() => {
        busy = false
      })
  }, SAMPLE_MS)
  const stop = () => {
    clearInterval(timer)
    for (const off of offs.splice(0)) off()
  }
  options.signal.addEventListener('abort', stop, { once: true })
  return {
    get rounds() {
      return Math.max(1, rounds)
    },
    get rateBytesPerSecond() {
      return gate.flight.estimate().rateBytesPerSecond
    },
    get rttMs() {
      return gate.flight.estimate().rttMinMs
    },
    etaError: () => eta.error(timeline.startMs, timeline.runningMs ?? performance.now()),
    get changes() {
      return steering.changes
    },
    stop,
  }
}

function progressOf(
  { plan, talk: { gate, lost }, outgoing, timeline, contentBytes }: MeterOptions,
  { ram }: MigrationInfo,
  round: number,
  eta: Eta,
): MigrationProgress {
  const path = gate.flight.estimate()
  const stats = outgoing.pipeline?.stats()
  const total = ram?.totalBytes ?? 0
  const remaining = Math.max(0, ram?.remainingBytes ?? 0)
  const dirty = (ram?.dirtyPagesPerSecond ?? 0) * (ram?.pageBytes ?? 4096)
  const free = stats ? (stats.pages.zero + stats.pages.unchanged) * PAGE_BYTES : 0
  return {
    migrationId: plan.migrationId,
    side: 'source',
    phase: timeline.stopMs === undefined ? 'precopy' : 'switchover',
    round,
    bytesTotal: total,
    bytesSent: Math.max(0, total - remaining),
    wireBytes: outgoing.wireBytes,
    rateBytesPerSecond: Math.round(path.rateBytesPerSecond),
    dirtyBytesPerSecond: Math.round(dirty),
    goodputBytesPerSecond: Math.round(path.goodputBytesPerSecond),
    rttMs: Math.round(path.rttMs),
    queueMs: Math.round(path.queueMs),
    inFlightBytes: path.inFlightBytes,
    reconnects: lost.reconnects,
    awayMs: Math.round(lost.awayMs),
    etaMs: rounded(
      eta.step({
        ...{ atMs: performance.now(), rounds: round, remainingBytes: remaining, guestBytes: stats?.guestBytes ?? 0, freeBytes: free },
        ...{ contentBytes: contentBytes?.(), dirtyBytesPerSecond: dirty, rttMs: path.rttMs, isStopped: timeline.stopMs !== undefined },
      }),
    ),
  }
}

const rounded = (ms: number | null): number | null => (ms === null ? null : Math.round(ms))
