// Messages between a node and the gateway (docs/reference/protocol.md): the first frames, and the parameters of the
// RPC. Always holds: every string and list has a limit; an accepted id is safe in a path, a log line and a topic; the
// gateway learns names, sizes and progress from these, never a VM's specification or content. Unknown fields are
// dropped, except in progress and report, which newer nodes may extend and an older gateway forwards unchanged.
import { z } from './schema.ts'
import { ID_PATTERN, NAME_PATTERN } from './types.ts'
import { Version, VersionRange } from './versions.ts'

export const NONCE_BYTES = 32
/** Of the relay streams of one migration (roles.ts). */
export const INDEX_MAX = 255
export const STREAMS_MAX = 128
/** Maximum number of a meeting of a migration; the prologue has a u32 for it. */
const ATTEMPT_MAX = 0xffff_ffff
const VMS_MAX = 1024
export const SERVICES_MAX = 16
/** Of a site to its gateway, beside its link. */
export const DATA_CONNECTIONS_MAX = 16
const MIGRATIONS_MAX = 1024
const HANDOVERS_MAX = 256

/** Name of a site, a VM or the gateway. */
export const Id = z.string().regex(NAME_PATTERN, 'expected 1 to 64 of a-z, 0-9 and -')
/** A migration, or the gateway's session for it: 128 random bits. */
export const MigrationId = z.string().regex(ID_PATTERN, 'expected 32 hexadecimal digits')

const text = (max: number) => z.string().max(max)
/** Text for people: long text is cut, so that it never causes the loss of the outcome that contains it. */
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

// --- First frames ---

/** `control`: the node's one link. `data`: a further connection of the same process, for relay streams only. */
export const Purpose = z.enum(['control', 'data'])
export type Purpose = z.infer<typeof Purpose>

/**
 * Node -> gateway. `incarnation` identifies the process of the node: Unix ms of its start, so a restarted node replaces
 * its predecessor.
 */
export const Hello = z.object({
  /** The lowest link version that the node supports, and the highest where it is another (versions.ts). */
  version: Version,
  versionMax: Version.optional(),
  purpose: Purpose,
  incarnation: count,
  nonce: Nonce,
  certificate: CertificateText,
})
export type Hello = z.infer<typeof Hello>

/**
 * Gateway -> node: the gateway proves itself first, so a node never signs for an unknown peer. `version`: the link
 * version of this connection.
 */
export const Challenge = z.object({ version: Version, nonce: Nonce, certificate: CertificateText, signature: base64(256).min(1) })
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
 * First frame of a service stream, gateway -> node: a user's connection to a service of a VM. The node answers with the
 * same frame when the guest's side is open (then raw bytes follow in both directions), or with ERROR. Bytes that the
 * gateway sends before the answer reach the guest only after it.
 */
export const ServiceRequest = z.object({ vm: Id, service: Id })
export type ServiceRequest = z.infer<typeof ServiceRequest>

/**
 * First frame of an enrolment stream: the gateway answers with a Challenge, signed over this frame, before the site
 * sends its token.
 */
export const EnrolHello = z.object({ version: Version, versionMax: Version.optional(), nonce: Nonce })
export type EnrolHello = z.infer<typeof EnrolHello>

/** Second frame of an enrolment stream, and its answer. `request` is the site's signed certificate request. */
export const Enrol = z.object({ token: text(256).min(1), request: base64(8192).min(1) })
export type Enrol = z.infer<typeof Enrol>
export const EnrolReply = z.discriminatedUnion('status', [
  z.object({ status: z.literal('pending') }),
  z.object({ status: z.literal('issued'), certificate: CertificateText }),
])
export type EnrolReply = z.infer<typeof EnrolReply>

// --- Reports of a site ---

const Compression = z.enum(['zstd', 'off'])

export const VmState = z.enum(['stopped', 'running', 'paused', 'suspended', 'migrating', 'incoming', 'failed'])
export type VmState = z.infer<typeof VmState>

