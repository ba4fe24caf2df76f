import { readFileSync } from 'node:fs'
import { createMeasurements } from '../../../gateway/handoff/measurements.ts'
import { topicsOf } from '../../../mqtt/topics.ts'
import { parseScenario } from '../../../sim-network/mobility/scenario.ts'
import { Telco } from '../../../sim-network/mobility/telco.ts'
import { World } from '../../../sim-network/mobility/world.ts'
import { toJson } from '../../../wire/schema.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('mobility: telco')
const STARTED = Date.UTC(2030, 0, 1)

test('every message of a simulated telco is one that the gateway takes, newer than the one before', () => {
  const text = readFileSync(new URL('../../../examples/mobility-border.yaml', import.meta.url), 'utf8')
  const world = new World(parseScenario(text))
  const telco = new Telco(world, user => ({ ueKey: `ue-${user}`, vmId: `vm-${user}`, vmSite: user % 2 }), STARTED)
  const topics = topicsOf('acme')
  const measurements = createMeasurements({ topics, isSite: () => true, isVm: () => true })
  const counts: Record<string, number> = {}
  for (let second = 1; second <= 120; second++) {
    world.step()
    for (const { topic, payload } of [...telco.users(second % 30 === 0), ...(second === 60 ? telco.links() : [])]) {
      const parsed = topics.parse(`godwit/v1/acme/${topic}`)!
      const taken = measurements.take(parsed, toJson(payload), STARTED + world.nowMs)
      assert.is(taken.outcome, 'taken', `${topic}: ${'why' in taken ? taken.why : ''}`)
      counts[parsed.kind] = (counts[parsed.kind] ?? 0) + 1
      if (parsed.kind === 'radio') counts[String(payload['trigger'])] = (counts[String(payload['trigger'])] ?? 0) + 1
    }
  }
  assert.equal([counts['location'], counts['latency'], counts['siteLink']], [12 * 120, 2 * 12 * 120, 2])
  assert.ok(counts['EVENT_A3']! > 5 && counts['PERIODIC']! > 30, JSON.stringify(counts))
})

test('a place says how fast and whereto', () => {
  const world = new World(
    parseScenario(`
version: 1
name: one
zones: [{ name: z, sites: [{ name: a, lat: 48, lon: 2 }] }]
users: [{ kind: waypoints, path: [{ lat: 48, lon: 2 }, { lat: 48, lon: 2.05 }], speedMps: 12 }]
`),
  )
  const telco = new Telco(world, () => ({ ueKey: 'u', vmId: 'v', vmSite: 0 }), STARTED)
  world.step()
  const { payload } = telco.users().find(({ topic }) => topic === 'ue/u/meas/location')!
  assert.ok(
    Math.abs(Number(payload['speedMps']) - 12) < 1e-6 && Math.abs(Number(payload['headingDeg']) - 90) < 0.1,
    JSON.stringify(payload),
  )
})

test.run()
