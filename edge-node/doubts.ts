// What is in doubt at this site, why, and how it ends: `godwit recover` asks here. Enters: registry, journal, how the
// asking goes. Leaves: one entry for each VM of which it is not certain that this site owns it, with what to do; and
// the taking over of a VM whose other site has been fenced.
// Always holds: nothing is taken over without the root's signed word that the other site cannot run it, for this very
// VM and epoch (FENCING_*).
import { fromBase64 } from '../crypto/bytes.ts'
import { type Fencing, verifyFencing } from '../crypto/fencing.ts'
import { type ErrorBody, GodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import type { Journal, OwnershipRecord } from './migration/journal.ts'
import { reclaim } from './migration/recover.ts'
import type { LocalVmFacts, Registry } from './registry/registry.ts'

/** How the asking of a target goes, that has not answered. */
export type AskProgress = {
  times: number /** Unix ms. */
  firstAt: number
  lastAt: number /** Why there was no answer, the last time. */
  said: ErrorBody
}

export type Doubt = {
  vm: string
  state: string
  /** At which this site owned it. */
  epoch: number
  why: ErrorBody | null
  /** The last word of this node on paper. */
  record: { migrationId: string; state: string; epoch: number /** Unix ms. */; at: number; target: string } | null
  asked: AskProgress | null
  /** What a fencing statement must say. `site` null: any other site, no record says which. */
  fencing: { site: string | null; vm: string; epoch: number; for: string }
  next: string[]
}

type DoubtsOptions = {
  site: string
  rootPublic: Uint8Array
  registry: Registry
  journal: Journal
  asked: (migrationId: string) => AskProgress | undefined
  /** Ends the asking, so that no late answer meets a VM that has been taken over. */
  stopAsking: (vm: string) => Promise<void>
  /** Before the VM is ours again: the statement by which it will be. */
  onFenced: (vm: string, statement: string) => void
  log: Log
}

export type Doubts = {
  list(): Promise<Doubt[]>
  /**
   * Makes the VM ours again at an epoch above whatever the fenced site had; with its memory, where its QEMU still holds
   * it. FENCING_*, VM_STATE, VM_UNKNOWN.
   */
  reclaim(vm: string, statement: string): Promise<LocalVmFacts>
}

export function createDoubts(options: DoubtsOptions): Doubts {
  const { site, rootPublic, registry, journal, log } = options
  const hangingOf = async (vm: string) =>
    (await journal.last()).findLast(record => record.vm === vm && record.side === 'source' && record.state === 'RELINQUISHED')

  const describe = async ({ name, state, epoch, doubt, failure }: LocalVmFacts): Promise<Doubt | undefined> => {
    const hanging = await hangingOf(name)
    if (!doubt && !hanging) return undefined
    const wanted = wantedOf(site, name, epoch, hanging)
    return {
      vm: name,
      state,
      epoch,
      why: failure ?? null,
      record: hanging ? recordOf(hanging) : null,
      asked: (hanging && options.asked(hanging.migrationId)) ?? null,
      fencing: wanted,
      next: adviceOf(name, wanted, hanging),
    }
  }
  return {
    async list() {
      const found = await Promise.all(registry.list().map(describe))
      return found.filter(doubt => doubt !== undefined)
    },
    async reclaim(vm, statement) {
      const fencing = verifyFencing(fromBase64(statement), { rootPublic })
      const facts = registry.get(vm)
      if (!facts.doubt) throw new GodwitError('VM_STATE', `${vm} is not in doubt (it is ${facts.state})`)
      checkFits(fencing, wantedOf(site, vm, facts.epoch, await hangingOf(vm)))
      await options.stopAsking(vm)
      log.warn('VM taken over: the other site is fenced', { ...fencing })
      options.onFenced(vm, statement)
      await reclaim({ registry, journal, log }, { vm, epoch: fencing.epoch + 1, record: await hangingOf(vm), fencing: statement })
      return registry.get(vm)
    },
  }
}

const recordOf = ({ migrationId, state, epoch, at, plan }: OwnershipRecord) => ({ migrationId, state, epoch, at, target: plan.target })

const wantedOf = (site: string, vm: string, epoch: number, hanging: OwnershipRecord | undefined): Doubt['fencing'] => ({
  site: hanging?.plan.target ?? null,
  vm,
  epoch: hanging?.epoch ?? epoch + 1,
  for: site,
})

function checkFits(fencing: Fencing, wanted: Doubt['fencing']): void {
  const said = `site ${fencing.site}, VM ${fencing.vm}, epoch ${fencing.epoch}, for ${fencing.for}`
  const isRight =
    fencing.vm === wanted.vm &&
    fencing.epoch === wanted.epoch &&
    fencing.for === wanted.for &&
    (wanted.site === null || fencing.site === wanted.site)
  if (isRight) return
  const needed = `site ${wanted.site ?? '(the one that may run it)'}, VM ${wanted.vm}, epoch ${wanted.epoch}, for ${wanted.for}`
  throw new GodwitError('FENCING_INVALID', `the fencing statement is for ${said}; required is ${needed}`)
}

function adviceOf(vm: string, { site, epoch, for: owner }: Doubt['fencing'], hanging: OwnershipRecord | undefined): string[] {
  const other = site ?? 'the other site'
  const fence = `godwit root fence --site ${site ?? 'SITE'} --vm ${vm} --epoch ${epoch} --for ${owner} --by "who checked it, and how"`
  return [
    hanging
      ? `Bring ${other} back. This site keeps asking it, and the VM continues at one of the two sites within seconds of its answer.`
      : 'Check all other sites (godwit status). If the VM runs at none of them, this site may take it over.',
    `Only if ${other} cannot come back: power its host off, so that it cannot run ${vm}. On the machine with the root key: ${fence}`,
    `Then, at this site: godwit recover ${vm} --fencing FILE`,
    `If ${other} comes back later, delete its copy (godwit vm delete ${vm} at that site) before anybody starts it.`,
  ]
}
