// The gateway's data on disk, by table: migrations (audit, and for resuming after a restart), sites as last seen,
// enrolments. Always holds: it contains no secret of a site: a token is stored as a hash, certificates and requests are
// public. A gateway that loses this folder loses history and pending enrolments, never a VM: the nodes are
// authoritative.
import type { Store } from '../../ops/store.ts'
import type { MigrationState } from '../../wire/admin.ts'
import type { HostFacts, MigrationResult, Outcome, Plan, Report, VmFacts } from '../../wire/control.ts'
import type { ErrorBody } from '../../wire/errors.ts'

export type StoredMigration = {
  plan: Plan
  state: MigrationState
  outcome: Outcome | null
  /** The result of each side. */
  results: { source?: MigrationResult; target?: MigrationResult }
  /** The source has reported the hand-over. */
  isHandedOver?: boolean
  /** Learned from its source, which reported the hand-over, without a request to this gateway. */
  isLearned?: boolean
  cancelled: boolean
  error?: ErrorBody
  report?: Report
  updatedAt: number
}

export type StoredSite = { site: string; version: string; host: HostFacts; vms: VmFacts[]; lastSeenAt: number; certificateNotAfter: number }

export type StoredEnrolment = {
  site: string
  tokenHash: string
  /** Unix ms. */
  expiresAt: number
  /** Base64 of the first request with the token: no other request is accepted with it. */
  request?: string
  certificate?: string
}

/**
 * The site that a VM's name belongs to, since when (Unix ms), and why (ownership.ts). `owner`: by a report of the
 * previous site.
 */
export type StoredHome = {
  vm: string
  site: string
  epoch: number
  by: 'claim' | 'migration' | 'owner' | 'fencing' | 'operator'
  at: number
}

/** A pinned VM, who pinned it, and when (Unix ms). */
export type StoredPin = { vm: string; by: string; at: number }

const MIGRATIONS = 'migrations'
const SITES = 'sites'
const ENROLMENTS = 'enrolments'
const PINS = 'pins'
const HOMES = 'homes'

export type Records = {
  migrations(): AsyncIterable<StoredMigration>
  /** Durable when it resolves. */
  saveMigration(record: StoredMigration): Promise<void>
  dropMigration(migrationId: string): Promise<void>
  sites(): AsyncIterable<StoredSite>
  /** Not synced: it only affects how status shows an offline site. */
  saveSite(site: StoredSite): Promise<void>
  dropSite(site: string): Promise<void>
  enrolments(): AsyncIterable<StoredEnrolment>
  enrolment(site: string): Promise<StoredEnrolment | undefined>
  saveEnrolment(enrolment: StoredEnrolment): Promise<void>
  pins(): AsyncIterable<StoredPin>
  savePin(pin: StoredPin): Promise<void>
  dropPin(vm: string): Promise<void>
  homes(): AsyncIterable<StoredHome>
  /** All or nothing, and durable when it resolves. */
  saveHomes(changes: { put?: StoredHome[]; drop?: string[] }): Promise<void>
}

export function createRecords(store: Store): Records {
  async function* values<T>(table: string): AsyncIterable<T> {
    for await (const [, value] of store.entries<T>(table)) yield value
  }
  return {
    migrations: () => values(MIGRATIONS),
    saveMigration: record => store.put(MIGRATIONS, record.plan.migrationId, record, { sync: true }),
    dropMigration: migrationId => store.delete(MIGRATIONS, migrationId),
    sites: () => values(SITES),
    saveSite: site => store.put(SITES, site.site, site),
    dropSite: site => store.delete(SITES, site, { sync: true }),
    enrolments: () => values(ENROLMENTS),
    enrolment: site => store.get(ENROLMENTS, site),
    saveEnrolment: enrolment => store.put(ENROLMENTS, enrolment.site, enrolment, { sync: true }),
    pins: () => values(PINS),
    savePin: pin => store.put(PINS, pin.vm, pin, { sync: true }),
    dropPin: vm => store.delete(PINS, vm),
    homes: () => values(HOMES),
    saveHomes: ({ put = [], drop = [] }) => {
      const puts = put.map(home => ({ type: 'put' as const, table: HOMES, key: home.vm, value: home }))
      const drops = drop.map(vm => ({ type: 'delete' as const, table: HOMES, key: vm }))
      return store.batch([...puts, ...drops], { sync: true })
    },
  }
}
