// One run of the simulation, by its seed. Enters: a seed, what to run. Leaves: how it ended, or which invariant broke,
// with the trace.
// Always holds: the same seed and code give the same trace, event by event.

import { createRandom } from '../../../sim-network/random.ts'
import type { Production } from './agents.ts'
import { arm, drawFaults, heal, NATURE } from './faults.ts'
import { VM } from './host.ts'
import { watched } from './invariants.ts'
import { oldPlansAgain } from './lies.ts'
import { breach, say, stage, type Violation } from './stage.ts'
import { later, nowMs } from './time.ts'
import { complaints, type Ending, endingOf } from './verdict.ts'
import { begin, createWorld, order, request, type World } from './world.ts'

type RunResult = { seed: number | string; ending: Ending; violation?: Violation; trace: string[]; events: number; faults: string[] }
type RunOptions = {
  verbose?: boolean /** Only faults of these kinds (faults.ts), and at least one. */
  focus?: readonly string[] | undefined
}

/** Longer than any patience in production, and than the watchdog's longest deadline (an hour), and some. */
const HEAL_WITHIN_MS = 90 * 60_000
const FINAL_WITHIN_MS = 5 * 60_000

export async function runSeed(
  production: Production,
  seed: number | string,
  { verbose = false, focus }: RunOptions = {},
): Promise<RunResult> {
  const sites = createRandom(`${seed}/sites`).chance(0.35) ? ['a', 'b', 'c'] : ['a', 'b']
  const world = await createWorld(production, seed, sites)
  stage().verbose = verbose
  const faults: string[] = []
  let ending: Ending = 'none'
  try {
    await begin(world)
    await story(world, faults, focus)
    await settle(world)
    ending = endingOf(world)
    await usable(world)
  } catch (error) {
    if (error !== stage().violation) throw error
  }
  const { violation, trace } = stage()
  return { seed, ending, ...(violation ? { violation } : {}), trace, events: world.events, faults }
}

/** Requests and faults, all drawn from the seed. */
async function story(world: World, faults: string[], focus: RunOptions['focus']): Promise<void> {
  const { random } = stage()
  for (const site of world.sites) world.network.wire(site).delayMs = random.between(1, random.chance(0.2) ? 120 : 20)
  const count = Math.floor(random.next() * 4.5)
  const drawn = drawFaults(world, focus ? Math.max(1, count) : count, focus)
  faults.push(...drawn.map(({ what }) => what))
  arm(world, drawn)
  const requests = random.chance(0.6) ? 1 : 1 + Math.floor(random.next() * 4)
  for (let i = 0; i < requests; i++) {
    const to = i === 0 ? 'b' : world.sites[Math.floor(random.next() * world.sites.length)]!
    const atMs = i === 0 ? 0 : random.chance(0.3) ? random.between(0, 30) : random.between(500, 2_000 * (i + 1))
    const method = random.chance(0.8) ? 'live' : 'cold'
    later(NATURE, atMs, () => request(world, to, method))
  }
  await world.run(random.chance(0.85) ? random.between(500, 15_000) : random.between(15_000, 20 * 60_000))
}

/** Heals everything, and waits until all is in order. */
export async function settle(world: World): Promise<void> {
  heal(world)
  await world.run(
    HEAL_WITHIN_MS,
    every(20, () => complaints(world).length === 0),
  )
  const left = complaints(world)
  if (left.length > 0) breach('END', left.join('; '))
  if (stage().violation) throw stage().violation
}

/** What stands in the end can be used: the VM starts without force where it rests, and moves to another site. */
async function usable(world: World): Promise<void> {
  const owner = () =>
    world.hosts().find(host =>
      world
        .agent(host.name)
        .node?.registry.list()
        .some(({ name }) => name === VM),
    )!.name
  const from = owner()
  const to = world.sites.find(site => site !== from)!
  say('can it be used?')
  watched.ramLost = false
  const state = world.agent(from).node!.registry.get(VM).state
  if (state !== 'running') order(world, from, node => node.registry.start(VM))
  const runsAt = (site: string) => () => world.agent(site).node?.registry.runs(VM) === true && complaints(world).length === 0
  await world.run(FINAL_WITHIN_MS, every(10, runsAt(from)))
  // Some notice slowly that the gateway was away, or that they were: whoever asks again is heard.
  for (const until = nowMs() + FINAL_WITHIN_MS; nowMs() < until && !runsAt(to)(); ) {
    request(world, to, 'live')
    await world.run(30_000, every(10, runsAt(to)))
  }
  if (!runsAt(to)()) breach('END', `the VM cannot be moved on: ${complaints(world).join('; ') || 'it stayed'}`)
  say('what was asked once, asked anew')
  oldPlansAgain(world)
  await world.run(20_000)
  await world.run(FINAL_WITHIN_MS, every(10, runsAt(to)))
  if (!runsAt(to)()) breach('END', `an old plan has done something: ${complaints(world).join('; ') || 'the VM has moved'}`)
  if (stage().violation) throw stage().violation
}

/** Asks only now and then: a question costs more than an event. */
function every(events: number, question: () => boolean): () => boolean {
  let count = 0
  return () => ++count % events === 0 && question()
}
