// The shapes of the hop: what passes, what does not, and how the first wrong field is named.
import { MigrationRequest } from '../../wire/admin.ts'
import { Hello, Join, METHODS, MigrationProgress, MigrationResult, Plan, SiteState } from '../../wire/control.ts'
import { GodwitError } from '../../wire/errors.ts'
import { check, checkJson, toJson } from '../../wire/schema.ts'
import { assert, codeOf, suite, thrown } from '../support/suite.ts'

const test = suite('wire: control')
const migrationId = '0123456789abcdef0123456789abcdef'
const plan = {
  version: 1,
  migrationId,
  vm: 'vm-1',
  epoch: 1,
  source: 'a',
  target: 'b',
  method: 'live',
  downtimeMs: 300,
  streams: 4,
  attempt: 1,
  compression: 'zstd',
  createdAt: 1_700_000_000_000,
}
const state = {
  site: 'a',
  incarnation: 5,
  version: '0.1.0',
  host: { accelerators: ['kvm', 'tcg'], memoryFreeBytes: 1, diskFreeBytes: 2, vcpus: 4 },
  vms: [{ name: 'vm-1', state: 'running', epoch: 1, memoryBytes: 1, vcpus: 1 }],
  migrations: [migrationId],
}

test('what is right passes unchanged, by way of its bytes too', () => {
  assert.equal(checkJson(Plan, toJson(plan), { what: 'plan' }), plan)
  assert.equal(checkJson(SiteState, toJson(state), { what: 'state' }), state)
  assert.equal(check(Join, { sessionId: migrationId, index: 0, attempt: 1 }, { what: 'join' }), {
    sessionId: migrationId,
    index: 0,
    attempt: 1,
  })
})

test('names that could do harm do not pass: paths, wildcards, upper case, too long, empty', async () => {
  for (const name of ['../etc', 'a/b', '+', '#', 'A', 'a b', '', 'x'.repeat(65), 'a\n', 'ä'])
    assert.is(await codeOf(() => check(Plan, { ...plan, vm: name }, { what: 'plan' })), 'FRAME_MALFORMED', JSON.stringify(name))
})

test('every field of a plan is needed and bounded', async () => {
  for (const field of Object.keys(plan)) {
    const { [field]: _, ...rest } = plan as Record<string, unknown>
    assert.is(await codeOf(() => check(Plan, rest, { what: 'plan' })), 'FRAME_MALFORMED', field)
  }
  for (const wrong of [
    { streams: 0 },
    { streams: 1000 },
    { downtimeMs: 0.5 },
    { epoch: -1 },
    { version: 0 },
    { version: 65_536 },
    { compression: 'gzip' },
  ])
    assert.is(await codeOf(() => check(Plan, { ...plan, ...wrong }, { what: 'plan' })), 'FRAME_MALFORMED', JSON.stringify(wrong))
})

test('the first wrong field is named, with the code that the caller wants', async () => {
  const wrong = { ...state, vms: [{ ...state.vms[0], state: 'flying' }] }
  const error = (await thrown(() => check(SiteState, wrong, { what: 'site.state' }))) as GodwitError
  assert.match(error.message, /^site\.state: vms\.0\.state: /)
  const request = await thrown(() => check(MigrationRequest, { vm: 'x', to: 'b', methd: 'live' }, { what: 'body', code: 'CONFIG_INVALID' }))
  assert.ok(request instanceof GodwitError && request.code === 'CONFIG_INVALID' && request.message.includes('methd'))
})

test('newer nodes may say more: progress keeps it, a state drops it', () => {
  const progress = check(MigrationProgress, { migrationId, side: 'source', phase: 'precopy', throttlePercent: 20 }, { what: 'progress' })
  assert.is(progress['throttlePercent'], 20)
  assert.equal(check(SiteState, { ...state, more: 1 }, { what: 'state' }), state)
})

test('a long message is cut, never a reason to lose the outcome', () => {
  const error = { code: 'QEMU_LOAD', message: 'x'.repeat(100_000) }
  const result = check(MigrationResult, { migrationId, side: 'target', outcome: 'failed', error }, { what: 'result' })
  assert.is(result.error?.message.length, 4096)
})

test('what is no JSON, no UTF-8 or of quite another shape is FRAME_MALFORMED', async () => {
  for (const bytes of [new Uint8Array(), new Uint8Array([0xff, 0xfe]), toJson(null), toJson([]), toJson('x'), toJson({ __proto__: 1 })])
    for (const schema of [...Object.values(METHODS), Hello, Join])
      assert.is(await codeOf(() => checkJson(schema, bytes, { what: 'frame' })), 'FRAME_MALFORMED')
})

test.run()
