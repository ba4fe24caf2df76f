// What the gateway knows, as payloads of docs/reference/mqtt.md. Pure.

import type * as schemas from '../../../mqtt/schemas.ts'
import type { MigrationRecord, SiteView } from '../../../wire/admin.ts'
import type { MigrationProgress } from '../../../wire/control.ts'
import type { ErrorBody } from '../../../wire/errors.ts'
import type { z } from '../../../wire/schema.ts'
import type { HandoffView } from '../../handoff/events.ts'
import { PHASES, phaseOf, standardsOf } from '../../handoff/phases.ts'
import { problemOfBody } from '../../handoff/problems.ts'

export const rfc3339 = (unixMs: number): string => new Date(unixMs).toISOString()

/** What the operator wrote down about a site: no node knows it. */
export type SitePlace = { geo?: { lat: number; lon: number } | undefined; zones: string[] }
/** What only the site's link tells. */
type SiteLinkFacts = { incarnation: number; publicKey: Uint8Array; rttMs: number | undefined }

export function birthOf(
  view: SiteView,
  facts: SiteLinkFacts,
  place: SitePlace | undefined,
  { gatewayId, heldBytes }: { gatewayId: string; heldBytes: number },
): z.input<typeof schemas.SiteStateMessage> {
  return {
    online: true,
    timestamp: rfc3339(view.since),
    bdSeq: Math.floor(view.since),
    incarnation: facts.incarnation,
    version: view.version ?? '',
    ...(place?.geo ? { geo: place.geo } : {}),
    zones: place?.zones ?? [],
    capacity: { vcpu: view.host?.vcpus ?? 0, memBytes: (view.host?.memoryFreeBytes ?? 0) + heldBytes },
    endpoints: { gateway: gatewayId, transport: view.transport, pubKey: Buffer.from(facts.publicKey).toString('base64') },
  }
}

type HandoffNotes = { traceparent?: string | undefined }

export function statusMessage(handoff: HandoffView, notes: HandoffNotes = {}): z.input<typeof schemas.Status> {
  const { id, vm, epoch, source, target, phase, updatedAt, untilMs, error } = handoff
  return {
    handoffId: id,
    phase,
    epoch,
    vmId: vm,
    from: source,
    to: target,
    seq: PHASES[phase].seq,
    at: rfc3339(updatedAt),
    ...(untilMs === undefined ? {} : { expiresAt: rfc3339(untilMs) }),
    ...(error && phase !== 'completed' ? { problem: problemOfBody(error) } : {}),
    standards: standardsOf(phase),
    ...(notes.traceparent ? { traceparent: notes.traceparent } : {}),
  }
}

const bits = (bytesPerSecond: number | undefined) => (bytesPerSecond === undefined ? undefined : bytesPerSecond * 8)

export function progressMessage(progress: MigrationProgress, nowMs: number): z.input<typeof schemas.Progress> {
  const { round, bytesSent, bytesTotal, wireBytes, rateBytesPerSecond, dirtyBytesPerSecond, etaMs } = progress
  const predicted = progress['predictedDowntimeMs']
  const fields = {
    round,
    bytesSent,
    bytesTotalEst: bytesTotal,
    wireBytes,
    dirtyBps: bits(dirtyBytesPerSecond),
    throughputBps: bits(rateBytesPerSecond),
  }
  const known = Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined))
  const predictedDowntimeMs = typeof predicted === 'number' && predicted >= 0 ? predicted : null
  return { at: rfc3339(nowMs), ...known, etaMs: etaMs ?? null, predictedDowntimeMs }
}

export type RoundTrips = { rttBeforeMs: number | null; rttAfterMs: number | null }

export function resultMessage(
  record: MigrationRecord,
  { source, rtt, notes = {} }: { source: string; rtt: RoundTrips; notes?: HandoffNotes },
): z.input<typeof schemas.Result> {
  const { migrationId, vm, report, error, createdAt, updatedAt } = record
  const phase = phaseOf(record) as 'completed' | 'failed' | 'cancelled'
  const problem = (body: ErrorBody | undefined) => (body && phase !== 'completed' ? { problem: problemOfBody(body) } : {})
  return {
    specversion: '1.0',
    id: `${migrationId}-${phase}`,
    source,
    type: `handoff.${phase}.v1`,
    subject: vm,
    time: rfc3339(updatedAt),
    datacontenttype: 'application/json',
    ...(notes.traceparent ? { traceparent: notes.traceparent } : {}),
    data: {
      handoffId: migrationId,
      vmId: vm,
      from: record.source,
      to: record.target,
      downtimeMs: report?.downtimeMs ?? null,
      totalMs: report?.totalMs ?? Math.max(0, updatedAt - createdAt),
      bytes: report?.wireBytes ?? null,
      rounds: report?.rounds ?? null,
      ...rtt,
      ...problem(error),
    },
  }
}
