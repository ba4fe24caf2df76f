// The agent's watchdog with time passed in: what stands still is told so at its state's deadline, counted and logged;
// and the table in the documentation.

import { readFileSync } from 'node:fs'
import { deadlineMs, SOURCE_DEADLINES, TARGET_DEADLINES } from '../../../edge-node/migration/deadlines.ts'
import { SOURCE, TARGET } from '../../../edge-node/migration/states.ts'
import { createMigrationWatch, type StuckLabels, type Watched } from '../../../edge-node/migration/watchdog.ts'
import { HANDOFF_DEADLINES } from '../../../gateway/handoff/deadlines.ts'
import { WATCH_EVERY_MS } from '../../../ops/watchdog.ts'
import type { Plan } from '../../../wire/control.ts'
import type { GodwitError } from '../../../wire/errors.ts'
import { type LogFields, silentLog } from '../../../wire/log.ts'
import { MINUTE_MS } from '../../../wire/units.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('edge-node/migration/watchdog')

function stage() {
  const counted: StuckLabels[] = []
  const lines: { message: string; fields: LogFields | undefined }[] = []
  const told: GodwitError[] = []
  const log = { ...silentLog, error: (message: string, fields?: LogFields) => void lines.push({ message, fields }) }
  const watch = createMigrationWatch({ reconnectMs: 30_000, count: labels => counted.push(labels), log })
  const now: { state: string; mark: string } = { state: 'STREAMING', mark: '0' }
  const migration: Watched = {
    plan: { migrationId: 'ab'.repeat(16), vm: 'web-1' } as Plan,
    side: 'source',
    stage: () => ({ ...now }),
    stuck(error) {
      told.push(error)
      return 'abort'
    },
  }
  let atMs = 0
  const pass = (ms: number) => {
    for (const endMs = atMs + ms; atMs < endMs; atMs += WATCH_EVERY_MS) watch.step(atMs, [migration])
  }
  return { counted, lines, told, now, pass }
}

test('a source that stands still in STREAMING is ended once its deadline has passed, with a code, a line and a count', () => {
  const { counted, lines, told, pass } = stage()
  const deadline = deadlineMs('source', 'STREAMING', 30_000)
  pass(deadline)
  assert.is(told.length, 0)
  pass(2 * WATCH_EVERY_MS)
  assert.equal(
    told.map(({ code }) => code),
    ['MIGRATION_STUCK'],
  )
  assert.equal(counted, [{ side: 'source', state: 'STREAMING', action: 'abort' }])
  assert.is(lines[0]?.fields?.['code'], 'MIGRATION_STUCK')
  assert.is(lines[0]?.fields?.['state'], 'STREAMING')
})

test('one that gets on is left alone for a day', () => {
  const { told, now, pass } = stage()
  for (let minutes = 0; minutes < 24 * 60; minutes += 4) {
    now.mark = String(minutes)
    pass(4 * MINUTE_MS)
  }
  assert.is(told.length, 0)
})

test('every state of both sides has a deadline, and after the commit none aborts', () => {
  for (const state of Object.keys(SOURCE)) assert.ok(deadlineMs('source', state, 0) > 0, state)
  for (const state of Object.keys(TARGET)) assert.ok(deadlineMs('target', state, 0) > 0, state)
  for (const state of ['RELINQUISHED', 'ASKING', 'RETIRED', 'RECLAIMED'] as const)
    assert.not.equal(SOURCE_DEADLINES[state].action, 'abort', state)
  for (const state of ['RESUMING', 'RUNNING'] as const) assert.not.equal(TARGET_DEADLINES[state].action, 'abort', state)
})

test('docs/internals/ownership.md has the table of the code', () => {
  const text = readFileSync(new URL('../../../docs/internals/ownership.md', import.meta.url), 'utf8')
  const start = text.indexOf('| party | state |')
  const rows = text
    .slice(start, text.indexOf('\n\n', start))
    .split('\n')
    .slice(2)
    .map(line => line.split('|').map(cell => cell.trim()))
  const found = Object.fromEntries(rows.map(([, party, state, minutes, action]) => [`${party} ${state}`, `${minutes} ${action}`]))
  const row =
    (party: string) =>
    ([state, { ms, action }]: [string, { ms: number; action: string }]) =>
      [`${party} ${state}`, `${ms / MINUTE_MS} ${action}`] as const
  const expected = [
    ...Object.entries(SOURCE_DEADLINES).map(row('source')),
    ...Object.entries(TARGET_DEADLINES).map(row('target')),
    ...Object.entries(HANDOFF_DEADLINES)
      .filter(([, { ms }]) => Number.isFinite(ms))
      .map(row('gateway')),
  ]
  assert.equal(found, Object.fromEntries(expected))
})

test.run()
