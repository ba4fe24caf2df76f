// Every payload over MQTT as a schema (docs/reference/mqtt.md). The AsyncAPI document is generated from these, and
// every message is checked by them. Always holds: times are RFC 3339, durations ms, rates bit/s, sizes bytes, levels
// dBm; every string and list has a limit; commands are strict (a mistyped field is an error); unknown fields of
// measurements are dropped.
import { Base64, CommandId, Signature, Time, Traceparent, UeKey } from '../wire/command.ts'
import { Id, MigrationId } from '../wire/control.ts'
import { z } from '../wire/schema.ts'

export { COMMANDS, type Command, CommandId, Signature } from '../wire/command.ts'

const count = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER)
const amount = z.number().nonnegative()
const share = z.number().min(0).max(1)
const text = (max: number) => z.string().max(max)
/** Longer round trips are rejected. */
const milliseconds = z.number().nonnegative().max(3_600_000)
const bitsPerSecond = z.number().nonnegative().max(1e15)

/** RFC 9457, with our stable code. */
export const Problem = z.object({
  type: text(128).meta({ description: 'urn:godwit:problem:CODE' }),
  title: text(256),
  status: z.number().int().min(100).max(599),
  detail: text(4096),
  code: text(64),
  hint: text(1024).optional(),
})
export type Problem = z.infer<typeof Problem>

// --- State of the gateway and the sites ---

const death = { timestamp: Time, bdSeq: count }
/** Also the Will: after offline nobody maintains the gateway's messages about its sites. */
export const GatewayState = z.discriminatedUnion('online', [
  z.object({ online: z.literal(true), ...death, gatewayId: Id, version: text(64), startedAt: Time }),
  z.object({ online: z.literal(false), ...death }),
])
/** An offline message applies to online messages whose bdSeq is not above its own. */
export const SiteStateMessage = z.discriminatedUnion('online', [
  z.object({
    online: z.literal(true),
    ...death,
    incarnation: count,
    version: text(64),
    geo: z.object({ lat: z.number().min(-90).max(90), lon: z.number().min(-180).max(180) }).optional(),
    zones: z.array(text(64)).max(64),
    capacity: z.object({ vcpu: count, memBytes: count.meta({ description: 'free memory plus the memory of the VMs at the site' }) }),
    endpoints: z.object({ gateway: Id, transport: text(32).nullable(), pubKey: Base64(32) }),
  }),
  z.object({ online: z.literal(false), ...death }),
])
export const SiteTelemetry = z.object({
  seq: count,
  at: Time,
  free: z.object({ memBytes: count, diskBytes: count }),
  activeMigrations: count,
  ingressBps: amount,
  egressBps: amount,
})
export const SiteLink = z.object({
  rttMs: milliseconds.nullable(),
  jitterMs: milliseconds.nullish(),
  lossRatio: share.nullish(),
  availableBps: bitsPerSecond.nullish(),
  /** The gateway on the path, in messages of a gateway: round trip of both links, goodput of the last migration. */
  via: Id.optional(),
  sampledAt: Time,
  sig: Signature.optional(),
})
export const GatewayProblem = z.object({ at: Time, topic: text(512), commandId: text(64).nullable(), problem: Problem })

// --- Measurements of users ---

