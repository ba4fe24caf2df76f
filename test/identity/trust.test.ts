// One provider of trust: which list is in force, when it counts as too old, and what survives a restart. Time is passed
// in.
import { rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createRoot, decodeCertificate } from '../../crypto/certificate.ts'
import { openTrust, REVOCATIONS_MAX_AGE_SECONDS, type TrustOptions } from '../../identity/trust.ts'
import { eventually } from '../../ops/deadline.ts'
import { createLog } from '../../ops/log.ts'
import { openStore } from '../../ops/store.ts'
import { silentLog } from '../../wire/log.ts'
import { identityOf, NOW_SECONDS } from '../gateway/fixture.ts'
import { listFileOf, listOf, memoryStore } from '../support/revocations.ts'
import { assert, codeOf, suite } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'

const test = suite('identity: trust', { ms: 20_000 })

const root = createRoot()
const clockAt = (seconds: number) => ({ now: () => seconds * 1000 })
const open = (more: Partial<TrustOptions> = {}) => openTrust({ rootPublic: root.signPublic, store: memoryStore(), log: silentLog, ...more })

test('without a list no migration begins; with one it may, until the list has reached its age', async () => {
  let now = NOW_SECONDS
  const trust = await open({ clock: { now: () => now * 1000 } })
  assert.is(await codeOf(async () => trust.requireFresh()), 'REVOCATION_MISSING')
  await trust.offer(listOf(root, { issuedAt: NOW_SECONDS }))
  trust.requireFresh()
  now = NOW_SECONDS + REVOCATIONS_MAX_AGE_SECONDS
  trust.requireFresh()
  now += 1
  assert.is(await codeOf(async () => trust.requireFresh()), 'REVOCATION_STALE')
  await trust.offer(listOf(root, { number: 2, issuedAt: now }))
  trust.requireFresh()
  await trust.close()
})

test('a node that has just started and no list yet warns only when none has come within a minute', async () => {
  let now = NOW_SECONDS
  const lines: string[] = []
  const log = createLog({ level: 'warn', write: line => void lines.push(line) })
  const trust = await open({ clock: { now: () => now * 1000 }, log, lookEveryMs: 5 })
  let looked = 0
  trust.watch(() => {
    looked += 1
  })
  const looks = (times: number) => eventually(() => looked >= times || undefined, { ms: 10_000, what: `look ${times}` })
  now += 59
  await looks(looked + 2)
  assert.equal(lines, [])
  now += 1
  await looks(looked + 2)
  assert.is(lines.length, 1)
  assert.match(lines[0] ?? '', 'no revocation list: no migration can begin')
  await trust.close()
})

test('a certificate is checked at each use: against the list of now, and the clock of now', async () => {
  let now = NOW_SECONDS
  const trust = await open({ clock: { now: () => now * 1000 } })
  const { certificate } = identityOf(root, 'site', 'a', { notAfter: NOW_SECONDS + 100 })
  const who = { role: 'site', id: 'a' } as const
  assert.is(trust.verify(certificate, who).id, 'a')
  assert.is(await codeOf(async () => trust.verify(certificate, { role: 'site', id: 'b' })), 'AUTH_FAILED')
  now += 101
  assert.is(await codeOf(async () => trust.verify(certificate, who)), 'CERT_EXPIRED')
  now -= 101
  let told = 0
  trust.watch(() => {
    told += 1
  })
  await trust.offer(listOf(root, { number: 2, serials: [decodeCertificate(certificate).serial] }))
  assert.is(told, 1)
  assert.is(await codeOf(async () => trust.verify(certificate, who)), 'CERT_REVOKED')
  now += REVOCATIONS_MAX_AGE_SECONDS * 2
  await trust.close()
})

test('a list only gives way to a newer one of the same root: not to an older, a forged, or one that is dated ahead', async () => {
  const trust = await open()
  assert.is(await trust.offer(listOf(root, { number: 5 })), 5)
  assert.is(await codeOf(() => trust.offer(listOf(root, { number: 4 }))), 'REVOCATION_STALE')
  assert.is(await codeOf(() => trust.offer(listOf(createRoot(), { number: 9 }))), 'CERT_UNTRUSTED')
  assert.is(await codeOf(() => trust.offer(listOf(root, { number: 9, issuedAt: NOW_SECONDS + 3600 }))), 'REVOCATION_STALE')
  assert.is(await codeOf(() => trust.offer(listOf(root, { number: 9 }).subarray(0, 50))), 'CERT_MALFORMED')
  assert.is(await trust.offer(listOf(root, { number: 5, serials: ['a'.repeat(32)] })), 5, 'the first of a number stays')
  assert.is(trust.list()?.serials.size, 0)
  await trust.close()
})

