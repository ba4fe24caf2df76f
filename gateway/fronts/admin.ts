// The gateway's admin API as one table: what operators, consoles and the `godwit` command may ask
// (docs/reference/openapi-gateway.json is made from it).
// Always holds: everything but /healthz needs the bearer token; request bodies are strict, so a mistyped field is an
// error that names it; nothing here can reach into a VM: the gateway does not have what it takes.
import type { Trust } from '../../identity/trust.ts'
import { type Operation, operationsWith, routesOf } from '../../ops/api.ts'
import type { Route } from '../../ops/http.ts'
import type { Metrics } from '../../ops/metrics.ts'
import type { ApiDocument } from '../../ops/openapi.ts'
import * as wire from '../../wire/admin.ts'
import { Id, Prediction, type PredictParams } from '../../wire/control.ts'
import { type ErrorCode, GodwitError } from '../../wire/errors.ts'
import { EventId, FeedEvent } from '../../wire/events.ts'
import { check, z } from '../../wire/schema.ts'
import { vmAt } from '../handoff/home.ts'
import type { Homes } from '../handoff/homes.ts'
import type { Migrations } from '../handoff/migrations.ts'
import type { Pins } from '../handoff/pins.ts'
import type { Prestages } from '../handoff/prestages.ts'
import type { RunningPolicy } from '../policy/policy-loop.ts'
import type { UserServices } from '../services/services.ts'
import type { Enrolments } from '../sites/enrolments.ts'
import type { Renewals } from '../sites/renewals.ts'
import type { Sites } from '../sites/sites.ts'
import type { EventFeed } from './events.ts'
import { pageOf } from './migration-pages.ts'

type AdminOptions = {
  sites: Sites
  homes: Homes
  /** SITE_UNKNOWN, SITE_ONLINE. */
  forgetSite(site: string): Promise<wire.ForgottenSite>
  migrations: Migrations
  prestages: Prestages
  enrolments: Enrolments
  renewals: Renewals
  /** Absent: no revocation list is kept here. */
  trust: Trust | undefined
  pins: Pins
  services: UserServices
  /** Absent: VMs move by command only. */
  policy: RunningPolicy | undefined
  feed: EventFeed
  metrics: Metrics
  describe: () => wire.GatewayStatus['gateway']
}

const ENDED_SHOWN = 50
/** QEMU watches memory for a second. */
const PLAN_TIMEOUT_MS = 30_000

const { json, stream } = operationsWith<AdminOptions>()
const Nothing = z.strictObject({})
const Word = z.string()
const Vm = { vm: Id }
const Site = { site: Id }
/** What checks.ts refuses a move for. */
const REFUSALS = [
  'VM_UNKNOWN',
  'VM_STATE',
  'VM_EXISTS',
  'VM_PINNED',
  'SITE_UNKNOWN',
  'SITE_OFFLINE',
  'SITE_SAME',
  'MIGRATION_BUSY',
  'LIMIT_EXCEEDED',
] satisfies ErrorCode[]
/** What a certificate that is brought here is refused for. */
const CERTIFICATES = ['CERT_MALFORMED', 'CERT_UNTRUSTED', 'CERT_EXPIRED', 'AUTH_FAILED'] satisfies ErrorCode[]

const processOperations = [
  json('getHealth', 'GET /healthz', {
    summary: 'health check of the gateway',
    open: true,
    answer: z.object({ ok: z.literal(true) }),
    handle: () => ({ ok: true as const }),
  }),
  stream('getMetrics', 'GET /metrics', {
    summary: "the gateway's metrics, in Prometheus's text format",
    answer: { kind: 'text' },
    async handle({ metrics }, { text }) {
      const { body, contentType } = await metrics.expose()
      text(body, contentType)
    },
  }),
  json('getStatus', 'GET /v1/status', {
    summary: `the gateway, all sites and VMs, and the ${ENDED_SHOWN} newest migrations`,
    answer: wire.GatewayStatus,
    handle: ({ sites, homes, migrations, describe }) => ({
      gateway: describe(),
      sites: sites.views(),
      vms: homes.claims(),
      migrations: migrations.list().slice(0, ENDED_SHOWN),
    }),
  }),
]

