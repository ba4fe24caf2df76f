// A certificate that renews itself. Time is passed in: from two thirds of its life on it asks; what comes is checked,
// written down, and in force.
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createRoot, verifyCertificate } from '../../crypto/certificate.ts'
import { verifyRenewal } from '../../crypto/renewal.ts'
import { newestCertificate } from '../../identity/load.ts'
import { keepRenewed } from '../../identity/renewal.ts'
import { openTrust } from '../../identity/trust.ts'
import { armor, exists } from '../../ops/files.ts'
import { silentLog } from '../../wire/log.ts'
import { identityOf, NOW_SECONDS as NOW } from '../gateway/fixture.ts'
import { memoryStore } from '../support/revocations.ts'
import { assert, suite } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'

const test = suite('identity: renewal')
const DAY = 86_400

async function scene() {
  const folder = await tempFolder()
  const root = createRoot()
  const time = { seconds: NOW }
  const clock = { now: () => time.seconds * 1000 }
  const trust = await openTrust({ rootPublic: root.signPublic, store: memoryStore(), clock, log: silentLog })
  const link = identityOf(root, 'site', 'a', { notBefore: NOW, notAfter: NOW + 30 * DAY })
  const claims = verifyCertificate(link.certificate, { rootPublic: root.signPublic, now: NOW })
  const identity = { ...link, claims }
  const files = { configured: join(folder.path, 'site.cert'), renewed: join(folder.path, 'renewed.cert') }
  await writeFile(files.configured, armor('CERTIFICATE', link.certificate))
  const world = { asked: [] as Uint8Array[], answer: undefined as Uint8Array | undefined, busy: false, renewed: 0, warnings: 0 }
  const count = (what: 'renewed' | 'warnings') => () => {
    world[what] += 1
  }
  const log = { ...silentLog, warn: count('warnings') }
  const renewal = keepRenewed({
    ...{ identity, trust, files, clock, log, lookEveryMs: 3_600_000 },
    isBusy: () => world.busy,
    async ask(request) {
      world.asked.push(request)
      return world.answer
    },
    onRenewed: count('renewed'),
  })
  const next = (days: number, keys = link.keys) =>
    identityOf(root, 'site', 'a', { keys, notBefore: time.seconds - 300, notAfter: time.seconds + days * DAY }).certificate
  const dispose = async () => {
    renewal.close()
    await trust.close()
    await folder[Symbol.asyncDispose]()
  }
  return { root, time, identity, files, world, renewal, next, [Symbol.asyncDispose]: dispose }
}

test('it asks from two thirds of its life on, with a request that the rule accepts, and again until it is answered', async () => {
  await using s = await scene()
  await s.renewal.look()
  s.time.seconds = NOW + 20 * DAY - 1
  await s.renewal.look()
  assert.is(s.world.asked.length, 0)
  s.time.seconds = NOW + 20 * DAY
  await s.renewal.look()
  await s.renewal.look()
  assert.is(s.world.asked.length, 2)
  assert.is(verifyRenewal(s.world.asked[0]!, { rootPublic: s.root.signPublic, now: s.time.seconds }).id, 'a')
  s.world.answer = s.next(30)
  await s.renewal.look()
  assert.is(s.world.renewed, 1)
  assert.equal(s.identity.certificate, s.world.answer)
  assert.ok(await exists(s.files.renewed))
  await s.renewal.look()
  assert.is(s.world.asked.length, 3, 'it is fresh: no more asking')
})

test('a certificate for other keys, or one that ends earlier, is not taken', async () => {
  await using s = await scene()
  const before = s.identity.certificate
  s.time.seconds = NOW + 21 * DAY
  for (const answer of [
    identityOf(s.root, 'site', 'a', { notAfter: NOW + 90 * DAY }).certificate,
    s.next(5),
    identityOf(createRoot(), 'site', 'a').certificate,
  ]) {
    s.world.answer = answer
    await s.renewal.look()
  }
  assert.equal(s.identity.certificate, before)
  assert.is(s.world.renewed, 0)
})

test('while a migration is bound to the certificate nothing changes; a newer file of the operator is taken too', async () => {
  await using s = await scene()
  s.time.seconds = NOW + 21 * DAY
  s.world.busy = true
  const placed = s.next(30)
  await writeFile(s.files.configured, armor('CERTIFICATE', placed))
  await s.renewal.look()
  assert.is(s.world.renewed, 0)
  s.world.busy = false
  await s.renewal.look()
  assert.equal(s.identity.certificate, placed)
  assert.is(s.world.asked.length, 0)
})

test('it renews again when the file of the first certificate has long expired', async () => {
  await using s = await scene()
  s.time.seconds = NOW + 21 * DAY
  s.world.answer = s.next(30)
  await s.renewal.look()
  s.time.seconds = NOW + 42 * DAY
  s.world.answer = s.next(30)
  await s.renewal.look()
  assert.equal([s.world.asked.length, s.world.renewed], [2, 2])
  assert.equal(s.identity.certificate, s.world.answer)
})

test('a migration that does not end keeps no certificate from being renewed before it expires', async () => {
  await using s = await scene()
  s.world.busy = true
  s.world.answer = s.next(60)
  s.time.seconds = NOW + 24 * DAY
  await s.renewal.look()
  assert.is(s.world.renewed, 0, 'there is time to wait')
  s.time.seconds = NOW + 26 * DAY
  await s.renewal.look()
  assert.is(s.world.renewed, 1)
})

test('after a change of the root a renewed certificate of the old one does not take the place of the new file', async () => {
  await using s = await scene()
  const renewed = s.next(300)
  await writeFile(s.files.renewed, armor('CERTIFICATE', renewed))
  assert.equal(await newestCertificate({ certificate: s.files.configured, renewed: s.files.renewed }), renewed)
  const ofNewRoot = identityOf(createRoot(), 'site', 'a', { keys: s.identity.keys, notAfter: NOW + 30 * DAY }).certificate
  await writeFile(s.files.configured, armor('CERTIFICATE', ofNewRoot))
  assert.equal(await newestCertificate({ certificate: s.files.configured, renewed: s.files.renewed }), ofNewRoot)
})

test('the log says so when it runs out and nobody answers', async () => {
  await using s = await scene()
  s.time.seconds = NOW + 21 * DAY
  await s.renewal.look()
  assert.is(s.world.warnings, 0)
  s.time.seconds = NOW + 26 * DAY
  await s.renewal.look()
  await s.renewal.look()
  assert.is(s.world.warnings, 1, 'once in six hours')
})

test.run()
