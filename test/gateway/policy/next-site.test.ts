import { Calibration } from '../../../gateway/policy/calibration.ts'
import { Coverage } from '../../../gateway/policy/coverage.ts'
import { HandoffEngine } from '../../../gateway/policy/engine.ts'
import { Markov } from '../../../gateway/policy/markov.ts'
import { Motion } from '../../../gateway/policy/motion.ts'
import { NextSitePredictor } from '../../../gateway/policy/next-site.ts'
import type { Observation } from '../../../gateway/policy/types.ts'
import { createProjection } from '../../../planning/geo.ts'
import { createRandom } from '../../../sim-network/random.ts'
import { assert, suite } from '../../support/suite.ts'
import { GIB } from './fixture.ts'

const test = suite('policy: prediction')

test('the filter finds a constant velocity through noise', () => {
  const motion = new Motion()
  const random = createRandom(1)
  for (let second = 0; second <= 60; second++)
    motion.update(3, second * 1000, 10 * second + random.between(-4, 4), -5 * second + random.between(-4, 4))
  assert.ok(Math.abs(motion.vx[3]! - 10) < 1 && Math.abs(motion.vy[3]! + 5) < 1, `${motion.vx[3]} ${motion.vy[3]}`)
  assert.ok(Math.abs(motion.x[3]! - 600) < 5)
})

test('a gap or a jump begins the filter anew', () => {
  const motion = new Motion()
  for (let second = 0; second <= 20; second++) motion.update(0, second * 1000, 10 * second, 0)
  motion.update(0, 60_000, 900, 0)
  assert.is(motion.speed(0), 0)
  for (let second = 61; second <= 80; second++) motion.update(0, second * 1000, 10 * second, 0)
  assert.ok(motion.speed(0) > 5)
  motion.update(0, 81_000, 50_000, 0)
  assert.equal([motion.speed(0), motion.x[0]], [0, 50_000])
  assert.not.ok(motion.isKnown(0, 100_000))
})

test('coverage is the nearest site until users teach it otherwise, and one stray user does not', () => {
  const coverage = new Coverage()
  coverage.addSite(0, 0, 0)
  coverage.addSite(1, 1000, 0)
  assert.equal([coverage.siteAt(400, 0), coverage.siteAt(600, 0), coverage.siteAt(1e6, 0)], [0, 1, 1])
  for (let at = 0; at < 10; at++) coverage.learn(440, 40, 1)
  coverage.learn(440, 40, 0)
  assert.is(coverage.siteAt(440, 40), 1)
})

test('the site model learns where users of a site go, by where they came from', () => {
  const markov = new Markov()
  for (let at = 0; at < 200; at++) {
    markov.learn(0, 1, 10_000, 2)
    markov.learn(2, 1, 10_000, 0)
  }
  const share = (previous: number, site: number, then: number) => {
    const { fine, coarse } = markov.find(previous, site, 10_000)
    return markov.share(fine, coarse, site, then)
  }
  const at = (previous: number, then: number) => share(previous, 1, then)
  assert.ok(at(0, 2) > 0.95 && at(2, 0) > 0.95)
  assert.ok(Math.abs(at(9, 2) - 0.5) < 0.05, 'from elsewhere: as the site as a whole')
  assert.is(share(0, 7, 7), 1)
})

test('calibration corrects a forecaster who is too sure', () => {
  const calibration = new Calibration()
  const random = createRandom(2)
  for (let at = 0; at < 5000; at++) calibration.learn(0.92, calibration.correct(0.92), random.chance(0.7), true)
  assert.ok(Math.abs(calibration.correct(0.92) - 0.7) < 0.03)
  const { hitRate, brier, changes } = calibration.score()
  assert.ok(Math.abs(hitRate - 0.7) < 0.03 && Math.abs(brier - 0.21) < 0.02, `${hitRate} ${brier}`)
  assert.is(changes.predictions, 5000)
})

/** Users who drive from site to site along a row, at speeds of their own, and turn round at random places. */
function drivers(seed: number, seconds: number) {
  const predictor = new NextSitePredictor()
  const sites = 6
  for (let at = 0; at < sites; at++) predictor.coverage.addSite(at, at * 1000, 0)
  const random = createRandom(seed)
  const users = Array.from({ length: 40 }, () => ({
    x: random.between(0, 5000),
    speed: random.between(6, 16) * (random.chance(0.5) ? 1 : -1),
  }))
  for (let second = 0; second < seconds; second++) {
    for (const [index, user] of users.entries()) {
      user.x += user.speed
      if (user.x < 0 || user.x > 5000 || random.chance(1 / 150)) user.speed = -user.speed
      user.x = Math.min(5000, Math.max(0, user.x))
      const site = Math.min(sites - 1, Math.max(0, Math.round(user.x / 1000 + random.between(-0.04, 0.04))))
      predictor.observe(index, second * 1000, user.x + random.between(-5, 5), random.between(-5, 5), site)
      if ((second + index) % 4 === 0) predictor.predict(index, second * 1000, 15_000)
    }
  }
  return predictor.score()
}

