import { AHEAD_MAX_MS, SKEW_MS } from '../../../../crypto/command-check.ts'
import { decodeCommandKey, encodeCommandKey, generateCommandKey, publicKeyOf, signCommand } from '../../../../crypto/command-keys.ts'
import { type CommandVerdict, createCommands } from '../../../../gateway/fronts/mqtt/commands.ts'
import type { Reply } from '../../../../mqtt/schemas.ts'
import { type Action, topicsOf } from '../../../../mqtt/topics.ts'
import { canonicalJson } from '../../../../wire/canonical.ts'
import { assert, codeOf, suite } from '../../../support/suite.ts'

const test = suite('gateway/fronts/mqtt: commands')
const topics = topicsOf('acme')
const NOW = Date.parse('2026-11-21T10:00:00Z')
const key = generateCommandKey('noc')
const reader = generateCommandKey('reader')
const iso = (ms: number) => new Date(ms).toISOString()
const bytes = (value: unknown) => new TextEncoder().encode(typeof value === 'string' ? value : JSON.stringify(value))

const draft = (more: object = {}) => ({
  commandId: 'command-0001',
  vmId: 'vm-1',
  toSite: 'b',
  reason: 'a test',
  expectedEpoch: 1,
  notAfter: iso(NOW + 20_000),
  replyTo: topics.build('reply', { clientId: 'noc' }),
  ...more,
})
const signed = (more: object = {}, by = key, action: Action = 'start') => signCommand(by, topics, action, draft(more))

function commands(rememberedMax?: number) {
  return createCommands({
    topics,
    ...(rememberedMax === undefined ? {} : { rememberedMax }),
    keys: [
      { name: 'noc', key: publicKeyOf(key.publicKey), actions: ['start', 'cancel'] },
      { name: 'reader', key: publicKeyOf(reader.publicKey), actions: [] },
    ],
  })
}
const take = (
  to: ReturnType<typeof commands>,
  payload: unknown,
  more: { retained?: boolean; action?: Action; nowMs?: number; responseTopic?: string } = {},
) => {
  const { retained = false, action = 'start', nowMs = NOW, responseTopic } = more
  return to.take({ action, payload: payload instanceof Uint8Array ? payload : bytes(payload), retained, responseTopic }, nowMs)
}
const codeIn = (verdict: CommandVerdict) => (verdict.verdict === 'rejected' ? verdict.error.code : verdict.verdict)
const reply: Reply = { commandId: 'command-0001', status: 'accepted', at: iso(NOW) }

test('canonical JSON sorts keys, keeps arrays, and writes each value in one way', () => {
  assert.is(
    canonicalJson({ b: [1, { d: null, c: 'é"' }], a: 1e21, '\u20ac': true, A: -0 }),
    '{"A":0,"a":1e+21,"b":[1,{"c":"é\\"","d":null}],"€":true}',
  )
  assert.is(canonicalJson({ a: undefined, b: 1 }), '{"b":1}')
  assert.throws(() => canonicalJson(Number.NaN), /not a JSON number/)
})

test('a signed command is accepted, whatever order its fields came in', () => {
  const value = signed()
  const shuffled = Object.fromEntries(Object.entries(value).reverse())
  const verdict = take(commands(), shuffled)
  assert.is(verdict.verdict, 'accepted')
  assert.is(verdict.verdict === 'accepted' && verdict.command.vmId, 'vm-1')
  assert.is(verdict.replyTo, 'godwit/v1/acme/reply/noc')
})

test('a command twice is a duplicate with the first one’s reply; the id for another command is refused', async () => {
  const all = commands()
  const first = take(all, signed())
  if (first.verdict !== 'accepted') throw new Error(codeIn(first))
  first.settle(Promise.resolve(reply))
  const second = take(all, signed())
  assert.is(second.verdict, 'duplicate')
  assert.equal(second.verdict === 'duplicate' && (await second.original), reply)
  assert.is(codeIn(take(all, signed({ toSite: 'c' }))), 'COMMAND_REUSED')
})

test('what is not exactly signed for this topic by a known key is forged', () => {
  const good = signed()
  const cases: unknown[] = [
    { ...good, toSite: 'c' },
    { ...good, sig: { ...good.sig, key: 'reader' } },
    { ...good, sig: { ...good.sig, key: 'nobody' } },
    { ...good, sig: { ...good.sig, value: Buffer.alloc(64).toString('base64') } },
    { ...good, sig: { ...good.sig, value: 'AAAA' } },
    signCommand(generateCommandKey('noc'), topics, 'start', draft()),
    signCommand(key, topicsOf('other'), 'start', draft()),
    signCommand(key, topics, 'prestage', draft()),
  ]
  for (const value of cases) assert.is(codeIn(take(commands(), value)), 'COMMAND_FORGED', JSON.stringify(value))
})