test('a clock that is behind at a restart brings no revoked site back, and no older list', async () => {
  const store = memoryStore()
  const { certificate } = identityOf(root, 'site', 'a')
  const who = { role: 'site', id: 'a' } as const
  const first = await open({ store, clock: clockAt(NOW_SECONDS) })
  await first.offer(listOf(root, { number: 7, issuedAt: NOW_SECONDS, serials: [decodeCertificate(certificate).serial] }))
  await first.close()
  const behind = await open({ store, clock: clockAt(NOW_SECONDS - 3600) })
  assert.is(behind.list()?.number, 7)
  assert.is(await codeOf(async () => behind.verify(certificate, who)), 'CERT_REVOKED')
  assert.is(await codeOf(() => behind.offer(listOf(root, { number: 6, issuedAt: NOW_SECONDS - 7200 }))), 'REVOCATION_STALE')
  await behind.close()
})

test('the highest number survives a restart: an older file put in its place is not used', async () => {
  await using folder = await tempFolder()
  const file = join(folder.path, 'revocations')
  const serial = 'b'.repeat(32)
  for (const [number, serials, expected] of [
    [7, [serial], 7],
    [6, [], 7],
  ] as const) {
    await writeFile(file, listFileOf(root, { number, serials: [...serials] }))
    const store = await openStore(join(folder.path, 'store'))
    const trust = await open({ file, store })
    assert.equal([trust.list()?.number, trust.list()?.serials.has(serial)], [expected, true])
    await trust.close()
    await store.close()
  }
})

test('a file is read again when it changes, also when it comes late; one that is no list changes nothing', async () => {
  await using folder = await tempFolder()
  const file = join(folder.path, 'revocations')
  const trust = await open({ file, lookEveryMs: 10 })
  assert.is(trust.list(), undefined)
  const until = (number: number) => eventually(() => trust.list()?.number === number || undefined, { ms: 10_000, what: `list ${number}` })
  await writeFile(file, listFileOf(root, { number: 1 }))
  await until(1)
  await writeFile(file, 'hello')
  await trust.refresh()
  assert.is(trust.list()?.number, 1)
  await writeFile(file, listFileOf(root, { number: 2 }))
  await until(2)
  await rm(file)
  await trust.refresh()
  assert.is(trust.list()?.number, 2)
  await trust.close()
  await writeFile(file, 'hello')
  assert.is(await codeOf(() => open({ file })), 'CONFIG_INVALID')
})

test('a list that is too old still revokes, and a start with it is no failure', async () => {
  await using folder = await tempFolder()
  const file = join(folder.path, 'revocations')
  const { certificate } = identityOf(root, 'site', 'a')
  const serials = [decodeCertificate(certificate).serial]
  await writeFile(file, listFileOf(root, { serials, issuedAt: NOW_SECONDS - REVOCATIONS_MAX_AGE_SECONDS - 3600 }))
  const trust = await open({ file, clock: clockAt(NOW_SECONDS) })
  assert.is(await codeOf(async () => trust.requireFresh()), 'REVOCATION_STALE')
  assert.is(await codeOf(async () => trust.verify(certificate, { role: 'site', id: 'a' })), 'CERT_REVOKED')
  await trust.close()
})

test('a list is in force before it is on the disk, and when the disk refuses it', async () => {
  const store = memoryStore()
  const trust = await open({ store })
  store.fail = new Error('no space')
  await trust.offer(listOf(root, { number: 3 })).catch(() => {})
  assert.is(trust.list()?.number, 3)
  delete store.fail
  assert.is(await trust.offer(listOf(root, { number: 3 })), 3)
  await trust.close()
  const again = await open({ store })
  assert.is(again.list()?.number, 3, 'offered again, it is written')
  await again.close()
})

test.run()
