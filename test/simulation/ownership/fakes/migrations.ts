// edge-node/migrations.ts with the world listening: a lying gateway needs somebody to lie to. All else is production's.
import { createMigrations as create, type Migrations, type MigrationsOptions } from '../../../../edge-node/migrations.ts'
import { onMigrations } from '../agents.ts'

export type { Migrations, MigrationsOptions }

export function createMigrations(options: MigrationsOptions): Migrations {
  const migrations = create(options)
  return onMigrations(migrations)
}
