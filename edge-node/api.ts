// The node's API on its unix socket (0600) as one table: what `godwit vm` and an operator's scripts ask
// (docs/reference/openapi-node.json is made from it). JSON in, JSON out; errors as ErrorBody.
import type { Duplex } from 'node:stream'
import { type Operation, operationsWith, routesOf } from '../ops/api.ts'
import type { Route, UpgradeRoute } from '../ops/http.ts'
import type { ApiDocument } from '../ops/openapi.ts'
import { DOWNTIME_DEFAULT_MS } from '../wire/admin.ts'
import { Prediction } from '../wire/control.ts'
import type { ErrorCode } from '../wire/errors.ts'
import * as wire from '../wire/node-api.ts'
import { z } from '../wire/schema.ts'
import type { Doubts } from './doubts.ts'
import type { OutgoingCopies } from './images/outgoing.ts'
import type { NodeMetrics } from './metrics.ts'
import type { CostPredictor } from './predict.ts'
import type { Registry } from './registry/registry.ts'
import type { VmConsole } from './vm/console.ts'
import { specToYaml } from './vm/spec.ts'

export type ApiOptions = {
  registry: Registry
  copies: Pick<OutgoingCopies, 'begin' | 'show' | 'cancel'>
  doubts: Doubts
  describe: () => Promise<z.input<typeof wire.NodeHost>>
  metrics: NodeMetrics
  predictor: CostPredictor
}

const { json, stream, socket } = operationsWith<ApiOptions>()
const Name = { name: z.string() }
/** What an order that starts or stops a QEMU may end with. */
const QEMU = ['QEMU_EXITED', 'QEMU_COMMAND', 'QEMU_TIMEOUT', 'STORE_FAILED'] satisfies ErrorCode[]
const IMAGES = ['IMAGE_UNKNOWN', 'IMAGE_CHANGED', 'DISK_FULL'] satisfies ErrorCode[]
const FILES = ['PREFLIGHT_FILE_MISSING', 'PREFLIGHT_FILE_CHANGED', 'PREFLIGHT_QEMU_MISSING'] satisfies ErrorCode[]
const HOST = ['PREFLIGHT_ACCELERATOR', 'PREFLIGHT_MACHINE', 'PREFLIGHT_CPU', 'PREFLIGHT_MEMORY'] satisfies ErrorCode[]
const DEVICES = ['PREFLIGHT_DEVICE', 'PREFLIGHT_DEVICE_BUSY', 'LIMIT_EXCEEDED'] satisfies ErrorCode[]
const RELAYS = "the VM's QEMU or host"

const vmOperations = [
  json('listVms', 'GET /v1/vms', {
    summary: 'the VMs of this site',
    answer: z.object({ vms: z.array(wire.NodeVm) }),
    handle: ({ registry }) => ({ vms: registry.list() }),
  }),
  json('createVm', 'POST /v1/vms', {
    summary: 'create a VM from its specification; it is not started',
    status: 201,
    relays: RELAYS,
    body: wire.CreateRequest,
    answer: wire.CreatedVm,
    errors: ['VM_SPEC_INVALID', 'VM_EXISTS', ...FILES, ...IMAGES, ...HOST, 'CLOUD_INIT_FAILED', 'LIMIT_EXCEEDED', 'STORE_FAILED'],
    handle: ({ registry }, { body: { spec } }) => registry.create(spec),
  }),
  json('getVm', 'GET /v1/vms/:name', {
    summary: 'one VM, with its specification',
    params: Name,
    errors: ['VM_UNKNOWN'],
    answer: wire.DescribedVm,
    handle: ({ registry }, { params: { name } }) => ({ ...registry.get(name), spec: specToYaml(registry.spec(name)) }),
  }),
  json('deleteVm', 'DELETE /v1/vms/:name', {
    summary: 'delete a VM with its folder and local disks, but not its images',
    params: Name,
    errors: ['VM_UNKNOWN', 'VM_STATE', 'STORE_FAILED'],
    answer: wire.DeletedVm,
    async handle({ registry }, { params: { name } }) {
      await registry.delete(name)
      return { name, deleted: true as const }
    },
  }),
  json('getDisplay', 'GET /v1/vms/:name/display', {
    summary: "the path of the VM's VNC socket at this host",
    params: Name,
    errors: ['VM_UNKNOWN', 'VM_STATE'],
    answer: wire.Display,
    handle: ({ registry }, { params: { name } }) => ({ name, socket: registry.display(name) }),
  }),
  socket('openConsole', 'GET /v1/vms/:name/console', {
    summary: "the guest's serial console, with `Connection: Upgrade` and `Upgrade: raw`",
    params: Name,
    errors: ['VM_UNKNOWN', 'VM_STATE', 'LIMIT_EXCEEDED'],
    query: z.object({ replay: z.string().optional().describe('0: without what the guest has written before') }),
    handle({ registry }, { params, query }) {
      const vmConsole = registry.console(params.name)
      return raw => void joinConsole(vmConsole, raw, query.replay !== '0')
    },
  }),
]

