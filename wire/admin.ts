// Requests and responses of the gateway's admin API (docs/reference/protocol.md), shared by the gateway, the command
// line and tests. Always holds: requests are strict (an unknown field is an error that names it, so a typo is found);
// responses may get more fields.
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
  RevocationsParams,
  SignedCommand,
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
  /** Of a stopped VM (method cold): it starts at the target. Default: it stays stopped. */
  start: z.boolean().optional(),
  /** The signed command for this request, for a source that requires one. */
  command: SignedCommand.optional(),
})
export type MigrationRequest = z.infer<typeof MigrationRequest>
export const MigrationStarted = z.object({ migrationId: MigrationId })

/** POST /v1/plans: predict the cost of a migration. The response is a Prediction (control.ts). */
export const PlanRequest = z.strictObject({ vm: Id, to: Id, downtimeMs: z.number().int().min(1).max(3_600_000).optional() })
export type PlanRequest = z.infer<typeof PlanRequest>

/**
 * POST /v1/prestages: check whether a target can run a VM, and reserve memory there. `maxBytes`: limit of the bytes
 * that this may send.
 */
export const PrestageRequest = z.strictObject({
  vm: Id,
  to: Id,
  method: Method.optional(),
  holdMs: z.number().int().min(1000).max(HOLD_MS_MAX).optional(),
  maxBytes: z.number().int().min(1).optional(),
  command: SignedCommand.optional(),
})
export type PrestageRequest = z.infer<typeof PrestageRequest>

/**
 * GET /v1/prestages. `used`: a migration continues under its id. `wasted`: it expired, or the VM moved to another site.
 * `outcome` is null until the end.
 */
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
  /** Bytes that the check sent, and the VM's memory, which is reserved. */
  wireBytes: z.number(),
  memoryBytes: z.number(),
  outcome: z.enum(['used', 'wasted', 'refused', 'cancelled']).nullable(),
  error: ErrorBody.optional(),
})
export type PrestageRecord = z.infer<typeof PrestageRecord>

/** DELETE /v1/sites/:site: names of VMs that are free again, and migrations that ended with it. */
export const ForgottenSite = z.object({ site: Id, vms: z.array(Id), migrations: z.array(MigrationId) })
export type ForgottenSite = z.infer<typeof ForgottenSite>

/** PUT /v1/vms/:vm/home: the VM belongs to this site. */
export const HomeRequest = z.strictObject({ site: Id })
export const HomeReply = z.object({ vm: Id, site: Id })

/** PUT /v1/vms/:vm/pin. */
export const PinRequest = z.strictObject({ pinned: z.boolean() })
export const PinReply = z.object({ vm: Id, pinned: z.boolean() })
/** GET /v1/pins. `by`: who set the pin; `at`: Unix ms. */
export const PinView = z.object({ vm: Id, by: z.string(), at: z.number() })

/** GET /v1/vms/:vm/explain. `from`, `userSite` and `target` are null if unknown. */
export const VmExplanation = z.looseObject({
  vm: Id,
  /** Of a monotonic clock. */
  atMs: z.number(),
  policy: z.string(),
  action: z.enum(['stay', 'prepare', 'move']),
  from: Id.nullable(),
  userSite: Id.nullable(),
  target: Id.nullable(),
  /** The first gate that keeps the VM where it is; `none` for a move. */
  gate: z.string(),
  because: z.string(),
  inputs: z.looseObject({}),
  thresholds: z.looseObject({}),
  gates: z.array(
    z.object({
      gate: z.string(),
      isOpen: z.boolean(),
      rule: z.string(),
      value: z.number().nullable(),
      limit: z.number().nullable(),
      unit: z.string(),
    }),
  ),
  lastMove: z.object({ from: Id, to: Id, because: z.string() }).nullable(),
})

/**
 * INTENT: recorded, nothing sent. PREPARING: the request to the target is sent. STREAMING: the source has started.
 * COMMIT_SEEN: handed over; no way back.
 */
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

const PAGE_MAX = 1000
const STATES = MigrationState.options.join('|')

/** GET /v1/migrations. */
export const MigrationsQuery = z.strictObject({
  limit: z.coerce.number().int().min(1).max(PAGE_MAX).optional().describe('maximum number of entries; default 100'),
  cursor: z
    .string()
    .regex(/^[0-9]{1,16}-[0-9a-f]{32}$/, 'expected `next` of an earlier page')
    .optional()
    .describe('`next` of an earlier page: those after it'),
  vm: Id.optional().describe('only those of this VM'),
  state: z
    .string()
    .regex(new RegExp(`^(${STATES})(,(${STATES}))*$`), `expected comma-separated states: ${STATES.replaceAll('|', ', ')}`)
    .transform(text => text.split(',') as MigrationState[])
    .optional()
    .describe('only migrations in these states, comma-separated'),
})
export type MigrationsQuery = z.infer<typeof MigrationsQuery>
/** Newest first. `next`: the cursor of the next page; null: there is none. */
export const MigrationsPage = z.object({ migrations: z.array(MigrationRecord), next: z.string().nullable() })
export type MigrationsPage = z.infer<typeof MigrationsPage>

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

/** `isHome`: the VM's name belongs to this site; reports of other sites about this name are ignored. */
export const VmView = VmFacts.extend({ site: Id, online: z.boolean(), isHome: z.boolean().optional() })
export type VmView = z.infer<typeof VmView>

/** GET /v1/services: the stable addresses, and the current sites of their VMs. */
export const ServiceView = z.object({
  vm: Id,
  service: Id,
  listen: z.object({ host: z.string(), port: z.number() }),
  /** Null while no site can serve it. */
  site: Id.nullable(),
  /** Open connections, and how many of them wait for the VM. */
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

/**
 * GET /v1/enrolments. The operator signs `request` offline, after comparing the fingerprint with the one of the site.
 */
export const EnrolmentView = z.object({
  site: Id,
  status: z.enum(['waiting', 'pending', 'issued', 'lapsed']),
  request: z.string().nullable(),
  fingerprint: z.string().nullable(),
  /** Unix ms. */
  expiresAt: z.number(),
})
export type EnrolmentView = z.infer<typeof EnrolmentView>

/** GET /v1/renewals: certificates to renew. The operator checks and signs `request` (godwit root renew). */
export const RenewalView = z.object({
  role: z.string(),
  id: Id,
  request: z.string(),
  status: z.enum(['pending', 'issued']),
  /** Unix seconds; of the certificate to renew. */
  notAfter: z.number(),
})
export type RenewalView = z.infer<typeof RenewalView>

/** GET /v1/revocations: the current list of the gateway; null: none. */
export const RevocationsView = z.object({ number: z.number().nullable(), ageSeconds: z.number().nullable(), list: z.string().nullable() })
export type RevocationsView = z.infer<typeof RevocationsView>

/** PUT /v1/revocations. The response contains the number of the current list. */
export const RevocationsUpload = z.strictObject({ list: RevocationsParams.shape.list })
export const RevocationsReply = z.object({ number: z.number() })

/** PUT /v1/enrolments/:site. */
export const EnrolmentUpload = z.strictObject({ certificate: CertificateText })
