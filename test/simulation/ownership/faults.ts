// What can go wrong, and how it is mended. Enters: a seed's chance. Leaves: faults with their moments, and a world that
// is whole again.
import type { Agent } from './agents.ts'
import { isLoud } from './agents.ts'
import { VM } from './host.ts'
import { liesOf } from './lies.ts'
import type { Direction } from './network.ts'
import { say, stage } from './stage.ts'
import { later, nowMs, type Process, thaw } from './time.ts'
import { cancel, type World } from './world.ts'

/**
 * When: after so many points of a party's life, after so many ms, or at a mark of the protocol, whoever stands there.
 */
type Moment = { party: string; points: number } | { ms: number } | { mark: string }
type Fault = { moment: Moment; what: string; strike: () => void }

/** Something that is not of this world and cannot be killed. */
export const NATURE: Process = { name: 'nature', alive: true, host: { clockOffsetMs: 0 } }

const POINTS_MAX = 130
const RECORDS = [
  ...[
    'source OFFERED',
    'source STREAMING',
    'source QUIESCED',
    'source RELINQUISHED',
    'source RETIRED',
    'source RECLAIMED',
    'source ABORTED',
  ],
  ...['target RESERVED', 'target RECEIVING', 'target LOADED', 'target GRANTED', 'target RESUMING', 'target RUNNING', 'target REFUSED'],
  ...['vms web running', 'vms web migrating', 'vms web incoming', 'vms -web'],
]
/** Where the hand-over is, which is what it is all about. */
const NARROW = [
  'source QUIESCED',
  'target LOADED',
  'source RELINQUISHED',
  'target GRANTED',
  'vms web running',
  'target RESUMING',
  'target RUNNING',
]
const COMMANDS = ['qmp cont', 'qmp migrate', 'kill', 'qemu start']
const EARLY_MS = 3_000

/** How long things stay broken: mostly moments, sometimes longer than any patience. */
function durationMs(): number {
  const { random } = stage()
  const kind = random.next()
  if (kind < 0.5) return random.between(1, 3_000)
  if (kind < 0.85) return random.between(3_000, 60_000)
  return random.between(60_000, 15 * 60_000)
}

const pick = <T>(list: readonly T[]): T => list[Math.floor(stage().random.next() * list.length)]!
/** The sites of the first migration are struck more often. */
const site = ({ sites }: World): string => pick([...sites.slice(0, 2), ...sites])

function restartLater(agent: Agent, ms: number): void {
  later(NATURE, ms, () => agent.start())
}

type Kind = { weight: number; name: string; strike: (world: World, at: string) => void }

const KINDS: Kind[] = [
  { weight: 8, name: 'agent killed', strike: (world, at) => killAgent(world, at) },
  { weight: 5, name: 'power loss', strike: (world, at) => losePower(world, at) },
  { weight: 3, name: 'gateway killed', strike: world => killGateway(world, isLoud()) },
  { weight: 2, name: 'QEMU killed', strike: (world, at) => killQemu(world, at) },
  { weight: 6, name: 'link cut', strike: (world, at) => cutLink(world, at, ['up', 'down']) },
  { weight: 4, name: 'one-way cut', strike: (world, at) => cutLink(world, at, [pick(['up', 'down'])]) },
  { weight: 4, name: 'connections lost', strike: (world, at) => world.network.wire(at).sever() },
  { weight: 2, name: 'slow link', strike: (world, at) => slowLink(world, at) },
  { weight: 3, name: 'disk refuses', strike: (world, at) => failDisk(world, at, 'refused') },
  { weight: 3, name: 'sync fails', strike: (world, at) => failDisk(world, at, 'sync') },
  { weight: 8, name: 'disk fails at a record', strike: (world, at) => failAtRecord(world, at) },
  { weight: 2, name: 'clock jumps', strike: (world, at) => jumpClock(world, at) },
  { weight: 3, name: 'cancel', strike: world => cancel(world) },
  { weight: 3, name: 'agent stopped for a while', strike: (world, at) => freeze(world, at) },
  { weight: 8, name: 'the gateway lies', strike: world => liesOf(world) },
]

function killAgent(world: World, at: string): void {
  const agent = world.agent(at)
  agent.kill(isLoud())
  restartLater(agent, durationMs())
}

function losePower(world: World, at: string): void {
  const agent = world.agent(at)
  agent.powerLoss()
  restartLater(agent, durationMs())
}

function killGateway(world: World, loud: boolean): void {
  if (stage().random.chance(0.3)) world.gateway.powerLoss()
  else world.gateway.kill(loud)
  later(NATURE, durationMs(), () => world.gateway.start())
}

function killQemu(world: World, at: string): void {
  for (const qemu of world.agent(at).host.qemus) if (qemu.vm === VM) qemu.end('fault')
}

function cutLink(world: World, at: string, directions: Direction[]): void {
  const wire = world.network.wire(at)
  for (const direction of directions) wire.setCut(direction, true)
  later(NATURE, durationMs(), () => {
    for (const direction of directions) wire.setCut(direction, false)
  })
}

