// The exhaustive walk: one migration, and a crash at every point of it, of every party, alone and in pairs; then all is
// healed and must end in A, C or R. A point is before and after every message, QMP command and file step, and before,
// within (written, not synced) and after every durable write.
// Enters: which cases. Leaves: how many there were, how each kind ended, and the first that broke an invariant.
import type { Production } from './agents.ts'
import { heal, NATURE } from './faults.ts'
import { settle } from './run.ts'
import { say, stage, type Violation } from './stage.ts'
import { later } from './time.ts'
import { type Ending, endingOf } from './verdict.ts'

import { begin, createWorld, request, type World } from './world.ts'

type Crash = { party: string; point: number; how: 'agent' | 'power' }
type WalkResult = { crashes: Crash[]; ending: Ending; points: Map<string, number>; violation?: Violation; trace: string[] }

const SEED = 'walk'
/** How long a struck party stays away. */
const AWAY_MS = 400
const STORY_MS = 4_000

function strike(world: World, { party, how }: Crash): void {
  const victim = party === 'gateway' ? world.gateway : world.agent(party)
  say(`FAULT ${how} of ${party}`)
  if (how === 'power') victim.powerLoss()
  else victim.kill(true)
  later(NATURE, AWAY_MS, () => victim.start())
}

/** One case: the crashes in order, each counted in points of its party since the request. */
export async function runCase(production: Production, crashes: Crash[]): Promise<WalkResult> {
  const world = await createWorld(production, SEED)
  const points = new Map<string, number>()
  let ending: Ending = 'none'
  try {
    await begin(world)
    const left = [...crashes]
    stage().onPoint = ({ process }) => {
      const count = (points.get(process.name) ?? 0) + 1
      points.set(process.name, count)
      const at = left.findIndex(({ party, point }) => party === process.name && point === count)
      if (at >= 0) strike(world, left.splice(at, 1)[0]!)
    }
    request(world, 'b', 'live')
    await world.run(STORY_MS)
    heal(world)
    await settle(world)
    ending = endingOf(world)
  } catch (error) {
    if (error !== stage().violation) throw error
  }
  const { violation, trace } = stage()
  return { crashes, ending, points, ...(violation ? { violation } : {}), trace }
}

const PARTIES = ['a', 'b', 'gateway']
const WAYS = ['agent', 'power'] as const

/** Every single crash. */
export function singles(points: Map<string, number>): Crash[] {
  return PARTIES.flatMap(party =>
    Array.from({ length: points.get(party) ?? 0 }, (_, i) => WAYS.map(how => ({ party, point: i + 1, how }))).flat(),
  )
}

/** All second crashes of a run that had the first: at points that come after it, of any party. */
export function seconds(first: WalkResult, before: Map<string, number>): Crash[] {
  const [crash] = first.crashes
  return PARTIES.flatMap(party => {
    const from = party === crash!.party ? crash!.point : 0
    const upTo = Math.max(first.points.get(party) ?? 0, before.get(party) ?? 0)
    return Array.from({ length: Math.max(0, upTo - from) }, (_, i) => WAYS.map(how => ({ party, point: from + i + 1, how }))).flat()
  })
}
