import type { Observation } from '../../../gateway/policy/types.ts'
import { assert, suite } from '../../support/suite.ts'
import { addVm, rowOfSites } from './fixture.ts'

const test = suite('policy: storms')
const USERS = 500
const TOKENS = 4
const MOVE_S = 6

/** All users stand at `a`, and cross to `b` in the same second. */
function storm(seed: number) {
  const engine = rowOfSites(2, { seed, storm: { tokensPerSite: TOKENS } })
  const names = Array.from({ length: USERS }, (_, at) => `vm-${at}`)
  for (const name of names) addVm(engine, 0, name)
  const ends = new Map<string, number>()
  const log: { vm: string; from: string; to: string; startS: number; endS: number; sequence: number }[] = []
  let busyMax = 0
  let startsMax = 0
  for (let second = 1; second < 3000; second++) {
    const observations: Observation[] = names.map(vm => ({ kind: 'user', vm, site: second < 40 ? 'a' : 'b', rttMs: 10 }))
    for (const [vm, endS] of ends) {
      if (second < endS) continue
      observations.unshift({ kind: 'ended', vm, outcome: 'completed' })
      ends.delete(vm)
    }
    const decisions = engine.step(second * 1000, observations)
    startsMax = Math.max(startsMax, decisions.length)
    for (const decision of decisions) {
      if (decision.action !== 'move') continue
      assert.not.ok(ends.has(decision.vm), `${decision.vm} is told to move while it moves`)
      ends.set(decision.vm, second + MOVE_S)
      log.push({
        vm: decision.vm,
        from: decision.from,
        to: decision.to,
        startS: second,
        endS: second + MOVE_S,
        sequence: decision.sequence,
      })
    }
    busyMax = Math.max(busyMax, ends.size)
    for (const site of [0, 1]) assert.ok(engine.sites.tokensInUse(site) <= TOKENS)
    assert.is(engine.sites.tokensInUse(1), ends.size)
  }
  return { engine, log, busyMax, startsMax, left: ends.size }
}

test('500 users cross a border at once: tokens hold, every VM arrives once, the queue drains', () => {
  const { engine, log, busyMax, left } = storm(7)
  assert.is(busyMax, TOKENS)
  assert.is(log.length, USERS)
  assert.is(new Set(log.map(({ vm }) => vm)).size, USERS)
  assert.is(left, 0)
  for (let at = 0; at < USERS; at++) assert.is(engine.explain(`vm-${at}`, 3_000_000)!.from, 'b')
  // As fast as the tokens allow, within a twentieth.
  const lastS = Math.max(...log.map(({ endS }) => endS))
  assert.ok(lastS - 50 <= (USERS / TOKENS) * MOVE_S * 1.05, String(lastS))
  assert.ok(engine.counters.heldByTokens > 0 && engine.counters.heldByJitter > 0)
})

test('the order of the waiting is that of their jitter, fixed by the seed', () => {
  const order = (seed: number) => storm(seed).log.map(({ vm }) => vm)
  const first = order(1)
  assert.equal(order(1), first)
  assert.not.equal(order(2), first)
})

test('a VM never has two moves at once, and its moves are numbered in order, over a border that the crowd crosses again and again', () => {
  const engine = rowOfSites(3, { storm: { tokensPerSite: 10 } })
  const users = 60
  for (let at = 0; at < users; at++) addVm(engine, 0, `vm-${at}`)
  const moving = new Map<string, number>()
  const next = new Map<string, number>()
  let count = 0
  for (let second = 1; second < 2400; second++) {
    const site = 'abc'[Math.floor(second / 300) % 3]!
    const observations: Observation[] = Array.from({ length: users }, (_, at) => ({ kind: 'user', vm: `vm-${at}`, site, rttMs: 10 }))
    for (const [vm, endS] of moving) {
      if (second < endS) continue
      observations.unshift({ kind: 'ended', vm, outcome: second % 7 === 0 ? 'failed' : 'completed' })
      moving.delete(vm)
    }
    for (const decision of engine.step(second * 1000, observations)) {
      if (decision.action !== 'move') continue
      assert.not.ok(moving.has(decision.vm))
      assert.is(decision.sequence, (next.get(decision.vm) ?? 0) + 1)
      next.set(decision.vm, decision.sequence)
      moving.set(decision.vm, second + 5)
      count++
    }
  }
  assert.ok(count > 3 * users, String(count))
})

test('one who no longer wants to go leaves the queue; those above their hard limit go first', () => {
  const engine = rowOfSites(2, { storm: { tokensPerSite: 1 } }, { stepMs: 20 })
  for (const name of ['first', 'second', 'hard'])
    addVm(engine, 0, name, 'a', { sloMs: 20, ...(name === 'hard' ? { hardLimitMs: 25 } : {}) })
  const started: string[] = []
  const ends = new Map<string, number>()
  for (let second = 1; second < 120; second++) {
    const observations: Observation[] = ['first', 'second', 'hard'].map(vm => ({
      kind: 'user',
      vm,
      site: vm === 'second' && second > 57 ? 'a' : second < 40 ? 'a' : 'b',
      rttMs: second < 50 ? 20 : 40,
    }))
    for (const [vm, endS] of ends) if (second === endS) observations.unshift({ kind: 'ended', vm, outcome: 'completed' })
    for (const decision of engine.step(second * 1000, observations)) {
      if (decision.action !== 'move') continue
      started.push(decision.vm)
      ends.set(decision.vm, second + 30)
    }
  }
  assert.ok(!(started.includes('second') && started.indexOf('second') > 1), String(started))
  assert.ok(started.includes('hard') && started.includes('first'), String(started))
  assert.ok(engine.counters.withdrawn >= 1, JSON.stringify(engine.counters))
})

test.run()
