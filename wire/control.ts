// What a node and the gateway say to each other on the hop (docs/PROTOCOL.md): the shapes of the first frames, and of the RPC's parameters.
// Always holds: every string and list has a limit; an id that passes here is safe in a path, a log line and a topic; the gateway learns
// names, sizes and progress from these, never a VM's specification or content. Unknown extra fields are dropped, but for progress and
// report, which newer nodes may widen and an older gateway hands on as they are.
import { z } from './schema.ts'
import { ID_PATTERN, NAME_PATTERN } from './types.ts'

export const NONCE_BYTES = 32
/** Page streams of one migration are numbered 2..INDEX_MAX: 0 is the end-to-end control stream, 1 the skeleton. */
export const INDEX_MAX = 255
export const STREAMS_MAX = 128
/** Meetings of one migration's sites are numbered; the prologue holds a u32. */
const ATTEMPT_MAX = 0xffff_ffff
const VMS_MAX = 1024
export const SERVICES_MAX = 16
const MIGRATIONS_MAX = 1024
const HANDOVERS_MAX = 256

/** Name of a site, a VM or the gateway. */
export const Id = z.string().regex(NAME_PATTERN, 'expected 1 to 64 of a-z, 0-9 and -')
/** A migration, or the gateway's session for it: 128 random bits. */
export const MigrationId = z.string().regex(ID_PATTERN, 'expected 32 hexadecimal digits')

const text = (max: number) => z.string().max(max)
/** Text for people: what is too long is cut, for a long message must not cost the outcome that it comes with. */
const prose = (max: number) => z.string().transform(value => value.slice(0, max))
const count = z.number().int().nonnegative().max(Number.MAX_SAFE_INTEGER)
const amount = z.number().nonnegative()
const base64 = (max: number) =>
  z
    .string()
    .max(max)
    .regex(/^[A-Za-z0-9+/]*={0,2}$/, 'expected base64')
const Nonce = z.string().regex(/^[A-Za-z0-9+/]{43}=$/, `expected ${NONCE_BYTES} bytes in base64`)
/** A certificate's canonical bytes in base64. */
export const CertificateText = base64(8192).min(1)

export const ErrorBody = z.object({ code: text(64), message: prose(4096), hint: prose(4096).optional() })

// --- First frames -----------------------------------------------------------------------------------------------------------------

/** `control`: the node's one link. `data`: a further connection of the same process, for relay streams only. */
export const Purpose = z.enum(['control', 'data'])
export type Purpose = z.infer<typeof Purpose>

/** Node -> gateway. `incarnation` names the node's process: Unix ms of its start, so that a restarted node replaces its former self. */
export const Hello = z.object({
  version: z.number().int(),
  purpose: Purpose,
  incarnation: count,
  nonce: Nonce,
  certificate: CertificateText,
})
export type Hello = z.infer<typeof Hello>

/** Gateway -> node: the gateway proves itself first, so a node never signs for a stranger. */
export const Challenge = z.object({ version: z.number().int(), nonce: Nonce, certificate: CertificateText, signature: base64(256).min(1) })
export type Challenge = z.infer<typeof Challenge>

/** Node -> gateway. */
export const Auth = z.object({ signature: base64(256).min(1) })
export type Auth = z.infer<typeof Auth>

/** Gateway -> node: accepted. */
export const Welcome = z.object({ gateway: Id, site: Id, version: text(64) })
export type Welcome = z.infer<typeof Welcome>

/** First frame of a relay stream; all after it is opaque to the gateway. */
export const Join = z.object({ sessionId: MigrationId, index: count.max(INDEX_MAX), attempt: count.min(1).max(ATTEMPT_MAX) })
export type Join = z.infer<typeof Join>

/**
 * First frame of a service stream, gateway -> node: a user's connection to a service of a VM. The node says the same when the guest's side is open
 * (then raw bytes follow, both ways), or ERROR. Bytes that the gateway sends before the answer reach the guest only after it.
 */
export const ServiceRequest = z.object({ vm: Id, service: Id })
export type ServiceRequest = z.infer<typeof ServiceRequest>

/** First frame of an enrolment stream, and its answer. `request` is the site's signed certificate request. */
export const Enrol = z.object({ token: text(256).min(1), request: base64(8192).min(1) })
export type Enrol = z.infer<typeof Enrol>
export const EnrolReply = z.discriminatedUnion('status', [
  z.object({ status: z.literal('pending') }),
  z.object({ status: z.literal('issued'), certificate: CertificateText }),
])
export type EnrolReply = z.infer<typeof EnrolReply>

// --- What a site says of itself ---------------------------------------------------------------------------------------------------

export const Compression = z.enum(['zstd', 'off'])
export type Compression = z.infer<typeof Compression>

export const VmState = z.enum(['stopped', 'running', 'paused', 'migrating', 'incoming', 'failed'])
export type VmState = z.infer<typeof VmState>

