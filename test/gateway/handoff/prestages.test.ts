// Pre-staging in the gateway: who is asked, what is held, and how it ends.
import { eventually } from '../../../ops/deadline.ts'
import type { MigrationRecord, PrestageRecord } from '../../../wire/admin.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { vm, type World, world } from '../fixture.ts'

const test = suite('gateway: prestages')

const until = (probe: () => unknown, what: string) => eventually(async () => (await probe()) || undefined, { ms: 4_000, everyMs: 10, what })
const begin = (w: World, more: object = {}) => w.api<PrestageRecord>('POST', '/v1/prestages', { vm: 'vm-1', to: 'b', ...more })
const list = async (w: World) => (await w.api<{ prestages: PrestageRecord[] }>('GET', '/v1/prestages')).prestages
async function ended(w: World, outcome: string): Promise<number> {
  const response = await fetch(`${w.gateway.adminUrl}/metrics`, { headers: { authorization: 'Bearer a-test-token' } })
  const line = (await response.text()).split('\n').find(text => text.includes(`prestages_total{outcome="${outcome}"}`))
  return Number(line?.split(' ').at(-1) ?? 0)
}

async function stage(w: World) {
  return { a: await w.node('a', { vms: [vm('vm-1')] }), b: await w.node('b'), c: await w.node('c') }
}

test('the source says what the VM needs, the target holds room, and the move goes on under the same id', async () => {
  await using w = await world()
  const { a, b } = await stage(w)
  const record = await begin(w)
  assert.equal([record.source, record.target, record.epoch, record.outcome], ['a', 'b', 1, null])
  assert.equal([b.held[0]?.vm, b.held[0]?.source, b.held[0]?.needs, b.held[0]?.holdMs], ['vm-1', 'a', 'c2VhbGVk', 120_000])
  const again = await begin(w, { holdMs: 60_000 })
  assert.equal([again.handoffId, b.held.length, (await list(w)).length], [record.handoffId, 2, 1])
  const { migrationId } = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  assert.is(migrationId, record.handoffId)
  await until(() => a.started.length, 'start')
  assert.equal([await list(w), await ended(w, 'used'), b.released], [[], 1, []])
  // It fails: what was held goes.
  for (const [node, side] of [
    [a, 'source'],
    [b, 'target'],
  ] as const)
    node.link.report({ migrationId, side, outcome: 'failed', error: { code: 'QEMU_EXITED', message: 'gone' } })
  await w.until(migrationId, ({ outcome }: MigrationRecord) => outcome === 'failed')
  await until(() => b.released[0]?.holdId === migrationId, 'the release')
  const next = await w.api<{ migrationId: string }>('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  assert.is.not(next.migrationId, migrationId)
})

test('a VM that goes elsewhere, another target, a lapse, a cancel and a pin end it, and each is counted', async () => {
  await using w = await world()
  const { b, c } = await stage(w)
  const first = await begin(w)
  const second = await begin(w, { to: 'c' })
  assert.is.not(first.handoffId, second.handoffId)
  await until(() => b.released.length === 1, 'b released')
  await w.api('POST', '/v1/migrations', { vm: 'vm-1', to: 'b' })
  await until(() => c.released.length === 1, 'c released')
  assert.is(await ended(w, 'wasted'), 2)
  assert.is(await codeOf(() => begin(w)), 'MIGRATION_BUSY')

  await using other = await world()
  const s = await stage(other)
  await begin(other, { holdMs: 1000 })
  await until(async () => (await list(other)).length === 0, 'the lapse')
  await until(() => s.b.released.length === 1, 'the release of what has lapsed')
  const { handoffId } = await begin(other)
  await other.api('DELETE', `/v1/prestages/${handoffId}`)
  assert.is(await codeOf(() => other.api('DELETE', `/v1/prestages/${handoffId}`)), 'MIGRATION_UNKNOWN')
  await begin(other)
  await other.api('PUT', '/v1/vms/vm-1/pin', { pinned: true })
  await until(async () => (await list(other)).length === 0, 'the end by a pin')
  assert.equal([await ended(other, 'wasted'), await ended(other, 'cancelled')], [1, 2])
  assert.is(await codeOf(() => begin(other)), 'VM_PINNED')
})

test('a refusing preflight, a node that cannot, and too few bytes refuse with their codes, and nothing is left', async () => {
  await using w = await world()
  const { a, b } = await stage(w)
  b.handlers.hold = async () => {
    throw new GodwitError('PREFLIGHT_MEMORY', 'full')
  }
  assert.is(await codeOf(() => begin(w)), 'PREFLIGHT_MEMORY')
  a.handlers.needs = async () => {
    throw new GodwitError('VERSION_UNSUPPORTED', 'no such method')
  }
  assert.is(await codeOf(() => begin(w)), 'NOT_AVAILABLE')
  a.handlers.needs = async () => ({ needs: 'A'.repeat(4000) })
  assert.is(await codeOf(() => begin(w, { maxBytes: 100 })), 'LIMIT_EXCEEDED')
  assert.is(await codeOf(() => begin(w, { to: 'nowhere' })), 'SITE_UNKNOWN')
  assert.equal([await list(w), await ended(w, 'refused')], [[], 3])
})

test.run()
