// The site that each VM's name belongs to, on the disk. Enters: what sites say of themselves, migrations, operators.
// Leaves: the owner of a name, where its VM lives (home.ts decides), alarms for claims that contradict the owner.
// Always holds: for users, placement and moves only the owner's view counts (ownership.ts decides who it is); a site
// holds at most NAMES_MAX names, and all sites that are not known hold as many together; a claim that stands is alarmed
// once; the store has a change before the site.state that brought it is answered.
import { type Fencing, verifyFencing } from '../../crypto/fencing.ts'
import type { Clock } from '../../ops/clock.ts'
import type { VmView } from '../../wire/admin.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { HomeChange } from '../../wire/events.ts'
import type { Log } from '../../wire/log.ts'
import type { Sites } from '../sites/sites.ts'
import type { Records, StoredHome } from '../store/records.ts'
import { type Home, homeOf, livingVms, withOwner } from './home.ts'
import { type Alarm, type Binding, decideHome, type Moving } from './ownership.ts'

/** As many as a site.state may list. */
export const NAMES_MAX = 1024
const STANDING_MAX = 4096

export type Homes = {
  /** The site that has the name; undefined: none has, or several claim it. */
  of(vm: string): string | undefined
  /** Whether a site has any name. */
  holds(site: string): boolean
  /** Where the VM of this name lives (home.ts). */
  find(vm: string): Home
  /** Each VM once, where it lives. */
  vms(): VmView[]
  /** Every site's word, with whether it counts. */
  claims(): (VmView & { isHome: boolean })[]
  /** A site has said something new, has gone, or is forgotten; `vms`: of these something else is known. */
  look(site: string | undefined, vms?: Iterable<string>): void
  /** An operator's word. SITE_UNKNOWN, VM_UNKNOWN (the site has no such VM), STORE_FAILED. */
  assign(vm: string, site: string): Promise<void>
  /** All names that a site has are free again. Resolves with them. */
  release(site: string): Promise<string[]>
  /** Resolves when all that was decided is on the disk. */
  saved(): Promise<void>
}

type AlarmKind = Alarm['kind'] | 'names_limit'
/** A site's claim that is alarmed. */
export type Claimed = Omit<Alarm, 'kind'> & { kind: AlarmKind }

type HomesOptions = {
  sites: Pick<Sites, 'vms' | 'state' | 'known'>
  records: Pick<Records, 'homes' | 'saveHomes'>
  rootPublic: Uint8Array
  /** Migrations of these VMs. */
  moves(vms: ReadonlySet<string>): ReadonlyMap<string, Moving[]>
  clock: Clock
  /** Names of these sites have come or gone. */
  onChange(sites: Iterable<string>): void
  /** A name belongs to another site than before. */
  onMove?(change: HomeChange): void
  onAlarm(alarm: Claimed): void
  log: Log
}

/** The owners in memory and on the disk. */
async function openLedger({ sites, records, clock, onMove = () => {}, log }: HomesOptions) {
  const homes = new Map<string, StoredHome>()
  for await (const home of records.homes()) homes.set(home.vm, home)
  const counts = new Map<string, number>()
  for (const { site } of homes.values()) counts.set(site, (counts.get(site) ?? 0) + 1)
  let saving: Promise<void> = Promise.resolve()
  const save = (changes: Parameters<Records['saveHomes']>[0]) => {
    saving = saving.then(() => records.saveHomes(changes)).catch(error => log.error('owners of VMs could not be written', { error }))
  }
  return {
    homes,
    namesOf: (site: string) => counts.get(site) ?? 0,
    saved: () => saving,
    /** Names of sites that are not known (yet). */
    strays: () => [...counts].reduce((sum, [site, count]) => (sites.known(site) ? sum : sum + count), 0),
    write(vm: string, binding: Binding | undefined): void {
      const before = homes.get(vm)
      if (before) {
        const left = (counts.get(before.site) ?? 1) - 1
        if (left > 0) counts.set(before.site, left)
        else counts.delete(before.site)
      }
      if (before?.site !== binding?.site)
        onMove({ vm, from: before?.site ?? null, to: binding?.site ?? null, epoch: binding?.epoch ?? null })
      if (!binding) {
        homes.delete(vm)
        save({ drop: [vm] })
        return
      }
      const { site, epoch, by } = binding
      counts.set(site, (counts.get(site) ?? 0) + 1)
      const home: StoredHome = { vm, site, epoch, by, at: clock.now() }
      homes.set(vm, home)
      save({ put: [home] })
    },
  }
}

