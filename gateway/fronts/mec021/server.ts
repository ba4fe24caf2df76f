// The MEC 021 front on a port of its own, with a token of its own: MEC applications are not operators.
// Paths are those of ETSI GS MEC 021 V2, `amsi/v1`; errors are RFC 9457 problem details, as ETSI GS MEC 009 wants them.
import { type HttpReply, type HttpServer, type Route, startHttpServer } from '../../../ops/http.ts'
import type { Metrics } from '../../../ops/metrics.ts'
import type { TlsFiles } from '../../../ops/tls-files.ts'
import { GodwitError, toGodwitError } from '../../../wire/errors.ts'
import type { Log } from '../../../wire/log.ts'
import type { FrontHost } from '../../handoff/host.ts'
import { problemOf } from '../../handoff/problems.ts'
import { createCallbacks } from './callbacks.ts'
import { Mec021, type Mec021Client } from './mec021.ts'

export type Mec021Listen = {
  host: string
  port: number
  /** The operator's token. */
  token: string
  /** Applications with tokens of their own; each sees what it has registered. */
  clients?: readonly { name: string; token: string; vms?: readonly string[] | undefined }[]
  callbackHosts: readonly string[]
  /** Needed beyond loopback. */
  tls?: Pick<TlsFiles, 'pair' | 'follow'> | undefined
}
export type RunningMec021 = { readonly url: string; close(): Promise<void> }

const ROOT = '/amsi/v1'

export async function startMec021(
  listen: Mec021Listen,
  host: FrontHost,
  { metrics, log }: { metrics: Metrics; log: Log },
): Promise<RunningMec021> {
  const count = metrics.counter('mec021_notifications_total', 'MEC 021 notifications, by outcome.', ['outcome'])
  const callbacks = createCallbacks({ onOutcome: outcome => count.inc({ outcome }), log })
  let server: HttpServer | undefined
  const url = () => {
    const address = server?.address
    if (!address || !('host' in address)) throw new Error('the MEC 021 front listens on TCP')
    return `${listen.tls ? 'https' : 'http'}://${address.host.includes(':') ? `[${address.host}]` : address.host}:${address.port}`
  }
  const service = new Mec021({ clock: host.clock, base: () => `${url()}${ROOT}`, callbackHosts: listen.callbackHosts })
  const unsubscribe = host.events.subscribe(event => {
    if (event.event !== 'handoff') return
    const { vm, phase } = event.handoff
    for (const delivery of service.handoff({ vm, phase, before: event.before })) callbacks.deliver(delivery)
  })
  const clients = clientsOf(listen)
  server = await startHttpServer({
    listen: { host: listen.host, port: listen.port },
    routes: routes(service, clients),
    tokens: new Map([...clients].map(([name, { token }]) => [name, token])),
    tls: listen.tls,
    log,
  })
  return {
    url: `${url()}${ROOT}`,
    async close() {
      unsubscribe()
      await callbacks.close()
      await server?.close()
    },
  }
}

type Clients = ReadonlyMap<string, Mec021Client & { token: string }>

/**
 * The operator has no name that a client may have. CONFIG_INVALID for two of one token: who asks would not be known.
 */
function clientsOf({ token, clients = [] }: Mec021Listen): Clients {
  const all = new Map([['', { name: '', isOperator: true, token }]])
  for (const client of clients) {
    if ([...all.values()].some(other => other.token === client.token))
      throw new GodwitError('CONFIG_INVALID', `mec021.clients.${client.name}: another client has the same token`)
    all.set(client.name, { isOperator: false, ...client })
  }
  return all
}

type Handle = (params: Record<string, string>, who: Mec021Client, json: () => Promise<unknown>) => HttpReply | Promise<HttpReply>

function routes(service: Mec021, clients: Clients): Route[] {
  const route = (method: Route['method'], path: string, handle: Handle): Route => ({
    method,
    path: `${ROOT}${path}`,
    async handle({ client, params, json }) {
      try {
        const who = clients.get(client ?? '?')
        if (!who) throw new GodwitError('TOKEN_INVALID', 'a valid bearer token is required')
        return await handle(params, who, json)
      } catch (thrown) {
        const problem = problemOf(toGodwitError(thrown))
        return { status: problem.status, body: problem, headers: { 'content-type': 'application/problem+json' } }
      }
    },
  })
  const id = (params: Record<string, string>) => params['id'] ?? ''
  const gone: HttpReply = { status: 204 }
  const services = '/app_mobility_services'
  const create: Handle = async (_params, who, json) => {
    const body = service.register(who, await json()) as { appMobilityServiceId: string }
    return { status: 201, body, headers: { location: `${ROOT}${services}/${body.appMobilityServiceId}` } }
  }
  const deregister: Handle = (params, who) => {
    service.deregister(who, id(params))
    return gone
  }
  const subscribe: Handle = async (_params, who, json) => {
    const { id, view } = service.subscribe(who, await json())
    return { status: 201, body: view, headers: { location: `${ROOT}/subscriptions/${id}` } }
  }
  // The specification writes the collection with a slash at its end, many clients without.
  const subscriptions = ['/subscriptions', '/subscriptions/'].flatMap(path => [
    route('GET', path, (_params, who) => ({ body: service.subscriptions(who) })),
    route('POST', path, subscribe),
  ])
  return [
    route('GET', services, (_params, who) => ({ body: service.registrations(who) })),
    route('POST', services, create),
    route('GET', `${services}/:id`, (params, who) => ({ body: service.registration(who, id(params)) })),
    route('PUT', `${services}/:id`, async (params, who, json) => ({ body: service.update(who, id(params), await json()) })),
    route('DELETE', `${services}/:id`, deregister),
    route('POST', `${services}/:id/deregister_task`, deregister),
    ...subscriptions,
    route('GET', '/subscriptions/:id', (params, who) => ({ body: service.subscription(who, id(params)) })),
    route('PUT', '/subscriptions/:id', async (params, who, json) => ({ body: service.resubscribe(who, id(params), await json()) })),
    route('DELETE', '/subscriptions/:id', (params, who) => {
      service.unsubscribe(who, id(params))
      return gone
    }),
  ]
}
