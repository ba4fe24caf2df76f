import { createServer } from 'node:http'
import { type Delivery, Mec021 } from '../../../gateway/standards/mec021.ts'
import { eventually } from '../../../ops/deadline.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { world } from '../fixture.ts'
import { actOut, stage } from '../mqtt/support.ts'

const test = suite('gateway/standards: ETSI MEC 021')

const registration = (more: object = {}) => ({
  serviceConsumerId: { appInstanceId: 'vm-1' },
  deviceInformation: [{ associateId: { type: 1, value: '10.1.0.7' }, appMobilityServiceLevel: 3, contextTransferState: 0 }],
  ...more,
})
const subscription = (more: object = {}, filter: object = {}) => ({
  subscriptionType: 'MobilityProcedureSubscription',
  callbackReference: 'http://127.0.0.1:9/callback',
  filterCriteria: { appInstanceId: 'vm-1', mobilityStatus: [1, 2, 3], ...filter },
  ...more,
})

function service() {
  const clock = { ms: 1_000_000, now: () => clock.ms }
  return { clock, mec: new Mec021({ clock, base: () => 'http://gw/amsi/v1', callbackHosts: ['127.0.0.1', '::1'] }) }
}
const phases = ['proposed', 'precopy', 'switchover', 'completed'] as const
const statuses = (deliveries: Delivery[]) => deliveries.map(({ body }) => (body as { mobilityStatus: unknown }).mobilityStatus)

test('a handoff is told in its phases, each once, and registered devices learn the state of their context', () => {
  const { mec } = service()
  const { appMobilityServiceId: id } = mec.register(registration()) as { appMobilityServiceId: string }
  mec.subscribe(subscription())
  const told: unknown[] = []
  const states: unknown[] = []
  for (const phase of [...phases, ...phases]) {
    told.push(...statuses(mec.handoff({ handoffId: 'h', vm: 'vm-1', phase })))
    states.push(
      (mec.registration(id) as { deviceInformation: { contextTransferState: unknown }[] }).deviceInformation[0]?.contextTransferState,
    )
  }
  assert.equal(told, [1, 2])
  assert.equal(states.slice(0, 4), [0, 0, 0, 1])
  assert.equal(statuses(mec.handoff({ handoffId: 'h2', vm: 'vm-1', phase: 'failed' })), [], 'what never began does not fail')
  mec.handoff({ handoffId: 'h3', vm: 'vm-1', phase: 'precopy' })
  assert.equal(statuses(mec.handoff({ handoffId: 'h3', vm: 'vm-1', phase: 'cancelled' })), [3])
})

test('a notification has the fields of the specification, in the style of its subscriber', () => {
  const { mec } = service()
  mec.register(registration())
  const { id } = mec.subscribe(subscription())
  mec.subscribe(subscription({}, { mobilityStatus: ['INTERHOST_MOVEOUT_TRIGGERED'] }))
  const [numbers, names] = mec.handoff({ handoffId: 'h', vm: 'vm-1', phase: 'precopy' })
  assert.equal(numbers?.body, {
    notificationType: 'MobilityProcedureNotification',
    timeStamp: { seconds: 1000, nanoSeconds: 0 },
    associateId: [{ type: 1, value: '10.1.0.7' }],
    mobilityStatus: 1,
    targetAppInfo: { appInstanceId: 'vm-1' },
    _links: { subscription: { href: `http://gw/amsi/v1/subscriptions/${id}` } },
  })
  const { associateId, mobilityStatus } = names!.body as { associateId: unknown; mobilityStatus: unknown }
  assert.equal([associateId, mobilityStatus], [[{ type: 'UE_IPv4_ADDRESS', value: '10.1.0.7' }], 'INTERHOST_MOVEOUT_TRIGGERED'])
})

test('filters hold: application, users, status; without a status the default is TRIGGERED', () => {
  const { mec } = service()
  mec.register(registration())
  mec.subscribe(subscription({}, { appInstanceId: 'other' }))
  mec.subscribe(subscription({}, { associateId: [{ type: 1, value: '10.9.9.9' }] }))
  mec.subscribe(subscription({}, { associateId: [{ type: 'UE_IPv4_ADDRESS', value: '10.1.0.7' }] }))
  const { view } = mec.subscribe(subscription({}, { mobilityStatus: undefined }))
  assert.equal((view as { filterCriteria: { mobilityStatus: unknown } }).filterCriteria.mobilityStatus, [1])
  assert.is(mec.handoff({ handoffId: 'h', vm: 'vm-1', phase: 'precopy' }).length, 2)
  assert.is(mec.handoff({ handoffId: 'h', vm: 'vm-1', phase: 'completed' }).length, 1)
})

