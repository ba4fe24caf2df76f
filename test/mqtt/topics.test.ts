import { PATTERNS, parametersOf, type TopicKind, topicsOf } from '../../mqtt/topics.ts'
import { GodwitError } from '../../wire/errors.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('mqtt: topics')
const topics = topicsOf('acme')
const EXAMPLE = {
  gatewayId: 'gw',
  siteId: 'oslo',
  peerId: 'bergen',
  vmId: 'vm-1',
  ueKey: 'aB3_-x',
  clientId: 'noc.cli-1',
  handoffId: '0123456789abcdef0123456789abcdef',
}

test('every kind of topic is parsed back into its parts', () => {
  for (const kind of Object.keys(PATTERNS) as TopicKind[]) {
    const topic = topics.build(kind, EXAMPLE)
    const parameters = Object.fromEntries(parametersOf(kind).map(name => [name, EXAMPLE[name]]))
    assert.equal(topics.parse(topic), { kind, parameters }, topic)
    assert.is(topics.filter(kind).split('/').length, topic.split('/').length)
  }
  assert.is(topics.build('status', EXAMPLE), 'godwit/v1/acme/handoff/0123456789abcdef0123456789abcdef/status')
  assert.is(topics.filter('latency'), 'godwit/v1/acme/ue/+/meas/latency')
})

test('wildcards, slashes and empty names are never part of a topic', async () => {
  for (const bad of ['+', '#', 'a/b', '', 'a+', 'Ä', 'a b', 'A', 'a\u0000', '$SYS', 'x'.repeat(65)]) {
    assert.is(await codeOf(() => topics.build('siteState', { siteId: bad })), 'USAGE', bad)
    assert.is(topics.parse(`godwit/v1/acme/site/${bad}/state`), undefined, bad)
    assert.is(await codeOf(() => topicsOf(bad)), 'USAGE', bad)
  }
  for (const bad of ['noc.', '.x', 'a.b.c', 'noc+', 'noc/#']) assert.is(topics.parse(`godwit/v1/acme/reply/${bad}`), undefined, bad)
  assert.throws(
    () => topics.build('siteLink', { siteId: 'a' }),
    (error: unknown) => error instanceof GodwitError,
  )
})

test("another tenant's topic, a longer one and a shorter one are none of ours", () => {
  for (const topic of ['godwit/v1/acm/cmd/handoff/start', 'godwit/v1/acme', 'godwit/v1/acme/cmd/handoff/start/x', 'cmd/handoff/start'])
    assert.is(topics.parse(topic), undefined, topic)
  assert.is(topics.parse(`godwit/v1/acme/${'x/'.repeat(1000)}`), undefined)
})

test.run()
