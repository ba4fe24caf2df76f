// A handoff under one id: over its pre-staging and its migration to its end, each phase reported once.
import { setTimeout as sleep } from 'node:timers/promises'
import type { GatewayEvent } from '../../../gateway/handoff/events.ts'
import { eventually } from '../../../ops/deadline.ts'
import type { MigrationRecord } from '../../../wire/admin.ts'
import { PHASE_COMMITTED, type Plan } from '../../../wire/control.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { vm, world } from '../fixture.ts'
import { stage } from './stage.ts'

const test = suite('gateway: handoffs')
const MOVE = { vm: 'vm-1', to: 'b' }
const ALL = ['prestage.needs', 'prestage.hold', 'prestage.release', 'migration.prepare', 'migration.start', 'migration.cancel']
const until = (probe: () => unknown, what: string) => eventually(() => probe() || undefined, { ms: 5_000, everyMs: 5, what })

/** `phase before -> phase`, of each report. */
const phases = (events: GatewayEvent[]) =>
  events.flatMap(event => (event.event === 'handoff' ? [`${event.before ?? ''} -> ${event.handoff.phase}`.trim()] : []))
const outcomes = (events: GatewayEvent[]) => events.flatMap(event => (event.event === 'prestage' ? [event.prestage.outcome] : []))

test('a handoff that was prepared goes on under its id, and each phase is reported once', async () => {
  await using w = await world()
  const a = await w.node('a', { vms: [vm('vm-1')] })
  const b = await w.node('b')
  const events: GatewayEvent[] = []
  w.gateway.control.events.subscribe(event => events.push(event))
  const { handoffId: id } = await w.gateway.control.prestage(MOVE)
  assert.equal(
    w.gateway.control.handoffs().map(one => [one.id, one.phase, one.migration]),
    [[id, 'prestaging', undefined]],
  )
  assert.is(await w.gateway.control.start(MOVE), id)
  await until(() => a.started.length, 'start')
  const tell = (phase: string) => a.link.progress({ migrationId: id, side: 'source', phase })
  for (const phase of ['precopy', 'switchover', 'precopy', 'switchover']) tell(phase)
  tell(PHASE_COMMITTED)
  b.vms = [vm('vm-1', { epoch: 2 })]
  a.vms = []
  b.link.report({ migrationId: id, side: 'target', outcome: 'completed' })
  a.link.report({ migrationId: id, side: 'source', outcome: 'completed' })
  await w.until(id, ({ outcome }: MigrationRecord) => outcome === 'completed')
  await until(() => phases(events).at(-1)?.endsWith('completed'), 'the last report')
  const reports = events.filter(event => event.event === 'handoff')
  assert.equal(
    reports.map(({ handoff, before }) => [handoff.id, before, handoff.phase]),
    [
      [id, undefined, 'prestaging'],
      [id, 'prestaging', 'precopy'],
      [id, 'precopy', 'switchover'],
      [id, 'switchover', 'completed'],
    ],
  )
  assert.equal([outcomes(events), b.released], [[null, 'used'], []])
  assert.is(await codeOf(() => w.gateway.control.cancel(id)), 'MIGRATION_LATE')
  // What is on the disk is known after a restart, and nothing of it is reported again.
  await w.restart()
  assert.equal(
    w.gateway.control.handoffs().map(one => [one.id, one.phase]),
    [[id, 'completed']],
  )
})

test('a cancel ends a handoff that is prepared, and gives its room back', async () => {
  await using s = await stage(ALL)
  const { handoffId } = await s.prestages.start(MOVE)
  s.prestages.cancel(handoffId)
  assert.equal([phases(s.events), s.handoffs.views()], [['-> prestaging', 'prestaging -> cancelled'], []])
  await until(() => s.asked.includes('b prestage.release'), 'the release')
})

test('the intent that the disk refuses ends the handoff, and leaves nothing', async () => {
  let isFull = true
  await using s = await stage(ALL, {
    saves: async () => {
      if (isFull) throw new GodwitError('STORE_FAILED', 'full')
    },
  })
  assert.is(await codeOf(() => s.migrations.start(MOVE)), 'STORE_FAILED')
  assert.equal([s.migrations.list(), s.handoffs.views(), s.events], [[], [], []])
  await s.prestages.start(MOVE)
  assert.is(await codeOf(() => s.migrations.start(MOVE)), 'STORE_FAILED')
  assert.equal([s.migrations.list(), s.handoffs.views()], [[], []])
  assert.equal(
    [outcomes(s.events), phases(s.events)],
    [
      [null, 'wasted'],
      ['-> prestaging', 'prestaging -> cancelled'],
    ],
  )
  assert.ok(s.asked.includes('b prestage.release') && !s.asked.includes('b migration.prepare'), s.asked.join())
  isFull = false
  const id = await s.migrations.start(MOVE)
  await until(() => s.migrations.record(id).state === 'STREAMING', 'the migration')
})

test('a lease that ends while the intent is being written does not end the handoff', async () => {
  const writing = Promise.withResolvers<void>()
  await using s = await stage(ALL, { saves: () => writing.promise })
  const { handoffId } = await s.prestages.start({ ...MOVE, holdMs: 20 })
  const moving = s.migrations.start(MOVE)
  assert.is(await codeOf(() => s.prestages.start(MOVE)), 'MIGRATION_BUSY')
  await sleep(60)
  s.prestages.look()
  assert.equal(outcomes(s.events), [null])
  writing.resolve()
  assert.is(await moving, handoffId)
  await until(() => s.migrations.record(handoffId).state === 'STREAMING', 'the migration')
  assert.equal([outcomes(s.events), s.asked.includes('b prestage.release')], [[null, 'used'], false])
})

test('room is given back when the migration that used it fails', async () => {
  await using s = await stage(ALL.filter(method => method !== 'migration.prepare'))
  const { handoffId } = await s.prestages.start(MOVE)
  await s.migrations.start(MOVE)
  await until(() => s.asked.includes('b migration.prepare'), 'the preparing')
  await s.migrations.cancel(handoffId)
  assert.is(s.migrations.record(handoffId).outcome, 'cancelled')
  assert.equal(s.asked.slice(-2), ['b migration.cancel', 'b prestage.release'])
})

test('a hand-over that a site names under the id of a prepared handoff does not take its place', async () => {
  await using s = await stage(ALL)
  const { handoffId } = await s.prestages.start(MOVE)
  const plan: Plan = {
    ...{ version: 1, migrationId: handoffId, vm: 'vm-9', epoch: 1, source: 'a', target: 'b', method: 'live', downtimeMs: 300 },
    ...{ streams: 1, attempt: 1, compression: 'zstd', createdAt: 1 },
  }
  const link = s.sites.online('a')!
  Object.assign(s.sites.state('a')!, { handovers: [plan] })
  s.migrations.siteState(link, [], false)
  assert.equal(
    s.handoffs.views().map(({ id, vm: name, phase }) => [id, name, phase]),
    [[handoffId, 'vm-1', 'prestaging']],
  )
})

test.run()
