// ETSI GS MEC 021 V2 (Application Mobility Service, `amsi/v1`) for VMs: registrations, subscriptions, and what
// subscribers are told.
// Enters: requests of MEC applications, phases of handoffs. Leaves: resources; notifications to deliver. No IO here.
// Always holds: what a client has registered or subscribed to, only it and the operator may read, alter or delete, and
// others cannot tell that it exists; a client is told only of VMs that it has registered. An application instance is a
// VM, its appInstanceId the VM's name; what subscribers hear comes from the same table of phases as MQTT; tables are
// bounded, what has expired is gone. V2.1.1 numbers its enumerations, V2.2.1 names them: both are understood, and each
// requester is answered in its own way. Not supported, and refused: adjacent application instances, websockets.
// appMobilityServiceLevel is kept and shown; it does not hold a VM back (a pin does).
import { randomUUID } from 'node:crypto'
import type { Phase } from '../../../mqtt/schemas.ts'
import type { Clock } from '../../../ops/clock.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { check, z } from '../../../wire/schema.ts'
import { PHASES } from '../../handoff/phases.ts'
import { isCallbackAllowed } from './callback-hosts.ts'

const REGISTRATIONS_MAX = 10_000
const SUBSCRIPTIONS_MAX = 1_000
/** Of these, one client's that is not the operator. */
export const PER_CLIENT = { registrations: 1_000, subscriptions: 100 }
const DEVICES_MAX = 256

const STATUS = ['INTERHOST_MOVEOUT_TRIGGERED', 'INTERHOST_MOVEOUT_COMPLETED', 'INTERHOST_MOVEOUT_FAILED'] as const
const CONTEXT = ['NOT_TRANSFERRED', 'USER_CONTEXT_TRANSFER_COMPLETED'] as const
const LEVEL = ['APP_MOBILITY_NOT_ALLOWED', 'APP_MOBILITY_WITH_CONFIRMATION', 'APP_MOBILITY_WITHOUT_CONFIRMATION'] as const
const ASSOCIATE = ['UE_IPv4_ADDRESS', 'UE_IPV6_ADDRESS', 'NATED_IP_ADDRESS', 'GTP_TEID'] as const

/** A name, or its number (`first` is the number of the first name): the name comes out. */
const named = <const N extends readonly string[]>(names: N, first: number) =>
  z.union([z.enum(names as unknown as [string, ...string[]]), z.number().int()]).transform((value, context): N[number] => {
    if (typeof value === 'string') return value
    const name = names[value - first]
    if (name !== undefined) return name
    context.addIssue({ code: 'custom', message: `expected ${first} to ${first + names.length - 1}, or a name` })
    return z.NEVER
  })

const text = z.string().min(1).max(256)
const TimeStamp = z.object({ seconds: z.number().int().nonnegative(), nanoSeconds: z.number().int().min(0).max(999_999_999) })
const AssociateId = z.object({ type: named(ASSOCIATE, 1), value: text })
type AssociateId = z.output<typeof AssociateId>

const RegistrationInfo = z.object({
  serviceConsumerId: z
    .object({ appInstanceId: text.optional(), mepId: text.optional() })
    .refine(id => (id.appInstanceId === undefined) !== (id.mepId === undefined), 'expected appInstanceId or mepId'),
  deviceInformation: z
    .array(
      z.object({
        associateId: AssociateId,
        appMobilityServiceLevel: named(LEVEL, 1).optional(),
        contextTransferState: named(CONTEXT, 0).optional(),
      }),
    )
    .max(DEVICES_MAX)
    .optional(),
  /** Seconds; 0: for ever. */
  expiryTime: z.number().int().min(0).max(0xffff_ffff).optional(),
})
type RegistrationInfo = z.output<typeof RegistrationInfo>

