// Metrics: names, labels, registries that do not share.
import { createMetrics } from '../../ops/metrics.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('ops: metrics')

test('exposes counters, gauges, samples and histograms under the prefix', async () => {
  const metrics = createMetrics('godwit_test')
  metrics.counter('plain_total', 'Plain.')
  const labelled = metrics.counter('refused_total', 'Refused.', ['code'])
  labelled.inc({ code: 'TIMEOUT' })
  labelled.inc({ code: 'TIMEOUT' }, 2)
  metrics.gauge('level', 'Level.').set(7)
  let value = 1
  metrics.sampled('sampled', 'Sampled.', () => value)
  metrics.histogram('seconds', 'Seconds.', [0.1, 1]).observe(0.5)
  value = 9
  const { body, contentType } = await metrics.expose()
  assert.match(contentType, 'text/plain')
  for (const line of [
    'godwit_test_plain_total 0',
    'godwit_test_refused_total{code="TIMEOUT"} 3',
    'godwit_test_level 7',
    'godwit_test_sampled 9',
    'godwit_test_seconds_bucket{le="1"} 1',
  ])
    assert.match(body, line)
})

test('two registries do not share', async () => {
  createMetrics('a').counter('x_total', 'X.').inc({}, 5)
  const other = createMetrics('a')
  other.counter('x_total', 'X.')
  assert.match((await other.expose()).body, 'a_x_total 0')
})

test.run()
