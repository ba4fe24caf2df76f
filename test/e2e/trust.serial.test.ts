// Revocation reaches what runs, within ten seconds: links and migrations, in this process with a Linux guest, and with
// gateway and nodes as processes.

import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from '../../cli/run.ts'
import { decodeCertificate, encodeRoot } from '../../crypto/certificate.ts'
import { nowSeconds } from '../../ops/clock.ts'
import { eventually } from '../../ops/deadline.ts'
import { readArmored } from '../../ops/files.ts'
import { requestJson } from '../../ops/http-client.ts'
import type { GatewayStatus } from '../../wire/admin.ts'
import { MIB } from '../../wire/units.ts'
import { recordingIo } from '../cli/recording-io.ts'
import { labMissing, openLab } from '../support/lab.ts'
import { bootGuest } from '../support/lab-guest.ts'
import { openProcessLab } from '../support/lab-processes.ts'
import { listFileOf } from '../support/revocations.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const REACHES_MS = 10_000
const test = suite('e2e/trust', { ms: 90_000 })
const skip = labMissing()

const serialOf = async (dir: string) => decodeCertificate(await readArmored(join(dir, 'site.cert'), 'CERTIFICATE')).serial

for (const revoked of ['b', 'a'] as const) {
  const who = revoked === 'b' ? 'target' : 'source'
  test(
    `the ${who} is revoked while pages flow: the migration ends within 10 s, the guest goes on at the source, sound`,
    async () => {
      await using lab = await openLab()
      using guest = await bootGuest(lab, 'a', { seed: 7, dirtyBytesPerSecond: 4 * MIB })
      lab.valve.hold(index => index >= 2, { afterBytes: 8 * MIB })
      const migrationId = await lab.begin({ vm: guest.name, to: 'b' })
      await lab.valve.reached()
      const startedMs = performance.now()
      await writeFile(join(lab.dir, 'revocations'), listFileOf(lab.root, { number: 2, serials: [await serialOf(lab.site(revoked).dir)] }))
      const other = lab.site(revoked === 'b' ? 'a' : 'b')
      const isIdle = () => other.node.registry.list().every(({ state }) => state !== 'migrating' && state !== 'incoming')
      const idle = () => isIdle() || undefined
      await eventually(idle, { ms: REACHES_MS, what: `the end of the migration at ${other.name}` })
      const tookMs = performance.now() - startedMs
      lab.valve.open()
      assert.ok(tookMs < REACHES_MS, `${tookMs} ms`)
      assert.match(lab.logTail(), /CERT_REVOKED/)
      const { sites } = await lab.api<GatewayStatus>('GET', '/v1/status')
      assert.equal(
        sites.filter(site => site.online).map(site => site.site),
        [other.name],
      )
      if (revoked === 'b') {
        assert.is((await lab.until(migrationId)).error?.code, 'CERT_REVOKED')
        assert.is(await codeOf(() => lab.begin({ vm: guest.name, to: 'b' })), 'SITE_OFFLINE')
      }
      await eventually(async () => ((await guest.runsAt()).includes('a') ? true : undefined), { ms: 60_000, what: 'it runs at a' })
      await guest.assertSound()
    },
    { skip },
  )
}

test(
  'gateway and nodes as processes: a revoked site is out within 10 s, and the others hold the new list',
  async () => {
    await using lab = await openProcessLab(['a', 'b'])
    const sites = async () => (await requestJson<GatewayStatus>({ ...lab.target, path: '/v1/status' })).sites.filter(site => site.online)
    const serial = await serialOf(lab.site('b').dir)
    const startedMs = performance.now()
    await writeFile(join(lab.dir, 'revocations'), listFileOf(lab.root, { number: 2, serials: [serial] }))
    await eventually(async () => ((await sites()).length === 1 ? true : undefined), { ms: REACHES_MS, what: 'the revoked site is out' })
    assert.ok(performance.now() - startedMs < REACHES_MS)
    const tells = async () =>
      /new revocation list in use.*number.?[=:] ?2/.test(await readFile(join(lab.site('a').dir, 'node.log'), 'utf8')) ? true : undefined
    await eventually(tells, { ms: REACHES_MS - (performance.now() - startedMs), what: 'the list at the other node' })
    const refused = async () => (/CERT_REVOKED/.test(await readFile(join(lab.site('b').dir, 'node.log'), 'utf8')) ? true : undefined)
    await eventually(refused, { ms: 5_000, what: 'the revoked node is told why' })
  },
  { skip },
)

test(
  'a certificate near its end renews itself through the gateway: the node shows the new one without a restart',
  async () => {
    await using lab = await openProcessLab(['a'], { notAfter: nowSeconds() + 100 })
    const { pid } = lab.site('a')
    const rootKey = join(lab.dir, 'root.key')
    await writeFile(rootKey, encodeRoot(lab.root), { mode: 0o600 })
    const renew = async () => {
      const io = recordingIo()
      const flags = ['--root', rootKey, '--list', join(lab.dir, 'revocations'), '--gateway', lab.target.url!]
      const code = await run(['root', 'renew', ...flags, '--token-file', join(lab.dir, 'admin.token'), '--json'], io)
      assert.is(code, 0, io.stderr)
      const { renewals } = JSON.parse(io.stdout) as { renewals: { id: string; outcome: string }[] }
      return renewals.some(({ id, outcome }) => id === 'a' && outcome === 'renewed') ? true : undefined
    }
    await eventually(renew, { ms: 30_000, everyMs: 500, what: 'the request of the node' })
    const isRenewed = async () => {
      const [site] = (await requestJson<GatewayStatus>({ ...lab.target, path: '/v1/status' })).sites
      return site?.online && site.certificateNotAfter! * 1000 > Date.now() + 86_400_000 ? true : undefined
    }
    await eventually(isRenewed, { ms: 60_000, everyMs: 200, what: 'the node with its new certificate' })
    assert.is(lab.site('a').pid, pid)
    assert.is(lab.site('a').process?.exitCode, null)
    await lab.site('a').stop()
    await lab.site('a').start()
    await eventually(isRenewed, { ms: 20_000, everyMs: 200, what: 'the same after a restart' })
  },
  { skip, ms: 150_000 },
)

test.run()