const Subscription = z.object({
  subscriptionType: z.literal('MobilityProcedureSubscription'),
  callbackReference: z.url({ protocol: /^https?$/ }).max(1024),
  expiryDeadline: TimeStamp.optional(),
  filterCriteria: z.object({
    appInstanceId: text.optional(),
    associateId: z.array(AssociateId).max(DEVICES_MAX).optional(),
    mobilityStatus: z.array(named(STATUS, 1)).max(3).optional(),
  }),
})
type Subscription = z.output<typeof Subscription>

type Style = 'numbers' | 'names'

/** Who asks, by the token of the request. */
export type Mec021Client = {
  name: string
  /** Sees and alters everybody's. */
  isOperator: boolean
  /** VMs that it may register and subscribe to; absent: any. */
  vms?: readonly string[] | undefined
}

type Kept<T> = { id: string; owner: Mec021Client; value: T; style: Style; expiresAtMs: number }
export type Notification = { subscriptionId: string; url: string; body: object }

type Mec021Options = {
  clock: Clock
  /** URI of the API, without a slash at its end: for links. */
  base: () => string
  /** `host` or `host:port` that callbacks may go to: a request must not make the gateway call just anywhere. */
  callbackHosts: readonly string[]
}

export class Mec021 {
  readonly #options: Mec021Options
  readonly #registrations = new Map<string, Kept<RegistrationInfo>>()
  readonly #subscriptions = new Map<string, Kept<Subscription>>()

  constructor(options: Mec021Options) {
    this.#options = options
  }

  // --- Registrations
  // ---

  register(who: Mec021Client, body: unknown): object {
    return this.#register(who, body, randomUUID())
  }

  #register(owner: Mec021Client, body: unknown, id: string): object {
    const value = check(RegistrationInfo, body, { what: 'RegistrationInfo', code: 'CONFIG_INVALID' })
    mayName(owner, value.serviceConsumerId.appInstanceId)
    this.#expire()
    bound(this.#registrations, id, owner, { total: REGISTRATIONS_MAX, each: PER_CLIENT.registrations, what: 'registrations' })
    const { expiryTime = 0 } = value
    const expiresAtMs = expiryTime === 0 ? Number.POSITIVE_INFINITY : this.#options.clock.now() + expiryTime * 1000
    const kept: Kept<RegistrationInfo> = { id, owner, value, style: styleOf(body), expiresAtMs }
    this.#registrations.set(id, kept)
    return registrationView(kept)
  }

