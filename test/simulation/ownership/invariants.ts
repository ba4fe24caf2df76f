// What must be true at every step, checked whenever a guest begins to run, a QEMU ends, or a record becomes durable:
// nothing else can break it.
//
//   I1 at most one copy executes
//   I2 one recoverable copy exists
//   I3 before the commit every failure ends with the source running, nothing lost
//   I4 after it forward only: the source runs again only after a durable REFUSED of the target
//
// Enters: the world's events. Leaves: a breach (stage.ts), which ends the run. Checked against the disks as a power
// loss would leave them.
import { type Host, VM } from './host.ts'
import { type Qemu, watchers } from './qemu.ts'
import { type Chain, chainOf, chains, ownedEpoch, vmEpoch, vmRecord } from './records.ts'
import { breach } from './stage.ts'

/** As much of the world as is looked at. */
type World = { agents: Map<string, { host: Host }>; hosts(): Host[] }

type Watch = {
  /** A fault took a copy that was whole: from there the last copy may be lost without anybody's error. */
  ramLost: boolean
}

export const watched: Watch = { ramLost: false }

export function watchInvariants(world: World): void {
  watched.ramLost = false
  const seen = { ran: new Set<Qemu>(), epochs: new Map<string, number>(), states: new Map<string, number>(), ranAtEpoch: 0 }
  watchers.runs = qemu => onRun(world, qemu, seen)
  watchers.ended = (qemu, by) => onEnd(world, qemu, by)
  for (const host of world.hosts()) host.disk.onDurable = () => onDurable(world, host, seen)
}

type Seen = { ran: Set<Qemu>; epochs: Map<string, number>; states: Map<string, number>; ranAtEpoch: number }

const copies = (world: World): Qemu[] => world.hosts().flatMap(({ qemus }) => qemus.filter(({ vm, alive }) => alive && vm === VM))

function onRun(world: World, qemu: Qemu, seen: Seen): void {
  const { host } = qemu
  const others = copies(world).filter(other => other !== qemu && other.running)
  if (others.length > 0) breach('I1', `${qemu.process.name} runs while ${others.map(({ process }) => process.name)} runs`)
  const record = vmRecord(host, VM)
  if (!record || record.state === 'incoming') breach('I4', `${qemu.process.name} runs, and on the disk the VM is not ${host.name}'s`)
  const epoch = ownedEpoch(host, VM) ?? 0
  if (epoch < seen.ranAtEpoch) breach('EPOCH', `runs at epoch ${epoch} after ${seen.ranAtEpoch}`)
  seen.ranAtEpoch = Math.max(seen.ranAtEpoch, epoch)
  const given = chains(host).find(
    ({ side, last }) => side === 'source' && last.vm === VM && isGiven(last.state) && last.plan.epoch >= (record?.epoch ?? 0),
  )
  if (given) breach('I4', `the guest runs at ${host.name}, which has given it away (${given.last.state})`)
  if (qemu.incoming && !seen.ran.has(qemu)) onFirstRun(world, qemu, epoch)
  seen.ran.add(qemu)
}

const isGiven = (state: string): boolean => state === 'RELINQUISHED' || state === 'RETIRED'

/** A guest that came here begins to run: all of it has come, and it was given. */
function onFirstRun(world: World, qemu: Qemu, epoch: number): void {
  const { host } = qemu
  if (!qemu.pages.every(page => page === qemu.ticks)) breach('LOST', `the guest is ${qemu.ticks}, its pages ${qemu.pages}`)
  const grant = chains(host).find(
    ({ side, last }) => side === 'target' && last.vm === VM && last.plan.epoch + 1 === epoch && isTaken(last.state),
  )
  if (!grant) {
    breach('I4', `${qemu.process.name} runs without a durable GRANT at epoch ${epoch}`)
    return
  }
  const source = world.agents.get(grant.last.plan.source)
  const theirs = source && chainOf(source.host, grant.migrationId, 'source')
  if (!theirs?.states.includes('RELINQUISHED')) breach('I4', `${qemu.process.name} runs before the source has relinquished on its disk`)
}

const isTaken = (state: string): boolean => state === 'GRANTED' || state === 'RESUMING' || state === 'RUNNING'

function onEnd(world: World, qemu: Qemu, by: 'fault' | 'agent'): void {
  if (!qemu.whole) return
  if (by === 'fault') {
    watched.ramLost = true
    return
  }
  const others = copies(world).filter(other => other !== qemu && other.whole)
  if (others.length === 0 && !watched.ramLost) breach('I2', `${qemu.process.name} was the last copy, and is ended`)
}

function onDurable(world: World, host: Host, seen: Seen): void {
  const epoch = vmEpoch(host, VM)
  if (epoch < (seen.epochs.get(host.name) ?? 0)) breach('EPOCH', `${host.name} forgets epoch ${seen.epochs.get(host.name)}: ${epoch}`)
  seen.epochs.set(host.name, epoch)
  for (const chain of chains(host)) {
    const key = `${host.name}/${chain.migrationId}/${chain.side}`
    const known = seen.states.get(key) ?? 0
    seen.states.set(key, chain.states.length)
    if (chain.states.length > known && chain.last.vm === VM) onRecord(world, host, chain)
  }
  const somewhere = world.hosts().some(other => ownedEpoch(other, VM) !== undefined)
  if (!somewhere && seen.epochs.size > 0 && [...seen.epochs.values()].some(known => known > 0))
    breach('I2', 'no disk knows of the VM any more')
}

/** A record has become durable: what must have been so before it. */
function onRecord(world: World, host: Host, chain: Chain): void {
  const { migrationId, side, last } = chain
  const otherHost = world.agents.get(side === 'source' ? last.plan.target : last.plan.source)?.host
  const other = otherHost && chainOf(otherHost, migrationId, side === 'source' ? 'target' : 'source')
  if (side === 'source' && last.state === 'RELINQUISHED' && !chain.states.slice(0, -1).includes('RELINQUISHED')) {
    const qemu = host.qemus.findLast(({ vm, alive }) => alive && vm === VM)
    if (qemu && (qemu.state !== 'postmigrate' || qemu.status !== 'completed'))
      breach('I4', `relinquished while QEMU is ${qemu.state} (${qemu.status})`)
    if (!other?.states.includes('LOADED')) breach('I4', 'relinquished, and the target has not loaded')
  }
  if (side === 'target' && isTaken(last.state) && !other?.states.includes('RELINQUISHED'))
    breach('I4', `${last.state} before the source has relinquished on its disk`)
  if (side === 'source' && last.state === 'RECLAIMED' && last.epoch !== last.plan.epoch + 2)
    breach('EPOCH', `reclaimed at epoch ${last.epoch}, offered at ${last.plan.epoch}`)
  if (side === 'source' && last.state === 'RECLAIMED' && other?.last.state !== 'REFUSED')
    breach('I4', `reclaimed, and the target's disk says ${other?.last.state ?? 'nothing'}`)
  if (side === 'source' && last.state === 'RETIRED' && !(other && isTaken(other.last.state)))
    breach('I4', `retired, and the target's disk says ${other?.last.state ?? 'nothing'}`)
}
