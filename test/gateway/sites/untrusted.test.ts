// Links that are open: revocation and expiry reach them, and lists reach the nodes. The clock is passed in.
import { createRoot, decodeCertificate } from '../../../crypto/certificate.ts'
import type { NodeLink } from '../../../gateway/sites/sites.ts'
import { watchLinks } from '../../../gateway/sites/untrusted.ts'
import { openTrust, REVOCATIONS_MAX_AGE_SECONDS, type Trust } from '../../../identity/trust.ts'
import { eventually } from '../../../ops/deadline.ts'
import type { SiteView } from '../../../wire/admin.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { silentLog } from '../../../wire/log.ts'
import { listOf, memoryStore } from '../../support/revocations.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { identityOf, NOW_SECONDS, vm, type World, world } from '../fixture.ts'

const test = suite('gateway: untrusted links', { ms: 30_000 })

/** A gateway with a provider of trust, and a clock that a test may move. */
async function trusted() {
  const time = { seconds: NOW_SECONDS }
  const clock = { now: () => time.seconds * 1000 }
  const root = createRoot()
  const trust = await openTrust({ rootPublic: root.signPublic, store: memoryStore(), clock, log: silentLog })
  await trust.offer(listOf(root))
  const w = await world({ root, clock, trust })
  const publish = (number: number, serials: string[]) => trust.offer(listOf(w.root, { number, serials }))
  const dispose = async () => {
    await w[Symbol.asyncDispose]()
    await trust.close()
  }
  return { w, time, clock, trust, publish, [Symbol.asyncDispose]: dispose }
}

const online = async (w: World) =>
  (await w.api<{ sites: SiteView[] }>('GET', '/v1/sites')).sites.filter(site => site.online).map(site => site.site)
const until = (what: string, good: () => Promise<boolean> | boolean) =>
  eventually(async () => ((await good()) ? true : undefined), { ms: 10_000, everyMs: 20, what })

test('a revoked site is out at once, with all its connections, and stays out; others go on', async () => {
  await using at = await trusted()
  const { w } = at
  const bad = identityOf(w.root, 'site', 'bad')
  const good = await w.node('good', { dataConnections: 1 })
  const node = await w.node('bad', { identity: bad, dataConnections: 1 })
  await at.publish(2, [decodeCertificate(bad.certificate).serial])
  await until('the revoked site is out', async () => !(await online(w)).includes('bad'))
  await until('it is told why', () => node.link.stats().lastError?.code === 'CERT_REVOKED')
  await until('its data connection is gone', () => node.link.stats().data.length === 0)
  const before = node.link.stats().attempts
  await until('it has tried again', () => node.link.stats().attempts > before + 1)
  assert.equal(await online(w), ['good'])
  assert.is(good.link.stats().attempts, 1, 'the others have not noticed')
})

test('a certificate that expires ends the link that was opened with it', async () => {
  await using at = await trusted()
  const node = await at.w.node('short', { identity: identityOf(at.w.root, 'site', 'short', { notAfter: NOW_SECONDS + 60 }) })
  await at.w.node('long')
  at.time.seconds += 61
  await until('it is told why', () => node.link.stats().lastError?.code === 'CERT_EXPIRED')
  await until('it is out', async () => !(await online(at.w)).includes('short'))
  assert.equal(await online(at.w), ['long'])
})

test('the newest list goes to every node when it connects and when it changes', async () => {
  await using at = await trusted()
  const got: number[] = []
  await at.w.node('a', { handlers: handlersWith(bytes => got.push(Number(bytes.readBigUInt64BE(4 + 16)))) })
  await until('the list has come', () => got.length === 1)
  await at.publish(2, [])
  await until('the next list has come', () => got.length === 2)
  assert.equal(got, [1, 2])
})

test('a list that a node could not take (its clock was behind, its disk full) is sent again until it has it', async () => {
  await using at = await trusted()
  let sent = 0
  const request = async () => {
    sent += 1
    if (sent < 3) throw new GodwitError('REVOCATION_STALE', 'it is dated ahead: check the clock')
    return { number: 1 }
  }
  const { certificate } = identityOf(at.w.root, 'site', 'a')
  const peer = { certificate: decodeCertificate(certificate), hello: { purpose: 'control' } }
  const link = { site: 'a', peer, rpc: { request } } as unknown as NodeLink
  const watch = watchLinks({ sites: { links: () => [link] }, trust: at.trust, clock: at.clock, onEnded() {}, log: silentLog })
  watch.greet(link)
  await new Promise(setImmediate)
  const seen: number[] = []
  for (let time = 0; time < 4; time++) {
    for (let looks = 0; looks < 20; looks++) watch.look()
    await new Promise(setImmediate)
    seen.push(sent)
  }
  watch.close()
  assert.equal(seen, [2, 3, 3, 3], 'and no more once it is there')
})

function handlersWith(onList: (bytes: Buffer) => void) {
  const none = async () => {}
  return {
    ...{ prepare: none, start: none, cancel: none },
    async revocations({ list }: { list: string }) {
      onList(Buffer.from(list, 'base64'))
      return { number: 0 }
    },
  }
}

test('with a list that is too old no migration begins, and links go on', async () => {
  await using at = await trusted()
  const far = { notAfter: NOW_SECONDS + REVOCATIONS_MAX_AGE_SECONDS * 3 }
  await at.w.node('a', { identity: identityOf(at.w.root, 'site', 'a', far), vms: [vm('web-1')] })
  await at.w.node('b', { identity: identityOf(at.w.root, 'site', 'b', far) })
  at.time.seconds += REVOCATIONS_MAX_AGE_SECONDS + 1
  const start = () => at.w.api('POST', '/v1/migrations', { vm: 'web-1', to: 'b' })
  assert.is(await codeOf(start), 'REVOCATION_STALE')
  assert.equal(await online(at.w), ['a', 'b'])
  await at.trust.offer(listOf(at.w.root, { number: 2, issuedAt: at.time.seconds }))
  await start()
})

test('a node leaves a gateway whose certificate is revoked while they are connected', async () => {
  await using at = await trusted()
  let list: ReturnType<Trust['list']>
  const node = await at.w.node('a', { revocations: () => list })
  list = { number: 2, issuedAt: NOW_SECONDS, serials: new Set([at.w.gatewaySerial]) }
  node.link.recheck()
  await until('it has left', () => node.link.stats().lastError?.code === 'CERT_REVOKED')
})

test.run()