test('what is stated is what comes true: every well-filled bin within a tenth, and better than knowing only the rate', () => {
  const score = drivers(4, 1800)
  assert.ok(score.predictions > 3000, String(score.predictions))
  for (const { stated, observed, predictions } of score.bins) {
    if (predictions >= 150)
      assert.ok(Math.abs(stated - observed) < 0.1, `stated ${stated.toFixed(2)}, observed ${observed.toFixed(2)}, of ${predictions}`)
  }
  assert.ok(score.brier < 0.9 * score.brierOfRate, `${score.brier} ${score.brierOfRate}`)
  assert.ok(score.changes.predictions > 300 && score.changes.hitRate > 0.6, JSON.stringify(score.changes))
})

test('the same users give the same score', () => {
  assert.equal(drivers(9, 300), drivers(9, 300))
})

/** A drive from a towards b, with places; what the engine wants staged. */
function staged(
  settings: { probability?: number; budgetBytesPerHour?: number; tokensPerSite?: number; worthMs?: number } = {},
  isPinned = false,
  before: (engine: HandoffEngine) => void = () => {},
) {
  const engine = new HandoffEngine({ settings: { prestage: settings } })
  const projection = createProjection({ lat: 48, lon: 2 })
  const place = (x: number) => projection.toGeo({ x, y: 0 })
  engine.observe(0, { kind: 'site', site: 'a', ...place(0) })
  engine.observe(0, { kind: 'site', site: 'b', ...place(2000) })
  engine.observe(0, { kind: 'link', from: 'a', to: 'b', rttMs: 12, bandwidthBytesPerSecond: 100e6 })
  engine.observe(0, { kind: 'vm', vm: 'vm', site: 'a', memoryBytes: GIB, dirtyBytesPerSecond: 10e6, policy: { sloMs: 20, isPinned } })
  before(engine)
  const prepared = []
  for (let second = 1; second < 83; second++) {
    const x = 12 * second
    const observations: Observation[] = [{ kind: 'user', vm: 'vm', site: x < 1000 ? 'a' : 'b', rttMs: 10, ...place(x) }]
    for (const decision of engine.step(second * 1000, observations)) if (decision.action === 'prepare') prepared.push(decision)
  }
  return { engine, prepared }
}

test('memory is sent ahead before the user is there, once, and the reason is given', () => {
  const { engine, prepared } = staged()
  assert.is(prepared.length, 1)
  const [decision] = prepared
  assert.equal([decision!.from, decision!.to, decision!.bytes], ['a', 'b', GIB])
  assert.ok(decision!.atMs < 83_000 && decision!.probability >= 0.6)
  assert.ok(Math.abs(decision!.tauMs - GIB / 100e3) < 1)
  assert.match(decision!.explanation.because, /^the user is expected at b in 11 s with probability 0\.\d\d$/)
  engine.observe(83_000, { kind: 'staged', vm: 'vm', site: 'b', bytes: GIB, isDone: true })
  assert.ok(engine.explain('vm', 83000)!.inputs.prediction!.site === 'b')
})

test('a site that has refused the VM is not prepared; the next best is, and what was not sent is not counted against the budget', () => {
  const third = (engine: HandoffEngine) => {
    engine.observe(0, { kind: 'link', from: 'a', to: 'c', rttMs: 12, bandwidthBytesPerSecond: 100e6 })
    engine.observe(0, { kind: 'link', from: 'b', to: 'c', rttMs: 3, bandwidthBytesPerSecond: 100e6 })
  }
  assert.equal(
    staged({}, false, third).prepared.map(({ to }) => to),
    ['b'],
  )
  const { engine, prepared } = staged({ budgetBytesPerHour: GIB }, false, engine => {
    third(engine)
    engine.observe(0, { kind: 'unfit', vm: 'vm', site: 'b', forMs: 600_000 })
  })
  assert.equal(
    prepared.map(({ to }) => to),
    ['c'],
  )
  const view = () => engine.vms.columns.allowanceBytes[0]!
  assert.ok(view() < 1e9 / 4, String(view()))
  engine.observe(83_000, { kind: 'prepared', vm: 'vm', sentBytes: 5000 })
  assert.ok(view() > GIB - 6000 && view() <= GIB, String(view()))
})

test('budget, staging tokens, probability, worth and pins each keep memory at home', () => {
  assert.is(staged({ budgetBytesPerHour: GIB - 1 }).prepared.length, 0)
  assert.is(staged({ tokensPerSite: 0 }).prepared.length, 0)
  assert.is(staged({ probability: 1 }).prepared.length, 0)
  assert.is(staged({ worthMs: 20_000 }).prepared.length, 0)
  assert.is(staged({}, true).prepared.length, 0)
})

test.run()
