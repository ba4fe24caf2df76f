// docs/reference/mqtt.md and the code say the same: topics, phases, the worked signature. A failing line is printed as
// it must stand in the document.
import { readFileSync } from 'node:fs'
import { publicKeyOf, verifySignature } from '../../crypto/command-keys.ts'
import { REFUSALS } from '../../gateway/fronts/mqtt/commands.ts'
import { PHASES } from '../../gateway/handoff/phases.ts'
import { CHANNELS } from '../../mqtt/channels.ts'
import { PATTERNS, type TopicKind } from '../../mqtt/topics.ts'
import { signedText } from '../../wire/canonical.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('mqtt: docs/reference/mqtt.md')
const text = readFileSync(new URL('../../docs/reference/mqtt.md', import.meta.url), 'utf8')
const rowsOf = (heading: string) =>
  (text.split(/^## /m).find(part => part.startsWith(heading)) ?? '')
    .split('\n')
    .filter(line => line.startsWith('| '))
    .slice(2)

test('the table of topics is the table of channels', () => {
  const expected = (Object.keys(PATTERNS) as TopicKind[]).map(kind => {
    const { from, qos, retained, expirySeconds, title } = CHANNELS[kind]
    return `| \`${PATTERNS[kind]}\` | ${from} | ${qos} | ${retained ? 'yes' : 'no'} | ${expirySeconds ?? '-'} | ${title} |`
  })
  assert.equal(rowsOf('Topics'), expected)
})

test("the table of phases is the standards' table", () => {
  const expected = Object.entries(PHASES).map(([phase, { mec021, acr, mec010 }]) => {
    const lifecycle = [mec010.target && `target: ${mec010.target}`, mec010.source && `source: ${mec010.source}`].filter(Boolean).join('; ')
    return `| ${phase} | ${Object.values(mec021).join(', ') || '-'} | ${acr.join(', ')} | ${lifecycle || '-'} |`
  })
  assert.equal(rowsOf('Phases'), expected)
})

test('every code of a refusal is named', () => {
  for (const code of REFUSALS) assert.ok(text.includes(code), code)
})

test('the worked signature is right, and only for its topic', () => {
  const [, topic = '', json = ''] = /```text\n(\S+)\n(\{.*\})\n```/.exec(text) ?? []
  const publicKey = /public: `([^`]{44})`/.exec(text)?.[1] ?? ''
  const signature = /is signed by `([^`]{88})`/.exec(text)?.[1] ?? ''
  const payload = JSON.parse(json) as Record<string, unknown>
  assert.is(signedText(topic, { ...payload, sig: {} }), `${topic}\n${json}`)
  assert.ok(verifySignature(publicKeyOf(publicKey), topic, payload, signature))
  assert.not.ok(verifySignature(publicKeyOf(publicKey), topic.replace('acme', 'other'), payload, signature))
})

test.run()
