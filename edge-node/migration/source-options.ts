// What a migration at its source is given (SourceOptions), and what it gives (SourceMigration). Types only.
import type { SiteKeys } from '../../crypto/identity.ts'
import type { Stream } from '../../transport/types.ts'
import type { MigrationProgress, Plan, Report } from '../../wire/control.ts'
import type { GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { HashOptions } from '../disks/digests.ts'
import type { Leaves } from '../disks/leaves.ts'
import type { Bulk } from '../link/link.ts'
import type { QmpClient } from '../qmp/client.ts'
import type { MachineExit } from '../vm/exit.ts'
import type { KeyLifetime, Patience } from './conversation.ts'
import type { SourceStage, StuckAction } from './deadlines.ts'
import type { MemoryPath } from './memory-path.ts'
import type { MessageOf } from './messages.ts'
import type { LeavingDisks } from './source-disks.ts'
import type { SourceState } from './states.ts'

export type RunningQemu = {
  qmp: QmpClient
  /** Settles when it has ended. */
  exited: Promise<MachineExit>
  /** Its working folder: for the sockets that it writes to. */
  dir: string
}

export type SourceOptions = {
  plan: Plan
  offer: MessageOf<'OFFER'> | ((options: HashOptions) => Promise<Offered>)
  /** Absent: the VM does not run. Its disks travel, and it is stopped at its owner's site afterwards. */
  qemu?: RunningQemu | undefined
  keys: SiteKeys
  sourceCertificate: Uint8Array
  targetCertificate: Uint8Array
  peerBoxPublic: Uint8Array
  openStream: (index: number, attempt: number) => Promise<Stream>
  /** Makes a state durable before what follows from it (fsync). */
  record: (state: SourceState, epoch: number, facts?: { manifestHash?: string | undefined }) => Promise<void>
  /** Called at once when sealed bytes or a handshake are not what they must be. */
  onBreach?: ((error: GodwitError) => void) | undefined
  onProgress: (progress: MigrationProgress) => void
  /** Its local disks; absent or empty: none. Their images may have to be read first. */
  disks?: (() => Promise<LeavingDisks>) | undefined
  /** Sends images of this VM that the target lacks. Throws what ends that. */
  sendImages?: ((names: string[], options: SendImagesOptions) => Promise<void>) | undefined
  transport: string
  /** What the engine that carries the pages says of its way; absent: nothing. */
  bulk?: (() => Bulk | null) | undefined
  contentBytes?: (() => number | undefined) | undefined
  /** Aborted when the agent shuts down: ends the asking after a commit that nobody answers. */
  stop?: AbortSignal | undefined
  /** How long to go on asking then, ms. Default 10 min. */
  patienceMs?: number | undefined
  /** See hand-over.ts. */
  onUnanswered?: ((error: GodwitError) => void) | undefined
  /** How long the target may say nothing before it accepts, ms. Default 60 s. */
  silenceMs?: number | undefined
  /** How long the target may take to load what it has, ms. Default 10 min. */
  loadTimeoutMs?: number | undefined
  /**
   * Whether the target may still be given the VM, asked right before the commit: throws why not (its certificate has
   * been revoked, or has expired).
   */
  checkPeer?: (() => Promise<void>) | undefined
  /** How long a lost link may stay away before the commit. */
  patience?: Patience | undefined
  /** When a meeting's keys have done their time. Default RENEWAL. */
  renewal?: KeyLifetime | undefined
  /** zstd level; 'auto' (default) follows whether the path or the workers are the slow side. */
  compressionLevel?: number | 'auto'
  workers?: number
  /** Default: QEMU's. */
  memoryPath?: MemoryPath | undefined
  log: Log
}

export type SendImagesOptions = { signal: AbortSignal; onProgress: (progress: Partial<MigrationProgress>) => void }

/** `isKnownThere`: the target need not read files first, as far as can be told from here. */
export type Offered = { offer: MessageOf<'OFFER'>; isKnownThere: boolean }

export type SourceMigration = {
  /**
   * The report when the VM runs at the target; otherwise a GodwitError. Settles only when the VM's fate here is
   * decided.
   */
  readonly done: Promise<Report>
  /** Ends the migration with the VM running here. MIGRATION_LATE after the commit. */
  cancel(reason?: GodwitError): void
  /**
   * Where the VM is, once `done` has settled: what to do with it here follows from this alone, never from the error.
   */
  fate(): 'here' | 'moved' | 'doubt'
  /** The epoch at which that holds. */
  epoch(): number
  /** By local disk, what it held when the guest stopped; undefined before, and without local disks. */
  diskLeaves(): readonly Leaves[] | undefined
  /** For the watchdog (watchdog.ts). */
  stage(): { state: SourceStage; mark: string }
  stuck(error: GodwitError): StuckAction
}
