import type { GatewayEvent } from '../../../gateway/handoff/events.ts'
import { livingVms } from '../../../gateway/handoff/home.ts'
import type { Measurement } from '../../../gateway/handoff/measurements.ts'
import { PolicyConfig } from '../../../gateway/policy/config.ts'
import { type LiveFault, type LiveHost, LivePolicy } from '../../../gateway/policy/live.ts'
import type { VmDecision } from '../../../gateway/policy/types.ts'
import type { MigrationRecord, PrestageRecord, VmView } from '../../../wire/admin.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { silentLog } from '../../../wire/log.ts'
import { MIB } from '../../../wire/units.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('gateway/policy: live loop')

const LINKS = [
  { from: 'a', to: 'b', rttMs: 24 },
  { from: 'b', to: 'c', rttMs: 24 },
  { from: 'a', to: 'c', rttMs: 48 },
]
const QUICK = { smoothing: 0.5, regret: { triggerMs: 2_000, residenceMs: 2_000 }, cost: { bandwidthBytesPerSecond: 100e6 } }

/** A gateway in virtual time: sites a, b, c, one VM at a, its user, and migrations that end when the test says so. */
function stage(given: object = {}) {
  let nowMs = 0
  const decisions: VmDecision[] = []
  const started: string[] = []
  const prepared: string[] = []
  const vm = { name: 'vm', state: 'running', epoch: 1, memoryBytes: 128 * MIB, vcpus: 1, site: 'a', online: true } as VmView
  const world = {
    vms: [vm],
    pinned: false,
    refusal: undefined as GodwitError | undefined,
    unfit: '',
    offline: '',
    broken: '',
    more: [] as string[],
  }
  const host: LiveHost = {
    vms: () => world.vms,
    sites: () =>
      ['a', 'b', 'c', ...world.more].map(site => ({
        ...{ site, online: site !== world.offline, transport: null, dataConnections: 0, rttMs: null, version: null },
        ...{ since: 0, certificateNotAfter: null, host: null, vms: [] },
      })),
    isPinned: () => world.pinned,
    async start({ vm: name, to }) {
      if (world.refusal) throw world.refusal
      started.push(`${name} -> ${to}`)
      return 'f'.repeat(32)
    },
    async prestage({ vm: name, to }) {
      prepared.push(`${name} -> ${to}`)
      if (to === world.unfit) throw new GodwitError('PREFLIGHT_CPU', 'other machines there')
      return {} as PrestageRecord
    },
  }
  const config = PolicyConfig.parse({ ...QUICK, links: LINKS, ...given })
  const places = { a: { geo: { lat: 52, lon: 13 } }, b: { geo: { lat: 52, lon: 13.1 } } }
  const faults: LiveFault[] = []
  const onFault = (fault: LiveFault) => faults.push(fault)
  const onDecision = (decision: VmDecision) => {
    if (decision.vm === world.broken) throw new TypeError('a test')
    decisions.push(decision)
  }
  const live = new LivePolicy({ config, places, host, onDecision, onFault, log: silentLog })
  const latency = (site: string, rttMs: number, vmId = 'vm') =>
    live.measured(
      { kind: 'latency', ueKey: `ue-${vmId}`, receivedAtMs: 0, value: { seq: 1, vmId, targetSite: site, rttMs } } as Measurement,
      nowMs,
    )
  const link = (site: string, peer: string, value: object) =>
    live.measured({ kind: 'link', site, peer, receivedAtMs: 0, value: { sampledAt: '', ...value } } as Measurement, nowMs)
  return {
    ...{ live, world, vm, decisions, faults, started, prepared, latency, link },
    measured: (measurement: Measurement) => live.measured(measurement, nowMs),
    /** Seconds with the user at distances (RTT, ms) of the sites; absent: silent. */
    async run(seconds: number, rtts: Record<string, number> = {}) {
      for (let at = 0; at < seconds; at++) {
        for (const [site, rttMs] of Object.entries(rtts)) latency(site, rttMs)
        live.step(nowMs)
        nowMs += 1_000
        await Promise.resolve()
      }
    },
    migration: (outcome: MigrationRecord['outcome'], target: string) =>
      live.event({ event: 'migration', migration: { vm: 'vm', target, outcome } as MigrationRecord }),
    failed: (target: string, code: 'PREFLIGHT_MEMORY' | 'MIGRATION_FAILED') =>
      live.event({
        event: 'migration',
        migration: { vm: 'vm', target, outcome: 'failed', error: new GodwitError(code).toJSON() } as MigrationRecord,
      }),
    moves: () => decisions.flatMap(({ action, to }) => (action === 'move' ? [to] : [])),
    explain: () => live.explain('vm', nowMs)!,
  }
}