const eventOperations = [
  stream('followEvents', 'GET /v1/events', {
    summary: 'events of the gateway as they occur; resumes after `Last-Event-ID` or `?after`',
    errors: ['LIMIT_EXCEEDED'],
    query: z.strictObject({ after: EventId.optional().describe('the id of the event that was read last') }),
    answer: { kind: 'events', schema: FeedEvent },
    handle: ({ feed }, { query, headers, address, signal, stream }) =>
      // A client that connects again by itself repeats its address: what it has read last is in the header.
      feed.serve({ address, after: String(headers['last-event-id'] ?? '') || query.after, signal, stream }),
  }),
]

const siteOperations = [
  json('listSites', 'GET /v1/sites', {
    summary: 'all sites that have been connected',
    answer: z.object({ sites: z.array(wire.SiteView) }),
    handle: ({ sites }) => ({ sites: sites.views() }),
  }),
  json('forgetSite', 'DELETE /v1/sites/:site', {
    summary: 'remove a site: frees the names of its VMs and ends its migrations',
    params: Site,
    errors: ['SITE_UNKNOWN', 'SITE_ONLINE', 'STORE_FAILED'],
    answer: wire.ForgottenSite,
    handle: ({ forgetSite }, { params }) => forgetSite(params.site),
  }),
  json('listServices', 'GET /v1/services', {
    summary: 'the stable addresses, and the sites of their VMs',
    answer: z.object({ services: z.array(wire.ServiceView) }),
    handle: ({ services }) => ({ services: services.views() }),
  }),
]

const vmOperations = [
  json('listVms', 'GET /v1/vms', {
    summary: 'all VMs as the sites report them',
    answer: z.object({ vms: z.array(wire.VmView) }),
    handle: ({ homes }) => ({ vms: homes.claims() }),
  }),
  json('explainVm', 'GET /v1/vms/:vm/explain', {
    summary: 'the reason why the policy moves a VM or lets it stay',
    params: { vm: Word },
    errors: ['VM_UNKNOWN', 'NOT_AVAILABLE'],
    answer: wire.VmExplanation,
    handle({ policy }, { params }) {
      if (!policy) throw new GodwitError('NOT_AVAILABLE', 'this gateway has no policy', { hint: 'configure policy: in gateway.yaml' })
      return policy.explain(params.vm)
    },
  }),
  json('assignHome', 'PUT /v1/vms/:vm/home', {
    summary: 'set the site of a VM that two sites claim',
    params: Vm,
    errors: ['VM_UNKNOWN', 'SITE_UNKNOWN', 'STORE_FAILED'],
    body: wire.HomeRequest,
    answer: wire.HomeReply,
    async handle({ homes }, { params: { vm }, body: { site } }) {
      await homes.assign(vm, site)
      return { vm, site }
    },
  }),
  json('listPins', 'GET /v1/pins', {
    summary: 'pinned VMs',
    answer: z.object({ pins: z.array(wire.PinView) }),
    handle: ({ pins }) => ({ pins: pins.list() }),
  }),
  json('setPin', 'PUT /v1/vms/:vm/pin', {
    summary: 'pin a VM to its site, or unpin it',
    params: Vm,
    errors: ['VM_UNKNOWN', 'LIMIT_EXCEEDED', 'STORE_FAILED'],
    body: wire.PinRequest,
    answer: wire.PinReply,
    async handle({ sites, pins }, { params: { vm }, body: { pinned } }) {
      if (pinned && !sites.vms().some(({ name }) => name === vm)) throw new GodwitError('VM_UNKNOWN', `no site reports a VM '${vm}'`)
      await pins.set(vm, pinned, 'admin API')
      return { vm, pinned }
    },
  }),
]

