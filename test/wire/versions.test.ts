// Ranges of versions: which one is used, what is refused and who is named, and what is no range.
import { Hello, Plan, SiteState } from '../../wire/control.ts'
import type { GodwitError } from '../../wire/errors.ts'
import { check } from '../../wire/schema.ts'
import { checkVersion, commonVersion, VERSIONS, type VersionRange, versionFields, versionsIn } from '../../wire/versions.ts'
import { assert, codeOf, suite, thrown } from '../support/suite.ts'

const test = suite('wire: versions')
const range = (min: number, max: number): VersionRange => ({ min, max })
const parties = (...ranges: VersionRange[]) => ranges.map((range, i) => ({ name: ['the node', 'the gateway', 'site c'][i]!, range }))

test('the highest version that all parties support is used, in whatever order they are asked', () => {
  for (const [ranges, version] of [
    [[range(1, 1), range(1, 1)], 1],
    [[range(1, 2), range(1, 1)], 1],
    [[range(1, 2), range(2, 3)], 2],
    [[range(1, 9), range(2, 4), range(3, 5)], 4],
  ] as const) {
    assert.is(commonVersion('link', parties(...ranges)), version)
    assert.is(commonVersion('link', parties(...ranges.toReversed())), version)
  }
})

test('where ranges do not meet, the error has both of them and names the older party', async () => {
  const error = (await thrown(() => commonVersion('link', parties(range(2, 3), range(1, 1))))) as GodwitError
  assert.is(error.code, 'VERSION_UNSUPPORTED')
  assert.is(error.message, 'no common link version: the node supports 2 to 3, the gateway supports 1; upgrade the gateway')
  assert.is(error.hint, 'upgrade the gateway')
  const older = (await thrown(() => commonVersion('link', parties(range(1, 1), range(2, 3))))) as GodwitError
  assert.is(older.hint, 'upgrade the node')
  const third = (await thrown(() => commonVersion('link', parties(range(3, 4), range(2, 3), range(1, 1))))) as GodwitError
  assert.is(third.hint, 'upgrade site c')
})

test('a version that another party has chosen must be in the range', async () => {
  const own = { name: 'the node', range: range(2, 3) }
  checkVersion('link', { by: 'the gateway', version: 3 }, own)
  const newer = (await thrown(() => checkVersion('link', { by: 'the gateway', version: 4 }, own))) as GodwitError
  assert.is(newer.message, 'the gateway uses link version 4, the node supports 2 to 3; upgrade the node')
  const older = (await thrown(() => checkVersion('link', { by: 'the gateway', version: 1 }, own))) as GodwitError
  assert.is(older.message, 'the gateway uses link version 1, the node supports 2 to 3; upgrade the gateway')
  assert.is(older.code, 'VERSION_UNSUPPORTED')
})

test('a range of one version has the bytes of the releases that knew no ranges', () => {
  assert.equal(versionFields(range(1, 1)), { version: 1 })
  assert.equal(versionFields(range(1, 3)), { version: 1, versionMax: 3 })
  for (const each of [range(1, 1), range(1, 3), range(7, 65_535)]) assert.equal(versionsIn(versionFields(each), 'HELLO'), each)
  assert.equal(versionFields(VERSIONS.link), { version: 1 })
})

test('garbage is malformed, whatever else is right', async () => {
  const garbage: unknown[] = [
    {},
    null,
    [],
    'HELLO',
    { version: 0 },
    { version: -1 },
    { version: 1.5 },
    { version: '1' },
    { version: 65_536 },
    { version: Number.MAX_SAFE_INTEGER },
    { version: [1, 2] },
    { version: 1, versionMax: 0 },
    { version: 1, versionMax: null },
    { version: 1, versionMax: '2' },
    { version: 1, versionMax: 65_536 },
    { version: 3, versionMax: 2 },
    { versionMax: 2 },
  ]
  for (const value of garbage) assert.is(await codeOf(() => versionsIn(value, 'HELLO frame')), 'FRAME_MALFORMED', JSON.stringify(value))
})

test('unknown fields of a HELLO are ignored: a later release may add optional ones', () => {
  const nonce = Buffer.alloc(32).toString('base64')
  const hello = { version: 1, purpose: 'control', incarnation: 1, nonce, certificate: 'AAAA' }
  assert.equal(check(Hello, { ...hello, later: { any: 'thing' } }, { what: 'HELLO' }), hello)
})

const site = {
  site: 'a',
  incarnation: 1,
  version: '1',
  host: { accelerators: [], memoryFreeBytes: 0, diskFreeBytes: 0, vcpus: 1 },
  vms: [],
  migrations: [],
}

test('the range of migration versions in a state of a site is checked like any other field', async () => {
  check(SiteState, { ...site, migrationVersions: { min: 1, max: 2 } }, { what: 'site.state' })
  for (const migrationVersions of [{ min: 3, max: 2 }, { min: 0, max: 1 }, { min: 1 }, [1, 2], 'all', { min: 1, max: 1e9 }])
    assert.is(
      await codeOf(() => check(SiteState, { ...site, migrationVersions }, { what: 'site.state' })),
      'FRAME_MALFORMED',
      JSON.stringify(migrationVersions),
    )
})

test('unknown fields of a plan are kept, within a limit', async () => {
  const plan = {
    ...{
      version: 1,
      migrationId: '0'.repeat(32),
      vm: 'vm-1',
      epoch: 1,
      source: 'a',
      target: 'b',
      method: 'live',
      downtimeMs: 300,
      streams: 4,
    },
    ...{ attempt: 1, compression: 'zstd', createdAt: 1, later: { nested: [1, { deep: true }] } },
  }
  assert.equal(check(Plan, plan, { what: 'plan' }), plan)
  assert.is(await codeOf(() => check(Plan, { ...plan, later: 'x'.repeat(4096) }, { what: 'plan' })), 'FRAME_MALFORMED')
})

test.run()