/** Time of the measurement; required if it is signed. */
const measured = { at: Time.optional(), sig: Signature.optional() }
export const Latency = z.object({
  seq: count,
  vmId: Id,
  targetSite: Id,
  rttMs: milliseconds,
  jitterMs: milliseconds.optional(),
  lossRatio: share.optional(),
  window: z.object({ ms: amount, samples: count }).partial().optional(),
  ...measured,
})
const cell = {
  nrcgi: text(64).optional(),
  ecgi: text(64).optional(),
  rsrpDbm: z.number().min(-200).max(50),
  rsrqDb: z.number().min(-100).max(100).optional(),
  sinrDb: z.number().min(-100).max(100).optional(),
}
export const Radio = z.object({
  seq: count.optional(),
  trigger: text(32),
  serving: z.object(cell),
  neighbours: z.array(z.object(cell)).max(32),
  hoStatus: text(64).optional(),
  ...measured,
})
export const Location = z.object({
  seq: count.optional(),
  lat: z.number().min(-90).max(90),
  lon: z.number().min(-180).max(180),
  accuracyM: amount.optional(),
  speedMps: amount.optional(),
  headingDeg: z.number().min(0).max(360).optional(),
  ...measured,
})
export type Latency = z.infer<typeof Latency>
export type Radio = z.infer<typeof Radio>
export type Location = z.infer<typeof Location>
export type SiteLink = z.infer<typeof SiteLink>

// --- VMs and handoffs ---

export const Placement = z.object({
  siteId: Id,
  epoch: count,
  since: Time,
  ueKeys: z.array(UeKey).max(8),
  policy: z.object({ pinned: z.boolean() }),
})

export const Phase = z.enum(['proposed', 'prestaging', 'precopy', 'switchover', 'completed', 'failed', 'cancelled'])
export type Phase = z.infer<typeof Phase>

/** The standards' terms for a phase (docs/reference/mqtt.md). */
export const Standards = {
  mec021: z.object({
    mobilityStatus: z.enum(['INTERHOST_MOVEOUT_TRIGGERED', 'INTERHOST_MOVEOUT_COMPLETED', 'INTERHOST_MOVEOUT_FAILED']).optional(),
    contextTransferState: z.enum(['NOT_TRANSFERRED', 'USER_CONTEXT_TRANSFER_COMPLETED']).optional(),
  }),
  acr: z.array(text(64)).min(1).max(4).meta({ description: '3GPP TS 23.558 / 29.558: application context relocation' }),
  mec010: z.object({ target: text(64).optional(), source: text(64).optional() }),
}

export const Status = z.object({
  handoffId: MigrationId,
  phase: Phase,
  epoch: count,
  vmId: Id,
  from: Id,
  to: Id,
  seq: count.meta({ description: 'increases with each phase; a repeated status keeps its value' }),
  at: Time,
  /** prestaging: end of the reservation. */
  expiresAt: Time.optional(),
  problem: Problem.optional(),
  standards: z.object(Standards),
  traceparent: Traceparent.optional(),
})
export const Progress = z.object({
  at: Time,
  round: count.optional(),
  bytesSent: count.optional(),
  bytesTotalEst: count.optional(),
  wireBytes: count.optional(),
  dirtyBps: amount.optional(),
  throughputBps: amount.optional(),
  etaMs: amount.nullable(),
  predictedDowntimeMs: amount.nullable(),
})
/** A CloudEvent 1.0 in structured mode. */
export const Result = z.object({
  specversion: z.literal('1.0'),
  id: text(128),
  source: text(256),
  type: z.enum(['handoff.completed.v1', 'handoff.failed.v1', 'handoff.cancelled.v1']),
  subject: Id,
  time: Time,
  datacontenttype: z.literal('application/json'),
  traceparent: Traceparent.optional(),
  data: z.object({
    handoffId: MigrationId,
    vmId: Id,
    from: Id,
    to: Id,
    downtimeMs: amount.nullable(),
    totalMs: amount,
    bytes: count.nullable(),
    rounds: count.nullable(),
    rttBeforeMs: amount.nullable(),
    rttAfterMs: amount.nullable(),
    problem: Problem.optional(),
  }),
})

// --- Commands: wire/command.ts ---

export const Reply = z.object({
  commandId: CommandId.nullable(),
  status: z.enum(['accepted', 'rejected', 'duplicate']),
  at: Time,
  handoffId: MigrationId.optional(),
  problem: Problem.optional(),
})
export type Reply = z.infer<typeof Reply>