const migrationOperations = [
  json('predictMigration', 'POST /v1/plans', {
    summary: 'predict the cost of a migration; the VM does not move',
    relays: 'the site of the VM',
    body: wire.PlanRequest,
    answer: Prediction,
    errors: [
      'VM_UNKNOWN',
      'VM_STATE',
      'MIGRATION_BUSY',
      'SITE_UNKNOWN',
      'SITE_SAME',
      'SITE_OFFLINE',
      'TIMEOUT',
      'CONNECTION_LOST',
      'FRAME_MALFORMED',
    ],
    async handle({ sites, homes }, { body: { vm, to, downtimeMs = wire.DOWNTIME_DEFAULT_MS } }) {
      const found = vmAt(homes.find(vm))
      if (!sites.known(to)) throw new GodwitError('SITE_UNKNOWN', `no site '${to}'`)
      if (found.site === to) throw new GodwitError('SITE_SAME', `${vm} is at ${to}`)
      const link = sites.online(found.site)
      if (!link) throw new GodwitError('SITE_OFFLINE', `site ${found.site} is not connected`)
      const asked: PredictParams = { vm, target: to, downtimeMs }
      return check(Prediction, await link.rpc.request('migration.predict', asked, { timeoutMs: PLAN_TIMEOUT_MS }), { what: 'prediction' })
    },
  }),
  json('listMigrations', 'GET /v1/migrations', {
    summary: 'migrations, newest first, in pages',
    query: wire.MigrationsQuery,
    answer: wire.MigrationsPage,
    handle: ({ migrations }, { query }) => pageOf(migrations.list(), query),
  }),
  json('startMigration', 'POST /v1/migrations', {
    summary: 'start a migration; the response is sent when the intent is on disk',
    status: 202,
    body: wire.MigrationRequest,
    answer: wire.MigrationStarted,
    errors: [...REFUSALS, 'VERSION_UNSUPPORTED', 'REVOCATION_MISSING', 'REVOCATION_STALE', 'STORE_FAILED'],
    handle: async ({ migrations }, { body }) => ({ migrationId: await migrations.start(body) }),
  }),
  json('getMigration', 'GET /v1/migrations/:id', {
    summary: 'one migration',
    params: { id: Word },
    errors: ['MIGRATION_UNKNOWN'],
    answer: wire.MigrationRecord,
    handle: ({ migrations }, { params }) => migrations.record(params.id),
  }),
  json('cancelMigration', 'DELETE /v1/migrations/:id', {
    summary: 'cancel a migration; the VM stays at its source',
    params: { id: Word },
    status: 202,
    relays: 'the source',
    answer: Nothing,
    errors: ['MIGRATION_UNKNOWN', 'MIGRATION_LATE', 'SITE_OFFLINE', 'STORE_FAILED', 'TIMEOUT', 'CONNECTION_LOST'],
    async handle({ migrations }, { params }) {
      await migrations.cancel(params.id)
      return {}
    },
  }),
  stream('followMigration', 'GET /v1/migrations/:id/events', {
    summary: 'progress of one migration; the line `end` is the last one',
    params: { id: Word },
    answer: { kind: 'ndjson', schema: wire.MigrationEvent },
    errors: ['MIGRATION_UNKNOWN', 'LIMIT_EXCEEDED'],
    async handle({ migrations }, { params, ndjson, signal }) {
      migrations.record(params.id)
      const answer = ndjson()
      for await (const event of migrations.follow(params.id, signal)) await answer.line(event)
      answer.end()
    },
  }),
]

const prestageOperations = [
  json('listPrestages', 'GET /v1/prestages', {
    summary: 'pre-stagings that have not ended',
    answer: z.object({ prestages: z.array(wire.PrestageRecord) }),
    handle: ({ prestages }) => ({ prestages: prestages.list() }),
  }),
  json('startPrestage', 'POST /v1/prestages', {
    summary: 'check whether a target can run a VM, and reserve memory there; the response is sent when the memory is reserved',
    status: 201,
    relays: 'source or target',
    body: wire.PrestageRequest,
    answer: wire.PrestageRecord,
    errors: [...REFUSALS, 'NOT_AVAILABLE', 'MIGRATION_STUCK', 'TIMEOUT', 'CONNECTION_LOST', 'FRAME_MALFORMED'],
    handle: ({ prestages }, { body }) => prestages.start(body),
  }),
  json('cancelPrestage', 'DELETE /v1/prestages/:id', {
    summary: 'end a pre-staging and release its memory',
    params: { id: Word },
    errors: ['MIGRATION_UNKNOWN'],
    answer: Nothing,
    handle({ prestages }, { params }) {
      prestages.cancel(params.id)
      return {}
    },
  }),
]

/**
 * What the operator and the root's machine ask and bring. Nothing here can sign; what is brought is checked by the
 * root's key.
 */
