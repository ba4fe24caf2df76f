import { createMap } from '../../../sim-network/mobility/map.ts'
import { RadioModel } from '../../../sim-network/mobility/radio.ts'
import { parseScenario, type Scenario } from '../../../sim-network/mobility/scenario.ts'
import { parseDriveTrace, writeTrace } from '../../../sim-network/mobility/trace.ts'
import { World } from '../../../sim-network/mobility/world.ts'
import { assert, codeOf, suite, thrown } from '../../support/suite.ts'

const test = suite('mobility')

const scenarioOf = (rest: string): Scenario => parseScenario(`version: 1\nname: test\nseed: 5\n${rest}`)
const TWO_SITES = `
zones:
  - name: west
    sites: [{ name: a, lat: 48, lon: 2 }]
  - name: east
    sites: [{ name: b, lat: 48, lon: 2.03 }]
`
const walker = (extra = '') => `users: [{ kind: waypoints, path: [{ lat: 48, lon: 2 }, { lat: 48, lon: 2.03 }], speedMps: 10${extra} }]\n`

test('a wrong field is named with its line', async () => {
  const error = await thrown(() => scenarioOf(`${TWO_SITES}users: [{ kind: waypoints, path: [], speedMps: 3 }]\n`))
  assert.match(String(error), /line 1\d.*users\.0\.path/)
  assert.is(await codeOf(() => scenarioOf(`users: [{ kind: random-waypoint, count: 1 }]\n`)), 'CONFIG_INVALID')
  assert.is(
    await codeOf(() => scenarioOf(`${TWO_SITES}grid: { origin: { lat: 1, lon: 1 }, columns: 2, rows: 2 }\n${walker()}`)),
    'CONFIG_INVALID',
  )
  assert.is(await codeOf(() => scenarioOf(`${TWO_SITES}${walker()}colour: blue\n`)), 'CONFIG_INVALID')
  assert.is(await codeOf(() => createMap(scenarioOf(`${TWO_SITES.replace('name: b', 'name: a')}${walker()}`))), 'CONFIG_INVALID')
  const lost = scenarioOf(`${TWO_SITES}${walker()}events: [{ kind: site-down, atS: 1, site: nowhere }]\n`)
  assert.is(await codeOf(() => new World(lost).step()), 'CONFIG_INVALID')
})

test('the RTT between sites is distance and hops', () => {
  const map = createMap(scenarioOf(`${TWO_SITES}${walker()}network: { otherZoneMs: 11, fibreMsPerKm: 0.1 }\n`))
  const km = map.sites[1]!.x / 1000
  assert.ok(km > 2.2 && km < 2.25)
  assert.ok(Math.abs(map.rttMs[1]! - (11 + 0.1 * km)) < 1e-9)
  assert.equal([map.rttMs[0], map.rttMs[3], map.rttMs[2]], [0, 0, map.rttMs[1]])
})

test('a grid has its zones, and its cells belong to their sites', () => {
  const grid = 'grid: { origin: { lat: 48, lon: 2 }, columns: 4, rows: 3, zoneSites: 2, cellsPerSite: 2 }\n'
  const map = createMap(scenarioOf(`${grid}users: [{ kind: random-waypoint, count: 1 }]\n`))
  assert.equal([map.sites.length, map.cells.length, new Set(map.sites.map(({ zone }) => zone)).size], [12, 24, 4])
})

test('waypoints: speed is kept, the end is turned at, and a stay is a stay', () => {
  const world = new World(scenarioOf(`${TWO_SITES}${walker(', end: reverse')}`))
  for (let at = 0; at < 100; at++) world.step()
  assert.ok(Math.abs(world.users.x[0]! - 1000) < 1)
  for (let at = 0; at < 260; at++) world.step()
  assert.ok(world.users.x[0]! < 1500 && world.users.x[0]! > 500, String(world.users.x[0]))
  const still = new World(scenarioOf(`${TWO_SITES}${walker(', end: stay')}`))
  for (let at = 0; at < 500; at++) still.step()
  assert.ok(Math.abs(still.users.x[0]! - still.map.sites[1]!.x) < 1)
})