  registration = (who: Mec021Client, id: string): object => registrationView(this.#registration(who, id))
  registrations = (who: Mec021Client): object[] => {
    this.#expire()
    return [...this.#registrations.values()].filter(kept => isOf(kept, who)).map(registrationView)
  }
  deregister(who: Mec021Client, id: string): void {
    this.#registration(who, id)
    this.#registrations.delete(id)
  }
  update(who: Mec021Client, id: string, body: unknown): object {
    return this.#register(this.#registration(who, id).owner, body, id)
  }

  #registration = (who: Mec021Client, id: string) => this.#get(this.#registrations, who, id, 'application mobility service')

  // --- Subscriptions
  // ---

  subscribe(who: Mec021Client, body: unknown): { id: string; view: object } {
    return this.#subscribe(who, body, randomUUID())
  }

  #subscribe(owner: Mec021Client, body: unknown, id: string): { id: string; view: object } {
    const type = (body as { subscriptionType?: unknown } | undefined)?.subscriptionType
    if (type === 'AdjacentAppInfoSubscription') throw new GodwitError('NOT_AVAILABLE', 'adjacent application instances are not supported')
    const value = check(Subscription, body, { what: 'MobilityProcedureSubscription', code: 'CONFIG_INVALID' })
    if (!isCallbackAllowed(value.callbackReference, this.#options.callbackHosts))
      throw new GodwitError('CONFIG_INVALID', `callbackReference: ${new URL(value.callbackReference).host} is not in mec021.callbackHosts`)
    mayName(owner, value.filterCriteria.appInstanceId)
    value.filterCriteria.mobilityStatus ??= [STATUS[0]]
    this.#expire()
    bound(this.#subscriptions, id, owner, { total: SUBSCRIPTIONS_MAX, each: PER_CLIENT.subscriptions, what: 'subscriptions' })
    const expiresAtMs = value.expiryDeadline ? value.expiryDeadline.seconds * 1000 : Number.POSITIVE_INFINITY
    const kept: Kept<Subscription> = { id, owner, value, style: styleOf(body), expiresAtMs }
    this.#subscriptions.set(id, kept)
    return { id, view: this.#subscriptionView(kept) }
  }

  subscription = (who: Mec021Client, id: string): object => this.#subscriptionView(this.#get(this.#subscriptions, who, id, 'subscription'))
  resubscribe(who: Mec021Client, id: string, body: unknown): object {
    return this.#subscribe(this.#get(this.#subscriptions, who, id, 'subscription').owner, body, id).view
  }
  unsubscribe(who: Mec021Client, id: string): void {
    this.#get(this.#subscriptions, who, id, 'subscription')
    this.#subscriptions.delete(id)
  }
  /** SubscriptionLinkList. */
  subscriptions(who: Mec021Client): object {
    this.#expire()
    const own = [...this.#subscriptions.values()].filter(kept => isOf(kept, who))
    const subscription = own.map(({ id, style }) => ({
      href: this.#hrefOf(id),
      subscriptionType: style === 'numbers' ? 1 : 'MobilityProcedureSubscription',
    }))
    return { _links: { self: { href: `${this.#options.base()}/subscriptions` } }, subscription }
  }

  // --- Handoffs
  // ---

  /** A handoff has come to a new phase: changes what is registered, and gives the notifications for subscribers. */
  handoff({ vm, phase, before }: { vm: string; phase: Phase; before: Phase | undefined }): Notification[] {
    const { over, mec021 } = PHASES[phase]
    // Nobody was notified that it began.
    if (over && (!before || PHASES[before].seq < PHASES.precopy.seq)) return []
    this.#expire()
    const registered = [...this.#registrations.values()].filter(({ value }) => value.serviceConsumerId.appInstanceId === vm)
    const devices = registered.flatMap(({ value }) => value.deviceInformation ?? [])
    const { contextTransferState, mobilityStatus } = mec021
    if (contextTransferState) for (const device of devices) device.contextTransferState = contextTransferState
    if (!mobilityStatus) return []
    return [...this.#subscriptions.values()].flatMap(kept => this.#deliveryTo(kept, vm, mobilityStatus, registered))
  }

  /** `registered`: registrations of the VM, of all clients. */
  #deliveryTo(
    { id, owner, value, style }: Kept<Subscription>,
    vm: string,
    status: (typeof STATUS)[number],
    registered: Kept<RegistrationInfo>[],
  ): Notification[] {
    const own = registered.filter(kept => isOf(kept, owner))
    if (!owner.isOperator && own.length === 0) return []
    const all = own.flatMap(kept => kept.value.deviceInformation ?? []).map(({ associateId }) => associateId)
    const { appInstanceId, associateId: wanted = [], mobilityStatus = [] } = value.filterCriteria
    if (appInstanceId !== undefined && appInstanceId !== vm) return []
    if (!mobilityStatus.includes(status)) return []
    const isSame = (a: AssociateId, b: AssociateId) => a.type === b.type && a.value === b.value
    const associates = wanted.length > 0 ? all.filter(one => wanted.some(other => isSame(one, other))) : all
    if (wanted.length > 0 && associates.length === 0) return []
    const nowMs = this.#options.clock.now()
    const body = {
      notificationType: 'MobilityProcedureNotification',
      timeStamp: { seconds: Math.floor(nowMs / 1000), nanoSeconds: (Math.floor(nowMs) % 1000) * 1_000_000 },
      associateId: associates.map(one => associateView(one, style)),
      mobilityStatus: shown(STATUS, 1, status, style),
      targetAppInfo: { appInstanceId: vm },
      _links: { subscription: { href: this.#hrefOf(id) } },
    }
    return [{ subscriptionId: id, url: value.callbackReference, body }]
  }

  #subscriptionView({ id, value, style }: Kept<Subscription>): object {
    const { filterCriteria, ...rest } = value
    const { associateId, mobilityStatus = [], ...more } = filterCriteria
    return {
      ...rest,
      filterCriteria: {
        ...more,
        ...(associateId ? { associateId: associateId.map(one => associateView(one, style)) } : {}),
        mobilityStatus: mobilityStatus.map(status => shown(STATUS, 1, status, style)),
      },
      _links: { self: { href: this.#hrefOf(id) } },
    }
  }

  #hrefOf(id: string): string {
    return `${this.#options.base()}/subscriptions/${id}`
  }

  #get<T>(from: Map<string, Kept<T>>, who: Mec021Client, id: string, what: string): Kept<T> {
    this.#expire()
    const found = from.get(id)
    if (!found || !isOf(found, who)) throw new GodwitError('RESOURCE_UNKNOWN', `no ${what} '${id}'`)
    return found
  }

  #expire(): void {
    const nowMs = this.#options.clock.now()
    for (const [id, { expiresAtMs }] of this.#registrations) if (expiresAtMs <= nowMs) this.#registrations.delete(id)
    for (const [id, { expiresAtMs }] of this.#subscriptions) if (expiresAtMs <= nowMs) this.#subscriptions.delete(id)
  }
}

const isOf = ({ owner }: Kept<unknown>, who: Mec021Client): boolean => who.isOperator || owner.name === who.name

/** The operator's rule which VMs a client may name. RESOURCE_FORBIDDEN. */
function mayName({ name, vms }: Mec021Client, vm: string | undefined): void {
  if (vms && vm !== undefined && !vms.includes(vm))
    throw new GodwitError('RESOURCE_FORBIDDEN', `client ${name} may not use VM ${vm} (mec021.clients)`)
}

function bound<T>(
  kept: Map<string, Kept<T>>,
  id: string,
  owner: Mec021Client,
  { total, each, what }: { total: number; each: number; what: string },
): void {
  if (kept.has(id)) return
  if (kept.size >= total) throw new GodwitError('LIMIT_EXCEEDED', `more than ${total} ${what}`)
  const own = owner.isOperator ? 0 : [...kept.values()].filter(one => one.owner.name === owner.name).length
  if (own >= each) throw new GodwitError('LIMIT_EXCEEDED', `more than ${each} ${what} of client ${owner.name}`)
}

const shown = <const N extends readonly string[]>(names: N, first: number, name: N[number], style: Style): string | number =>
  style === 'names' ? name : names.indexOf(name) + first

const associateView = ({ type, value }: AssociateId, style: Style) => ({ type: shown(ASSOCIATE, 1, type, style), value })

function registrationView({ id, value, style }: Kept<RegistrationInfo>): object {
  const { deviceInformation, ...rest } = value
  return {
    appMobilityServiceId: id,
    ...rest,
    ...(deviceInformation
      ? {
          deviceInformation: deviceInformation.map(({ associateId, appMobilityServiceLevel, contextTransferState }) => ({
            associateId: associateView(associateId, style),
            ...(appMobilityServiceLevel ? { appMobilityServiceLevel: shown(LEVEL, 1, appMobilityServiceLevel, style) } : {}),
            ...(contextTransferState ? { contextTransferState: shown(CONTEXT, 0, contextTransferState, style) } : {}),
          })),
        }
      : {}),
  }
}

/** How a requester writes enumerations; who writes none is answered in numbers. */
function styleOf(body: unknown): Style {
  const json = JSON.stringify(body) ?? ''
  return [...STATUS, ...CONTEXT, ...LEVEL, ...ASSOCIATE].some(name => json.includes(`"${name}"`)) ? 'names' : 'numbers'
}