export const VmFacts = z.object({
  name: Id,
  state: VmState,
  epoch: count,
  memoryBytes: count,
  vcpus: count,
  /** How this VM's pages may travel; `zstd` when it says nothing. */
  compression: Compression.optional(),
  /** Its wishes to the placement policy: what its specification says under `policy`. */
  policy: z.record(text(64), z.json()).optional(),
  /** Names of what it serves to users through the gateway. */
  services: z.array(Id).max(SERVICES_MAX).optional(),
})
export type VmFacts = z.infer<typeof VmFacts>

export const HostFacts = z.object({
  qemuVersion: text(64).optional(),
  accelerators: z.array(text(32)).max(8),
  memoryFreeBytes: count,
  diskFreeBytes: count,
  vcpus: count,
})
export type HostFacts = z.infer<typeof HostFacts>

// --- Migration --------------------------------------------------------------------------------------------------------------------

export const Method = z.enum(['live', 'cold'])
export type Method = z.infer<typeof Method>
export const Side = z.enum(['source', 'target'])
export type Side = z.infer<typeof Side>
export const Outcome = z.enum(['completed', 'failed', 'cancelled'])
export type Outcome = z.infer<typeof Outcome>

/** What both sites must agree on before a byte moves; its hash is bound into the end-to-end handshake. */
export const Plan = z.object({
  version: z.literal(1),
  migrationId: MigrationId,
  vm: Id,
  /** The epoch at which the source owns the VM. */
  epoch: count,
  source: Id,
  target: Id,
  method: Method,
  /** The pause that the operator accepts. */
  downtimeMs: count.min(1).max(3_600_000),
  /** It is the operator's wish, not the default: it is kept, or the migration refused. */
  downtimeAsked: z.boolean().optional(),
  /** Page streams, beside control and skeleton. */
  streams: count.min(1).max(STREAMS_MAX),
  attempt: count.min(1),
  compression: Compression,
  /** Unix ms. */
  createdAt: count,
})
export type Plan = z.infer<typeof Plan>

/** `site.state`: the whole state, sent on connecting and on every change; idempotent. */
export const SiteState = z.object({
  site: Id,
  incarnation: count,
  version: text(64),
  host: HostFacts,
  vms: z.array(VmFacts).max(VMS_MAX),
  /** Migrations this node is busy with. */
  migrations: z.array(MigrationId).max(MIGRATIONS_MAX),
  /** Of VMs that this site has handed over and not heard of: it asks the target until it is answered, whatever a gateway remembers of the migration. */
  handovers: z.array(Plan).max(HANDOVERS_MAX).optional(),
})
export type SiteState = z.infer<typeof SiteState>

/** `migration.prepare`, to the target. */
export const PrepareParams = z.object({ plan: Plan, sourceCertificate: CertificateText })
export type PrepareParams = z.infer<typeof PrepareParams>
/** `migration.start`, to the source. */
export const StartParams = z.object({ plan: Plan, targetCertificate: CertificateText })
export type StartParams = z.infer<typeof StartParams>
/** `migration.cancel`, to either. */
export const CancelParams = z.object({ migrationId: MigrationId })
export type CancelParams = z.infer<typeof CancelParams>

/**
 * `prestage.needs`, to the source: what the VM needs of a host, for this target alone. The answer is opaque to the gateway. `holdId` is the handoff's, and
 * becomes the migration's if the VM is moved there.
 */
export const NeedsParams = z.object({
  holdId: MigrationId,
  vm: Id,
  epoch: count,
  method: Method,
  target: Id,
  targetCertificate: CertificateText,
})
export type NeedsParams = z.infer<typeof NeedsParams>
export const NeedsResult = z.object({ needs: base64(87_384).min(1) })
export type NeedsResult = z.infer<typeof NeedsResult>
export const HOLD_MS_MAX = 600_000
/** `prestage.hold`, to the target: preflight these needs, and keep room for the VM for so long. Again with the same VM: anew. */
export const HoldParams = z.object({
  holdId: MigrationId,
  vm: Id,
  epoch: count,
  method: Method,
  source: Id,
  sourceCertificate: CertificateText,
  needs: base64(87_384).min(1),
  holdMs: count.min(1).max(HOLD_MS_MAX),
})
export type HoldParams = z.infer<typeof HoldParams>
export const HoldResult = z.object({ memoryBytes: count })
export type HoldResult = z.infer<typeof HoldResult>
/** `prestage.release`, to the target: the room is not needed any more. Harmless when there is none. */
export const ReleaseParams = z.object({ holdId: MigrationId })
export type ReleaseParams = z.infer<typeof ReleaseParams>

/** `phase` that tells the gateway that the source has handed the VM over: from here the migration only goes forward. */
export const PHASE_COMMITTED = 'committed'

