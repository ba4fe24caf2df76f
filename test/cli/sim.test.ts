import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { run } from '../../cli/run.ts'
import { loadSimulation } from '../../cli/sim/load.ts'
import { quantile } from '../../cli/sim/metrics.ts'
import { Optimum } from '../../cli/sim/optimum.ts'
import { type Simulation, simulate } from '../../cli/sim/simulate.ts'
import type { Measurement } from '../../gateway/handoff/measurements.ts'
import { MEASURED } from '../../mqtt/topics.ts'
import { eventually } from '../../ops/deadline.ts'
import { parseScenario } from '../../sim-network/mobility/scenario.ts'
import { createRandom } from '../../sim-network/random.ts'
import { vm, world } from '../gateway/fixture.ts'
import { embedded, PASSWORDS } from '../gateway/fronts/mqtt/support.ts'
import { assert, codeOf, suite } from '../support/suite.ts'
import { home, recordingIo } from './recording-io.ts'

const test = suite('cli: sim')
const example = (name: string) => fileURLToPath(new URL(`../../examples/${name}`, import.meta.url))

test('the offline optimum is what trying every way gives', () => {
  const random = createRandom(8)
  const regret = [0, 7, 12, 7, 0, 5, 12, 5, 0]
  for (let round = 0; round < 30; round++) {
    const way = Array.from({ length: 7 }, () => Math.floor(random.next() * 3))
    const price = random.between(1, 20)
    const optimum = new Optimum({ users: 2, sites: 3, regretMs: (user, site) => regret[user * 3 + site]!, price: () => price })
    optimum.begin(1, way[0]!)
    for (const userSite of way) optimum.stay(1, userSite, 2)
    optimum.end(1)
    let least = Number.POSITIVE_INFINITY
    for (let code = 0; code < 3 ** way.length; code++) {
      let [cost, at, rest] = [0, way[0]!, code]
      for (const userSite of way) {
        const site = rest % 3
        rest = Math.floor(rest / 3)
        cost += (site === at ? 0 : price) + regret[userSite * 3 + site]! * 2
        at = site
      }
      least = Math.min(least, cost)
    }
    assert.ok(Math.abs(optimum.total.costMsSeconds - least) < 1e-9, `round ${round}: ${optimum.total.costMsSeconds} ${least}`)
  }
})

test('quantiles are by nearest rank', () => {
  assert.equal([quantile([3, 1, 2], 0.5), quantile([3, 1, 2], 0.95), quantile([5], 0.01), quantile([], 0.5)], [2, 3, 5, null])
})

test('the same seed gives the same report, another seed another', async () => {
  const { scenario } = await loadSimulation(example('mobility-border.yaml'), {})
  const run = (seed: number) => simulate({ scenario: { ...scenario, seed }, hours: 0.5 })
  const first = run(3)
  assert.ok(first.migrations > 5)
  assert.equal(run(3), first)
  assert.not.equal(run(4), first)
})

test('no policy is better than the offline optimum, and never moves nothing', async () => {
  const { scenario } = await loadSimulation(example('mobility-border.yaml'), {})
  for (const policy of ['never', 'latency', 'regret', 'follow-cell', 'manual'] as const) {
    const report = simulate({ scenario, hours: 0.5, settings: { policy } })
    assert.ok(report.regretRatio! >= 1, `${policy} ${report.regretRatio}`)
    assert.ok(report.sloViolationPercent >= report.unavoidablePercent)
    if (policy === 'never' || policy === 'manual') assert.is(report.migrations, 0)
  }
})

const STORM = `
version: 1
name: storm
seed: 2
zones:
  - { name: west, sites: [{ name: a, lat: 48, lon: 2 }] }
  - { name: east, sites: [{ name: b, lat: 48, lon: 2.04 }] }
network: { linkMbit: 10000 }
radio: { shadowingDb: 0 }
users:
  - { kind: waypoints, name: crowd, count: 500, path: [{ lat: 48, lon: 2 }, { lat: 48.0001, lon: 2 }], end: stay, speedMps: 1 }
vm: { memoryMiB: 1024, dirtyMiBps: 8, sloMs: 20 }
events: [{ kind: go, atS: 60, group: crowd, to: { lat: 48, lon: 2.04 }, spreadMeters: 20, speedMps: 20 }]
`

test('a storm in the simulator: 500 users cross at once, no site takes more than its tokens, all VMs arrive', () => {
  let last: Simulation | undefined
  const moved = new Map<string, number>()
  const report = simulate({
    scenario: parseScenario(STORM),
    hours: 0.6,
    onStep: simulation => {
      last = simulation
    },
    onDecision: decision => {
      if (decision.action === 'move') moved.set(decision.vm, (moved.get(decision.vm) ?? 0) + 1)
    },
  })
  assert.is(report.sitesBusyMax, 4)
  assert.is(moved.size, 500)
  assert.ok([...moved.values()].every(count => count === 1))
  assert.is(report.migrations, 500)
  assert.is(last!.executor.moves.size, 0)
  assert.equal([last!.engine.sites.tokensInUse(0), last!.engine.sites.tokensInUse(1)], [0, 0])
})