const trustOperations = [
  json('listEnrolments', 'GET /v1/enrolments', {
    summary: 'enrolments: without a request, pending, or issued',
    errors: ['STORE_FAILED'],
    answer: z.object({ enrolments: z.array(wire.EnrolmentView) }),
    handle: async ({ enrolments }) => ({ enrolments: await enrolments.list() }),
  }),
  json('createEnrolmentToken', 'POST /v1/enrolments/tokens', {
    summary: 'a new token for a site; an earlier one for the same site is void',
    status: 201,
    errors: ['STORE_FAILED'],
    body: wire.TokenRequest,
    answer: wire.TokenReply,
    handle: ({ enrolments }, { body: { site } }) => enrolments.createToken(site),
  }),
  json('issueEnrolment', 'PUT /v1/enrolments/:site', {
    summary: 'upload the certificate that the root signed for a site',
    params: Site,
    body: wire.EnrolmentUpload,
    answer: Nothing,
    errors: ['SITE_UNKNOWN', ...CERTIFICATES, 'STORE_FAILED'],
    async handle({ enrolments }, { params: { site }, body: { certificate } }) {
      await enrolments.issue(site, certificate)
      return {}
    },
  }),
  json('listRenewals', 'GET /v1/renewals', {
    summary: 'certificates to renew',
    answer: z.object({ renewals: z.array(wire.RenewalView) }),
    handle: ({ renewals }) => ({ renewals: renewals.list() }),
  }),
  json('issueRenewal', 'PUT /v1/renewals/:role/:id', {
    summary: 'upload the next certificate of a site or of the gateway',
    params: { role: Word, id: Word },
    body: wire.EnrolmentUpload,
    answer: Nothing,
    errors: ['SITE_UNKNOWN', ...CERTIFICATES],
    handle({ renewals }, { params: { role, id }, body: { certificate } }) {
      renewals.issue(role, id, certificate)
      return {}
    },
  }),
  json('getRevocations', 'GET /v1/revocations', {
    summary: 'the current revocation list',
    answer: wire.RevocationsView,
    handle({ trust }) {
      const signed = trust?.signed()
      const list = signed ? Buffer.from(signed).toString('base64') : null
      return { number: trust?.list()?.number ?? null, ageSeconds: trust?.ageSeconds() ?? null, list }
    },
  }),
  json('offerRevocations', 'PUT /v1/revocations', {
    summary: 'upload a newer revocation list; the gateway sends it to every node',
    body: wire.RevocationsUpload,
    answer: wire.RevocationsReply,
    errors: ['NOT_AVAILABLE', 'CERT_MALFORMED', 'CERT_UNTRUSTED', 'REVOCATION_STALE', 'STORE_FAILED'],
    async handle({ trust }, { body: { list } }) {
      if (!trust) throw new GodwitError('NOT_AVAILABLE', 'this gateway has no revocation list')
      return { number: await trust.offer(new Uint8Array(Buffer.from(list, 'base64'))) }
    },
  }),
]

const ADMIN_OPERATIONS: readonly Operation<AdminOptions>[] = [
  ...processOperations,
  ...eventOperations,
  ...siteOperations,
  ...vmOperations,
  ...migrationOperations,
  ...prestageOperations,
  ...trustOperations,
]

export const adminRoutes = (options: AdminOptions): Route[] => routesOf(ADMIN_OPERATIONS, options).routes

export const ADMIN_DOCUMENT: ApiDocument = {
  title: "Godwit gateway's admin API",
  description:
    'What operators, consoles and scripts ask a Godwit gateway. Times are Unix ms unless their name says otherwise, durations ms, sizes bytes. ' +
    'Requests are strict: an unknown field is an error that names it. Answers may grow fields. See docs/reference/protocol.md.',
  server: { url: 'http://127.0.0.1:7445', description: 'the default; HTTPS if admin.tls is set' },
  who: 'admin token',
  hasToken: true,
  operations: ADMIN_OPERATIONS,
  schemas: {
    CertificateUpload: wire.EnrolmentUpload,
    EnrolmentView: wire.EnrolmentView,
    GatewayStatus: wire.GatewayStatus,
    FeedEvent,
    MigrationEvent: wire.MigrationEvent,
    MigrationRecord: wire.MigrationRecord,
    MigrationsPage: wire.MigrationsPage,
    Nothing,
    PinView: wire.PinView,
    Prediction,
    PrestageRecord: wire.PrestageRecord,
    RenewalView: wire.RenewalView,
    RevocationsView: wire.RevocationsView,
    ServiceView: wire.ServiceView,
    SiteView: wire.SiteView,
    VmExplanation: wire.VmExplanation,
    VmView: wire.VmView,
  },
}
