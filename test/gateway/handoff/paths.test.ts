import { estimatePaths, GOODPUT_MS, PATHS_MAX } from '../../../gateway/handoff/paths.ts'
import type { MigrationRecord, SiteView } from '../../../wire/admin.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('gateway: paths')

const site = (name: string, rttMs: number | null, online = true): SiteView => ({
  ...{ site: name, online, rttMs, transport: 'quic', dataConnections: 0, version: null },
  ...{ since: 0, certificateNotAfter: null, host: null, vms: [] },
})
const moved = (source: string, target: string, wireBytes: number, totalMs: number, updatedAt: number) =>
  ({ source, target, outcome: 'completed', report: { wireBytes, totalMs }, updatedAt }) as MigrationRecord

test('the way between two sites is both links, and carries what the last migration got through it', () => {
  const sites = [site('a', 10), site('b', 4), site('c', null), site('d', 1, false)]
  const migrations = [
    moved('a', 'b', 100e6, 8000, 500),
    moved('a', 'b', 999e6, 10, 400),
    moved('b', 'c', 2e6, 1000, 300),
    moved('c', 'a', 10, 1, 1),
  ]
  assert.equal(estimatePaths(sites, migrations, 1000), [
    { from: 'a', to: 'b', rttMs: 14, availableBps: 100e6 },
    { from: 'b', to: 'a', rttMs: 14, availableBps: null },
    { from: 'b', to: 'c', rttMs: null, availableBps: 16e6 },
  ])
  assert.equal(
    estimatePaths(sites, migrations, GOODPUT_MS + 501).map(({ availableBps }) => availableBps),
    [null, null],
  )
})

test('their number is bounded', () => {
  const many = Array.from({ length: 100 }, (_, at) => site(`s${at}`, 1))
  assert.is(estimatePaths(many, [], 0).length, PATHS_MAX)
})

test.run()
