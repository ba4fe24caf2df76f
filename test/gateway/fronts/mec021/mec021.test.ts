import { createServer } from 'node:http'
import { isCallbackAllowed, parseCallbackHost } from '../../../../gateway/fronts/mec021/callback-hosts.ts'
import { Mec021, type Mec021Client, type Notification, PER_CLIENT } from '../../../../gateway/fronts/mec021/mec021.ts'
import { eventually } from '../../../../ops/deadline.ts'
import { assert, codeOf, suite } from '../../../support/suite.ts'
import { world } from '../../fixture.ts'
import { actOut, stage } from '../mqtt/support.ts'

const test = suite('gateway/fronts/mec021: ETSI MEC 021')

const OPERATOR: Mec021Client = { name: '', isOperator: true }
const SHOP: Mec021Client = { name: 'shop', isOperator: false }
const TAXI: Mec021Client = { name: 'taxi', isOperator: false, vms: ['vm-2'] }

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
const statuses = (deliveries: Notification[]) => deliveries.map(({ body }) => (body as { mobilityStatus: unknown }).mobilityStatus)

test('a handoff is told in its phases, and registered devices learn the state of their context', () => {
  const { mec } = service()
  const { appMobilityServiceId: id } = mec.register(OPERATOR, registration()) as { appMobilityServiceId: string }
  mec.subscribe(OPERATOR, subscription())
  const told: unknown[] = []
  const states: unknown[] = []
  for (const [at, phase] of phases.entries()) {
    told.push(...statuses(mec.handoff({ vm: 'vm-1', phase, before: phases[at - 1] })))
    states.push(
      (mec.registration(OPERATOR, id) as { deviceInformation: { contextTransferState: unknown }[] }).deviceInformation[0]
        ?.contextTransferState,
    )
  }
  assert.equal(told, [1, 2])
  assert.equal(states, [0, 0, 0, 1])
  for (const before of [undefined, 'proposed', 'prestaging'] as const)
    assert.equal(statuses(mec.handoff({ vm: 'vm-1', phase: 'failed', before })), [], 'what never began does not fail')
  assert.equal(statuses(mec.handoff({ vm: 'vm-1', phase: 'cancelled', before: 'precopy' })), [3])
})

test('a notification has the fields of the specification, in the style of its subscriber', () => {
  const { mec } = service()
  mec.register(OPERATOR, registration())
  const { id } = mec.subscribe(OPERATOR, subscription())
  mec.subscribe(OPERATOR, subscription({}, { mobilityStatus: ['INTERHOST_MOVEOUT_TRIGGERED'] }))
  const [numbers, names] = mec.handoff({ vm: 'vm-1', phase: 'precopy', before: 'proposed' })
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
  mec.register(OPERATOR, registration())
  mec.subscribe(OPERATOR, subscription({}, { appInstanceId: 'other' }))
  mec.subscribe(OPERATOR, subscription({}, { associateId: [{ type: 1, value: '10.9.9.9' }] }))
  mec.subscribe(OPERATOR, subscription({}, { associateId: [{ type: 'UE_IPv4_ADDRESS', value: '10.1.0.7' }] }))
  const { view } = mec.subscribe(OPERATOR, subscription({}, { mobilityStatus: undefined }))
  assert.equal((view as { filterCriteria: { mobilityStatus: unknown } }).filterCriteria.mobilityStatus, [1])
  assert.is(mec.handoff({ vm: 'vm-1', phase: 'precopy', before: 'proposed' }).length, 2)
  assert.is(mec.handoff({ vm: 'vm-1', phase: 'completed', before: 'switchover' }).length, 1)
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
    assert.is(await codeOf(() => mec.register(OPERATOR, bad)), 'CONFIG_INVALID', JSON.stringify(bad))
  for (const bad of [
    undefined,
    subscription({ subscriptionType: 'Other' }),
    subscription({ callbackReference: 'ftp://127.0.0.1/' }),
    subscription({ callbackReference: 'http://metadata.internal/' }),
    subscription({}, { mobilityStatus: [4] }),
  ])
    assert.is(await codeOf(() => mec.subscribe(OPERATOR, bad)), 'CONFIG_INVALID', JSON.stringify(bad))
  assert.is(
    await codeOf(() => mec.subscribe(OPERATOR, { ...subscription(), subscriptionType: 'AdjacentAppInfoSubscription' })),
    'NOT_AVAILABLE',
  )
  mec.register(OPERATOR, registration({ expiryTime: 10 }))
  const { id } = mec.subscribe(OPERATOR, subscription({ expiryDeadline: { seconds: 1010, nanoSeconds: 0 } }))
  assert.is(mec.registrations(OPERATOR).length, 1)
  clock.ms += 10_000
  assert.is(mec.registrations(OPERATOR).length, 0)
  assert.is(await codeOf(() => mec.subscription(OPERATOR, id)), 'RESOURCE_UNKNOWN')
  assert.equal(mec.handoff({ vm: 'vm-1', phase: 'precopy', before: 'proposed' }), [])
})

