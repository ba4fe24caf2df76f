// The orders of the gateway and the routing of relay streams, as far as no QEMU is needed: what is refused, and which
// alerts it raises.
import { createMigrations, type NodeMigrationsOptions } from '../../edge-node/migrations.ts'
import type { Stream } from '../../transport/types.ts'
import type { Join, Plan, PrepareParams, StartParams } from '../../wire/control.ts'
import type { GodwitError } from '../../wire/errors.ts'
import { silentLog } from '../../wire/log.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('edge-node/migrations')

const plan = { migrationId: 'c0ffee00'.repeat(4), vm: 'web-1', epoch: 3, source: 'a', target: 'b' } as Plan

/** The node of site c, which is in none of these plans. */
function stage() {
  const alerts: string[] = []
  const options = {
    config: { site: 'c', accept: {}, limits: { reconnectSeconds: 30, switchoverSeconds: 2 } },
    trust: { watch: () => () => {} },
    identity: {},
    registry: {},
    journal: {},
    metrics: { ended() {}, stuck() {} },
    evidence: {},
    alerts: { raise: (error: GodwitError, _: object, kind?: string) => void alerts.push(`${error.code} ${kind ?? ''}`.trim()) },
    log: silentLog,
  } as unknown as NodeMigrationsOptions
  const migrations = createMigrations(options)
  return { migrations, alerts, [Symbol.asyncDispose]: () => migrations.close() }
}

test('a plan of other sites is refused with an alert, and takes no slot', async () => {
  await using site = stage()
  const { prepare, start } = site.migrations.handlers
  assert.is(await codeOf(() => prepare({ plan, sourceCertificate: '' } as PrepareParams)), 'MIGRATION_STATE')
  assert.is(await codeOf(() => start({ plan, targetCertificate: '' } as StartParams)), 'MIGRATION_STATE')
  assert.equal(site.alerts, ['MIGRATION_STATE misrouted', 'MIGRATION_STATE', 'MIGRATION_STATE misrouted', 'MIGRATION_STATE'])
  assert.equal(site.migrations.active(), [])
})

test('a relay stream of a migration that is not here is reset with an alert', async () => {
  await using site = stage()
  const resets: string[] = []
  const stream = { reset: (why: string) => void resets.push(why) } as unknown as Stream
  site.migrations.onRelayStream({ sessionId: plan.migrationId, index: 0, attempt: 1 } as Join, stream)
  assert.equal(resets, ['unknown migration'])
  assert.equal(site.alerts, ['MIGRATION_UNKNOWN misrouted'])
})

test('an answering target of an earlier life gets stream 0 of its migration; a cancel of an unknown one is refused', async () => {
  await using site = stage()
  const rejoined: number[] = []
  const answering = { plan, rejoin: (attempt: number) => void rejoined.push(attempt) }
  await site.migrations.takeUp({ unanswered: [], answering: [answering], waiting: [] })
  site.migrations.onRelayStream({ sessionId: plan.migrationId, index: 0, attempt: 4 } as Join, {} as Stream)
  assert.equal([rejoined, site.alerts], [[4], []])
  assert.is(await codeOf(() => site.migrations.handlers.cancel({ migrationId: plan.migrationId })), 'MIGRATION_UNKNOWN')
})

test.run()
