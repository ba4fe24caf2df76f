// The MEC 021 front on a port of its own, with a token of its own: MEC applications are not operators.
// Paths are those of ETSI GS MEC 021 V2, `amsi/v1`; errors are RFC 9457 problem details, as ETSI GS MEC 009 wants them.
import { type HttpServer, type Reply, type Route, startHttpServer } from '../../ops/http.ts'
import type { Metrics } from '../../ops/metrics.ts'
import { toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { ControlHost } from '../control/host.ts'
import { phaseOf } from '../control/mqtt/phases.ts'
import { problemOf } from '../control/mqtt/problems.ts'
import { createCallbacks } from './callbacks.ts'
import { Mec021 } from './mec021.ts'

export type Mec021Listen = { host: string; port: number; token: string; callbackHosts: readonly string[] }
export type RunningMec021 = { readonly url: string; close(): Promise<void> }

const ROOT = '/amsi/v1'

export async function startMec021(
  listen: Mec021Listen,
  host: ControlHost,
  { metrics, log }: { metrics: Metrics; log: Log },
): Promise<RunningMec021> {
  const count = metrics.counter('mec021_notifications_total', 'MEC 021 notifications, by outcome.', ['outcome'])
  const callbacks = createCallbacks({ onOutcome: outcome => count.inc({ outcome }), log })
  let server: HttpServer | undefined
  const url = () => {
    const address = server?.address
    if (!address || !('host' in address)) throw new Error('the MEC 021 front listens on TCP')
    return `http://${address.host.includes(':') ? `[${address.host}]` : address.host}:${address.port}`
  }
  const service = new Mec021({ clock: host.clock, base: () => `${url()}${ROOT}`, callbackHosts: listen.callbackHosts })
  const unsubscribe = host.events.subscribe(event => {
    if (event.event === 'forgotten') return service.forget(event.migrationId)
    if (event.event !== 'migration' && event.event !== 'progress') return
    const { migrationId: handoffId, vm } = event.migration
    for (const delivery of service.handoff({ handoffId, vm, phase: phaseOf(event.migration) })) callbacks.deliver(delivery)
  })
  server = await startHttpServer({ listen: { host: listen.host, port: listen.port }, routes: routes(service), token: listen.token, log })
  return {
    url: `${url()}${ROOT}`,
    async close() {
      unsubscribe()
      await callbacks.close()
      await server?.close()
    },
  }
}

type Handle = (params: Record<string, string>, json: () => Promise<unknown>) => Reply | Promise<Reply>

function routes(service: Mec021): Route[] {
  const route = (method: Route['method'], path: string, handle: Handle): Route => ({
    method,
    path: `${ROOT}${path}`,
    async handle({ params, json }) {
      try {
        return await handle(params, json)
      } catch (thrown) {
        const problem = problemOf(toGodwitError(thrown))
        return { status: problem.status, body: problem, headers: { 'content-type': 'application/problem+json' } }
      }
    },
  })
  const id = (params: Record<string, string>) => params['id'] ?? ''
  const gone: Reply = { status: 204 }
  const services = '/app_mobility_services'
  const create: Handle = async (_params, json) => {
    const body = service.register(await json()) as { appMobilityServiceId: string }
    return { status: 201, body, headers: { location: `${ROOT}${services}/${body.appMobilityServiceId}` } }
  }
  const deregister: Handle = params => {
    service.deregister(id(params))
    return gone
  }
  const subscribe: Handle = async (_params, json) => {
    const { id, view } = service.subscribe(await json())
    return { status: 201, body: view, headers: { location: `${ROOT}/subscriptions/${id}` } }
  }
  // The specification writes the collection with a slash at its end, many clients without.
  const subscriptions = ['/subscriptions', '/subscriptions/'].flatMap(path => [
    route('GET', path, () => ({ body: service.subscriptions() })),
    route('POST', path, subscribe),
  ])
  return [
    route('GET', services, () => ({ body: service.registrations() })),
    route('POST', services, create),
    route('GET', `${services}/:id`, params => ({ body: service.registration(id(params)) })),
    route('PUT', `${services}/:id`, async (params, json) => ({ body: service.update(id(params), await json()) })),
    route('DELETE', `${services}/:id`, deregister),
    route('POST', `${services}/:id/deregister_task`, deregister),
    ...subscriptions,
    route('GET', '/subscriptions/:id', params => ({ body: service.subscription(id(params)) })),
    route('PUT', '/subscriptions/:id', async (params, json) => ({ body: service.resubscribe(id(params), await json()) })),
    route('DELETE', '/subscriptions/:id', params => {
      service.unsubscribe(id(params))
      return gone
    }),
  ]
}