test('the command compares policies, writes a picture, and says what it needs', async () => {
  await using place = await home()
  const plot = place.path('border.svg')
  const { code, out } = await place.godwit('sim', 'mobility', example('mobility-border.yaml'), '--compare', '--hours', '1', '--plot', plot)
  assert.is(code, 0)
  for (const label of ['never', 'follow-cell', 'latency', 'regret, no staging']) assert.match(out, label)
  assert.match(out, /Brier 0\.\d{3}/)
  const svg = await readFile(plot, 'utf8')
  assert.match(svg, /^<svg xmlns=/)
  assert.is(svg.match(/<rect /g)!.length, 1 + 6 * 5)
  assert.not.match(svg, /NaN|undefined/)
  const once = await place.godwit('sim', 'mobility', example('mobility-border.yaml'), '--policy', 'latency', '--json')
  assert.is(once.json().reports[0].policy, 'latency')
  assert.is((await place.godwit('sim', 'mobility', example('mobility-border.yaml'), '--compare', '--policy', 'never')).code, 2)
  const missing = await place.godwit('sim', 'mobility', example('mobility-traces.yaml'))
  assert.is(missing.code, 2)
  assert.match(missing.err, '--traces')
})

test('drives of a folder are replayed, and some of them chosen by name', async () => {
  await using place = await home()
  await mkdir(place.path('traces'))
  const drive = (direction: number) =>
    `seconds,lat,lon,cell\n${Array.from({ length: 300 }, (_, s) => `${s},48,${2 + direction * s * 0.0002},${s < 150 ? 'near' : `far${direction}`}\n`).join('')}`
  await writeFile(place.path('traces', 'east.csv'), drive(1))
  await writeFile(place.path('traces', 'west.csv'), drive(-1))
  const scenario = example('mobility-traces.yaml')
  const all = await place.godwit('sim', 'mobility', scenario, '--traces', place.path('traces'), '--json')
  assert.is(all.code, 0, all.err)
  assert.ok(all.json().reports[0].migrations > 0)
  const loaded = await loadSimulation(scenario, { folder: place.path('traces'), only: 'w*,nothing' })
  assert.equal([loaded.traces.length, loaded.played.map(({ name }) => name)], [2, ['west.csv']])
  assert.is(await codeOf(() => loadSimulation(scenario, { folder: place.path('traces'), only: 'north' })), 'USAGE')
  assert.is(await codeOf(() => loadSimulation(scenario, { folder: place.path('none') })), 'CONFIG_UNREADABLE')
})

test('a simulated way can be written down and replayed', async () => {
  await using place = await home()
  const recorded = await place.godwit('sim', 'mobility', example('mobility-border.yaml'), '--record', place.path('ways'))
  assert.is(recorded.code, 0, recorded.err)
  const { traces } = await loadSimulation(example('mobility-traces.yaml'), { folder: place.path('ways') })
  assert.is(traces.length, 12)
  assert.equal([traces[0]!.seconds.length, traces[0]!.name], [3600, 'user-001.csv'])
  const replayed = await place.godwit('sim', 'mobility', example('mobility-traces.yaml'), '--traces', place.path('ways'), '--json')
  assert.ok(replayed.json().reports[0].migrations > 0)
})

test('a scenario is published to a broker in real time, as a telco would, until somebody says stop', async () => {
  await using at = await home()
  const measured: Measurement[] = []
  await at.godwit('mqtt', 'keygen', '--for', 'measurement', '--name', 'sim', '--out', at.path('sim.key'))
  const { publicKey } = JSON.parse(await readFile(at.path('sim.key'), 'utf8')) as { publicKey: string }
  const mqtt = { ...embedded(), measurementKeys: [{ name: 'sim', publicKey, kinds: MEASURED }] }
  await using w = await world({ mqtt, onMeasurement: one => measured.push(one) })
  await w.node('a', { vms: [vm('vm-1'), vm('vm-2'), vm('vm-3')] })
  await w.node('b')
  await writeFile(at.path('password'), `${PASSWORDS.telco}\n`, { mode: 0o600 })
  await writeFile(at.path('storm.yaml'), STORM.replace('count: 500', 'count: 3'))
  const who = { GODWIT_MQTT_USER: 'telco', GODWIT_MQTT_PASSWORD_FILE: at.path('password'), GODWIT_MQTT_TENANT: 'acme' }
  const io = recordingIo({ env: { GODWIT_HOME: at.folder, ...who } })
  const url = w.gateway.mqtt?.url ?? ''
  const running = run(['sim', 'mobility', at.path('storm.yaml'), '--publish', url, '--key', at.path('sim.key')], io)
  await eventually(() => measured.filter(one => one.kind === 'location' && one.ueKey === 'sim-3').length >= 2 || undefined, {
    ms: 10_000,
    what: 'two seconds of measurements',
  })
  io.interrupt()
  assert.is(await running, 0, io.stderr)
  assert.match(io.stdout, /^\d+ messages\n$/)
  assert.equal([...new Set(measured.map(({ kind }) => kind))].sort(), ['latency', 'link', 'location'])
  assert.equal([...new Set(measured.map(({ signedBy }) => signedBy))], ['sim'])
  const keyAlone = await at.godwit('sim', 'mobility', at.path('storm.yaml'), '--key', at.path('sim.key'))
  assert.equal([keyAlone.code, /--key needs --publish/.test(keyAlone.err)], [2, true])
  assert.ok(measured.some(one => one.kind === 'latency' && one.value.vmId === 'vm-1' && one.value.targetSite === 'a'))
  assert.is((await at.godwit('sim', 'mobility', example('mobility-city.yaml'), '--publish', url)).code, 3)
})

test('a policy part that is wrong is refused', async () => {
  const text = (await readFile(example('mobility-border.yaml'), 'utf8')).concat('policy: { regret: { triggerMs: -1 } }\n')
  assert.is(await codeOf(() => simulate({ scenario: parseScenario(text), hours: 0.01 })), 'CONFIG_INVALID')
})

test.run()