test('a VM follows its user from site to site, once each, and never while it is on its way', async () => {
  const s = stage()
  await s.run(5, { a: 10, b: 34 })
  assert.equal(s.moves(), [])
  await s.run(20, { a: 34, b: 10 })
  assert.equal([s.moves(), s.started], [['b'], ['vm -> b']])
  s.world.vms = [{ ...s.vm, site: 'b', epoch: 2 }]
  s.migration('completed', 'b')
  await s.run(3, { a: 34, b: 10 })
  assert.is(s.explain().from, 'b')
  await s.run(20, { b: 34, c: 10 })
  assert.equal(s.started, ['vm -> b', 'vm -> c'])
})

test('a decision comes with what it was made of', async () => {
  const s = stage()
  await s.run(20, { a: 34, b: 10 })
  const { explanation } = s.decisions.find(({ action }) => action === 'move')!
  assert.match(explanation.because, /b reduces the RTT of the user by 24\.0 ms/)
  assert.equal(s.explain().lastMove, { from: 'a', to: 'b', because: explanation.because })
  assert.ok(explanation.gates.every(({ isOpen }) => isOpen))
  assert.ok(
    s.decisions.some(decision => decision.action === 'stay' && decision.gate === 'trigger'),
    'why it stayed before is said too',
  )
})

test('what a guest rewrites counts as what it costs on the wire', async () => {
  const s = stage({ cost: { bandwidthBytesPerSecond: 10e6 } })
  await s.run(1, { a: 34, b: 10 })
  const progress = { dirtyBytesPerSecond: 9e6, bytesSent: 3e6, wireBytes: 1e6 }
  s.live.event({ event: 'progress', migration: { vm: 'vm' }, progress } as unknown as GatewayEvent)
  s.live.event({ event: 'progress', migration: { vm: 'vm' }, progress: { dirtyBytesPerSecond: 0 } } as unknown as GatewayEvent)
  await s.run(1, { a: 34, b: 10 })
  assert.is(s.explain().inputs.dirtyBytesPerSecond, 3e6)
})

test('a user of whom only one site is known, or nothing for a while, moves nothing', async () => {
  const s = stage({ staleMs: 1_500 })
  await s.run(20, { a: 90 })
  assert.is(s.explain().gate, 'unknown')
  await s.run(1, { a: 34, b: 10 })
  await s.run(15)
  assert.equal([s.explain().gate, s.moves()], ['stale', []])
})

test("with one site measured the user's place says where they are", async () => {
  const s = stage()
  for (let at = 0; at < 15; at++) {
    await s.run(1, { a: 90 })
    s.measured({ kind: 'location', ueKey: 'ue-vm', receivedAtMs: 0, value: { lat: 52, lon: 13.09 } } as Measurement)
  }
  assert.equal(s.moves(), ['b'])
})

test('a refused start waits, and is tried again', async () => {
  const s = stage({ storm: { backoffMs: 10_000 } })
  s.world.refusal = new GodwitError('SITE_OFFLINE')
  await s.run(12, { a: 34, b: 10 })
  assert.equal([s.moves(), s.explain().gate], [['b'], 'backoff'])
  s.world.refusal = undefined
  await s.run(15, { a: 34, b: 10 })
  assert.equal([s.moves(), s.started], [['b', 'b'], ['vm -> b']])
})

test('a migration that somebody else began is not begun again', async () => {
  const s = stage()
  await s.run(1, { a: 34, b: 10 })
  s.migration(null, 'b')
  await s.run(20, { a: 34, b: 10 })
  assert.equal(s.moves(), [])
  s.world.vms = [{ ...s.vm, site: 'b', epoch: 2 }]
  s.migration('completed', 'b')
  await s.run(10, { a: 34, b: 10 })
  assert.equal([s.moves(), s.explain().gate], [[], 'best'])
})

