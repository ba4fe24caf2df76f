import { createLog } from '../../ops/log.ts'
import { hasCredentials, withoutCredentials } from '../../ops/redact.ts'
import { GodwitError } from '../../wire/errors.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('ops: what is not shown')

test('user names and passwords of URLs are replaced, and nothing else is', () => {
  const cases: [string, string][] = [
    ['mqtt://me:secret@host:1883', 'mqtt://***@host:1883'],
    ['at mqtts://me@host: no answer; see http://a:b%40c@x/y', 'at mqtts://***@host: no answer; see http://***@x/y'],
    ['mqtt://me:p@ss@host', 'mqtt://***@host'],
    ['mqtt://host:1883 of me@example.net', 'mqtt://host:1883 of me@example.net'],
    ['{"url":"mqtt://host","by":"me@example.net"}', '{"url":"mqtt://host","by":"me@example.net"}'],
    ['http://host/path?at=me@example.net', 'http://host/path?at=me@example.net'],
  ]
  for (const [given, shown] of cases) assert.is(withoutCredentials(given), shown)
  assert.equal([hasCredentials('mqtt://me:x@host'), hasCredentials('mqtt://host:1')], [true, false])
})

test('no log line shows them, whatever carried them', () => {
  for (const format of ['json', 'text'] as const) {
    const lines: string[] = []
    const log = createLog({ format, level: 'debug', write: line => void lines.push(line) })
    const cause = new Error('connect mqtt://me:secret@host')
    log.child({ broker: 'mqtt://me:secret@host' }).warn('away from mqtt://me:secret@host', {
      error: new GodwitError('BROKER_UNREACHABLE', 'gone', { cause }),
      nested: { url: 'mqtt://me:secret@host' },
    })
    assert.not.match(lines.join(''), 'secret')
    assert.match(lines.join(''), 'mqtt://***@host')
    if (format === 'json') assert.is(JSON.parse(lines[0]!).broker, 'mqtt://***@host')
  }
})

test('a line of a megabyte takes no time', () => {
  const startMs = performance.now()
  withoutCredentials(`${'://a'.repeat(250_000)}`)
  assert.ok(performance.now() - startMs < 2_000)
})

test.run()
