// The gateway's admin API: what operators and the `godwit` command may ask (docs/PROTOCOL.md, table of routes).
// Always holds: everything but /healthz needs the bearer token; request bodies are strict, so a mistyped field is an error that names it;
// nothing here can reach into a VM: the gateway does not have what it takes.
import type { Route } from '../../ops/http.ts'
import type { Metrics } from '../../ops/metrics.ts'
import {
  DOWNTIME_DEFAULT_MS,
  EnrolmentUpload,
  type GatewayStatus,
  MigrationRequest,
  PinRequest,
  PlanRequest,
  PrestageRequest,
  TokenRequest,
} from '../../wire/admin.ts'
import { Id, Prediction, type PredictParams } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { check, type z } from '../../wire/schema.ts'
import type { Services } from '../services/services.ts'
import type { Enrolments } from './enrolments.ts'
import type { Migrations } from './migrations.ts'
import type { Pins } from './pins.ts'
import type { RunningPolicy } from './policy-loop.ts'
import type { Prestages } from './prestages.ts'
import type { Sites } from './sites.ts'

export type AdminOptions = {
  sites: Sites
  migrations: Migrations
  prestages: Prestages
  enrolments: Enrolments
  pins: Pins
  services: Services
  /** Absent: VMs move by command only. */
  policy: RunningPolicy | undefined
  metrics: Metrics
  describe: () => GatewayStatus['gateway']
}

const body = <S extends z.ZodType>(schema: S, value: unknown): z.output<S> =>
  check(schema, value ?? {}, { what: 'request body', code: 'CONFIG_INVALID' })
const ENDED_SHOWN = 50
/** QEMU watches memory for a second. */
const PLAN_TIMEOUT_MS = 30_000

export function adminRoutes(options: AdminOptions): Route[] {
  const { sites, migrations, enrolments, pins, services, policy, metrics, describe } = options
  return [
    ...prestageRoutes(options),
    planRoute(options),
    { method: 'GET', path: '/healthz', open: true, handle: () => ({ body: { ok: true } }) },
    {
      method: 'GET',
      path: '/metrics',
      async handle({ text }) {
        const { body, contentType } = await metrics.expose()
        text(body, contentType)
        return undefined
      },
    },
    {
      method: 'GET',
      path: '/v1/status',
      handle() {
        const status: GatewayStatus = {
          gateway: describe(),
          sites: sites.views(),
          vms: sites.vms(),
          migrations: migrations.list().slice(0, ENDED_SHOWN),
        }
        return { body: status }
      },
    },
    { method: 'GET', path: '/v1/sites', handle: () => ({ body: { sites: sites.views() } }) },
    { method: 'GET', path: '/v1/vms', handle: () => ({ body: { vms: sites.vms() } }) },
    { method: 'GET', path: '/v1/services', handle: () => ({ body: { services: services.views() } }) },
    {
      method: 'GET',
      path: '/v1/vms/:vm/explain',
      handle({ params }) {
        if (!policy) throw new GodwitError('NOT_AVAILABLE', 'this gateway has no policy', { hint: 'see policy: in gateway.yaml' })
        return { body: policy.explain(params['vm'] ?? '') }
      },
    },
    { method: 'GET', path: '/v1/pins', handle: () => ({ body: { pins: pins.list() } }) },
    {
      method: 'PUT',
      path: '/v1/vms/:vm/pin',
      async handle({ params, json }) {
        const vm = check(Id, params['vm'], { what: 'vm', code: 'CONFIG_INVALID' })
        const { pinned } = body(PinRequest, await json())
        if (pinned && !sites.vms().some(({ name }) => name === vm)) throw new GodwitError('VM_UNKNOWN', `no site has a VM '${vm}'`)
        await pins.set(vm, pinned, 'admin API')
        return { body: { vm, pinned } }
      },
    },
    { method: 'GET', path: '/v1/migrations', handle: () => ({ body: { migrations: migrations.list() } }) },
    {
      method: 'POST',
      path: '/v1/migrations',
      async handle({ json }) {
        return { status: 202, body: { migrationId: await migrations.start(body(MigrationRequest, await json())) } }
      },
    },
    { method: 'GET', path: '/v1/migrations/:id', handle: ({ params }) => ({ body: migrations.record(params['id'] ?? '') }) },
    {
      method: 'DELETE',
      path: '/v1/migrations/:id',
      async handle({ params }) {
        await migrations.cancel(params['id'] ?? '')
        return { status: 202, body: {} }
      },
    },
    {
      method: 'GET',
      path: '/v1/migrations/:id/events',
      async handle({ params, ndjson, signal }) {
        migrations.record(params['id'] ?? '')
        const answer = ndjson()
        for await (const event of migrations.follow(params['id'] ?? '', signal)) await answer.line(event)
        answer.end()
        return undefined
      },
    },
    {
      method: 'POST',
      path: '/v1/enrolments/tokens',
      async handle({ json }) {
        return { status: 201, body: await enrolments.createToken(body(TokenRequest, await json()).site) }
      },
    },
    { method: 'GET', path: '/v1/enrolments', handle: async () => ({ body: { enrolments: await enrolments.list() } }) },
    {
      method: 'PUT',
      path: '/v1/enrolments/:site',
      async handle({ params, json }) {
        const site = check(Id, params['site'], { what: 'site', code: 'CONFIG_INVALID' })
        await enrolments.issue(site, body(EnrolmentUpload, await json()).certificate)
        return { body: {} }
      },
    },
  ]
}

/** Asks the site where the VM runs: it can measure, the gateway cannot. */
const planRoute = ({ sites }: AdminOptions): Route => ({
  method: 'POST',
  path: '/v1/plans',
  async handle({ json }) {
    const { vm, to, downtimeMs = DOWNTIME_DEFAULT_MS } = body(PlanRequest, await json())
    const found = sites.vms().find(({ name, state }) => name === vm && state !== 'incoming')
    if (!found) throw new GodwitError('VM_UNKNOWN', `no site has a VM '${vm}'`)
    if (!sites.known(to)) throw new GodwitError('SITE_UNKNOWN', `no site '${to}'`)
    if (found.site === to) throw new GodwitError('SITE_SAME', `${vm} is at ${to}`)
    const link = sites.online(found.site)
    if (!link) throw new GodwitError('SITE_OFFLINE', `site ${found.site} is not connected`)
    const params: PredictParams = { vm, target: to, downtimeMs }
    return {
      body: check(Prediction, await link.rpc.request('migration.predict', params, { timeoutMs: PLAN_TIMEOUT_MS }), { what: 'prediction' }),
    }
  },
})

const prestageRoutes = ({ prestages }: AdminOptions): Route[] => [
  { method: 'GET', path: '/v1/prestages', handle: () => ({ body: { prestages: prestages.list() } }) },
  {
    method: 'POST',
    path: '/v1/prestages',
    async handle({ json }) {
      return { status: 201, body: await prestages.start(body(PrestageRequest, await json())) }
    },
  },
  {
    method: 'DELETE',
    path: '/v1/prestages/:id',
    handle({ params }) {
      prestages.cancel(params['id'] ?? '')
      return { body: {} }
    },
  },
]