function slowLink(world: World, at: string): void {
  const wire = world.network.wire(at)
  wire.slowShare = 0.1
  later(NATURE, durationMs(), () => {
    wire.slowShare = 0
  })
}

function failDisk(world: World, at: string, failing: 'refused' | 'sync'): void {
  const { disk } = stage().random.chance(0.1) ? world.gateway.host : world.agent(at).host
  disk.failures = { failing, writes: 1 + Math.floor(stage().random.next() * 3) }
}

function failAtRecord(world: World, at: string): void {
  const { random } = stage()
  const from = pick(random.chance(0.6) ? [...NARROW, 'source RETIRED', 'source RECLAIMED', 'target REFUSED'] : RECORDS)
  // Less than production's patience, more, or more than twice that.
  const writes = random.chance(0.5) ? 1 + Math.floor(random.next() * 3) : pick([12, 40])
  world.agent(at).host.disk.failures = { failing: pick(['refused', 'sync']), writes, from }
}

function jumpClock(world: World, at: string): void {
  const host = stage().random.chance(0.2) ? world.gateway.host : world.agent(at).host
  host.clockOffsetMs += pick([-3_600_000, 3_600_000, -60_000, 60_000, -86_400_000])
}

function freeze(world: World, at: string): void {
  const { process, host } = world.agent(at)
  const until = nowMs() + durationMs()
  const whom = stage().random.chance(0.7) ? [process] : host.qemus.map(qemu => qemu.process)
  for (const one of whom) if (one) one.frozenUntilMs = until
}

/** The faults of one run, not yet struck. `focus`: only of these kinds. */
export function drawFaults(world: World, count: number, focus?: readonly string[]): Fault[] {
  const { random } = stage()
  const kinds = focus ? KINDS.filter(({ name }) => focus.includes(name)) : KINDS
  if (kinds.length === 0) throw new TypeError(`no fault is named ${focus}`)
  const total = kinds.reduce((sum, { weight }) => sum + weight, 0)
  return Array.from({ length: count }, () => {
    let left = random.next() * total
    const kind =
      kinds.find(({ weight }) => {
        left -= weight
        return left < 0
      }) ?? kinds[0]!
    const at = site(world)
    return { moment: drawMoment(world, at), what: `${kind.name} (${at})`, strike: () => kind.strike(world, at) }
  })
}

function drawMoment(world: World, at: string): Moment {
  const { random } = stage()
  const kind = random.next()
  if (kind < 0.4) {
    const record = pick(random.chance(0.6) ? NARROW : RECORDS)
    if (random.chance(0.15)) return { mark: `${pick(['before', 'after'])} ${pick(COMMANDS)}` }
    return { mark: `${pick(['before', 'written', 'after'])} sync ${record}` }
  }
  if (kind < 0.75) {
    const party = random.chance(0.85) ? at : pick([...world.sites, 'gateway'])
    return { party, points: 1 + Math.floor(random.next() * POINTS_MAX) }
  }
  return { ms: random.chance(0.6) ? random.between(0, EARLY_MS) : random.between(0, 90_000) }
}

/** Arms the faults: those of points strike where the party stands, within that very step. */
export function arm(world: World, faults: Fault[]): void {
  const points = new Map<string, number>()
  const waiting = new Set(faults)
  const strike = (fault: Fault) => {
    if (!waiting.delete(fault) || world.healed) return
    say(`FAULT ${fault.what}`)
    fault.strike()
  }
  for (const fault of faults) if ('ms' in fault.moment) later(NATURE, fault.moment.ms, () => strike(fault))
  stage().onPoint = ({ process, label }) => {
    const count = (points.get(process.name) ?? 0) + 1
    points.set(process.name, count)
    for (const fault of waiting) {
      const { moment } = fault
      if ('party' in moment && moment.party === process.name && moment.points === count) strike(fault)
      else if ('mark' in moment && label.startsWith(moment.mark)) strike(fault)
    }
  }
}

/**
 * Everything is whole again: what was broken is mended, what is dead is started, an agent whose disk has refused a
 * write is started anew.
 */
export function heal(world: World): void {
  say('HEAL')
  world.healed = true
  stage().onPoint = () => {}
  for (const wire of world.network.wires.values()) {
    wire.slowShare = 0
    for (const direction of ['up', 'down'] as const) wire.setCut(direction, false)
  }
  for (const agent of world.agents.values()) {
    agent.host.disk.failures = undefined
    for (const process of [agent.process, ...agent.host.qemus.map(qemu => qemu.process)]) {
      if (!process) continue
      process.frozenUntilMs = 0
      thaw(process)
    }
    if (agent.host.disk.refused) agent.kill(true)
    agent.start()
  }
  const { gateway } = world
  gateway.host.disk.failures = undefined
  if (gateway.host.disk.refused) gateway.kill(true)
  gateway.start()
}