/** `migration.progress` (a notification; any may be lost). Usual phases: preflight, handshake, precopy, switchover, committed, resuming. */
export const MigrationProgress = z.looseObject({
  migrationId: MigrationId,
  side: Side,
  phase: text(32),
  round: count.optional(),
  /** Guest bytes of this round (or of all, for a cold migration), and how many of them are sent. */
  bytesTotal: count.optional(),
  bytesSent: count.optional(),
  wireBytes: count.optional(),
  rateBytesPerSecond: amount.optional(),
  dirtyBytesPerSecond: amount.optional(),
  etaMs: amount.nullish(),
  /** How often the link was lost and the transfer went on, and how long it was away, ms. */
  reconnects: count.optional(),
  awayMs: amount.optional(),
})
export type MigrationProgress = z.infer<typeof MigrationProgress>

/** The report of a migration: `godwit migrate --json` prints it as it is. Units are in the names. */
export const Report = z.looseObject({
  migrationId: MigrationId,
  vm: Id,
  source: Id,
  target: Id,
  method: Method,
  outcome: Outcome,
  /** Unix ms. */
  startedAt: count,
  totalMs: amount,
  /** From the guest's last instruction at the source to its first at the target; null when the target never ran it. */
  downtimeMs: amount.nullable(),
  downtimeParts: z.looseObject({
    finalPagesMs: amount.nullable(),
    deviceStateMs: amount.nullable(),
    loadMs: amount.nullable(),
    commitMs: amount.nullable(),
    resumeMs: amount.nullable(),
  }),
  guestBytes: count,
  pagesZero: count,
  pagesDuplicate: count,
  pagesUnchanged: count,
  /** Rewritten pages that travelled as their difference to what the target held. */
  pagesDelta: count.optional(),
  pagesCompressed: count,
  pagesRaw: count,
  /** Guest bytes by class: pages of the class x 4096. */
  bytesZero: count,
  bytesDuplicate: count,
  bytesUnchanged: count,
  bytesDelta: count.optional(),
  /** What those were made of before compression. */
  deltaBytes: count.optional(),
  bytesCompressed: count,
  bytesRaw: count,
  /** All that went into the relay streams, both directions, sealed. */
  wireBytes: count,
  /** guestBytes / wireBytes. */
  ratio: amount.nullable(),
  rounds: count,
  transport: text(32),
  streams: count,
  /** How often the link was lost and the transfer went on, and how long it was away in all, ms. */
  reconnects: count.optional(),
  awayMs: amount.optional(),
  /** How often it left connections that still carried for others: better ones, or for new keys. */
  changeOvers: count.optional(),
  notes: z.array(prose(1024)).max(64),
  /** Wire bytes a second that the path carried, at the end. */
  rateBytesPerSecond: amount.optional(),
  /** What was expected when it began; null where nothing was known of the path. */
  prediction: z.object({ totalMs: amount, downtimeMs: amount, wireBytes: amount }).nullish(),
  /** How far the times to go that were told were from the end as it came, as shares of the whole. */
  etaError: z.object({ medianRatio: amount, worstRatio: amount }).nullish(),
  /** What the controller decided, when (ms since the first sample), and why. */
  decisions: z
    .array(z.object({ atMs: amount, what: text(32), value: text(64), reason: prose(256) }))
    .max(64)
    .optional(),
})
export type Report = z.infer<typeof Report>

/** `migration.result`: sent by each side until it is answered; idempotent. */
export const MigrationResult = z.object({
  migrationId: MigrationId,
  side: Side,
  outcome: Outcome,
  report: Report.optional(),
  error: ErrorBody.optional(),
})
export type MigrationResult = z.infer<typeof MigrationResult>

/** `migration.predict`, to the site where a VM runs: what moving it would take. Nothing is moved. */
export const PredictParams = z.object({ vm: Id, target: Id, downtimeMs: count.min(1).max(3_600_000) })
export type PredictParams = z.infer<typeof PredictParams>

/** The answer; `godwit plan --json` prints it as it is. */
export const Prediction = z.looseObject({
  vm: Id,
  target: Id,
  methods: z
    .array(
      z.object({
        method: text(32),
        /** The downtime asked for can be kept. */
        isPossible: z.boolean(),
        totalMs: amount.nullable(),
        downtimeMs: amount.nullable(),
        wireBytes: amount.nullable(),
        throttlePercent: amount,
      }),
    )
    .max(8),
  recommended: text(32),
  reason: prose(512),
})
export type Prediction = z.infer<typeof Prediction>

/** Method names of the hop's RPC with the schema of their parameters. */
export const METHODS = {
  'site.state': SiteState,
  'migration.progress': MigrationProgress,
  'migration.result': MigrationResult,
  'migration.prepare': PrepareParams,
  'migration.start': StartParams,
  'migration.cancel': CancelParams,
  'migration.predict': PredictParams,
  'prestage.needs': NeedsParams,
  'prestage.hold': HoldParams,
  'prestage.release': ReleaseParams,
} as const
