// The benchmarks run to their ends and measure something. How fast is not asked here: no test is timed.
import { benchCommit } from '../../bench/commit.ts'
import { benchMqtt } from '../../bench/mqtt.ts'
import { benchPipeline } from '../../bench/pipeline.ts'
import { benchRelay } from '../../bench/relay.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('bench: short form', { ms: 60_000 })

test('the pipeline is measured stage by stage and whole', async () => {
  const { stages, limit } = await benchPipeline({ seconds: 0.2, json: true })
  for (const { stage, guestMBPerSecond } of stages) assert.ok(guestMBPerSecond > 0, `${stage} measured nothing`)
  for (const stage of ['parse', 'hash', 'seal', 'open', 'write', 'source to target (1)'])
    assert.ok(
      stages.some(found => found.stage === stage),
      `no stage '${stage}'`,
    )
  assert.ok(limit.length > 0)
})

test('the relay carries bytes over every engine that loads', async () => {
  const results = await benchRelay({ seconds: 0.3, json: true })
  assert.ok(results.length > 0, 'no engine loads')
  for (const { engine, relayedBytes } of results) assert.ok(relayedBytes > 1_000_000, `${engine} relayed ${relayedBytes} bytes`)
})

test('every measurement sent is taken, every command answered, with each broker that is there', async () => {
  const results = await benchMqtt({ seconds: 2, perSecond: 200, json: true })
  assert.ok(results.some(({ broker }) => broker === 'embedded'))
  for (const { broker, sent, taken, commands } of results) {
    assert.is(taken, sent, `${broker} lost measurements`)
    assert.is(commands.answered, commands.sent, `${broker} lost commands`)
  }
})

test('a guest moves with durable records and with others, and both have a downtime and its parts', async () => {
  const costs = await benchCommit({ migrations: 1 })
  assert.equal(
    costs.map(({ durable }) => durable),
    [true, false, true, false],
  )
  for (const { downtimeMs, parts } of costs) assert.ok(downtimeMs > 0 && Object.keys(parts).length === 5, JSON.stringify(parts))
})

test.run()
