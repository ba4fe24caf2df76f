// What the gateway keeps on disk, by table: migrations (audit, and what to resume after a restart), sites as last seen, enrolments.
// Always holds: nothing here is a secret of a site or lets anyone act as one: a token is kept as its hash, certificates and requests are public.
// A gateway that loses this folder loses history and pending enrolments, never a VM: the nodes are right.
import type { Store } from '../../ops/store.ts'
import type { MigrationState } from '../../wire/admin.ts'
import type { HostFacts, MigrationResult, Outcome, Plan, Report, VmFacts } from '../../wire/control.ts'
import type { ErrorBody } from '../../wire/errors.ts'

export type StoredMigration = {
  plan: Plan
  state: MigrationState
  outcome: Outcome | null
  /** What each side has said of its end. */
  results: { source?: MigrationResult; target?: MigrationResult }
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
  /** Base64 of the first request that came with the token: no other may come with it. */
  request?: string
  certificate?: string
}

/** A VM that must not be moved, who said so, and when (Unix ms). */
export type StoredPin = { vm: string; by: string; at: number }

const MIGRATIONS = 'migrations'
const SITES = 'sites'
const ENROLMENTS = 'enrolments'
const PINS = 'pins'

export type Records = {
  migrations(): AsyncIterable<StoredMigration>
  /** On the disk when it resolves. */
  saveMigration(record: StoredMigration): Promise<void>
  dropMigration(migrationId: string): Promise<void>
  sites(): AsyncIterable<StoredSite>
  /** Not synced: only what status shows of an offline site depends on it. */
  saveSite(site: StoredSite): Promise<void>
  enrolments(): AsyncIterable<StoredEnrolment>
  enrolment(site: string): Promise<StoredEnrolment | undefined>
  saveEnrolment(enrolment: StoredEnrolment): Promise<void>
  pins(): AsyncIterable<StoredPin>
  savePin(pin: StoredPin): Promise<void>
  dropPin(vm: string): Promise<void>
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
    enrolments: () => values(ENROLMENTS),
    enrolment: site => store.get(ENROLMENTS, site),
    saveEnrolment: enrolment => store.put(ENROLMENTS, enrolment.site, enrolment, { sync: true }),
    pins: () => values(PINS),
    savePin: pin => store.put(PINS, pin.vm, pin, { sync: true }),
    dropPin: vm => store.delete(PINS, vm),
  }
}
