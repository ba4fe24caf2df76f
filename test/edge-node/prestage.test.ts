// Needs go from site to site through a gateway that cannot read them, and serve nothing but what they were sealed for.
import { createRoot, verifyCertificate } from '../../crypto/certificate.ts'
import { createAlerts } from '../../edge-node/alerts.ts'
import type { NodeConfig } from '../../edge-node/config.ts'
import { createPrestage } from '../../edge-node/prestage.ts'
import type { Registry } from '../../edge-node/registry/registry.ts'
import { createRelease } from '../../edge-node/release.ts'
import type { VmNeeds } from '../../edge-node/vm/preflight.ts'
import { parseSpec } from '../../edge-node/vm/spec.ts'
import type { LoadedIdentity } from '../../identity/load.ts'
import { openTrust } from '../../identity/trust.ts'
import { GodwitError } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { identityOf, NOW_SECONDS } from '../gateway/fixture.ts'
import { listOf, memoryStore } from '../support/revocations.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('edge-node/prestage')

const spec = parseSpec('name: web\nmemory: 64MiB\nvcpus: 1\nkernel: vmlinuz\nappend: the-secret-of-the-guest\n')
const NEEDS: VmNeeds = { spec, qemuVersion: '10.0.2', accelerator: 'tcg', method: 'live', files: {} }

/** No command is signed here, so nothing is written. */
const store = { async *entries() {}, put: async () => {}, delete: async () => {} }

async function sites({ accept, release: rules }: Partial<Pick<NodeConfig, 'accept' | 'release'>> = {}) {
  const root = createRoot()
  const trust = await openTrust({ rootPublic: root.signPublic, store: memoryStore(), log: silentLog })
  await trust.offer(listOf(root))
  const node = async (site: string, registry: object) => {
    const link = identityOf(root, 'site', site)
    const claims = verifyCertificate(link.certificate, { rootPublic: root.signPublic, now: NOW_SECONDS, role: 'site', id: site })
    const identity: LoadedIdentity = { ...link, claims, rootPublic: root.signPublic }
    const config = { site, ...(accept ? { accept } : {}) } as NodeConfig
    const rulesOf = { site, commandKeys: {}, commandTenant: 'main', ...(rules ? { release: rules } : {}) }
    const alerts = createAlerts({ log: silentLog, count: () => {} })
    const release = await createRelease({ config: rulesOf, store, alerts, now: Date.now })
    const handlers = createPrestage({ config, identity, trust, registry: registry as Registry, release, log: silentLog })
    return { handlers, certificate: Buffer.from(link.certificate).toString('base64') }
  }
  const holds: { name: string; epoch: number; id: string; ms: number }[] = []
  const world = { refusal: undefined as GodwitError | undefined }
  const a = await node('a', { get: () => ({ epoch: 3 }), needs: async () => NEEDS })
  const b = await node('b', {
    async holdIncoming(needs: VmNeeds, epoch: number, hold: { id: string; ms: number }) {
      if (world.refusal) throw world.refusal
      holds.push({ name: needs.spec.name, epoch, ...hold })
      return needs.spec.memoryBytes
    },
    releaseHold: (id: string) => holds.some(hold => hold.id === id),
  })
  const facts = { holdId: 'a'.repeat(32), vm: 'web', epoch: 3, method: 'live' as const }
  return {
    ...{ a, b, holds, world, facts },
    needs: () => a.handlers.needs!({ ...facts, target: 'b', targetCertificate: b.certificate }),
    hold: (needs: string, more: object = {}) =>
      b.handlers.hold!({ ...facts, source: 'a', sourceCertificate: a.certificate, needs, holdMs: 5000, ...more }),
  }
}

test('the target reads what the source has sealed, and holds room at the epoch that would follow', async () => {
  const s = await sites()
  const { needs } = await s.needs()
  assert.not.ok(Buffer.from(needs, 'base64').includes('secret'), 'the gateway reads nothing')
  assert.equal(await s.hold(needs), { memoryBytes: spec.memoryBytes })
  assert.equal(s.holds, [{ name: 'web', epoch: 4, id: s.facts.holdId, ms: 5000 }])
  await s.b.handlers.release!({ holdId: s.facts.holdId })
})

test('needs that were sealed for another handoff, VM, epoch, method or pair of sites open nothing', async () => {
  const s = await sites()
  const { needs } = await s.needs()
  for (const more of [{ holdId: 'b'.repeat(32) }, { vm: 'db' }, { epoch: 4 }, { method: 'cold' as const }])
    assert.is(await codeOf(() => s.hold(needs, more)), 'HANDSHAKE_FAILED', JSON.stringify(more))
  const bent = Buffer.from(needs, 'base64')
  bent[bent.length - 1]! ^= 1
  assert.is(await codeOf(() => s.hold(bent.toString('base64'))), 'HANDSHAKE_FAILED')
  assert.is(await codeOf(() => s.hold(needs, { source: 'c' })), 'AUTH_FAILED')
  assert.equal(s.holds, [])
})

test("a VM at another epoch, a source that the target's rules do not let in, and a refusing preflight have their codes", async () => {
  const s = await sites()
  assert.is(
    await codeOf(() => s.a.handlers.needs!({ ...s.facts, epoch: 2, target: 'b', targetCertificate: s.b.certificate })),
    'EPOCH_STALE',
  )
  s.world.refusal = new GodwitError('PREFLIGHT_MEMORY')
  const { needs } = await s.needs()
  assert.is(await codeOf(() => s.hold(needs)), 'PREFLIGHT_MEMORY')
  const strict = await sites({ accept: [{ from: ['z'], vms: ['*'] }] })
  const sealed = await strict.needs()
  assert.is(await codeOf(() => strict.hold(sealed.needs)), 'MIGRATION_DENIED')
})

test('a source gives no needs of a VM to a site that its rules do not name', async () => {
  const s = await sites({ release: [{ vms: ['web'], to: ['z'] }] })
  assert.is(await codeOf(() => s.needs()), 'RELEASE_DENIED')
  await (await sites({ release: [{ vms: ['web'], to: ['b'] }] })).needs()
})

test.run()
