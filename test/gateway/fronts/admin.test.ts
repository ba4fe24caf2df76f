// The admin API from outside: tokens, malformed requests, status, metrics, enrolment.
import { createRequest, createRoot, decodeCertificate, issueCertificate, newSerial, verifyRequest } from '../../../crypto/certificate.ts'
import { generateSiteKeys } from '../../../crypto/identity.ts'
import { enrol } from '../../../edge-node/link/enrol.ts'
import { eventually } from '../../../ops/deadline.ts'
import { requestJson, requestText } from '../../../ops/http-client.ts'
import { type EnrolmentView, GatewayStatus, type TokenReply } from '../../../wire/admin.ts'
import type { GodwitError } from '../../../wire/errors.ts'
import { assert, codeOf, suite, thrown } from '../../support/suite.ts'
import { NOW_SECONDS, TOKEN, vm, type World, world } from '../fixture.ts'

const test = suite('gateway: admin API', { ms: 15_000 })

test('answers nothing but its health without the token', async () => {
  await using w = await world()
  const url = w.gateway.adminUrl
  assert.equal(await requestJson({ url, path: '/healthz' }), { ok: true })
  for (const path of ['/v1/status', '/metrics', '/nowhere'])
    for (const token of [undefined, 'wrong', `${TOKEN}x`]) {
      const request = { url, path, ...(token === undefined ? {} : { token }) }
      assert.is(await codeOf(() => requestJson(request)), 'TOKEN_INVALID', path)
    }
  const answer = await fetch(`${url}/v1/status`)
  assert.is(answer.status, 401)
})

test('a plan is asked of the site where the VM runs, and refused with the reason where it cannot be', async () => {
  await using w = await world()
  await w.node('a', { vms: [vm('vm-1')] })
  const b = await w.node('b')
  const plan = (body: object) => w.api<{ target: string; recommended: string }>('POST', '/v1/plans', body)
  const { target, recommended } = await plan({ vm: 'vm-1', to: 'b' })
  assert.equal([target, recommended], ['b', 'live'])
  await b.link.close()
  assert.is((await plan({ vm: 'vm-1', to: 'b', downtimeMs: 50 })).target, 'b')
  assert.is(await codeOf(() => plan({ vm: 'vm-9', to: 'b' })), 'VM_UNKNOWN')
  assert.is(await codeOf(() => plan({ vm: 'vm-1', to: 'nowhere' })), 'SITE_UNKNOWN')
  assert.is(await codeOf(() => plan({ vm: 'vm-1', to: 'a' })), 'SITE_SAME')
  assert.is(await codeOf(() => plan({ vm: 'vm-1', to: 'b', downtimeMs: 0 })), 'CONFIG_INVALID')
})

test('tells the status of gateway, sites and VMs in the shape that the command line reads', async () => {
  await using w = await world()
  await w.node('a', { vms: [vm('vm-1'), vm('vm-2', { state: 'stopped' })] })
  const b = await w.node('b')
  await b.link.close()
  await eventually(
    async () => (GatewayStatus.parse(await w.api('GET', '/v1/status')).sites.some(site => !site.online) ? true : undefined),
    {
      ms: 5_000,
      what: 'b offline',
    },
  )
  const status = GatewayStatus.parse(await w.api('GET', '/v1/status'))
  assert.equal(
    status.sites.map(({ site, online, transport }) => [site, online, transport]),
    [
      ['a', true, 'memory'],
      ['b', false, null],
    ],
  )
  assert.equal(
    status.vms.map(({ name, site, online }) => [name, site, online]),
    [
      ['vm-1', 'a', true],
      ['vm-2', 'a', true],
    ],
  )
  assert.is(status.gateway.listeners[0]?.port, w.port)
  await w.restart()
  assert.is((await w.api<GatewayStatus>('GET', '/v1/status')).sites.length, 2, 'sites are remembered')
  assert.match(await requestText({ url: w.gateway.adminUrl, token: TOKEN, path: '/metrics' }), 'godwit_gateway_sites_online')
})