const imageOperations = [
  json('listImages', 'GET /v1/images', {
    summary: 'the images of this site, with running and failed imports',
    answer: z.object({ images: z.array(wire.ImageView) }),
    handle: async ({ registry }) => ({ images: await registry.imports.list() }),
  }),
  json('importImage', 'POST /v1/images', {
    summary: 'start the import of an image; its view shows the progress',
    status: 202,
    errors: ['IMAGE_BUSY', 'LIMIT_EXCEEDED'],
    body: wire.ImportImageRequest,
    answer: wire.ImageView,
    handle: ({ registry }, { body }) => registry.imports.begin(body),
  }),
  json('getImage', 'GET /v1/images/:name', {
    summary: 'one image, or its import',
    params: Name,
    errors: ['IMAGE_UNKNOWN'],
    answer: wire.ImageView,
    handle: ({ registry }, { params }) => registry.imports.show(params.name),
  }),
  json('removeImage', 'DELETE /v1/images/:name', {
    summary: 'remove an image, or cancel its import',
    params: Name,
    errors: ['IMAGE_UNKNOWN', 'IMAGE_IN_USE', 'IMAGE_BUSY'],
    answer: wire.RemovedImage,
    async handle({ registry }, { params: { name } }) {
      await registry.imports.remove(name)
      return { name, removed: true as const }
    },
  }),
]

const Copy = { name: z.string(), site: z.string() }
const copyOperations = [
  json('copyImage', 'POST /v1/images/:name/copies', {
    summary: 'start a copy of an image to another site, or join the one that runs',
    params: Name,
    status: 202,
    errors: ['LIMIT_EXCEEDED'],
    body: wire.CopyImageRequest,
    answer: wire.ImageCopyView,
    handle: ({ copies }, { params, body }) => copies.begin(params.name, body.to),
  }),
  json('getImageCopy', 'GET /v1/images/:name/copies/:site', {
    summary: 'how far a copy of an image to a site is, or how the last one ended',
    params: Copy,
    errors: ['IMAGE_UNKNOWN'],
    answer: wire.ImageCopyView,
    handle: ({ copies }, { params }) => copies.show(params.name, params.site),
  }),
  json('cancelImageCopy', 'DELETE /v1/images/:name/copies/:site', {
    summary: 'cancel a copy; the other site keeps what has come for a later one',
    params: Copy,
    errors: ['IMAGE_UNKNOWN'],
    answer: wire.CancelledCopy,
    async handle({ copies }, { params: { name: image, site: to } }) {
      await copies.cancel(image, to)
      return { image, to, cancelled: true as const }
    },
  }),
]

const warmCopyOperations = [
  json('listCopies', 'GET /v1/copies', {
    summary: 'the warm copies of this site: disks of VMs that have left, or did not come',
    answer: z.object({ copies: z.array(wire.CopyView) }),
    handle: async ({ registry }) => ({ copies: await registry.copies.list() }),
  }),
  json('removeCopy', 'DELETE /v1/copies/:name', {
    summary: 'remove the warm copy of a VM',
    params: Name,
    errors: ['COPY_UNKNOWN'],
    answer: wire.RemovedCopy,
    async handle({ registry }, { params: { name } }) {
      await registry.copies.remove(name)
      return { name, removed: true as const }
    },
  }),
]

