// The faults of the soak run, each of a kind that the catalogue has (docs/internals/ownership.md). Enters: a stage, the
// migrations of this step, a seeded random.
// Leaves: a stage that is broken in one way. Always holds: `heal` brings every agent, link and the gateway back,
// whatever was struck; a VM whose QEMU may have been killed stands in `crashed` (only these may come up stopped: kill
// -9 of a QEMU counts as a crash of its host).
import { eventually, sleep } from '../../ops/deadline.ts'
import { burstLoss } from '../../sim-network/loss.ts'
import type { Random } from '../../sim-network/random.ts'
import type { Doing } from '../faults/support/fault-node.ts'
import { CLEAN, type SoakVm, type Stage } from './stage.ts'

export type Move = { vm: SoakVm; from: string; to: string; method: 'live' | 'cold'; id: string }

export type Strike = {
  stage: Stage
  random: Random
  /** The first one is struck. Never empty. */
  moves: Move[]
  /** Names of VMs whose QEMU may have been killed. */
  crashed: Set<string>
}

export type Fault = {
  name: string
  /** Rows of the catalogue. */
  rows: number[]
  /** How often it is drawn, beside the others. */
  weight: number
  /** Before the migrations are asked for. `move.id` is empty then. */
  arm?(strike: Strike): Promise<void>
  /** While they run, at a random moment. */
  strike?(strike: Strike): Promise<void>
}

const STRUCK_WITHIN_MS = 3_000
const SOURCE_PLACES = ['OFFERED', 'STREAMING', 'QUIESCED', 'RELINQUISHED', 'RETIRED'].map(state => `source:${state}`)
const TARGET_PLACES = ['RESERVED', 'LOADED', 'GRANTED', 'RESUMING', 'RUNNING'].map(state => `target:${state}`)

export const pick = <T>(random: Random, list: readonly T[]): T => list[Math.floor(random.next() * list.length)]!

/** Holds a condition for a random time, seconds. */
const hold = (random: Random, from: number, to: number) => sleep(random.between(from, to) * 1000)

async function armAgent({ stage, random, moves }: Strike, side: 'from' | 'to', doing: Doing): Promise<void> {
  const place = pick(random, side === 'from' ? SOURCE_PLACES : TARGET_PLACES)
  await stage.site(moves[0]![side]).arm(place, doing === 'fail' || random.chance(0.5) ? 'before' : 'after', doing)
}

async function stopGateway({ stage }: Strike): Promise<void> {
  await stage.gateway.kill()
}

async function freezeAgent({ stage, random, moves }: Strike, side: 'from' | 'to'): Promise<void> {
  const site = stage.site(moves[0]![side])
  site.signalAgent('SIGSTOP')
  await hold(random, 1, 20)
  site.signalAgent('SIGCONT')
}

async function loseHost({ stage, crashed, ...strike }: Strike, side: 'from' | 'to'): Promise<void> {
  for (const vm of await stage.powerLoss(strike.moves[0]![side])) crashed.add(vm.name)
}

async function spoilLink({ stage, random, moves }: Strike, loss: ReturnType<typeof burstLoss>): Promise<void> {
  const link = stage.links[moves[0]!.to]!
  for (const way of ['up', 'down'] as const) link.change(way, { loss })
  await hold(random, 3, 12)
}

