// Requests and responses of the node's API (docs/reference/protocol.md), shared by the node, the command line and the
// OpenAPI document. Always holds: requests are strict (an unknown field is an error that names it); responses may get
// more fields.
import { PlanRequest } from './admin.ts'
import { ErrorBody, HostFacts, Id, MigrationId, VmState } from './control.ts'
import { z } from './schema.ts'

const FORCE_MS_MAX = 3_600_000

/**
 * GET /v1/host. `selection`: the engine of the link to the gateway, and the attempts before it; null without a link.
 */
export const NodeHost = HostFacts.extend({
  site: Id,
  version: z.string(),
  gateway: z.looseObject({
    selection: z.looseObject({ engine: z.string() }).nullable(),
    state: z.string(),
    attempts: z.number(),
    lastError: ErrorBody.nullable(),
    control: z.looseObject({}).nullable(),
    data: z.array(z.looseObject({})),
  }),
})

/** A VM of this site. `doubt`: it is not certain that this site owns it. */
export const NodeVm = z.object({
  name: Id,
  state: VmState,
  epoch: z.number(),
  memoryBytes: z.number(),
  vcpus: z.number(),
  accelerator: z.string().optional(),
  pid: z.number().optional(),
  doubt: z.boolean(),
  failure: ErrorBody.optional(),
})

/** POST /v1/vms. `spec`: YAML. */
export const CreateRequest = z.strictObject({
  spec: z
    .string()
    .min(1)
    .max(64 * 1024),
})
export const CreatedVm = NodeVm.extend({ warnings: z.array(z.string()).optional() })
/** GET /v1/vms/:name. `spec`: YAML, with every default written out. */
export const DescribedVm = NodeVm.extend({ spec: z.string() })
export const Display = z.object({ name: Id, socket: z.string() })
export const DeletedVm = z.object({ name: Id, deleted: z.literal(true) })

/** POST /v1/vms/:name/start and stop. `timeoutMs`: how long the guest may take to shut down. */
export const ActionRequest = z.strictObject({
  force: z.boolean().optional(),
  timeoutMs: z.number().int().min(0).max(FORCE_MS_MAX).optional(),
})
/** POST /v1/vms/:name/plan. */
export const NodePlanRequest = PlanRequest.omit({ vm: true })
/** POST /v1/vms/:name/reclaim. `fencing`: the root's statement, base64. */
export const ReclaimRequest = z.strictObject({ fencing: z.string().min(1).max(2048) })

/** GET /v1/doubts. Times are Unix ms. */
export const DoubtView = z.object({
  vm: Id,
  state: z.string(),
  epoch: z.number(),
  why: ErrorBody.nullable(),
  /** The last entry of the ownership journal. */
  record: z.object({ migrationId: MigrationId, state: z.string(), epoch: z.number(), at: z.number(), target: Id }).nullable(),
  /** Attempts to reach the other site; `said`: the error of the last attempt. */
  asked: z.object({ times: z.number(), firstAt: z.number(), lastAt: z.number(), said: ErrorBody }).nullable(),
  /** The required content of a fencing statement. `site` null: any other site. */
  fencing: z.object({ site: Id.nullable(), vm: Id, epoch: z.number(), for: Id }),
  next: z.array(z.string()),
})

const ImageName = z.string().min(1).max(128)
/** POST /v1/images. `from`: an absolute path of the host, or an http(s) URL. `sha256`: of the received file, hex. */
export const ImportImageRequest = z.strictObject({
  name: ImageName,
  from: z.string().min(1).max(4096),
  format: z.enum(['raw', 'qcow2', 'vmdk', 'vdi', 'vhdx', 'vpc']).optional(),
  sha256: z
    .string()
    .regex(/^[0-9a-fA-F]{64}$/, 'must be 64 hex digits')
    .optional(),
})
/**
 * An image: a base of local disks. `root`: Merkle root of its content, hex. `changed`, `missing`: its file differs from
 * the imported one, or no longer exists.
 */
const ReadyImage = z.object({
  name: ImageName,
  state: z.enum(['ready', 'changed', 'missing']),
  root: z.string(),
  sizeBytes: z.number(),
  allocatedBytes: z.number(),
  source: z.string(),
  sourceFormat: z.string(),
  sourceSha256: z.string(),
  importedAt: z.string(),
  /** The site that sent it; absent: it was imported here. */
  copiedFrom: z.string().optional(),
})
/** An import that is running, or has failed. */
const ImportingImage = z.object({
  name: ImageName,
  state: z.literal('importing'),
  step: z.enum(['reading', 'converting', 'hashing', 'receiving']),
  bytesDone: z.number(),
  bytesTotal: z.number().optional(),
})
const FailedImage = z.object({ name: ImageName, state: z.literal('failed'), error: ErrorBody })
export const ImageView = z.union([ReadyImage, ImportingImage, FailedImage])
export type ImageView = z.output<typeof ImageView>
/** POST /v1/images/:name/copies. `to`: a site. */
export const CopyImageRequest = z.strictObject({ to: Id })
/**
 * A copy of an image to another site. `bytesTotal`: of its chunks that are not zeros; `bytesDone`: of those, what the
 * other site has.
 */
export const ImageCopyView = z.object({
  image: ImageName,
  to: Id,
  state: z.enum(['copying', 'copied', 'failed']),
  bytesDone: z.number(),
  bytesTotal: z.number().optional(),
  rateBytesPerSecond: z.number().optional(),
  etaMs: z.number().optional(),
  error: ErrorBody.optional(),
})
export type ImageCopyView = z.output<typeof ImageCopyView>
export const CancelledCopy = z.object({ image: ImageName, to: Id, cancelled: z.literal(true) })
/**
 * A warm copy of a VM's disks. `why`: the VM has `left` for the site `peer`, or its coming from there was
 * `interrupted`; `at`: since then; `bytes`: on disk.
 */
export const CopyView = z.object({
  vm: z.string(),
  epoch: z.number(),
  why: z.enum(['left', 'interrupted']),
  peer: z.string(),
  at: z.number(),
  bytes: z.number(),
})
export type CopyView = z.output<typeof CopyView>
export const RemovedCopy = z.object({ name: z.string(), removed: z.literal(true) })
export const RemovedImage = z.object({ name: ImageName, removed: z.literal(true) })