test('what is wrong is refused, what has expired is gone', async () => {
  const { mec, clock } = service()
  for (const bad of [
    undefined,
    {},
    registration({ serviceConsumerId: {} }),
    registration({ serviceConsumerId: { appInstanceId: 'a', mepId: 'b' } }),
    registration({ deviceInformation: [{ associateId: { type: 9, value: 'x' } }] }),
    registration({ expiryTime: -1 }),
  ])
    assert.is(await codeOf(() => mec.register(bad)), 'CONFIG_INVALID', JSON.stringify(bad))
  for (const bad of [
    undefined,
    subscription({ subscriptionType: 'Other' }),
    subscription({ callbackReference: 'ftp://127.0.0.1/' }),
    subscription({ callbackReference: 'http://metadata.internal/' }),
    subscription({}, { mobilityStatus: [4] }),
  ])
    assert.is(await codeOf(() => mec.subscribe(bad)), 'CONFIG_INVALID', JSON.stringify(bad))
  assert.is(await codeOf(() => mec.subscribe({ ...subscription(), subscriptionType: 'AdjacentAppInfoSubscription' })), 'NOT_AVAILABLE')
  mec.register(registration({ expiryTime: 10 }))
  const { id } = mec.subscribe(subscription({ expiryDeadline: { seconds: 1010, nanoSeconds: 0 } }))
  assert.is(mec.registrations().length, 1)
  clock.ms += 10_000
  assert.is(mec.registrations().length, 0)
  assert.is(await codeOf(() => mec.subscription(id)), 'RESOURCE_UNKNOWN')
  assert.equal(mec.handoff({ handoffId: 'h', vm: 'vm-1', phase: 'precopy' }), [])
})

/** A subscriber that keeps what it is told, and fails its first answers. */
async function subscriber(failures = 0) {
  const bodies: Record<string, unknown>[] = []
  const server = createServer((request, response) => {
    let text = ''
    request.on('data', chunk => (text += chunk))
    request.on('end', () => {
      if (failures-- > 0) return void response.writeHead(503).end()
      bodies.push(JSON.parse(text))
      response.writeHead(204).end()
    })
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  return { url: `http://127.0.0.1:${port}/told`, bodies, [Symbol.asyncDispose]: async () => void server.close() }
}

test('over HTTP: register, subscribe, be told of a handoff, and leave', async () => {
  await using told = await subscriber(1)
  await using w = await world({ mec021: { host: '127.0.0.1', port: 0, token: 'mec', callbackHosts: ['127.0.0.1'] } })
  const call = async (method: string, path: string, body?: unknown, token = 'mec') => {
    const response = await fetch(`${w.gateway.mec021Url}${path}`, {
      method,
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    })
    const text = await response.text()
    return { status: response.status, headers: response.headers, body: text === '' ? undefined : JSON.parse(text) }
  }
  assert.is((await call('GET', '/app_mobility_services', undefined, 'wrong')).status, 401)
  const created = await call('POST', '/app_mobility_services', registration())
  assert.is(created.status, 201)
  const id = created.body.appMobilityServiceId as string
  assert.is(created.headers.get('location'), `/amsi/v1/app_mobility_services/${id}`)
  const subscribed = await call('POST', '/subscriptions/', subscription({ callbackReference: told.url }))
  assert.is(subscribed.status, 201)
  assert.is((await call('GET', '/subscriptions')).body.subscription[0].href, subscribed.body._links.self.href)
  const bad = await call('POST', '/subscriptions', subscription({ callbackReference: 'http://192.0.2.1/' }))
  assert.equal([bad.status, bad.headers.get('content-type'), bad.body.code], [400, 'application/problem+json', 'CONFIG_INVALID'])

  const s = await stage(w)
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  assert.is(await actOut(s), migrationId)
  await eventually(() => (told.bodies.length === 2 ? true : undefined), { ms: 8_000, what: 'two notifications' })
  assert.equal(
    told.bodies.map(body => body['mobilityStatus']),
    [1, 2],
    'in order, although the first attempt failed',
  )
  const after = await call('GET', `/app_mobility_services/${id}`)
  assert.is(after.body.deviceInformation[0].contextTransferState, 1)
  assert.is((await call('PUT', `/app_mobility_services/${id}`, registration({ expiryTime: 60 }))).body.expiryTime, 60)
  assert.is((await call('POST', `/app_mobility_services/${id}/deregister_task`)).status, 204)
  assert.is((await call('GET', `/app_mobility_services/${id}`)).status, 404)
  const subscriptionId = (subscribed.body._links.self.href as string).split('/').at(-1)
  assert.is((await call('DELETE', `/subscriptions/${subscriptionId}`)).status, 204)
  assert.is((await call('DELETE', `/subscriptions/${subscriptionId}`)).status, 404)
})

test.run()