export const FAULTS: Fault[] = [
  { name: 'none', rows: [], weight: 3 },
  {
    name: 'cancel',
    rows: [23],
    weight: 3,
    async strike({ stage, moves }) {
      await stage.lab.api('DELETE', `/v1/migrations/${moves[0]!.id}`).catch(() => {})
    },
  },
  { name: 'the source agent is killed', rows: [1], weight: 2, strike: ({ stage, moves }) => stage.site(moves[0]!.from).kill() },
  { name: 'the target agent is killed', rows: [3], weight: 2, strike: ({ stage, moves }) => stage.site(moves[0]!.to).kill() },
  { name: 'the source agent dies at a durable write', rows: [28, 31], weight: 3, arm: strike => armAgent(strike, 'from', 'die') },
  { name: 'the target agent dies at a durable write', rows: [34, 38], weight: 3, arm: strike => armAgent(strike, 'to', 'die') },
  { name: "the disk refuses one of the source's records", rows: [30], weight: 2, arm: strike => armAgent(strike, 'from', 'fail') },
  { name: "the disk refuses one of the target's records", rows: [20], weight: 2, arm: strike => armAgent(strike, 'to', 'fail') },
  {
    name: "the target's disk is full for a while",
    rows: [20],
    weight: 1,
    async strike({ stage, random, moves }) {
      await stage.site(moves[0]!.to).fillDisk(true)
      await hold(random, 1, 6)
    },
  },
  {
    name: "the target's QEMU is killed",
    rows: [4, 36],
    weight: 2,
    async strike({ stage, moves, crashed }) {
      crashed.add(moves[0]!.vm.name)
      await stage.killQemu(moves[0]!.vm, moves[0]!.to)
    },
  },
  {
    name: "the source's QEMU is killed",
    rows: [2],
    weight: 1,
    async strike({ stage, moves, crashed }) {
      crashed.add(moves[0]!.vm.name)
      await stage.killQemu(moves[0]!.vm, moves[0]!.from)
    },
  },
  { name: 'the source host loses power', rows: [41], weight: 1, strike: strike => loseHost(strike, 'from') },
  { name: 'the target host loses power', rows: [35, 39], weight: 1, strike: strike => loseHost(strike, 'to') },
  { name: 'the gateway is killed', rows: [5, 42], weight: 3, strike: stopGateway },
  {
    name: "the gateway's database is lost",
    rows: [43],
    weight: 1,
    async strike(strike) {
      await stopGateway(strike)
      await strike.stage.gateway.setDatabase('empty')
    },
  },
  {
    name: 'the link is cut for a moment',
    rows: [6],
    weight: 3,
    async strike({ stage, random, moves }) {
      stage.links[pick(random, [moves[0]!.from, moves[0]!.to])]!.cut(true)
      await hold(random, 0.5, 8)
    },
  },
  {
    name: 'the link is cut for longer than the patience',
    rows: [7],
    weight: 1,
    async strike({ stage, random, moves }) {
      stage.links[pick(random, [moves[0]!.from, moves[0]!.to])]!.cut(true)
      await hold(random, 40, 60)
    },
  },
  {
    name: 'one direction of the link is dead',
    rows: [8],
    weight: 2,
    async strike({ stage, random, moves }) {
      const way = pick(random, ['up', 'down'] as const)
      stage.links[pick(random, [moves[0]!.from, moves[0]!.to])]!.change(way, { loss: { ratio: 1 } })
      await hold(random, 2, 25)
    },
  },
  { name: '2 % loss in bursts of three', rows: [9], weight: 2, strike: strike => spoilLink(strike, burstLoss(0.02, 3)) },
  {
    name: "a NAT gives the site's connections other ports",
    rows: [18],
    weight: 2,
    async strike({ stage, random, moves }) {
      stage.links[pick(random, [moves[0]!.from, moves[0]!.to])]!.rebind()
    },
  },
  { name: 'the source agent stands still', rows: [24], weight: 2, strike: strike => freezeAgent(strike, 'from') },
  { name: 'the target agent stands still', rows: [24], weight: 2, strike: strike => freezeAgent(strike, 'to') },
  {
    name: "the target's QEMU stands still",
    rows: [25],
    weight: 2,
    async strike({ stage, random, moves }) {
      await stopQemu(stage, moves[0]!, 'SIGSTOP')
      await hold(random, 1, 20)
      await stopQemu(stage, moves[0]!, 'SIGCONT')
    },
  },
  {
    name: "an agent's clock jumps by an hour",
    rows: [26],
    weight: 1,
    async strike({ stage, random, moves }) {
      const site = stage.site(pick(random, [moves[0]!.from, moves[0]!.to]))
      await site.kill()
      site.next = { clockShiftMs: pick(random, [-3_600_000, 0, 3_600_000]) }
    },
  },
  {
    name: 'a second migration of the same VM is asked for',
    rows: [45],
    weight: 1,
    async strike({ stage, moves }) {
      const other = stage.sites.map(({ name }) => name).find(name => name !== moves[0]!.from && name !== moves[0]!.to)!
      await stage.lab.begin({ vm: moves[0]!.vm.name, to: other }).catch(() => {})
    },
  },
]

/** QEMU goes on when it is told so twice: a target's QEMU that is gone by then is none of our business. */
const stopQemu = (stage: Stage, { vm, to }: Move, signal: NodeJS.Signals): Promise<void> => stage.signalQemu(vm, to, signal).catch(() => {})

/** Draws by weight. */
export function drawFault(random: Random, list: readonly Fault[]): Fault {
  let at = random.next() * list.reduce((sum, { weight }) => sum + weight, 0)
  for (const fault of list) {
    at -= fault.weight
    if (at < 0) return fault
  }
  return list.at(-1)!
}

/** Strikes at a random moment of the migrations. */
export async function strikeOnce(fault: Fault, strike: Strike): Promise<void> {
  if (!fault.strike) return
  await sleep(strike.random.between(0, STRUCK_WITHIN_MS))
  await fault.strike(strike)
}

/** All agents, links and the gateway are there again; nothing is armed. */
export async function heal({ lab, gateway, sites, links }: Stage): Promise<void> {
  for (const link of Object.values(links)) {
    link.cut(false)
    for (const way of ['up', 'down'] as const) link.change(way, CLEAN)
  }
  const isUp = await lab.api('GET', '/v1/sites').then(
    () => true,
    () => false,
  )
  if (!isUp) {
    await gateway.stop().catch(() => {})
    await gateway.start()
  }
  await Promise.all(sites.map(healSite))
  await eventually(() => areOnline(lab, sites.length), { ms: 60_000, everyMs: 200, what: 'all sites online after healing' })
}

async function areOnline(lab: Stage['lab'], count: number): Promise<true | undefined> {
  const { sites } = await lab.api<{ sites: { online: boolean }[] }>('GET', '/v1/sites').catch(() => ({ sites: [] }))
  return sites.filter(({ online }) => online).length === count || undefined
}

async function healSite(site: Stage['sites'][number]): Promise<void> {
  const { process: child } = site
  const isDead = child !== undefined && (child.exitCode !== null || child.signalCode !== null)
  if (isDead) await site.died()
  if (!child || isDead) return await site.start()
  child.kill('SIGCONT')
  await site.fillDisk(false).catch(() => {})
  for (const place of [...SOURCE_PLACES, ...TARGET_PLACES])
    for (const when of ['before', 'after'] as const) await site.arm(place, when, 'free').catch(() => {})
}