test('pins, SLOs and policies are the operator’s first, then those of the VM', async () => {
  const s = stage({ vms: { vm: { sloMs: 40 } } })
  s.world.vms = [{ ...s.vm, policy: { policy: 'never', sloMs: 80 } }]
  await s.run(20, { a: 34, b: 10 })
  assert.equal([s.explain().policy, s.explain().thresholds.sloMs, s.moves()], ['never', 40, []])
  s.world.vms = [{ ...s.vm, policy: { nonsense: true } }]
  s.world.pinned = true
  await s.run(20, { a: 34, b: 10 })
  assert.equal([s.explain().policy, s.explain().gate, s.moves()], ['regret', 'pinned', []])
  s.world.pinned = false
  await s.run(10, { a: 34, b: 10 })
  assert.equal(s.moves(), ['b'])
})

test('a site that is away is no target, and a link that was measured counts at once', async () => {
  const s = stage({ links: [] })
  await s.run(10, { a: 34, b: 10 })
  assert.is(s.explain().gate, 'unknown')
  s.world.offline = 'b'
  for (const [site, peer, rttMs] of [
    ['a', 'b', 24],
    ['b', 'c', 5],
    ['a', 'c', 30],
  ] as const)
    s.measured({ kind: 'link', site, peer, receivedAtMs: 0, value: { rttMs, availableBps: 8e8, sampledAt: '' } })
  await s.run(20, { a: 34, b: 10 })
  assert.equal(s.moves(), ['c'])
})

test('what the gateway knows of the ways serves where nobody has measured, and no longer', async () => {
  const s = stage({ links: [{ from: 'a', to: 'b', rttMs: 24 }] })
  const ways = [
    { from: 'a', to: 'b', rttMs: 1, availableBps: 4e8 },
    { from: 'b', to: 'c', rttMs: 24, availableBps: null },
  ]
  s.live.paths(ways, 0)
  await s.run(3, { a: 34, b: 10 })
  const { inputs } = s.explain()
  assert.equal([inputs.regretMs, inputs.bandwidthBytesPerSecond], [24, 5e7], 'the RTT that was written down stands, the bandwidth counts')
  s.world.vms = [{ ...s.vm, site: 'c', epoch: 2 }]
  await s.run(3, { c: 34, b: 10 })
  assert.is(s.explain().inputs.regretMs, 24)
})

test('a target whose preflight refuses the VM is left out for a while, and the next best is taken', async () => {
  const near = [
    { from: 'a', to: 'b', rttMs: 24 },
    { from: 'b', to: 'c', rttMs: 5 },
    { from: 'a', to: 'c', rttMs: 24 },
  ]
  const s = stage({ links: near })
  await s.run(15, { a: 34, b: 10, c: 15 })
  assert.equal(s.moves(), ['b'])
  s.failed('b', 'PREFLIGHT_MEMORY')
  await s.run(5, { a: 34, b: 10, c: 15 })
  assert.equal(s.moves(), ['b', 'c'], 'and at once')
  assert.equal(s.explain().inputs.unfitSites, ['b'])
  s.failed('c', 'MIGRATION_FAILED')
  await s.run(10, { a: 34, b: 10, c: 15 })
  assert.match(s.explain().because, /^stays: waits \d+ s after a failed migration$/)
  assert.equal(s.explain().inputs.unfitSites, ['b'], 'a failure on the way says nothing of the target')
  await s.run(130, { a: 34, b: 10, c: 15 })
  assert.equal(s.explain().inputs.unfitSites, [])
})

test('one measurement that cannot be used stops nobody: neither the other VMs nor the VM that it is about', async () => {
  const s = stage({ links: [{ from: 'a', to: 'b', rttMs: 24 }] })
  await s.run(1, { a: 34, b: 10 })
  s.link('a', 'b', { rttMs: 24, availableBps: 5e-324 })
  s.link('a', 'c', { rttMs: 48, availableBps: Number.POSITIVE_INFINITY })
  await s.run(20, { a: 34, b: 10 })
  assert.equal(
    s.faults.map(({ at, name }) => [at, name]),
    [['observation', 'link a c']],
  )
  assert.equal([s.explain().gate, s.explain().inputs.bandwidthBytesPerSecond], ['residence', 1], 'a way that carries nothing')
  s.link('a', 'b', { rttMs: 24, availableBps: 8e8 })
  await s.run(15, { a: 34, b: 10 })
  assert.equal(s.moves(), ['b'])
})