const WISHES_LENGTH_MAX = 4096
/** Longer ones are dropped, so that they never cause the loss of the site's whole report. */
const Wishes = z.record(text(64), z.json()).refine(value => JSON.stringify(value).length <= WISHES_LENGTH_MAX)

export const VmFacts = z.object({
  name: Id,
  state: VmState,
  epoch: count,
  memoryBytes: count,
  vcpus: count,
  /** Compression of this VM's pages; default `zstd`. */
  compression: Compression.optional(),
  /** The field `policy` of its specification, for the placement policy. */
  policy: Wishes.optional().catch(undefined),
  /** Names of its services for users. */
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

// --- Migration ---

export const Method = z.enum(['live', 'cold'])
export type Method = z.infer<typeof Method>
export const Side = z.enum(['source', 'target'])
export type Side = z.infer<typeof Side>
export const Outcome = z.enum(['completed', 'failed', 'cancelled'])
export type Outcome = z.infer<typeof Outcome>

const PLAN_LENGTH_MAX = 4096
const PlanFields = z.object({
  /**
   * Version of all messages between the two nodes: the highest that both sites and the gateway support. A node checks
   * it first.
   */
  version: Version,
  migrationId: MigrationId,
  vm: Id,
  /** The epoch at which the source owns the VM. */
  epoch: count,
  source: Id,
  target: Id,
  method: Method,
  /** The accepted downtime. */
  downtimeMs: count.min(1).max(3_600_000),
  /** The operator requested this downtime: Godwit meets it, or the migration fails. */
  downtimeAsked: z.boolean().optional(),
  /** A VM that does not run starts at the target; default: it stays stopped. */
  start: z.boolean().optional(),
  /** Number of page streams, without control and skeleton. */
  streams: count.min(1).max(STREAMS_MAX),
  attempt: count.min(1),
  compression: Compression,
  /** Unix ms. */
  createdAt: count,
})
export type Plan = z.infer<typeof PlanFields>
/**
 * The agreement of both sites before the transfer; the end-to-end handshake is bound to its hash. Unknown fields are
 * kept: they are in the hash of a site that knows them.
 */
export const Plan: z.ZodType<Plan> = PlanFields.loose().refine(
  value => JSON.stringify(value).length <= PLAN_LENGTH_MAX,
  `a plan has at most ${PLAN_LENGTH_MAX} characters`,
)

const MOVED_MAX = 64
/** A VM that this site has handed over: its new site, and from which epoch on. */
export const MovedVm = z.object({ vm: Id, target: Id, epoch: count })
export type MovedVm = z.infer<typeof MovedVm>

/** `site.state`: the whole state, sent on connecting and on every change; idempotent. */
export const SiteState = z.object({
  site: Id,
  incarnation: count,
  version: text(64),
  /** The versions of migrations that the site supports; absent: FIRST_RANGE. */
  migrationVersions: VersionRange.optional(),
  host: HostFacts,
  vms: z.array(VmFacts).max(VMS_MAX),
  /** Migrations that run at this node. */
  migrations: z.array(MigrationId).max(MIGRATIONS_MAX),
  /**
   * VMs that this site has handed over without a confirmation: it asks the target until it answers, even if the gateway
   * has lost its record of the migration.
   */
  handovers: z.array(Plan).max(HANDOVERS_MAX).optional(),
  /** The last VMs that moved from this site to another: a gateway that has lost its records learns their sites. */
  moved: z.array(MovedVm).max(MOVED_MAX).optional(),
  /** The root's statements (crypto/fencing.ts, base64) by which this site took over VMs that it has. */
  fencings: z.array(base64(2048)).max(MOVED_MAX).optional(),
})
export type SiteState = z.infer<typeof SiteState>

const SIGNED_COMMAND_LENGTH_MAX = 16 * 1024
/**
 * A signed command as received (wire/command.ts). The gateway forwards it to the source, which checks it with its own
 * keys.
 */
export const SignedCommand = z
  .record(text(64), z.json())
  .refine(
    value => JSON.stringify(value).length <= SIGNED_COMMAND_LENGTH_MAX,
    `a command has at most ${SIGNED_COMMAND_LENGTH_MAX} characters`,
  )
export type SignedCommand = z.infer<typeof SignedCommand>

/** `migration.prepare`, to the target. */
export const PrepareParams = z.object({ plan: Plan, sourceCertificate: CertificateText })
export type PrepareParams = z.infer<typeof PrepareParams>
/** `migration.start`, to the source. */
export const StartParams = z.object({ plan: Plan, targetCertificate: CertificateText, command: SignedCommand.optional() })
export type StartParams = z.infer<typeof StartParams>
/** `migration.cancel`, to either. */
export const CancelParams = z.object({ migrationId: MigrationId })
export type CancelParams = z.infer<typeof CancelParams>

// --- Copy of an image ---

/**
 * The agreement of both sites before one site sends an image to another; the end-to-end handshake is bound to its
 * hash. It is no migration's plan: `kind`. The image's name is no business of the gateway.
 */
export const ImagePlan = z
  .looseObject({
    version: Version,
    kind: z.literal('image'),
    /** Of the gateway's session, as a migration has one. */
    migrationId: MigrationId,
    source: Id,
    target: Id,
    streams: count.min(1).max(STREAMS_MAX),
    compression: Compression,
    /** Unix ms. */
    createdAt: count,
  })
  .refine(value => JSON.stringify(value).length <= PLAN_LENGTH_MAX, `a plan has at most ${PLAN_LENGTH_MAX} characters`)
export type ImagePlan = z.infer<typeof ImagePlan>
/** `image.copy`, from the site that sends: opens a session to another site. */
export const ImageCopyParams = z.object({ target: Id })
export type ImageCopyParams = z.infer<typeof ImageCopyParams>
export const ImageCopyResult = z.object({ plan: ImagePlan, targetCertificate: CertificateText })
export type ImageCopyResult = z.infer<typeof ImageCopyResult>
/** `image.prepare`, to the site that receives. */
export const ImagePrepareParams = z.object({ plan: ImagePlan, sourceCertificate: CertificateText })
export type ImagePrepareParams = z.infer<typeof ImagePrepareParams>

/**
 * `prestage.needs`, to the source: the requirements of the VM, encrypted for this target. The response is opaque to the
 * gateway. `holdId` is the id of the handoff, and becomes the migration's id if the VM moves there.
 */
export const NeedsParams = z.object({
  holdId: MigrationId,
  vm: Id,
  epoch: count,
  method: Method,
  target: Id,
  targetCertificate: CertificateText,
  command: SignedCommand.optional(),
})
export type NeedsParams = z.infer<typeof NeedsParams>
export const NeedsResult = z.object({ needs: base64(87_384).min(1) })
export type NeedsResult = z.infer<typeof NeedsResult>
export const HOLD_MS_MAX = 600_000
/**
 * `prestage.hold`, to the target: run the preflight for these needs, and reserve memory for the VM for this time. A
 * second call for the same VM replaces the first.
 */
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
/** `prestage.release`, to the target: release the reservation. Harmless if there is none. */
export const ReleaseParams = z.object({ holdId: MigrationId })
export type ReleaseParams = z.infer<typeof ReleaseParams>

/**
 * `trust.revocations`, to any node: the newest revocation list, signed by the root. The response contains the number of
 * the node's current list.
 */
export const RevocationsParams = z.object({ list: base64(65_536).min(1) })
export type RevocationsParams = z.infer<typeof RevocationsParams>

/**
 * `trust.renew`, to the gateway: a site requests its next certificate (crypto/renewal.ts), repeatedly until it is
 * issued.
 */
export const RenewParams = z.object({ request: base64(8192).min(1) })
export type RenewParams = z.infer<typeof RenewParams>
export const RenewReply = EnrolReply
export type RenewReply = EnrolReply

/** The `phase` after the source has handed the VM over: from then on there is no way back. */
export const PHASE_COMMITTED = 'committed'

/**
 * `migration.progress` (a notification; any may be lost). Usual phases: preflight, hashing, images, handshake, disks,
 * precopy, switchover, committed, resuming.
 */
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
  /** How often the link was lost and the transfer resumed, and how long it was down, ms. */
  reconnects: count.optional(),
  awayMs: amount.optional(),
})
export type MigrationProgress = z.infer<typeof MigrationProgress>