test('the cell changes once on a straight way when nothing shadows, past the middle by the hysteresis', () => {
  const world = new World(scenarioOf(`${TWO_SITES}${walker(', end: stay')}radio: { shadowingDb: 0 }\n`))
  let changedAt = Number.NaN
  for (let at = 0; at < 260; at++) {
    world.step()
    if (world.site[0] === 1 && Number.isNaN(changedAt)) changedAt = world.users.x[0]!
  }
  const middle = world.map.sites[1]!.x / 2
  // 3 dB at 37.6 log10: the way to the old cell is 1.2 times that to the new one.
  assert.ok(changedAt > middle * 1.09 && changedAt < middle * 1.12, `${changedAt} of ${middle}`)
  assert.equal([world.siteChanges, world.radio.handovers], [1, 1])
})

test('A3 waits for TTT: a neighbour that is better for less is not handed over to', () => {
  const scenario = scenarioOf(`${TWO_SITES}${walker()}radio: { shadowingDb: 0, triggerMs: 5000 }\n`)
  const map = createMap(scenario)
  const radio = new RadioModel(map, scenario.radio, 1, 1)
  const far = map.sites[1]!.x * 0.8
  radio.update(0, 0, 0, 0)
  for (const [second, x] of [0, far, far, far, 0, far, far, far, far].entries()) assert.not.ok(radio.update(0, (second + 1) * 1000, x, 0))
  for (let second = 10; second < 13; second++) radio.update(0, second * 1000, far, 0)
  assert.is(radio.serving[0], 1)
})

test('shadowing has the deviation and the reach that were asked for, and is a property of the place', () => {
  const scenario = scenarioOf(`${TWO_SITES}${walker()}radio: { shadowingDb: 6, decorrelationMeters: 50 }\n`)
  const map = createMap(scenario)
  const [radio, again, bare] = [
    new RadioModel(map, scenario.radio, 3, 1),
    new RadioModel(map, scenario.radio, 3, 1),
    new RadioModel(map, { ...scenario.radio, shadowingDb: 0 }, 3, 1),
  ]
  const at = (x: number, y: number) => radio.rsrp(0, x, y) - bare.rsrp(0, x, y)
  const places = Array.from({ length: 4000 }, (_, index) => ({ x: (index % 80) * 137, y: Math.floor(index / 80) * 173 + 300 }))
  const mean = (values: number[]) => values.reduce((sum, value) => sum + value, 0) / values.length
  const covariance = (away: number) => mean(places.map(({ x, y }) => at(x, y) * at(x + away, y)))
  assert.ok(Math.abs(Math.sqrt(covariance(0)) - 6) < 0.7, String(Math.sqrt(covariance(0))))
  assert.ok(covariance(10) > 0.8 * covariance(0) && covariance(25) > 0.4 * covariance(0) && covariance(25) < covariance(10))
  assert.ok(Math.abs(covariance(200)) < 0.15 * covariance(0))
  for (const { x, y } of places.slice(0, 50)) assert.is(radio.rsrp(1, x, y), again.rsrp(1, x, y))
})

test('random waypoint: everybody stays in the area, streets are kept to, each user is fixed by seed and number', () => {
  const grid = 'grid: { origin: { lat: 48, lon: 2 }, columns: 3, rows: 3 }\n'
  const group = (count: number, extra = '') =>
    `users: [{ kind: random-waypoint, count: ${count}, speedMps: [5, 15], pauseS: [0, 20]${extra} }]\n`
  const few = new World(scenarioOf(grid + group(3)))
  const many = new World(scenarioOf(grid + group(40)))
  for (let at = 0; at < 600; at++) {
    few.step()
    many.step()
  }
  assert.equal([...few.users.x], [...many.users.x].slice(0, 3))
  const { left, right, bottom, top } = many.map.box
  for (let user = 0; user < 40; user++) {
    assert.ok(many.users.x[user]! >= left && many.users.x[user]! <= right)
    assert.ok(many.users.y[user]! >= bottom && many.users.y[user]! <= top)
  }
  const streets = new World(scenarioOf(grid + group(20, ', streetMeters: 100')))
  let axis = 0
  let both = 0
  for (let at = 0; at < 300; at++) {
    const before = [[...streets.users.x], [...streets.users.y]] as const
    streets.step()
    for (let user = 0; user < 20; user++) {
      const [x, y] = [Math.abs(streets.users.x[user]! - before[0][user]!), Math.abs(streets.users.y[user]! - before[1][user]!)]
      if (x > 1e-6 && y > 1e-6) both++
      else if (x > 1e-6 || y > 1e-6) axis++
    }
  }
  assert.ok(axis > 1000 && both === 0, `${axis} ${both}`)
})

