// What happens in the gateway (handoff/events.ts) as events for readers of the feed (wire/events.ts). Enters: events,
// sites as they are now, the time. Leaves: feed events, in order. Pure.
// Always holds: a site's event carries what has changed since its last one; nothing is published where nothing changed;
// a migration has at most one progress event a second; what is remembered is bounded by the sites, VMs and unfinished
// migrations that there are.
import type { MigrationRecord, SiteView, VmView } from '../../wire/admin.ts'
import type { MigrationProgress, VmFacts } from '../../wire/control.ts'
import type { FeedEvent } from '../../wire/events.ts'
import type { GatewayEvent } from '../handoff/events.ts'

export const PROGRESS_EVERY_MS = 1_000

/** A site as the gateway knows it now; undefined: it knows none of this name. */
export type SiteNow = { view: SiteView; vms: readonly VmFacts[] }
export type EventSourceOptions = {
  siteNow(site: string): SiteNow | undefined
  now(): number
  publish(event: FeedEvent): void
}

type Known = { online: boolean; facts: string; vms: Map<string, string> }
type Waiting = { migration: MigrationRecord; progress: MigrationProgress }

export class EventSource {
  readonly #options: EventSourceOptions
  readonly #sites = new Map<string, Known>()
  /** Unfinished migrations that readers know of. */
  readonly #migrations = new Set<string>()
  /** By migration: the newest progress that is not published, and when the last one was. */
  readonly #waiting = new Map<string, Waiting>()
  readonly #progressAt = new Map<string, number>()

  /** `sites` and `migrations`: those that there are; readers find them in the state that they read. */
  constructor(options: EventSourceOptions, { sites, migrations }: { sites: Iterable<string>; migrations: Iterable<MigrationRecord> }) {
    this.#options = options
    for (const site of sites) {
      const now = options.siteNow(site)
      if (now) this.#sites.set(site, knownOf(now))
    }
    for (const { migrationId, outcome } of migrations) if (outcome === null) this.#migrations.add(migrationId)
  }

  event(event: GatewayEvent): void {
    const at = this.#options.now()
    if (event.event === 'site') this.#site(event.site, at)
    else if (event.event === 'migration') this.#migration(event.migration, at)
    else if (event.event === 'progress') this.#progress(event, at)
    else if (event.event === 'forgotten') this.#drop(event.migrationId)
    // Its migration and its pre-staging have events of their own.
    else if (event.event !== 'handoff') this.#options.publish(plain(event, at))
  }

  /** Publishes the progress that is due. Gives how long until the next is, ms; undefined when none waits. */
  flush(): number | undefined {
    const at = this.#options.now()
    let nextMs: number | undefined
    for (const [migrationId, waiting] of this.#waiting) {
      const leftMs = (this.#progressAt.get(migrationId) ?? Number.NEGATIVE_INFINITY) + PROGRESS_EVERY_MS - at
      // A clock that was set back delays an event by a second at most.
      if (leftMs > 0 && leftMs <= PROGRESS_EVERY_MS) nextMs = Math.min(nextMs ?? leftMs, leftMs)
      else this.#publishProgress(waiting, at)
    }
    return nextMs
  }

  #site(site: string, at: number): void {
    const { siteNow, publish } = this.#options
    const now = siteNow(site)
    const before = this.#sites.get(site)
    if (!now) {
      this.#sites.delete(site)
      if (before) publish({ event: 'site-forgotten', at, site })
      return
    }
    const known = knownOf(now)
    this.#sites.set(site, known)
    const { vms: _, ...facts } = now.view
    const viewOf = (vm: VmFacts): VmView => ({ ...vm, site, online: known.online })
    if (!known.online) {
      if (before?.online) publish({ event: 'site-left', at, site })
      return
    }
    if (!before?.online) {
      publish({ event: 'site-connected', at, site: facts, vms: now.vms.map(viewOf) })
      return
    }
    const changed = now.vms.filter(({ name }) => known.vms.get(name) !== before.vms.get(name))
    const gone = [...before.vms.keys()].filter(name => !known.vms.has(name))
    if (changed.length === 0 && gone.length === 0 && known.facts === before.facts) return
    publish({ event: 'site-state', at, site: facts, vms: changed.map(viewOf), gone })
  }

  #migration(migration: MigrationRecord, at: number): void {
    const { publish } = this.#options
    const { migrationId, outcome } = migration
    const isKnown = this.#migrations.has(migrationId)
    if (outcome !== null) this.#drop(migrationId)
    else this.#migrations.add(migrationId)
    publish({ event: outcome !== null ? 'migration-ended' : isKnown ? 'migration-state' : 'migration-begun', at, migration })
  }

  /** The source's progress is the migration's, unless only the target has sent one since the last event. */
  #progress(waiting: Waiting, at: number): void {
    const { migrationId } = waiting.migration
    if (!this.#migrations.has(migrationId)) return
    const before = this.#waiting.get(migrationId)
    if (!before || waiting.progress.side === 'source' || before.progress.side === 'target') this.#waiting.set(migrationId, waiting)
    if (at - (this.#progressAt.get(migrationId) ?? Number.NEGATIVE_INFINITY) >= PROGRESS_EVERY_MS) this.#publishProgress(waiting, at)
  }

  #publishProgress({ migration, progress }: Waiting, at: number): void {
    const { migrationId, vm, source, target, state } = migration
    this.#waiting.delete(migrationId)
    this.#progressAt.set(migrationId, at)
    this.#options.publish({ event: 'migration-progress', at, migrationId, vm, source, target, state, progress })
  }

  #drop(migrationId: string): void {
    this.#migrations.delete(migrationId)
    this.#waiting.delete(migrationId)
    this.#progressAt.delete(migrationId)
  }
}

/** Events that go on as they come. */
function plain(
  event: Exclude<GatewayEvent, { event: 'site' | 'migration' | 'progress' | 'forgotten' | 'handoff' }>,
  at: number,
): FeedEvent {
  switch (event.event) {
    case 'pin':
      return { event: 'vm-pin', at, vm: event.vm, pinned: event.pinned }
    case 'prestage':
      return { event: event.prestage.outcome === null ? 'prestage-begun' : 'prestage-ended', at, prestage: event.prestage }
    case 'home':
      return { event: 'vm-home', at, ...event.change }
    case 'alert':
      return { event: 'alert', at, ...event.alert }
    case 'decision':
      return { event: 'policy-decision', at, ...event.decision }
    case 'enrolment':
      return { event: 'enrolment-request', at, ...event.enrolment }
  }
}

/** What a site's next event is compared with: all but the round trip and the load, which no reader waits for. */
function knownOf({ view, vms }: SiteNow): Known {
  const { online, transport, version, since, certificateNotAfter, host } = view
  return {
    online,
    facts: JSON.stringify([transport, version, since, certificateNotAfter, host]),
    vms: new Map(vms.map(vm => [vm.name, JSON.stringify(vm)])),
  }
}