/** The report of a migration: `godwit migrate --json` prints it unchanged. Units are in the names. */
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
  /**
   * From the guest's last instruction at the source to its first at the target; null if the VM never ran at the target.
   */
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
  /** Pages that the target read from its own copy of the VM's disks. */
  pagesFromDisk: count.optional(),
  pagesUnchanged: count,
  /** Rewritten pages that were sent as deltas to the target's version. */
  pagesDelta: count.optional(),
  pagesCompressed: count,
  pagesRaw: count,
  /** Guest bytes by class: pages of the class x 4096. */
  bytesZero: count,
  bytesDuplicate: count,
  bytesFromDisk: count.optional(),
  bytesUnchanged: count,
  bytesDelta: count.optional(),
  /** Size of these before compression. */
  deltaBytes: count.optional(),
  bytesCompressed: count,
  bytesRaw: count,
  /** Of the local disks: bytes of the chunks that were sent, that are zeros, and that the target had already. */
  disks: z.object({ rounds: count, bytesSent: count, bytesZero: count, bytesHeld: count }).optional(),
  /** All sealed bytes of the relay streams, in both directions. */
  wireBytes: count,
  /** guestBytes / wireBytes. */
  ratio: amount.nullable(),
  rounds: count,
  transport: text(32),
  streams: count,
  /** How often the link was lost and the transfer resumed, and how long it was down in total, ms. */
  reconnects: count.optional(),
  awayMs: amount.optional(),
  /** How often it changed from working connections to better ones, or to new keys. */
  changeOvers: count.optional(),
  notes: z.array(prose(1024)).max(64),
  /** Wire bytes a second that the path carried, at the end. */
  rateBytesPerSecond: amount.optional(),
  /** The prediction at the start; null if nothing was known about the path. */
  prediction: z.object({ totalMs: amount, downtimeMs: amount, wireBytes: amount }).nullish(),
  /** Error of the reported ETA against the actual end, as shares of the total time. */
  etaError: z.object({ medianRatio: amount, worstRatio: amount }).nullish(),
  /** Decisions of the controller, with time (ms since the first sample) and reason. */
  decisions: z
    .array(z.object({ atMs: amount, what: text(32), value: text(64), reason: prose(256) }))
    .max(64)
    .optional(),
})
export type Report = z.infer<typeof Report>

/** `migration.result`: sent by each side until it is acknowledged; idempotent. */
export const MigrationResult = z.object({
  migrationId: MigrationId,
  side: Side,
  outcome: Outcome,
  report: Report.optional(),
  error: ErrorBody.optional(),
})
export type MigrationResult = z.infer<typeof MigrationResult>

/** `migration.predict`, to the site where a VM runs: predict the cost of a migration. The VM does not move. */
export const PredictParams = z.object({ vm: Id, target: Id, downtimeMs: count.min(1).max(3_600_000) })
export type PredictParams = z.infer<typeof PredictParams>

/** The response; `godwit plan --json` prints it unchanged. */
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
  'image.copy': ImageCopyParams,
  'image.prepare': ImagePrepareParams,
  'prestage.needs': NeedsParams,
  'prestage.hold': HoldParams,
  'prestage.release': ReleaseParams,
  'trust.revocations': RevocationsParams,
  'trust.renew': RenewParams,
} as const