test('a decision that fails is counted, and those after it are carried out', async () => {
  const s = stage()
  s.world.vms = [s.vm, { ...s.vm, name: 'vm-2' }]
  s.world.broken = 'vm'
  for (let second = 0; second < 15; second++) {
    for (const [site, rttMs] of [
      ['a', 34],
      ['b', 10],
    ] as const)
      s.latency(site, rttMs, 'vm-2')
    await s.run(1, { a: 34, b: 10 })
  }
  assert.ok(s.faults.some(({ at, name }) => at === 'decision' && name === 'vm'))
  assert.equal([s.moves(), s.started], [['b'], ['vm -> b', 'vm-2 -> b']])
})

test('sites that the gateway does not have take no room, and those that are gone give theirs back', async () => {
  const s = stage()
  await s.run(1, { a: 34, b: 10 })
  const before = process.memoryUsage().arrayBuffers
  for (let at = 0; at < 3000; at++) s.link(`x${at}`, `y${at}`, { rttMs: 1, availableBps: 1e9 })
  await s.run(2, { a: 34, b: 10 })
  assert.ok(process.memoryUsage().arrayBuffers - before < 1 << 20)
  assert.is(s.live.sites, 3)
  s.world.more = Array.from({ length: 300 }, (_, at) => `x${at}`)
  await s.run(2, { a: 34, b: 10 })
  assert.is(s.live.sites, 303)
  s.world.more = []
  await s.run(15, { a: 34, b: 10 })
  assert.is(s.live.sites, 3)
  assert.equal(s.moves(), ['b'], 'and it goes on')
  s.world.more = Array.from({ length: 2000 }, (_, at) => `x${at}`)
  await s.run(1)
  assert.equal([s.live.sites, s.faults.length], [1024, 979], 'beyond the limit each is left out, and counted')
})

test('a link of a site that has come since the last step counts', async () => {
  const s = stage({ links: [] })
  await s.run(1, { a: 34, b: 10 })
  s.world.more = ['d']
  s.link('a', 'd', { rttMs: 5 })
  await s.run(1)
  assert.is(s.live.sites, 4)
  await s.run(5, { a: 34, d: 10 })
  assert.equal([s.explain().target, s.explain().inputs.regretMs], ['d', 5])
})

test("a measured link gives way to the gateway's own estimate when nobody has measured it for a minute", async () => {
  const s = stage({ links: [] })
  s.link('a', 'b', { rttMs: 2 })
  await s.run(61, { a: 34, b: 10 })
  assert.is(s.explain().inputs.regretMs, 2)
  s.live.paths([{ from: 'a', to: 'b', rttMs: 24, availableBps: null }], 61_000)
  await s.run(1, { a: 34, b: 10 })
  assert.is(s.explain().inputs.regretMs, 24)
})

test('of a user who is served best where it is the policy says so', async () => {
  const s = stage()
  await s.run(3, { a: 10, b: 34 })
  assert.equal([s.explain().gate, s.explain().because], ['best', 'stays: no other site is better for its user'])
  s.world.vms = [{ ...s.vm, site: 'b', epoch: 2 }]
  s.world.offline = 'a'
  await s.run(3, { a: 10, b: 11 })
  assert.is(s.explain().because, 'stays: no other site is better for its user')
})

test('of two sites that report a VM the one where it lives counts, and a VM that is gone is forgotten', async () => {
  const s = stage()
  const views: VmView[] = [
    { ...s.vm, site: 'b', epoch: 2, state: 'stopped' },
    { ...s.vm, state: 'paused' },
  ]
  s.world.vms = livingVms(views, () => 'a')
  await s.run(2, { a: 34, b: 10 })
  assert.is(s.explain().from, 'a')
  s.world.vms = livingVms(views, () => 'b')
  await s.run(2, { a: 34, b: 10 })
  assert.is(s.explain().from, 'b')
  s.world.vms = []
  await s.run(2)
  assert.is(s.live.explain('vm', 1e6), undefined)
  s.latency('a', 10)
  await s.run(1)
})

test.run()