test('what a client has registered or subscribed to, nobody but it and the operator may read, alter or delete', async () => {
  const { mec } = service()
  const { appMobilityServiceId: id } = mec.register(SHOP, registration()) as { appMobilityServiceId: string }
  const { id: subscribed } = mec.subscribe(SHOP, subscription())
  for (const attack of [
    () => mec.registration(TAXI, id),
    () => mec.update(TAXI, id, registration()),
    () => mec.deregister(TAXI, id),
    () => mec.subscription(TAXI, subscribed),
    () => mec.resubscribe(TAXI, subscribed, subscription()),
    () => mec.unsubscribe(TAXI, subscribed),
  ])
    assert.is(await codeOf(attack), 'RESOURCE_UNKNOWN', attack.toString())
  const lengths = (who: Mec021Client) => [
    mec.registrations(who).length,
    (mec.subscriptions(who) as { subscription: [] }).subscription.length,
  ]
  assert.equal(
    [lengths(TAXI), lengths(SHOP), lengths(OPERATOR)],
    [
      [0, 0],
      [1, 1],
      [1, 1],
    ],
  )
  mec.update(OPERATOR, id, registration({ expiryTime: 60 }))
  assert.is((mec.registration(SHOP, id) as { expiryTime: number }).expiryTime, 60, 'it stays the client’s')
})

test('a client is told of VMs that it has registered, with its own devices; it names no VM that it may not', async () => {
  const { mec } = service()
  mec.register(OPERATOR, registration({ deviceInformation: [{ associateId: { type: 1, value: '10.7.7.7' } }] }))
  mec.subscribe(TAXI, subscription({}, { appInstanceId: undefined }))
  assert.equal(mec.handoff({ vm: 'vm-1', phase: 'precopy', before: 'proposed' }), [], 'another’s VM')
  mec.register(SHOP, registration())
  mec.subscribe(SHOP, subscription())
  const [told] = mec.handoff({ vm: 'vm-1', phase: 'precopy', before: 'proposed' })
  assert.equal((told!.body as { associateId: unknown }).associateId, [{ type: 1, value: '10.1.0.7' }])
  assert.is(await codeOf(() => mec.register(TAXI, registration())), 'RESOURCE_FORBIDDEN')
  assert.is(await codeOf(() => mec.subscribe(TAXI, subscription())), 'RESOURCE_FORBIDDEN')
  mec.register(TAXI, registration({ serviceConsumerId: { appInstanceId: 'vm-2' } }))
})

test('one client cannot take the places of all', async () => {
  const { mec } = service()
  for (let i = 0; i < PER_CLIENT.subscriptions; i++) mec.subscribe(SHOP, subscription())
  assert.is(await codeOf(() => mec.subscribe(SHOP, subscription())), 'LIMIT_EXCEEDED')
  mec.subscribe(OPERATOR, subscription())
})

test('callbacks go to the hosts of the list, in whatever case, with the port that it names', () => {
  const list = ['App.Example', 'other.example:8080', '[::1]:9000', '10.0.0.1:443', 'Bücher.example']
  const right: [string, boolean][] = [
    ['http://app.example/x', true],
    ['https://APP.EXAMPLE:9999/', true],
    ['http://app.example./', true],
    ['http://OTHER.example:8080/', true],
    ['http://other.example/', false],
    ['http://other.example:8081/', false],
    ['http://[::1]:9000/', true],
    ['http://[0:0::1]:9000/', true],
    ['http://[::1]/', false],
    ['https://10.0.0.1/', true],
    ['http://10.0.0.1/', false],
    ['http://xn--bcher-kva.example/', true],
    ['http://app.example@evil.example/', false],
    ['http://evil.example/app.example', false],
    ['http://app.example.evil.example/', false],
  ]
  for (const [url, allowed] of right) assert.is(isCallbackAllowed(url, list), allowed, url)
  for (const bad of ['', 'http://a/', 'a/b', 'a:0', 'a:65536', 'a:b', 'a b', 'u@a', '[::1', ':80'])
    assert.is(parseCallbackHost(bad), undefined, bad)
  assert.equal(parseCallbackHost('::1'), { host: '::1', port: undefined })
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

test('over HTTP: each client has a token of its own, and sees what is its own; a token of two is refused at the start', async () => {
  const clients = [
    { name: 'shop', token: 'shop-token' },
    { name: 'taxi', token: 'taxi-token', vms: ['vm-2'] },
  ]
  const listen = { host: '127.0.0.1', port: 0, token: 'mec', callbackHosts: ['127.0.0.1'] }
  await using w = await world({ mec021: { ...listen, clients } })
  const call = async (token: string, method: string, path: string, body?: unknown) => {
    const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json' }
    const response = await fetch(`${w.gateway.mec021Url}${path}`, { method, headers, ...(body ? { body: JSON.stringify(body) } : {}) })
    return { status: response.status, body: JSON.parse((await response.text()) || 'null') }
  }
  const made = await call('shop-token', 'POST', '/app_mobility_services', registration())
  assert.is(made.status, 201)
  const path = `/app_mobility_services/${made.body.appMobilityServiceId}`
  const statuses = []
  for (const method of ['GET', 'PUT', 'DELETE'])
    statuses.push((await call('taxi-token', method, path, method === 'PUT' ? registration() : undefined)).status)
  statuses.push((await call('taxi-token', 'POST', `${path}/deregister_task`)).status)
  assert.equal(statuses, [404, 404, 404, 404])
  assert.equal([(await call('taxi-token', 'GET', '/app_mobility_services')).body, (await call('mec', 'GET', path)).status], [[], 200])
  assert.is((await call('taxi-token', 'POST', '/app_mobility_services', registration())).status, 403)
  assert.is((await call('nobody', 'GET', path)).status, 401)
  const doubled = [...clients, { name: 'twin', token: 'mec' }]
  assert.is(await codeOf(() => world({ mec021: { ...listen, clients: doubled } })), 'CONFIG_INVALID')
})

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