test('malformed requests get 4xx, a code, and the name of what is wrong', async () => {
  await using w = await world()
  const headers = { authorization: `Bearer ${TOKEN}` }
  const send = async (method: string, path: string, body?: string) => {
    const answer = await fetch(`${w.gateway.adminUrl}${path}`, { method, headers, ...(body === undefined ? {} : { body }) })
    return { status: answer.status, ...((await answer.json()) as { code: string; message: string; hint: string }) }
  }
  const bad = await send('POST', '/v1/migrations', '{"vm": ')
  assert.equal([bad.status, bad.code], [400, 'CONFIG_INVALID'])
  assert.ok(bad.hint.length > 0)
  assert.match((await send('POST', '/v1/migrations', '{"vm":"x","to":"UPPER"}')).message, /to: /)
  assert.match((await send('POST', '/v1/migrations')).message, /vm: /)
  assert.equal((await send('POST', '/v1/migrations', '{"vm":"x","to":"b"}')).status, 404)
  assert.is((await send('GET', '/v1/nothing')).status, 404)
  assert.is((await send('PATCH', '/v1/status')).status, 405)
  assert.is((await send('POST', '/v1/migrations', `"${'x'.repeat(2_000_000)}"`).catch(() => ({ status: 429 }))).status, 429)
  assert.equal((await send('PUT', '/v1/enrolments/a', '{"certificate":"AAAA"}')).code, 'SITE_UNKNOWN')
})

test('a gateway that is not there is GATEWAY_UNREACHABLE', async () => {
  await using w = await world()
  const url = w.gateway.adminUrl
  await w.gateway.close()
  assert.is(await codeOf(() => requestJson({ url, token: TOKEN, path: '/v1/status' })), 'GATEWAY_UNREACHABLE')
})

const tokenFor = (w: World, site: string) => w.api<TokenReply>('POST', '/v1/enrolments/tokens', { site })

test('enrols a site: token, request, offline signature, certificate, first connection', async () => {
  await using w = await world()
  const { token, expiresAt } = await tokenFor(w, 'new-site')
  assert.ok(expiresAt - Date.now() <= 3_600_000)
  const keys = generateSiteKeys()
  const request = createRequest(keys, { role: 'site', id: 'new-site' })
  const stop = new AbortController()
  let pending = 0
  const waiting = enrol({
    dial: w.dial,
    token,
    request,
    rootPublic: w.root.signPublic,
    pollMs: 20,
    signal: stop.signal,
    onPending: () => {
      pending += 1
    },
  })
  const view = await eventually(
    async () =>
      (await w.api<{ enrolments: EnrolmentView[] }>('GET', '/v1/enrolments')).enrolments.find(({ status }) => status === 'pending'),
    { ms: 5_000, what: 'the request' },
  )
  // The operator's part, offline: read the request, sign.
  const claims = verifyRequest(new Uint8Array(Buffer.from(view.request ?? '', 'base64')))
  const bytes = issueCertificate(w.root, { ...claims, notBefore: NOW_SECONDS - 60, notAfter: NOW_SECONDS + 600, serial: newSerial() })
  await w.api('PUT', '/v1/enrolments/new-site', { certificate: Buffer.from(bytes).toString('base64') })
  const issued = await waiting
  assert.is(pending, 1)
  assert.is(decodeCertificate(issued.bytes).id, 'new-site')
  await w.node('new-site', { identity: { keys, certificate: issued.bytes } })

  // The token served one request: another with it is turned away.
  const other = createRequest(generateSiteKeys(), { role: 'site', id: 'new-site' })
  const again = { dial: w.dial, token, request: other, rootPublic: w.root.signPublic, signal: stop.signal }
  assert.is(await codeOf(() => enrol(again)), 'TOKEN_INVALID')
})

test('a wrong token, one for another site, an expired one, a forged request: each is turned away', async () => {
  let now = Date.now()
  await using w = await world({ clock: { now: () => now } })
  const { token } = await tokenFor(w, 'site-a')
  const keys = generateSiteKeys()
  const ask = (id: string, use: string, request = createRequest(keys, { role: 'site', id })) =>
    codeOf(() => enrol({ dial: w.dial, token: use, request, rootPublic: w.root.signPublic, signal: AbortSignal.timeout(300) }))
  assert.is(await ask('site-a', 'gwt-wrong'), 'TOKEN_INVALID')
  assert.is(await ask('site-b', token), 'TOKEN_INVALID')
  const forged = createRequest(keys, { role: 'site', id: 'site-a' })
  forged[20] = (forged[20] ?? 0) ^ 1
  assert.ok(['CERT_MALFORMED', 'AUTH_FAILED'].includes(await ask('site-a', token, forged)))
  now += 3_600_001
  assert.is(await ask('site-a', token), 'TOKEN_INVALID')
})

