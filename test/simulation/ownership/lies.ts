// A gateway that lies: what an untrusted gateway can do to nodes that believe it in nothing. It cannot open a record;
// it can say again what it said, say what nobody asked for, forget, remember wrongly, and lead streams astray.
import type { Plan } from '../../../wire/control.ts'
import { say, stage } from './stage.ts'
import { later, runIn } from './time.ts'
import type { Asked, World } from './world.ts'

const pick = <T>(list: readonly T[]): T | undefined => list[Math.floor(stage().random.next() * list.length)]

export function liesOf(world: World): void {
  world.tampered = true
  const lie = pick(LIES)!
  lie(world)
}

/** Calls a node's handler as the RPC does. */
function tell(world: World, site: string, what: 'prepare' | 'start', params: Asked['params']): void {
  const agent = world.agent(site)
  const { process } = agent
  if (!process?.alive) return
  later(process, stage().random.between(0, 50), () => {
    const { node } = agent
    if (!node) return
    world.asked.push({ site, what, params })
    say(`the gateway lies: ${what} ${params.plan.migrationId.slice(0, 6)}`)
    const { process: gateway, sessions } = world.gateway
    if (gateway?.alive) runIn(gateway, () => sessions?.open(params.plan))
    runIn(process, () => {
      node.orders[what](params as never).catch(error => say(`${what} refused: ${error}`))
    })
  })
}

const again = (world: World): void => {
  const asked = pick(world.asked)
  if (asked) tell(world, asked.site, asked.what, asked.params)
}

/** Both halves of an old migration once more, as if it were new. */
const allAgain = (world: World): void => {
  const first = pick(world.asked)
  if (!first) return
  for (const asked of world.asked.filter(({ params }) => params.plan.migrationId === first.params.plan.migrationId))
    tell(world, asked.site, asked.what, asked.params)
}

/** The same migration with something changed: another epoch, attempt, target, id. */
const changed = (world: World): void => {
  const asked = pick(world.asked)
  if (!asked) return
  const { plan } = asked.params
  const migrationId = newId()
  const change: Partial<Plan> =
    pick<Partial<Plan>>([
      { epoch: plan.epoch + 1 },
      { attempt: plan.attempt + 7 },
      { migrationId },
      { migrationId },
      { epoch: 0, migrationId },
    ]) ?? {}
  for (const one of world.asked.filter(({ params }) => params.plan.migrationId === plan.migrationId))
    tell(world, one.site, one.what, { ...one.params, plan: { ...one.params.plan, ...change } })
}

/**
 * Every plan there was, in its old words but as a new migration. When the last has moved the VM, its epoch has passed
 * them all.
 */
export function oldPlansAgain(world: World): void {
  const ids = new Map<string, string>()
  for (const { site, what, params } of [...world.asked]) {
    const { plan } = params
    const migrationId = ids.get(plan.migrationId) ?? newId()
    ids.set(plan.migrationId, migrationId)
    tell(world, site, what, { ...params, plan: { ...plan, migrationId } })
  }
}

const newId = (): string => stage().random.uint32().toString(16).padStart(8, '0').repeat(4)

const cancelEverywhere = (world: World): void => {
  const plan = pick(world.asked)?.params.plan
  if (!plan) return
  for (const agent of world.agents.values()) {
    const { process } = agent
    if (!process?.alive) continue
    later(process, 5, () => {
      agent.node?.orders.cancel({ migrationId: plan.migrationId }).catch(error => say(`cancel refused: ${error}`))
    })
  }
}

/** Its database is gone, or an old one was put back. */
const forgets = (world: World): void => {
  const { gateway } = world
  gateway.kill(stage().random.chance(0.5))
  gateway.host.disk.restore(new Map())
  restart(world)
}
const remembersWrongly = (world: World): void => {
  const { gateway } = world
  const old = gateway.host.disk.snapshot()
  later({ name: 'liar', alive: true, host: gateway.host }, stage().random.between(50, 5_000), () => {
    gateway.kill(true)
    gateway.host.disk.restore(old)
    restart(world)
  })
}

function restart(world: World): void {
  const { gateway } = world
  later({ name: 'liar', alive: true, host: gateway.host }, stage().random.between(10, 5_000), () => gateway.start())
}

const LIES = [again, again, allAgain, changed, changed, cancelEverywhere, forgets, remembersWrongly]