test('a key does only what it may', () => {
  assert.is(codeIn(take(commands(), signed({}, reader))), 'COMMAND_FORBIDDEN')
  const { toSite: _, ...pin } = draft({ pinned: true })
  assert.is(codeIn(take(commands(), signCommand(key, topics, 'pin', pin), { action: 'pin' })), 'COMMAND_FORBIDDEN')
})

test('retained, late and far-ahead commands are refused, a little skew is not', () => {
  assert.is(codeIn(take(commands(), signed(), { retained: true })), 'COMMAND_RETAINED')
  assert.is(codeIn(take(commands(), signed({ notAfter: iso(NOW - SKEW_MS - 1) }))), 'COMMAND_LATE')
  assert.is(codeIn(take(commands(), signed({ notAfter: iso(NOW - SKEW_MS + 1) }))), 'accepted')
  assert.is(codeIn(take(commands(), signed({ notAfter: iso(NOW + AHEAD_MAX_MS + SKEW_MS + 1) }))), 'COMMAND_MALFORMED')
})

test('malformed and oversized ones are refused, and answered where that is possible', () => {
  const replyTo = draft().replyTo
  const cases: [unknown, string, string | null, string | undefined][] = [
    ['{', 'COMMAND_MALFORMED', null, undefined],
    [new Uint8Array([0xff, 0xfe]), 'COMMAND_MALFORMED', null, undefined],
    ['null', 'COMMAND_MALFORMED', null, undefined],
    ['[]', 'COMMAND_MALFORMED', null, undefined],
    [{ ...signed(), extra: 1 }, 'COMMAND_MALFORMED', 'command-0001', replyTo],
    [draft(), 'COMMAND_MALFORMED', 'command-0001', replyTo],
    [signed({ vmId: '../x' }), 'COMMAND_MALFORMED', 'command-0001', replyTo],
    [signed({ commandId: 'short' }), 'COMMAND_MALFORMED', null, replyTo],
    [signed({ expectedEpoch: -1 }), 'COMMAND_MALFORMED', 'command-0001', replyTo],
    [signed({ notAfter: 'soon' }), 'COMMAND_MALFORMED', 'command-0001', replyTo],
    [signed({ reason: 'x'.repeat(17_000) }), 'COMMAND_TOO_LARGE', null, undefined],
    ['{"replyTo":"godwit/v1/acme/cmd/handoff/start"}', 'COMMAND_MALFORMED', null, undefined],
    ['{"replyTo":"godwit/v1/other/reply/noc"}', 'COMMAND_MALFORMED', null, undefined],
    [`{"__proto__":{"replyTo":"${replyTo}"}}`, 'COMMAND_MALFORMED', null, undefined],
  ]
  for (const [payload, code, commandId, answer] of cases) {
    const verdict = take(commands(), payload)
    if (verdict.verdict !== 'rejected') throw new Error('it was taken')
    assert.equal([verdict.error.code, verdict.commandId, verdict.replyTo], [code, commandId, answer], JSON.stringify(payload)?.slice(0, 80))
  }
  const verdict = take(commands(), '{', { responseTopic: replyTo })
  assert.is(verdict.replyTo, replyTo, 'the Response Topic of MQTT 5 serves as well')
})

test('ids are remembered as long as they could be replayed; when there is no room nothing new is taken, and nothing old forgotten', () => {
  const all = commands(3)
  const give = (id: string, more: object = {}, nowMs = NOW) => {
    const verdict = take(all, signed({ commandId: id, ...more }), { nowMs })
    if (verdict.verdict === 'accepted') verdict.settle(Promise.resolve(reply))
    return codeIn(verdict)
  }
  assert.equal([give('command-1'), give('command-2'), give('command-3')], ['accepted', 'accepted', 'accepted'])
  assert.is(give('command-4'), 'LIMIT_EXCEEDED')
  assert.is(give('command-1'), 'duplicate')
  assert.is(give('command-4', { notAfter: iso(NOW + 50_000) }, NOW + 40_000), 'accepted')
  assert.is(all.remembered(), 1, 'what is late by now need not be remembered')
  assert.is(give('command-1', {}, NOW + 40_000), 'COMMAND_LATE')
})

test('a key file says what it is, and is checked', async () => {
  assert.equal(decodeCommandKey(encodeCommandKey(key), 'x'), key)
  for (const bad of ['', '{}', JSON.stringify({ ...key, secretKey: 'AA==' }), JSON.stringify({ ...key, more: 1 })])
    assert.is(await codeOf(() => decodeCommandKey(bad, 'x')), 'CONFIG_INVALID')
  assert.is(await codeOf(() => publicKeyOf('AAAA')), 'CONFIG_INVALID')
})

test.run()