test('refuses a certificate that is not for the pending request', async () => {
  await using w = await world()
  const { token } = await tokenFor(w, 'site-a')
  const request = createRequest(generateSiteKeys(), { role: 'site', id: 'site-a' })
  await thrown(() => enrol({ dial: w.dial, token, request, rootPublic: w.root.signPublic, signal: AbortSignal.timeout(300) }))
  const claims = { ...verifyRequest(request), notBefore: NOW_SECONDS - 60, notAfter: NOW_SECONDS + 600, serial: newSerial() }
  const upload = (bytes: Uint8Array) =>
    codeOf(() => w.api('PUT', '/v1/enrolments/site-a', { certificate: Buffer.from(bytes).toString('base64') }))
  assert.is(await upload(issueCertificate(w.root, { ...claims, ...generateSiteKeys() })), 'AUTH_FAILED')
  assert.is(await upload(issueCertificate(w.root, { ...claims, id: 'site-b' })), 'AUTH_FAILED')
  assert.is(await upload(issueCertificate(w.root, { ...claims, notAfter: NOW_SECONDS - 30 })), 'CERT_EXPIRED')
  assert.is(await upload(new Uint8Array(10)), 'CERT_MALFORMED')
})

test('the token is shown to no gateway that has not proved itself by the root, nor to one in the middle', async () => {
  await using w = await world()
  const { token } = await tokenFor(w, 'site-a')
  const request = createRequest(generateSiteKeys(), { role: 'site', id: 'site-a' })
  const seen: Uint8Array[] = []
  const listening: typeof w.dial = async options => {
    const dialled = await w.dial(options)
    const openStream = async () => {
      const stream = await dialled.connection.openStream()
      const write = (bytes: Uint8Array) => {
        seen.push(bytes.slice())
        return stream.write(bytes)
      }
      return { ...stream, write }
    }
    return { ...dialled, connection: { ...dialled.connection, openStream } }
  }
  const ask = (more: object) =>
    codeOf(() => enrol({ dial: listening, token, request, rootPublic: w.root.signPublic, signal: AbortSignal.timeout(2_000), ...more }))
  const inTheMiddle: typeof w.dial = async options => {
    const dialled = await listening(options)
    return { ...dialled, connection: { ...dialled.connection, binding: new Uint8Array(32) } }
  }
  assert.is(await ask({ rootPublic: createRoot().signPublic }), 'CERT_UNTRUSTED')
  assert.is(await ask({ gatewayId: 'another' }), 'AUTH_FAILED')
  assert.is(await ask({ dial: inTheMiddle }), 'AUTH_FAILED')
  assert.ok(seen.length >= 3)
  assert.not.ok(Buffer.concat(seen).includes(token), 'the token never left')
  await ask({ gatewayId: 'gw', signal: AbortSignal.timeout(300) })
  assert.ok(Buffer.concat(seen).includes(token), 'the right gateway gets it')
})

test('a token that lapses before the approval is refused there; what was approved in time can be fetched later', async () => {
  let now = Date.now()
  await using w = await world({ clock: { now: () => now } })
  const ask = ({ token, request }: { token: string; request: Uint8Array }) =>
    enrol({ dial: w.dial, token, request, rootPublic: w.root.signPublic, signal: AbortSignal.timeout(300) })
  const requests = new Map<string, { token: string; request: Uint8Array }>()
  for (const site of ['late', 'early']) {
    const { token } = await tokenFor(w, site)
    const request = createRequest(generateSiteKeys(), { role: 'site', id: site })
    requests.set(site, { token, request })
    await thrown(() => ask({ token, request }))
  }
  const approve = (site: string) => {
    const claims = { ...verifyRequest(requests.get(site)!.request), notBefore: NOW_SECONDS - 60, notAfter: NOW_SECONDS + 90_000 }
    const bytes = issueCertificate(w.root, { ...claims, serial: newSerial() })
    return w.api('PUT', `/v1/enrolments/${site}`, { certificate: Buffer.from(bytes).toString('base64') })
  }
  await approve('early')
  now += 61 * 60_000
  const refused = (await thrown(() => approve('late'))) as GodwitError
  assert.is(refused.code, 'TOKEN_INVALID')
  assert.match(refused.message, /the token of site late expired at/)
  const { enrolments } = await w.api<{ enrolments: EnrolmentView[] }>('GET', '/v1/enrolments')
  assert.equal(Object.fromEntries(enrolments.map(({ site, status }) => [site, status])), { early: 'issued', late: 'lapsed' })

  assert.is((await ask(requests.get('early')!)).certificate.id, 'early')
})

test.run()
