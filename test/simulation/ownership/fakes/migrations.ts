// edge-node/migrations.ts with the world listening: a lying gateway needs somebody to lie to. All else is production's.
import { createMigrations as create, type NodeMigrations, type NodeMigrationsOptions } from '../../../../edge-node/migrations.ts'
import { onMigrations } from '../agents.ts'

export type { NodeMigrations, NodeMigrationsOptions }

export function createMigrations(options: NodeMigrationsOptions): NodeMigrations {
  const migrations = create(options)
  return onMigrations(migrations)
}
