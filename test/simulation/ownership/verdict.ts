// How a run ended. Enters: a world whose faults are healed. Leaves: what is still not in order (nothing: A, C or R),
// and which of them it is.

import { VM } from './host.ts'
import { watched } from './invariants.ts'
import { chains, ownedEpoch, vmEpoch, vmRecord } from './records.ts'
import type { World } from './world.ts'

const SOURCE_ENDS = new Set(['ABORTED', 'RETIRED', 'RECLAIMED'])
/**
 * What the target's last record may be, by the source's. A target may be one step behind on paper where the registry
 * knows more.
 */
const FITS: Record<string, readonly (string | undefined)[]> = {
  ABORTED: ['REFUSED', undefined],
  RETIRED: ['RUNNING', 'RESUMING', 'GRANTED'],
  RECLAIMED: ['REFUSED'],
}

export type Ending = 'A' | 'C' | 'R' | 'none'

/** Reasons why it is not yet as it must be in the end. */
export function complaints(world: World): string[] {
  const found: string[] = []
  for (const [site, agent] of world.agents) {
    if (!agent.node) found.push(`${site} is not up`)
    else if (agent.node.link.state !== 'online') found.push(`${site} is not connected`)
    else if (agent.node?.active().length) found.push(`${site} is busy with ${agent.node.active().map(id => id.slice(0, 6))}`)
  }
  if (found.length > 0) return found
  const open = world.gateway.gateway?.control.migrations().filter(({ state }) => state !== 'DONE' && state !== 'ABORTED') ?? []
  if (open.length > 0) found.push(`the gateway still has ${open.map(({ migrationId, state }) => `${migrationId.slice(0, 6)} ${state}`)}`)
  return [...found, ...ownerComplaints(world), ...paperComplaints(world)]
}

function ownerComplaints(world: World): string[] {
  const owners = world.hosts().filter(host => ownedEpoch(host, VM) !== undefined)
  if (owners.length !== 1) return [`${owners.map(({ name }) => name).join(' and ') || 'nobody'} has the VM`]
  const [owner] = owners
  const record = vmRecord(owner!, VM)!
  const found: string[] = []
  if (record.doubt) found.push(`${owner!.name} is in doubt`)
  const highest = Math.max(...world.hosts().map(host => vmEpoch(host, VM)))
  if (record.epoch !== highest) found.push(`${owner!.name} has epoch ${record.epoch}, the highest known is ${highest}`)
  const alive = world.hosts().flatMap(({ qemus }) => qemus.filter(qemu => qemu.alive && qemu.vm === VM))
  const strangers = alive.filter(({ host }) => host !== owner)
  if (strangers.length > 0) found.push(`a QEMU is left at ${strangers.map(({ host }) => host.name)}`)
  const runs = alive.some(qemu => qemu.host === owner && qemu.running)
  const mayRest = watched.ramLost && (record.state === 'stopped' || record.state === 'failed') && alive.length === 0
  if (!mayRest && (!runs || record.state !== 'running'))
    found.push(`${owner!.name} has it ${record.state}, guest ${runs ? 'runs' : 'does not run'}`)
  const seen = world
    .agent(owner!.name)
    .node?.registry.list()
    .find(({ name }) => name === VM)
  if (seen?.state !== record.state) found.push(`${owner!.name} says ${seen?.state}, its disk ${record.state}`)
  return found
}

/** The records of both sides, of every migration there was. */
function paperComplaints(world: World): string[] {
  const found: string[] = []
  for (const host of world.hosts()) {
    for (const { migrationId, side, last } of chains(host)) {
      const id = migrationId.slice(0, 6)
      if (side === 'target') continue
      if (!SOURCE_ENDS.has(last.state)) found.push(`${id}: the source's last word is ${last.state}`)
      const theirs = chains(world.agent(last.plan.target).host).find(chain => chain.migrationId === migrationId && chain.side === 'target')
      if (SOURCE_ENDS.has(last.state) && !FITS[last.state]?.includes(theirs?.last.state))
        found.push(`${id}: the source says ${last.state}, the target ${theirs?.last.state}`)
      found.push(...gatewayComplaints(world, migrationId, last.state))
    }
    for (const { migrationId, side, last } of chains(host))
      if (side === 'target' && !['REFUSED', 'RUNNING', 'RESUMING', 'GRANTED'].includes(last.state))
        found.push(`${migrationId.slice(0, 6)}: the target's last word is ${last.state}`)
  }
  return found
}

function gatewayComplaints(world: World, migrationId: string, sourceState: string): string[] {
  if (world.tampered) return []
  const record = world.gateway.gateway?.control.migrations().find(one => one.migrationId === migrationId)
  if (!record || !SOURCE_ENDS.has(sourceState)) return []
  const said = record.state === 'DONE'
  return said === (sourceState === 'RETIRED') ? [] : [`the gateway says ${record.state}, the source ${sourceState}`]
}

/** Of the newest migration that began. */
export function endingOf(world: World): Ending {
  const all = world.hosts().flatMap(host => chains(host).filter(({ side }) => side === 'source'))
  const newest = all.sort((a, b) => b.last.epoch - a.last.epoch || b.last.at - a.last.at)[0]
  const endings: Record<string, Ending> = { ABORTED: 'A', RETIRED: 'C', RECLAIMED: 'R' }
  return endings[newest?.last.state ?? ''] ?? 'none'
}
