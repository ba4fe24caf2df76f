// The node's API on its unix socket (0600): what `godwit vm` and an operator's scripts ask. JSON in, JSON out; errors as ErrorBody.
import type { Duplex } from 'node:stream'
import type { RequestContext, Route, UpgradeRoute } from '../ops/http.ts'
import { DOWNTIME_DEFAULT_MS, PlanRequest } from '../wire/admin.ts'
import { check, z } from '../wire/schema.ts'
import type { Doubts } from './doubts.ts'
import type { NodeMetrics } from './metrics.ts'
import type { Predictor } from './predict.ts'
import type { VmConsole } from './vm/console.ts'
import type { Registry } from './vm/registry.ts'
import { specToYaml } from './vm/spec.ts'

const CreateBody = z.strictObject({
  spec: z
    .string()
    .min(1)
    .max(64 * 1024),
})
const PlanBody = PlanRequest.omit({ vm: true })
const ReclaimBody = z.strictObject({ fencing: z.string().min(1).max(2048) })
const ActionBody = z.strictObject({ force: z.boolean().optional(), graceMs: z.number().int().min(0).max(600_000).optional() })

export type ApiOptions = {
  registry: Registry
  doubts: Doubts
  describe: () => Promise<unknown>
  metrics: NodeMetrics
  predictor: Predictor
}

export function nodeRoutes({ registry, doubts, describe, metrics, predictor }: ApiOptions): { routes: Route[]; upgrades: UpgradeRoute[] } {
  const nameOf = ({ params }: { params: Record<string, string> }) => params['name'] ?? ''
  const actionOf = async (context: RequestContext) => {
    const { force, graceMs } = check(ActionBody, (await context.json()) ?? {}, { what: 'body' })
    return { ...(force === undefined ? {} : { force }), ...(graceMs === undefined ? {} : { graceMs }) }
  }
  const routes: Route[] = [
    { method: 'GET', path: '/v1/host', handle: async () => ({ body: await describe() }) },
    { method: 'GET', path: '/v1/vms', handle: () => ({ body: { vms: registry.list() } }) },
    {
      method: 'POST',
      path: '/v1/vms',
      handle: async context => {
        const { spec } = check(CreateBody, await context.json(), { what: 'body' })
        return { status: 201, body: await registry.create(spec) }
      },
    },
    {
      method: 'GET',
      path: '/v1/vms/:name',
      handle: context => ({ body: { ...registry.get(nameOf(context)), spec: specToYaml(registry.spec(nameOf(context))) } }),
    },
    {
      method: 'POST',
      path: '/v1/vms/:name/start',
      handle: async context => ({ body: await registry.start(nameOf(context), { force: (await actionOf(context)).force === true }) }),
    },
    {
      method: 'POST',
      path: '/v1/vms/:name/stop',
      handle: async context => ({ body: await registry.stop(nameOf(context), await actionOf(context)) }),
    },
    { method: 'GET', path: '/v1/doubts', handle: async () => ({ body: { doubts: await doubts.list() } }) },
    {
      method: 'POST',
      path: '/v1/vms/:name/reclaim',
      handle: async context => {
        const { fencing } = check(ReclaimBody, await context.json(), { what: 'body' })
        return { body: await doubts.reclaim(nameOf(context), fencing) }
      },
    },
    {
      method: 'POST',
      path: '/v1/vms/:name/plan',
      handle: async context => {
        const { to, downtimeMs = DOWNTIME_DEFAULT_MS } = check(PlanBody, await context.json(), { what: 'body' })
        return { body: await predictor.predict({ vm: nameOf(context), target: to, downtimeMs }) }
      },
    },
    {
      method: 'DELETE',
      path: '/v1/vms/:name',
      handle: async context => {
        await registry.delete(nameOf(context))
        return { body: { name: nameOf(context), deleted: true } }
      },
    },
    {
      method: 'GET',
      path: '/metrics',
      handle: async context => {
        const { body, contentType } = await metrics.expose()
        context.text(body, contentType)
        return undefined
      },
    },
  ]
  const console: UpgradeRoute = {
    path: '/v1/vms/:name/console',
    handle: async ({ params, query }) => {
      const vmConsole = registry.console(params['name'] ?? '')
      return socket => void joinConsole(vmConsole, socket, query.get('replay') !== '0')
    },
  }
  return { routes, upgrades: [console] }
}

/** Raw bytes both ways until either side ends. A reader too slow for the guest is cut off by the console, never waited for. */
async function joinConsole(vmConsole: VmConsole, socket: Duplex, replay: boolean): Promise<void> {
  const follower = vmConsole.follow({ replay })
  socket.on('data', (bytes: Buffer) => void vmConsole.write(bytes).catch(() => socket.destroy()))
  for (const event of ['end', 'close', 'error']) socket.on(event, () => follower.close())
  for await (const bytes of follower) {
    if (!socket.write(bytes)) await new Promise<void>(resolve => socket.once('drain', resolve).once('close', resolve))
  }
  socket.end()
}
