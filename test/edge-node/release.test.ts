// What lets a VM leave a site: its own rules, and a commander's signature where it knows keys. Whatever the gateway
// says.
import { commandTopicsOf, generateCommandKey, signCommand } from '../../crypto/command-keys.ts'
import { createAlerts } from '../../edge-node/alerts.ts'
import { NodeConfig, nodeDefaults } from '../../edge-node/config.ts'
import { type AskedMove, createRelease, type ReleaseOptions } from '../../edge-node/release.ts'
import { openStore } from '../../ops/store.ts'
import type { Action } from '../../wire/command.ts'
import { silentLog } from '../../wire/log.ts'
import { assert, codeOf, suite } from '../support/suite.ts'
import { tempFolder } from '../support/temp-folder.ts'

const test = suite('edge-node/release')

const NOW_MS = Date.parse('2026-11-30T12:00:00Z')
const key = generateCommandKey('noc-1')
const topics = commandTopicsOf('main')
const KEYS = { 'noc-1': { publicKey: key.publicKey, actions: ['start', 'prestage'] as Action[] } }
const MOVE: AskedMove = {
  action: 'start',
  migrationId: '0123456789abcdef0123456789abcdef',
  vm: 'web-1',
  epoch: 3,
  target: 'berlin-2',
  method: 'live',
  downtimeMs: 300,
}

let made = 0
const draft = (more: object = {}) => ({
  commandId: `command-${String(++made).padStart(4, '0')}`,
  vmId: 'web-1',
  toSite: 'berlin-2',
  expectedEpoch: 3,
  reason: 'a test',
  notAfter: new Date(NOW_MS + 30_000).toISOString(),
  ...more,
})
const signed = (more: object = {}, by = key, action: Action = 'start') =>
  signCommand(by, topics, action, draft(more)) as unknown as NonNullable<AskedMove['command']>

type Fields = Partial<Pick<NodeConfig, 'release' | 'commandKeys' | 'commandTenant'>>

async function site(fields: Fields, more: Partial<ReleaseOptions> = {}) {
  const folder = await tempFolder()
  const store = await openStore(folder.path)
  const raised: string[] = []
  const alerts = createAlerts({ log: silentLog, count: ({ kind, code }) => raised.push(`${kind} ${code}`) })
  const defaults = nodeDefaults({ configDir: '/c', stateDir: '/s', runDir: '/r' })
  const gateway = { ...defaults.gateway, host: 'gateway' }
  const config = NodeConfig.parse({ ...defaults, gateway, site: 'berlin-1', ...fields })
  const open = () => createRelease({ config, store, alerts, now: () => NOW_MS, ...more })
  const release = await open()
  return {
    raised,
    open,
    code: (move: Partial<AskedMove>) => codeOf(() => release.check({ ...MOVE, ...move })),
    check: (move: Partial<AskedMove>) => release.check({ ...MOVE, ...move }),
    async [Symbol.asyncDispose]() {
      await store.close()
      await folder[Symbol.asyncDispose]()
    },
  }
}

test('without rules and keys any VM may go to any site of the root', async () => {
  await using s = await site({})
  await s.check({})
  assert.equal(s.raised, [])
})

test('with rules a VM goes only where one of them says, for a migration and for a pre-staging', async () => {
  await using s = await site({ release: [{ vms: ['web-*'], to: ['berlin-*'] }] })
  for (const action of ['start', 'prestage'] as const) {
    await s.check({ action })
    assert.is(await s.code({ action, target: 'hamburg-1' }), 'RELEASE_DENIED')
    assert.is(await s.code({ action, vm: 'db-1' }), 'RELEASE_DENIED')
  }
  assert.ok(s.raised.includes('unauthorized_move RELEASE_DENIED'))
})

