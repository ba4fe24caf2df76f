// What each migration of this node is given, and how its end becomes a result; the same at source and target. Enters:
// the parts of the node, the end of a migration. Leaves: a result for the gateway, alerts, a line in the log.
// Always holds: resultOf() never rejects: whatever a migration ends with is a result with a coded error.
import type { LoadedIdentity } from '../identity/load.ts'
import type { Trust } from '../identity/trust.ts'
import type { MigrationResult, Plan, Side } from '../wire/control.ts'
import { type GodwitError, toGodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import type { Alerts } from './alerts.ts'
import type { NodeConfig } from './config.ts'
import type { KnownFiles } from './known-files.ts'
import type { Link } from './link/link.ts'
import type { Journal } from './migration/journal.ts'
import type { MemoryPath } from './migration/memory-path.ts'
import type { TargetOptions } from './migration/target.ts'
import type { CostPredictor } from './predict.ts'
import type { Registry } from './registry/registry.ts'

type SendImageOptions = {
  signal: AbortSignal
  onProgress: (progress: {
    bytesDone: number
    bytesTotal?: number | undefined
    rateBytesPerSecond?: number | undefined
    etaMs?: number | undefined
  }) => void
}

export type RunOptions = {
  config: NodeConfig
  identity: LoadedIdentity
  trust: Trust
  registry: Registry
  journal: Journal
  /** Default: QEMU's. */
  memoryPath?: MemoryPath | undefined
  /** Absent: reports have no prediction. */
  predictor?: CostPredictor | undefined
  alerts: Alerts
  /** Makes sure that another site has an image of this one (images/outgoing.ts). */
  sendImage: (image: string, to: string, options: SendImageOptions) => Promise<void>
  log: Log
  onLoaded?: TargetOptions['onLoaded'] | undefined
  /**
   * Tests only: how long a loaded target waits for its grant, a source that has relinquished for its answer
   * (hand-over.ts), a source for LOADED, either for a message of the other while files are read, ms.
   */
  waits?: { grantMs?: number; answerMs?: number; loadMs?: number; silenceMs?: number } | undefined
  known: KnownFiles
  /** To the gateway; there before the first migration begins. */
  link: () => Link
  /** Aborted when the node shuts down. */
  stop: AbortSignal
}

/** For an error that the channel itself finds, at once: the migration may outlive it. */
export const onBreach =
  ({ alerts }: RunOptions, { migrationId, vm }: Plan, side: Side) =>
  (error: GodwitError): void =>
    alerts.raise(error, { migrationId, vm, side })

/** A migration's end as its result. */
export async function resultOf(
  { alerts, log }: RunOptions,
  { migrationId, vm }: Plan,
  side: Side,
  done: Promise<MigrationResult['report'] | undefined>,
): Promise<MigrationResult> {
  try {
    const report = await done
    log.info('migration completed', { migrationId, vm, side })
    return { migrationId, side, outcome: 'completed', ...(report ? { report } : {}) }
  } catch (thrown) {
    const error = toGodwitError(thrown)
    const outcome = error.code === 'MIGRATION_CANCELLED' ? 'cancelled' : 'failed'
    alerts.raise(error, { migrationId, vm, side })
    if (outcome === 'cancelled') log.info('migration cancelled', { migrationId, vm, side, error })
    else log.warn('migration failed', { migrationId, vm, side, error })
    return { migrationId, side, outcome, error: error.toJSON() }
  }
}