const orderOperations = [
  json('startVm', 'POST /v1/vms/:name/start', {
    summary: 'start a VM, resume a paused one, wake a suspended one',
    params: Name,
    relays: RELAYS,
    body: wire.ActionRequest,
    answer: wire.NodeVm,
    errors: ['VM_UNKNOWN', 'VM_STATE', 'MIGRATION_DOUBT', 'FENCING_REQUIRED', ...FILES, ...HOST, ...DEVICES, ...QEMU],
    handle: ({ registry }, { params, body }) => registry.start(params.name, { force: body.force === true }),
  }),
  json('stopVm', 'POST /v1/vms/:name/stop', {
    summary: 'ask the guest to shut down, or end its QEMU (`force`)',
    params: Name,
    relays: RELAYS,
    body: wire.ActionRequest,
    answer: wire.NodeVm,
    errors: ['VM_UNKNOWN', 'VM_STATE', 'STOP_TIMEOUT', ...QEMU],
    handle({ registry }, { params, body: { force, timeoutMs }, signal }) {
      const wish = { ...(force === undefined ? {} : { force }), ...(timeoutMs === undefined ? {} : { timeoutMs }) }
      return registry.stop(params.name, { ...wish, signal })
    },
  }),
  json('wakeVm', 'POST /v1/vms/:name/wake', {
    summary: 'wake a suspended guest',
    params: Name,
    relays: RELAYS,
    answer: wire.NodeVm,
    errors: ['VM_UNKNOWN', 'VM_STATE', ...QEMU],
    handle: ({ registry }, { params }) => registry.wake(params.name),
  }),
  json('predictMigration', 'POST /v1/vms/:name/plan', {
    summary: 'predict the cost of a migration; the VM does not move',
    params: Name,
    relays: RELAYS,
    body: wire.NodePlanRequest,
    answer: Prediction,
    errors: ['VM_UNKNOWN', 'VM_STATE', ...QEMU],
    handle: ({ predictor }, { params, body: { to, downtimeMs = DOWNTIME_DEFAULT_MS } }) =>
      predictor.predict({ vm: params.name, target: to, downtimeMs }),
  }),
  json('reclaimVm', 'POST /v1/vms/:name/reclaim', {
    summary: 'take over a VM in doubt, with a fencing statement for the other site',
    params: Name,
    relays: RELAYS,
    body: wire.ReclaimRequest,
    answer: wire.NodeVm,
    errors: ['VM_UNKNOWN', 'VM_STATE', 'FENCING_INVALID', ...QEMU],
    handle: ({ doubts }, { params, body: { fencing } }) => doubts.reclaim(params.name, fencing),
  }),
]

const NODE_OPERATIONS: readonly Operation<ApiOptions>[] = [
  json('getHost', 'GET /v1/host', {
    summary: 'this host, and its link to the gateway',
    answer: wire.NodeHost,
    handle: ({ describe }) => describe(),
  }),
  ...vmOperations,
  ...imageOperations,
  ...warmCopyOperations,
  ...copyOperations,
  ...orderOperations,
  json('listDoubts', 'GET /v1/doubts', {
    summary: 'VMs whose owner is not certain',
    errors: ['STORE_FAILED'],
    answer: z.object({ doubts: z.array(wire.DoubtView) }),
    handle: async ({ doubts }) => ({ doubts: await doubts.list() }),
  }),
  stream('getMetrics', 'GET /metrics', {
    summary: "the node's metrics, in Prometheus's text format",
    answer: { kind: 'text' },
    async handle({ metrics }, { text }) {
      const { body, contentType } = await metrics.expose()
      text(body, contentType)
    },
  }),
]

export const nodeRoutes = (options: ApiOptions): { routes: Route[]; upgrades: UpgradeRoute[] } => routesOf(NODE_OPERATIONS, options)

export const NODE_DOCUMENT: ApiDocument = {
  title: "Godwit node's API",
  description:
    'What the command line and scripts ask the node of this host, over its unix socket. Who may open the socket (its owner, 0600) may ask ' +
    'everything. Times are Unix ms, durations ms, sizes bytes. Requests are strict: an unknown field is an error that names it. Answers may ' +
    'grow fields. See docs/reference/protocol.md.',
  server: { url: 'http://localhost', description: 'over the unix socket that node.yaml names (api.socket)' },
  who: "socket's owner",
  hasToken: false,
  operations: NODE_OPERATIONS,
  schemas: { DoubtView: wire.DoubtView, NodeHost: wire.NodeHost, NodeVm: wire.NodeVm, Prediction, ActionRequest: wire.ActionRequest },
}

/**
 * Raw bytes both ways until either side ends. A reader too slow for the guest is cut off by the console, never waited
 * for.
 */
async function joinConsole(vmConsole: VmConsole, socket: Duplex, replay: boolean): Promise<void> {
  const follower = vmConsole.follow({ replay })
  socket.on('data', (bytes: Buffer) => void vmConsole.write(bytes).catch(() => socket.destroy()))
  for (const event of ['end', 'close', 'error']) socket.on(event, () => follower.close())
  for await (const bytes of follower) {
    if (!socket.write(bytes)) await new Promise<void>(resolve => socket.once('drain', resolve).once('close', resolve))
  }
  socket.end()
}