test('with keys the command must be there, signed, in time, and say what the plan says', async () => {
  await using s = await site({ commandKeys: KEYS })
  assert.is(await s.code({}), 'COMMAND_REQUIRED')
  await s.check({ command: signed() })
  await s.check({ command: signed({ method: 'live', fromSite: 'berlin-1', constraints: { maxDowntimeMs: 300 } }) })
  const code = (more: object, move: Partial<AskedMove> = {}) => s.code({ command: signed(more), ...move })
  assert.is(await s.code({ command: signed({}, generateCommandKey('noc-1')) }), 'COMMAND_FORGED')
  assert.is(await s.code({ command: signed({}, generateCommandKey('other')) }), 'COMMAND_FORGED')
  assert.is(await s.code({ command: { ...signed(), toSite: 'hamburg-1' }, target: 'hamburg-1' }), 'COMMAND_FORGED')
  assert.is(await s.code({ command: signed({}, key, 'prestage') }), 'COMMAND_FORGED', 'signed for another action')
  assert.is(await code({ vmId: 'db-1' }), 'COMMAND_MISMATCH')
  assert.is(await code({ toSite: 'hamburg-1' }), 'COMMAND_MISMATCH')
  assert.is(await code({ fromSite: 'hamburg-1' }), 'COMMAND_MISMATCH')
  assert.is(await code({ method: 'live' }, { method: 'cold' }), 'COMMAND_MISMATCH')
  assert.is(await code({ constraints: { maxDowntimeMs: 100 } }), 'COMMAND_MISMATCH')
  assert.is(await code({ expectedEpoch: 2 }), 'EPOCH_STALE')
  assert.is(await code({ notAfter: new Date(NOW_MS - 6_000).toISOString() }), 'COMMAND_LATE')
  assert.is(await code({ notAfter: new Date(NOW_MS + 600_000).toISOString() }), 'COMMAND_MALFORMED')
  assert.is(await s.code({ command: { ...signed(), extra: 1 } }), 'COMMAND_MALFORMED')
  assert.ok(s.raised.includes('unauthorized_move COMMAND_FORGED'))
})

test('a key does only what it may, and only for its tenant', async () => {
  await using pins = await site({ commandKeys: { 'noc-1': { ...KEYS['noc-1'], actions: ['pin'] } } })
  assert.is(await pins.code({ command: signed() }), 'COMMAND_FORBIDDEN')
  await using other = await site({ commandKeys: KEYS, commandTenant: 'acme' })
  assert.is(await other.code({ command: signed() }), 'COMMAND_FORGED')
})

test('a command counts once: also twice at a time, and after a restart of the node', async () => {
  await using s = await site({ commandKeys: KEYS })
  const command = signed()
  const twice = await Promise.allSettled([s.check({ command }), s.check({ command })])
  assert.equal(twice.map(({ status }) => status).toSorted(), ['fulfilled', 'rejected'])
  assert.is(await s.code({ command }), 'COMMAND_REUSED')
  const next = await s.open()
  assert.is(await codeOf(() => next.check({ ...MOVE, command })), 'COMMAND_REUSED')
})

test('ids are remembered until their commands are late, and no more of them than there is room for', async () => {
  let nowMs = NOW_MS
  await using s = await site({ commandKeys: KEYS }, { rememberedMax: 2, now: () => nowMs })
  await s.check({ command: signed() })
  await s.check({ command: signed() })
  assert.is(await s.code({ command: signed() }), 'LIMIT_EXCEEDED')
  nowMs += 36_000
  await s.check({ command: signed({ notAfter: new Date(nowMs + 30_000).toISOString() }) })
})

test('a rule may let the gateway move named VMs without a command; the others still need one, within the rules', async () => {
  const release = [
    { vms: ['web-*'], to: ['berlin-*'], unsigned: true },
    { vms: ['db-*'], to: ['berlin-*'] },
  ]
  await using s = await site({ commandKeys: KEYS, release })
  await s.check({})
  assert.is(await s.code({ vm: 'db-1' }), 'COMMAND_REQUIRED')
  await s.check({ vm: 'db-1', command: signed({ vmId: 'db-1' }) })
  const away = { vm: 'db-1', target: 'hamburg-1', command: signed({ vmId: 'db-1', toSite: 'hamburg-1' }) }
  assert.is(await s.code(away), 'RELEASE_DENIED', 'a signature does not widen the rules')
})

test.run()
