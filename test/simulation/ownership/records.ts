// What is on the hosts' disks about one VM, as a power loss would leave it: the registry's record and the ownership
// journal.
import type { OwnershipRecord } from '../../../edge-node/migration/journal.ts'
import type { VmRecord } from '../../../edge-node/registry/records.ts'
import type { Host } from './host.ts'

export type Chain = { migrationId: string; side: 'source' | 'target'; states: string[]; last: OwnershipRecord }

export const vmRecord = ({ disk }: Host, vm: string): VmRecord | undefined => disk.durable.get('vms')?.get(vm) as VmRecord | undefined

export const vmEpoch = ({ disk }: Host, vm: string): number => (disk.durable.get('vm-epochs')?.get(vm) as number | undefined) ?? 0

/** Oldest first. */
export function chains({ disk }: Host): Chain[] {
  const found = new Map<string, Chain>()
  for (const [key, value] of disk.entries('ownership', disk.durable)) {
    const record = value as OwnershipRecord
    const name = key.slice(0, key.lastIndexOf('/'))
    const chain = found.get(name) ?? { migrationId: record.migrationId, side: record.side, states: [], last: record }
    chain.states.push(record.state)
    chain.last = record
    found.set(name, chain)
  }
  return [...found.values()]
}

export const chainOf = (host: Host, migrationId: string, side: 'source' | 'target'): Chain | undefined =>
  chains(host).find(chain => chain.migrationId === migrationId && chain.side === side)

/** At which epoch this host owns the VM, by its disk; undefined when it does not. */
export function ownedEpoch(host: Host, vm: string): number | undefined {
  const record = vmRecord(host, vm)
  if (!record || record.state === 'incoming') return undefined
  const reclaimed = chains(host).filter(({ side, last }) => side === 'source' && last.vm === vm && last.state === 'RECLAIMED')
  return Math.max(record.epoch, ...reclaimed.map(({ last }) => last.epoch).filter(epoch => epoch === record.epoch + 2))
}
