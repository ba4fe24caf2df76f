// What a migration cost. Pure. Times are the source's own clock; what happened at the target comes as durations that
// the target measured, so no two clocks are ever compared. Downtime runs from the guest's stop at the source to the
// target's `cont`: the sum of its parts.
import type { Plan, Report } from '../../wire/control.ts'
import { PAGE_BYTES } from '../../wire/types.ts'
import type { Change } from '../rate/controller.ts'
import type { MessageOf } from './messages.ts'
import type { Outgoing } from './outgoing.ts'

/** performance.now() at the source, ms. */
export type Timeline = {
  startMs: number
  /** The guest stopped. */
  stopMs?: number
  /** QEMU has begun its migration. */
  qemuMs?: number
  /** QEMU had given the last page. */
  ramEndMs?: number
  /** The last byte was handed to the path. */
  endMs?: number
  loadedMs?: number
  committedMs?: number
  runningMs?: number
}

type ReportInput = {
  plan: Plan
  transport: string
  life: { startedAt: number; timeline: Timeline }
  loaded: MessageOf<'LOADED'>
  running: MessageOf<'RUNNING'>
  outgoing: Outgoing
  meter: {
    rounds: number
    rttMs: number
    rateBytesPerSecond: number
    changes: readonly Change[]
    etaError(): { medianRatio: number; worstRatio: number } | null
  }
  disks?: Report['disks']
  /** The guest ran: there was a downtime. */
  hasGuest: boolean
  talk: { wireBytes: number; changeOvers: number; lost: { reconnects: number; awayMs: number } }
}

/** Of a VM that did not run. */
const NO_GUEST = {
  guestBytes: 0,
  deltaBytes: 0,
  pages: { zero: 0, duplicate: 0, unchanged: 0, delta: 0, fromDisk: 0, compressed: 0, raw: 0 },
}
const NOTE_MAX = 1024

const round = (ms: number) => Math.max(0, Math.round(ms * 10) / 10)

/**
 * Parts: `deviceState` is from QEMU's first device byte at the target to the last; `load` is the target QEMU's own time
 * after that; `commit` is LOADED's way back, the durable record and GRANT's way (one RTT and an fsync); `resume` is
 * `cont` there; `finalPages` is the rest: pages, and draining the path.
 */
export function createReport({ plan, transport, life, loaded, running, outgoing, meter, talk, disks, hasGuest }: ReportInput): Report {
  const { timeline } = life
  const { stopMs = timeline.startMs, loadedMs = 0, runningMs = 0 } = timeline
  const stats = outgoing.pipeline?.stats() ?? NO_GUEST
  const halfRttMs = meter.rttMs / 2
  const grantMs = Math.max(0, runningMs - loadedMs - running.resumeMs - halfRttMs)
  const commitMs = halfRttMs + grantMs
  const finalPagesMs = Math.max(0, loadedMs - stopMs - halfRttMs - loaded.stateMs - loaded.loadMs)
  const wireBytes = outgoing.wireBytes + talk.wireBytes
  const ofGuest = (ms: number) => (hasGuest ? round(ms) : null)
  return {
    migrationId: plan.migrationId,
    vm: plan.vm,
    source: plan.source,
    target: plan.target,
    method: plan.method,
    outcome: 'completed',
    startedAt: life.startedAt,
    totalMs: round(runningMs - timeline.startMs),
    downtimeMs: ofGuest(finalPagesMs + loaded.stateMs + loaded.loadMs + commitMs + running.resumeMs),
    downtimeParts: {
      finalPagesMs: ofGuest(finalPagesMs),
      deviceStateMs: ofGuest(loaded.stateMs),
      loadMs: ofGuest(loaded.loadMs),
      commitMs: ofGuest(commitMs),
      resumeMs: ofGuest(running.resumeMs),
    },
    downtimeAskedMs: plan.downtimeMs,
    guestBytes: stats.guestBytes,
    pagesZero: stats.pages.zero,
    pagesDuplicate: stats.pages.duplicate,
    ...(stats.pages.fromDisk > 0 && { pagesFromDisk: stats.pages.fromDisk, bytesFromDisk: stats.pages.fromDisk * PAGE_BYTES }),
    pagesUnchanged: stats.pages.unchanged,
    pagesDelta: stats.pages.delta,
    pagesCompressed: stats.pages.compressed,
    pagesRaw: stats.pages.raw,
    bytesZero: stats.pages.zero * PAGE_BYTES,
    bytesDuplicate: stats.pages.duplicate * PAGE_BYTES,
    bytesUnchanged: stats.pages.unchanged * PAGE_BYTES,
    bytesDelta: stats.pages.delta * PAGE_BYTES,
    deltaBytes: stats.deltaBytes,
    bytesCompressed: stats.pages.compressed * PAGE_BYTES,
    bytesRaw: stats.pages.raw * PAGE_BYTES,
    ...(disks && { disks }),
    wireBytes,
    ratio: hasGuest && wireBytes > 0 ? Math.round((stats.guestBytes / wireBytes) * 100) / 100 : null,
    rounds: meter.rounds,
    rttMs: round(meter.rttMs),
    rateBytesPerSecond: Math.round(meter.rateBytesPerSecond),
    transport,
    streams: plan.streams,
    reconnects: talk.lost.reconnects,
    changeOvers: talk.changeOvers,
    awayMs: round(talk.lost.awayMs),
    etaError: meter.etaError(),
    decisions: [...meter.changes],
    notes: running.startError
      ? [`the VM did not start at the target: ${running.startError.code} ${running.startError.message}`.slice(0, NOTE_MAX)]
      : [],
  }
}
