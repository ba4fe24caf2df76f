// Every payload that goes over MQTT, as a schema (docs/CONTROL.md). The AsyncAPI document is made from these, and every message is checked by them.
// Always holds: times are RFC 3339, durations ms, rates bit/s, sizes bytes, levels dBm; every string and list has a limit; commands are strict
// (a mistyped field must not pass), measurements may carry more than we read: it is dropped.
import { Id, MigrationId } from '../../../wire/control.ts'
import { z } from '../../../wire/schema.ts'
import { PARAMETERS } from './topics.ts'

const count = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER)
const amount = z.number().nonnegative()
const share = z.number().min(0).max(1)
const text = (max: number) => z.string().max(max)
export const Time = z.iso.datetime({ offset: true }).max(40)
const Traceparent = z.string().regex(/^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$/)
const UeKey = z.string().regex(PARAMETERS.ueKey.pattern)
const Base64 = (bytes: number) =>
  z
    .string()
    .max(Math.ceil(bytes / 3) * 4)
    .regex(/^[A-Za-z0-9+/]+={0,2}$/)

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

// --- What the gateway says of itself and of the sites --------------------------------------------------------------------------------

const death = { timestamp: Time, bdSeq: count }
/** Also the Will: once it says offline, nobody maintains what the gateway said of its sites. */
export const GatewayState = z.discriminatedUnion('online', [
  z.object({ online: z.literal(true), ...death, gatewayId: Id, version: text(64), startedAt: Time }),
  z.object({ online: z.literal(false), ...death }),
])
/** A death counts for births whose bdSeq is not above its own. */
export const SiteState = z.discriminatedUnion('online', [
  z.object({
    online: z.literal(true),
    ...death,
    incarnation: count,
    version: text(64),
    geo: z.object({ lat: z.number().min(-90).max(90), lon: z.number().min(-180).max(180) }).optional(),
    zones: z.array(text(64)).max(64),
    capacity: z.object({ vcpu: count, memBytes: count.meta({ description: 'free now, plus what the VMs there hold' }) }),
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
  rttMs: amount.nullable(),
  jitterMs: amount.nullish(),
  lossRatio: share.nullish(),
  availableBps: amount.nullish(),
  /** The gateway through which the way goes, where a gateway says it: round trip of both links, goodput of the last migration. */
  via: Id.optional(),
  sampledAt: Time,
})
export const GatewayProblem = z.object({ at: Time, topic: text(512), commandId: text(64).nullable(), problem: Problem })

// --- What is measured of users ---------------------------------------------------------------------------------------------------------

export const Latency = z.object({
  seq: count,
  vmId: Id,
  targetSite: Id,
  rttMs: amount,
  jitterMs: amount.optional(),
  lossRatio: share.optional(),
  window: z.object({ ms: amount, samples: count }).partial().optional(),
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
})
export const Location = z.object({
  seq: count.optional(),
  lat: z.number().min(-90).max(90),
  lon: z.number().min(-180).max(180),
  accuracyM: amount.optional(),
  speedMps: amount.optional(),
  headingDeg: z.number().min(0).max(360).optional(),
})
export type Latency = z.infer<typeof Latency>
export type Radio = z.infer<typeof Radio>
export type Location = z.infer<typeof Location>
export type SiteLink = z.infer<typeof SiteLink>

// --- VMs and handoffs --------------------------------------------------------------------------------------------------------------------

export const Placement = z.object({
  siteId: Id,
  epoch: count,
  since: Time,
  ueKeys: z.array(UeKey).max(8),
  policy: z.object({ pinned: z.boolean() }),
})

export const Phase = z.enum(['proposed', 'prestaging', 'precopy', 'switchover', 'completed', 'failed', 'cancelled'])
export type Phase = z.infer<typeof Phase>

/** The standards' words for a phase (docs/CONTROL.md). */
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
  seq: count.meta({ description: 'rises with the phase; a repeated status has the same' }),
  at: Time,
  /** prestaging: until then room is held. */
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

// --- Commands -----------------------------------------------------------------------------------------------------------------------------

export const CommandId = z.string().regex(/^[A-Za-z0-9_-]{8,64}$/, 'expected 8 to 64 of A-Z, a-z, 0-9, _ and -')
export const KeyName = Id
const Constraints = z.strictObject({
  maxDowntimeMs: z.number().int().min(1).max(3_600_000).optional(),
  maxBytes: count.min(1).optional().meta({ description: 'cancelled when more has gone over the wire before the switchover' }),
})
const command = {
  commandId: CommandId,
  vmId: Id,
  ueKey: UeKey.optional(),
  fromSite: Id.optional(),
  reason: z.string().min(1).max(256),
  expectedEpoch: count.meta({ description: 'epoch of the placement that the commander saw' }),
  notAfter: Time,
  replyTo: text(256).optional().meta({ description: 'a reply topic of this tenant' }),
  traceparent: Traceparent.optional(),
  sig: z.strictObject({
    alg: z.literal('Ed25519'),
    key: KeyName,
    value: Base64(64).meta({ description: 'over the topic, a line feed, and the canonical JSON (RFC 8785) of the payload without sig' }),
  }),
}
export const COMMANDS = {
  start: z.strictObject({ ...command, toSite: Id, method: z.enum(['live', 'cold']).optional(), constraints: Constraints.optional() }),
  prestage: z.strictObject({ ...command, toSite: Id, constraints: Constraints.optional() }),
  cancel: z.strictObject({ ...command, handoffId: MigrationId.optional() }),
  pin: z.strictObject({ ...command, pinned: z.boolean() }),
}
export type Command = { [A in keyof typeof COMMANDS]: { action: A } & z.infer<(typeof COMMANDS)[A]> }[keyof typeof COMMANDS]
export type StartCommand = z.infer<typeof COMMANDS.start>

export const Reply = z.object({
  commandId: CommandId.nullable(),
  status: z.enum(['accepted', 'rejected', 'duplicate']),
  at: Time,
  handoffId: MigrationId.optional(),
  problem: Problem.optional(),
})
export type Reply = z.infer<typeof Reply>
