// Pages of migrations: GET /v1/migrations. Enters: all migrations, what a client wants of them. Leaves: one page and
// where the next begins. Pure.
// Always holds: the order is newest first and total (the id decides between two of one millisecond), so that pages
// neither repeat nor leave out a migration that there is, whatever begins or is dropped meanwhile.
import type { MigrationRecord, MigrationsQuery } from '../../wire/admin.ts'

export const PAGE_DEFAULT = 100

type Page = { migrations: MigrationRecord[]; next: string | null }

export function pageOf(all: readonly MigrationRecord[], { limit = PAGE_DEFAULT, cursor, vm, state }: MigrationsQuery): Page {
  const after = cursor === undefined ? undefined : placeOf(cursor)
  const wanted = all.filter(
    record =>
      (vm === undefined || record.vm === vm) &&
      (state === undefined || state.includes(record.state)) &&
      (after === undefined || isNewer(after, record)),
  )
  const sorted = wanted.sort((a, b) => (isNewer(a, b) ? -1 : 1))
  const migrations = sorted.slice(0, limit)
  const last = migrations.at(-1)
  return { migrations, next: last && sorted.length > limit ? `${last.createdAt}-${last.migrationId}` : null }
}

type Place = Pick<MigrationRecord, 'createdAt' | 'migrationId'>

function placeOf(cursor: string): Place {
  const [createdAt, migrationId = ''] = cursor.split('-')
  return { createdAt: Number(createdAt), migrationId }
}

const isNewer = (a: Place, b: Place): boolean => (a.createdAt === b.createdAt ? a.migrationId > b.migrationId : a.createdAt > b.createdAt)