test('events: a crowd goes where it is sent, sites close, RTT and load rise, in order of time', () => {
  const world = new World(
    scenarioOf(`${TWO_SITES}
users: [{ kind: random-waypoint, name: crowd, count: 50, pauseS: [600, 900] }]
network: { spikeShare: 0 }
events:
  - { kind: load, atS: 20, site: b, addMs: 7 }
  - { kind: go, atS: 10, group: crowd, to: { lat: 48, lon: 2.03 }, spreadMeters: 50, speedMps: 30 }
  - { kind: site-down, atS: 5, site: a }
  - { kind: latency, atS: 5, site: a, addMs: 4 }
`),
  )
  const before = world.rttMs[1]!
  const changes = []
  for (let at = 0; at < 10; at++) changes.push(...world.step().sites)
  assert.equal(changes, [{ site: 0, isEligible: false }])
  assert.ok(Math.abs(world.rttMs[1]! - before - 4) < 1e-9)
  for (let at = 0; at < 170; at++) world.step()
  const near = [...world.users.x].filter((x, user) => Math.hypot(x - world.map.sites[1]!.x, world.users.y[user]!) < 1200)
  assert.ok(near.length > 40, String(near.length))
  const atB = [...world.site].indexOf(1)
  assert.is(world.accessMs[atB], 17)
  assert.is(world.userRttMs(atB, 1), 17)
})

test('a trace is read in both forms, repeated seconds and rows without a place left out, and written again', async () => {
  const own = parseDriveTrace('own', 'seconds,lat,lon,cell,rttMs\n5,48,2,x/1,20\n6,48.001,2,x/1,\n6,48.002,2,,\n9,48.003,2,x/2,31\n')
  assert.equal([...own.seconds], [0, 1, 4])
  assert.equal([own.lat[1], own.cells, own.rttMs[2]], [48.002, ['x/1', '', 'x/2'], 31])
  assert.is(writeTrace(parseDriveTrace('own', writeTrace(own))), writeTrace(own))
  const head = 'Timestamp,Longitude,Latitude,Speed,NODEHEX,CELLHEX,PINGAVG'
  const recorded = parseDriveTrace(
    'r',
    `${head}\n2020.01.01_10.00.00,2,48,3,A,1,-\n2020.01.01_10.00.02,2.1,48,3,-,1,80.5\n2020.01.01_10.00.03,-,-,3,A,2,-\n`,
  )
  assert.equal(
    [[...recorded.seconds], recorded.cells],
    [
      [0, 2],
      ['A/1', ''],
    ],
  )
  assert.is(recorded.rttMs[1], 80.5)
  assert.ok(Number.isNaN(recorded.rttMs[0]))
  for (const text of ['', 'a,b\n1,2\n', 'seconds,lat,lon\n1,48,2\n', 'seconds,lat,lon\n1,98,2\n2,99,2\n']) {
    assert.is(await codeOf(() => parseDriveTrace('bad', text)), 'CONFIG_INVALID')
  }
})

test('a replayed drive is where it was, belongs to the recorded cell, and is followed by the next as another session', () => {
  const row = (second: number, lon: number, cell: string, rtt = '') => `${second},48,${lon},${cell},${rtt}\n`
  const head = 'seconds,lat,lon,cell,rttMs\n'
  const east = parseDriveTrace(
    'east',
    head + Array.from({ length: 61 }, (_, s) => row(s, 2 + s * 0.0005, s < 30 ? 'one' : 'two', s === 10 ? '70' : '50')).join(''),
  )
  const west = parseDriveTrace('west', head + row(0, 2.03, 'two') + row(40, 2, 'one'))
  const scenario = scenarioOf('alongTraces: { spacingMeters: 1500 }\nusers: [{ kind: replay, count: 1 }]\nnetwork: { accessMs: 10 }\n')
  const world = new World(scenario, [east, west])
  assert.is(world.map.sites.length, 2)
  assert.equal(
    world.map.cells.map(({ name }) => name),
    ['one', 'two'],
  )
  const sites: number[] = []
  const sessions: number[] = []
  const access: number[] = []
  for (let at = 0; at < 160; at++) {
    world.step()
    sites.push(world.site[0]!)
    sessions.push(world.users.session[0]!)
    access.push(world.accessMs[0]!)
  }
  assert.ok(new Set(sites).size === 2 && sessions.at(-1)! >= 2)
  // The RTT above its floor of 50 is added to the access; a change of cell adds 30 once.
  assert.equal([...new Set(access)].sort(), [10, 30, 40])
  assert.equal(new World(scenario, [east, west], [west]).users.x[0], world.map.projection.toMap({ lat: 48, lon: 2.03 }).x)
})

test.run()
