// Where a VM lives: the one answer for migrations, pre-stagings, the admin API, MQTT, services and the policy. Pure.
// Enters: every site's view of its VMs, the site that each name belongs to (homes.ts). Leaves: for a name one view
// (site, epoch, state), or a coded reason why there is none.
// Always holds: a name that belongs to a site lives there or nowhere: neither the epoch, the state nor the link of
// another site's VM counts. A name that belongs to no site lives where one site alone has it; where several have it, an
// operator decides. The receiving half of a transfer is no VM. A site that is offline keeps its VMs: whoever needs the
// site reads `online`.
import type { VmView } from '../../wire/admin.ts'
import { GodwitError } from '../../wire/errors.ts'

/**
 * `vm`: the view of the site where it lives. `why`: VM_UNKNOWN, VM_STATE (several sites have it), MIGRATION_BUSY (a
 * site is receiving it).
 */
export type Home = { vm: VmView; why?: undefined } | { vm: undefined; why: GodwitError }

type OwnerOf = (vm: string) => string | undefined

/** `owner`: the site that the name belongs to; undefined: it belongs to none. */
export function homeOf(name: string, views: readonly VmView[], owner: string | undefined): Home {
  return decide(name, counting(of(name, views), owner), owner)
}

/** Each VM once, where it lives. */
export function livingVms(views: readonly VmView[], ownerOf: OwnerOf): VmView[] {
  return [...byName(views)].flatMap(([name, own]) => {
    const owner = ownerOf(name)
    return decide(name, counting(own, owner), owner).vm ?? []
  })
}

/** Every view, with whether it is the one that counts for its name. */
export function withOwner(views: readonly VmView[], ownerOf: OwnerOf): (VmView & { isHome: boolean })[] {
  const counted = new Map([...byName(views)].map(([name, own]) => [name, counting(own, ownerOf(name))]))
  return views.map(view => {
    const [first, second] = counted.get(view.name) ?? []
    return { ...view, isHome: first === view && second === undefined }
  })
}

/** The VM. Throws the reason where there is none. */
export function vmAt({ vm, why }: Home): VmView {
  if (!vm) throw why
  return vm
}

function decide(name: string, [first, second]: readonly VmView[], owner: string | undefined): Home {
  const none = (why: GodwitError): Home => ({ vm: undefined, why })
  if (!first)
    return none(
      new GodwitError(
        'VM_UNKNOWN',
        owner === undefined ? `no site reports a VM '${name}'` : `site ${owner} does not report VM '${name}' any more`,
      ),
    )
  if (first.state === 'incoming') return none(new GodwitError('MIGRATION_BUSY', `VM ${name} is incoming at site ${first.site}`))
  if (second) {
    const hint = 'delete the wrong one, or choose one: godwit site assign VM SITE'
    return none(new GodwitError('VM_STATE', `sites ${first.site} and ${second.site} both have a VM ${name}`, { hint }))
  }
  return { vm: first }
}

/** Of one name's views those that count: the owner's. Without an owner all, but a half only if no site has a whole. */
function counting(views: readonly VmView[], owner: string | undefined): readonly VmView[] {
  if (owner !== undefined) return views.filter(({ site }) => site === owner)
  const wholes = views.filter(({ state }) => state !== 'incoming')
  return wholes.length > 0 ? wholes : views
}

const of = (name: string, views: readonly VmView[]): VmView[] => views.filter(view => view.name === name)

function byName(views: readonly VmView[]): Map<string, VmView[]> {
  const named = new Map<string, VmView[]>()
  for (const view of views) {
    const own = named.get(view.name)
    if (own) own.push(view)
    else named.set(view.name, [view])
  }
  return named
}
