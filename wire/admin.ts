// What the gateway's admin API takes and gives (docs/PROTOCOL.md): shared by the gateway, the command line and tests.
// Always holds: requests are strict (an unknown field is an error that names it: a typo must not pass silently); answers may grow fields.
import {
  CertificateText,
  ErrorBody,
  HOLD_MS_MAX,
  HostFacts,
  Id,
  Method,
  MigrationId,
  MigrationProgress,
  Outcome,
  Plan,
  Report,
  STREAMS_MAX,
  VmFacts,
} from './control.ts'
import { z } from './schema.ts'

export const DOWNTIME_DEFAULT_MS = 300
export const STREAMS_DEFAULT = 4

/** POST /v1/migrations. */
export const MigrationRequest = z.strictObject({
  vm: Id,
  to: Id,
  method: Method.optional(),
  downtimeMs: z.number().int().min(1).max(3_600_000).optional(),
  streams: z.number().int().min(1).max(STREAMS_MAX).optional(),
})
export type MigrationRequest = z.infer<typeof MigrationRequest>

/** POST /v1/plans: what moving a VM would take. The answer is a Prediction (control.ts). */
export const PlanRequest = z.strictObject({ vm: Id, to: Id, downtimeMs: z.number().int().min(1).max(3_600_000).optional() })
export type PlanRequest = z.infer<typeof PlanRequest>

/** POST /v1/prestages: ask a target whether it could take a VM, and keep room there. `maxBytes`: what asking may send. */
export const PrestageRequest = z.strictObject({
  vm: Id,
  to: Id,
  method: Method.optional(),
  holdMs: z.number().int().min(1000).max(HOLD_MS_MAX).optional(),
  maxBytes: z.number().int().min(1).optional(),
})
export type PrestageRequest = z.infer<typeof PrestageRequest>

/** GET /v1/prestages. `used`: a migration goes on under its id. `wasted`: it has lapsed, or the VM went elsewhere. `outcome` is null until the end. */
export const PrestageRecord = z.object({
  handoffId: MigrationId,
  vm: Id,
  epoch: z.number(),
  source: Id,
  target: Id,
  method: Method,
  /** Unix ms. */
  createdAt: z.number(),
  updatedAt: z.number(),
  untilMs: z.number(),
  /** What the asking has sent, and the VM's memory, for which room is held. */
  wireBytes: z.number(),
  memoryBytes: z.number(),
  outcome: z.enum(['used', 'wasted', 'refused', 'cancelled']).nullable(),
  error: ErrorBody.optional(),
})
export type PrestageRecord = z.infer<typeof PrestageRecord>

/** PUT /v1/vms/:vm/pin. */
export const PinRequest = z.strictObject({ pinned: z.boolean() })

/** INTENT: written, nothing sent. PREPARING: the target is asked. STREAMING: the source is told. COMMIT_SEEN: handed over, forward only. */
export const MigrationState = z.enum(['INTENT', 'PREPARING', 'STREAMING', 'COMMIT_SEEN', 'DONE', 'ABORTED'])
export type MigrationState = z.infer<typeof MigrationState>

/** GET /v1/migrations/:id. `outcome` is null until the end. */
export const MigrationRecord = z.object({
  migrationId: MigrationId,
  vm: Id,
  source: Id,
  target: Id,
  method: Method,
  state: MigrationState,
  outcome: Outcome.nullable(),
  error: ErrorBody.optional(),
  report: Report.optional(),
  progress: MigrationProgress.optional(),
  plan: Plan,
  /** Unix ms. */
  createdAt: z.number(),
  updatedAt: z.number(),
})
export type MigrationRecord = z.infer<typeof MigrationRecord>

/** A line of GET /v1/migrations/:id/events; `end` is the last one. */
export const MigrationEvent = z.discriminatedUnion('event', [
  z.object({ event: z.literal('progress'), progress: MigrationProgress }),
  z.object({ event: z.literal('state'), state: MigrationState }),
  z.object({ event: z.literal('end'), migration: MigrationRecord }),
])
export type MigrationEvent = z.infer<typeof MigrationEvent>

export const SiteView = z.object({
  site: Id,
  online: z.boolean(),
  /** Engine of the control connection, and how many connections carry data. */
  transport: z.string().nullable(),
  dataConnections: z.number(),
  rttMs: z.number().nullable(),
  version: z.string().nullable(),
  /** Unix ms: since when it is online, or when it was last seen. */
  since: z.number(),
  certificateNotAfter: z.number().nullable(),
  host: HostFacts.nullable(),
  vms: z.array(z.string()),
})
export type SiteView = z.infer<typeof SiteView>

export const VmView = VmFacts.extend({ site: Id, online: z.boolean() })
export type VmView = z.infer<typeof VmView>

/** GET /v1/services: the stable addresses, and where their VMs are now. */
export const ServiceView = z.object({
  vm: Id,
  service: Id,
  listen: z.object({ host: z.string(), port: z.number() }),
  /** Null while no site can be asked for it. */
  site: Id.nullable(),
  /** Connections now; of these, those that wait for the VM. */
  open: z.number(),
  waiting: z.number(),
  /** Since the gateway began; `refused`: never reached the VM. */
  connections: z.number(),
  refused: z.number(),
})
export type ServiceView = z.infer<typeof ServiceView>

/** GET /v1/status. */
export const GatewayStatus = z.object({
  gateway: z.object({
    id: Id,
    version: z.string(),
    startedAt: z.number(),
    listeners: z.array(z.object({ engine: z.string(), host: z.string(), port: z.number() })),
    relay: z.object({ streams: z.number(), bytes: z.number() }),
  }),
  sites: z.array(SiteView),
  vms: z.array(VmView),
  migrations: z.array(MigrationRecord),
})
export type GatewayStatus = z.infer<typeof GatewayStatus>

/** POST /v1/enrolments/tokens. */
export const TokenRequest = z.strictObject({ site: Id })
export const TokenReply = z.object({ site: Id, token: z.string(), expiresAt: z.number() })
export type TokenReply = z.infer<typeof TokenReply>

/** GET /v1/enrolments. `request` is what the operator signs offline, after comparing the fingerprint with what the site shows. */
export const EnrolmentView = z.object({
  site: Id,
  status: z.enum(['waiting', 'pending', 'issued']),
  request: z.string().nullable(),
  fingerprint: z.string().nullable(),
  /** Unix ms. */
  expiresAt: z.number(),
})
export type EnrolmentView = z.infer<typeof EnrolmentView>

/** PUT /v1/enrolments/:site. */
export const EnrolmentUpload = z.strictObject({ certificate: CertificateText })