export async function createHomes(options: HomesOptions): Promise<Homes> {
  const { sites, records, clock, onChange, onAlarm, log } = options
  const { homes, namesOf, strays, write, saved } = await openLedger(options)
  const standing = createStanding()
  const alarm = (one: Claimed) => {
    if (!standing.isNew(one)) return
    onAlarm(one)
    log.error('site claims a VM that belongs to another site', {
      ...{ alert: one.kind, vm: one.vm, site: one.site, epoch: one.epoch, home: one.home },
      next: `run godwit status; godwit site assign ${one.vm} SITE sets the site of the VM`,
    })
  }
  /** Nobody fills the store with names of its own, or with names that it says it has given to others. */
  const hasRoom = ({ site, by }: Binding): boolean => {
    if (by !== 'claim' && by !== 'owner') return true
    return namesOf(site) < NAMES_MAX && (sites.known(site) || strays() < NAMES_MAX)
  }
  const settle = (vm: string, views: VmView[], moving: Moving[], fencingsOf: (site: string) => Fencing[]): string[] => {
    const home = homes.get(vm)
    const { home: next, alarms } = decideHome({
      ...{ vm, home, claims: views, moving },
      owner: home && ownerOf(sites, home.site, vm),
      fencings: views.flatMap(({ site }) => fencingsOf(site)).filter(fencing => fencing.vm === vm),
    })
    const isFull = next !== undefined && next.site !== home?.site && !hasRoom(next)
    const given: Claimed[] = isFull ? [{ kind: 'names_limit', vm, site: next.site, epoch: next.epoch, home: home?.site ?? null }] : alarms
    for (const one of given) alarm(one)
    standing.keep(vm, given)
    if (isFull || (next?.site === home?.site && next?.epoch === home?.epoch)) return []
    write(vm, next)
    if (home?.site === next?.site) return []
    log.info('owner of a VM changed', { vm, from: home?.site ?? null, to: next?.site ?? null, epoch: next?.epoch, by: next?.by })
    return [home?.site, next?.site].filter(site => site !== undefined)
  }
  const look = (names: Iterable<string>): void => {
    const wanted = new Set(names)
    if (wanted.size === 0) return
    const views = new Map<string, VmView[]>([...wanted].map(name => [name, []]))
    for (const view of sites.vms()) views.get(view.name)?.push(view)
    const fencingsOf = createFencings(options)
    const moves = options.moves(wanted)
    // Told once: a site may list a thousand VMs.
    const changed = new Set<string>()
    for (const [vm, claims] of views) for (const site of settle(vm, claims, moves.get(vm) ?? [], fencingsOf)) changed.add(site)
    onChange(changed)
  }
  // A gateway of an earlier version wrote no owners down: what its sites said last stands for them.
  const unowned = sites.vms().filter(({ name, state }) => !homes.has(name) && state !== 'incoming' && state !== 'failed')
  const times = timesOf(unowned)
  for (const { name, site, epoch } of unowned) if (times.get(name) === 1) write(name, { site, epoch, by: 'claim' })

  const ownedBy = (site: string) => [...homes.values()].filter(home => home.site === site).map(({ vm }) => vm)
  const ownerSite = (vm: string) => homes.get(vm)?.site

  return {
    of: ownerSite,
    find: vm => homeOf(vm, sites.vms(), ownerSite(vm)),
    holds: site => namesOf(site) > 0,
    vms: () => livingVms(sites.vms(), ownerSite),
    claims: () => withOwner(sites.vms(), ownerSite),
    look(site, vms = []) {
      const named = site === undefined ? [] : [...sites.vms().flatMap(view => (view.site === site ? [view.name] : [])), ...ownedBy(site)]
      look([...named, ...vms])
    },
    async assign(vm, site) {
      if (!sites.known(site)) throw new GodwitError('SITE_UNKNOWN', `no site '${site}'`)
      const claim = sites.vms().find(view => view.name === vm && view.site === site)
      if (!claim) throw new GodwitError('VM_UNKNOWN', `site ${site} has no VM '${vm}'`)
      const before = homes.get(vm)?.site
      const home: StoredHome = { vm, site, epoch: claim.epoch, by: 'operator', at: clock.now() }
      await saved()
      await records.saveHomes({ put: [home] })
      write(vm, home)
      log.info('owner of a VM set by an operator', { vm, from: before ?? null, to: site })
      onChange(before === undefined ? [site] : [before, site])
    },
    async release(site) {
      const names = ownedBy(site)
      await saved()
      await records.saveHomes({ drop: names })
      for (const vm of names) write(vm, undefined)
      look(names)
      return names
    },
    saved,
  }
}

const ownerOf = (sites: HomesOptions['sites'], site: string, vm: string) => {
  const state = sites.state(site)
  const ofVm = <T extends { vm: string }>(all: readonly T[] | undefined) => (all ?? []).filter(one => one.vm === vm)
  return state && { handovers: ofVm(state.handovers).filter(({ source }) => source === site), moved: ofVm(state.moved) }
}

function timesOf(views: VmView[]): Map<string, number> {
  const times = new Map<string, number>()
  for (const { name } of views) times.set(name, (times.get(name) ?? 0) + 1)
  return times
}

/** The root's statements that a site has sent, verified when they are asked for; what does not verify is none. */
function createFencings({ sites, rootPublic }: HomesOptions): (site: string) => Fencing[] {
  const known = new Map<string, Fencing[]>()
  const verified = (statement: string): Fencing[] => {
    try {
      return [verifyFencing(new Uint8Array(Buffer.from(statement, 'base64')), { rootPublic })]
    } catch {
      return []
    }
  }
  return site => {
    const found = known.get(site) ?? (sites.state(site)?.fencings ?? []).flatMap(verified)
    known.set(site, found)
    return found
  }
}

/** Alarms that stand, so that each is given once. Bounded: the oldest are forgotten, and would be given again. */
function createStanding() {
  const standing = new Map<string, Set<string>>()
  const keyOf = ({ kind, site }: { kind: string; site: string }) => `${kind} ${site}`
  return {
    isNew(one: { kind: string; vm: string; site: string }): boolean {
      const given = standing.get(one.vm) ?? new Set<string>()
      standing.set(one.vm, given)
      for (const oldest of standing.keys()) if (standing.size > STANDING_MAX) standing.delete(oldest)
      if (given.has(keyOf(one))) return false
      given.add(keyOf(one))
      return true
    },
    /** Of a VM only what was said now stands on. */
    keep(vm: string, alarms: { kind: string; site: string }[]): void {
      if (alarms.length === 0) standing.delete(vm)
      else if (standing.has(vm)) standing.set(vm, new Set(alarms.map(keyOf)))
    },
  }
}
