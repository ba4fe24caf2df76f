// What a migration at its target is given (TargetOptions), and what it gives (TargetMigration). Types only.
import type { SiteKeys } from '../../crypto/identity.ts'
import type { Stream } from '../../transport/types.ts'
import type { MigrationProgress, Plan } from '../../wire/control.ts'
import type { ErrorBody, GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { HashOptions } from '../disks/digests.ts'
import type { HeldPart } from '../disks/held.ts'
import type { DiskBlocks } from '../pages/place.ts'
import type { RunningVm } from '../vm/machine.ts'
import type { StuckAction, TargetStage } from './deadlines.ts'
import type { MemoryPath } from './memory-path.ts'
import type { MessageOf } from './messages.ts'
import type { TargetState } from './states.ts'

export type TargetOptions = {
  plan: Plan
  keys: SiteKeys
  sourceCertificate: Uint8Array
  targetCertificate: Uint8Array
  peerBoxPublic: Uint8Array
  /**
   * Checks the offer against this host (PREFLIGHT_*, VM_EXISTS) and starts the waiting QEMU; undefined for a VM that
   * does not run. Its files may have to be read first.
   */
  reserve: (offer: MessageOf<'OFFER'>, plan: Plan, options: ReserveOptions) => Promise<RunningVm | undefined>
  /** Of the VM that was reserved: its local disks, ready to be written; absent or undefined: it has none. */
  openDisks?: ((options: HashOptions) => Promise<TargetDisks | undefined>) | undefined
  /** Throws when a file of the VM has changed since then: asked once more before LOADED. */
  checkFiles?: (() => Promise<void>) | undefined
  /** Ends the waiting QEMU and forgets the VM. */
  drop: () => Promise<void>
  /**
   * The VM is this site's from now on: durable when it resolves. An agent that dies after it sends `cont` when it is
   * back.
   */
  commit: (epoch: number) => Promise<void>
  /** Of a VM that came without a QEMU and is ours now: starts it if that is wanted; gives why it does not start. */
  start?: (() => Promise<ErrorBody | undefined>) | undefined
  /** Makes a state durable before what follows from it (fsync). */
  record: (state: TargetState, epoch: number, facts?: { manifestHash?: string | undefined }) => Promise<void>
  /** Told at once when sealed bytes or a handshake are not what they must be. */
  onBreach?: ((error: GodwitError) => void) | undefined
  onProgress: (progress: MigrationProgress) => void
  workers?: number
  /** Default: QEMU's. */
  memoryPath?: MemoryPath | undefined
  log: Log
  /** How long the source may say nothing before it offers the VM, ms. Default 60 s. */
  silenceMs?: number | undefined
  /** How long to wait for a source whose link is lost before the VM is loaded, ms. Default 45 s. */
  sourceAwayMs?: number | undefined
  /** How long to wait for GRANT, ms. Default 10 min. */
  grantPatienceMs?: number | undefined
  /** For tests: called with the loaded, still paused VM before LOADED is sent. */
  onLoaded?: (vm: RunningVm) => Promise<void>
}

/** `askImages`: asks the source to send these first. */
export type ReserveOptions = HashOptions & { askImages: (names: string[]) => Promise<void> }

/** The local disks of a VM that is coming. */
export type TargetDisks = {
  /** What the files hold already, besides their bases. */
  held(): HeldPart[]
  apply(payload: Uint8Array): Promise<void>
  /** Reads them, for pages that refer to them. */
  readonly blocks: DiskBlocks
  /** Everything is on the disk, and is what has these roots: MANIFEST_MISMATCH otherwise. Ends the writing. */
  finish(roots: readonly string[]): Promise<void>
  /** After a failure. */
  close(): Promise<void>
}

export type TargetMigration = {
  /**
   * Resolves when the VM is this site's; otherwise a GodwitError, with nothing of it left here (or, where the disk
   * refused, only its paused QEMU).
   */
  readonly done: Promise<void>
  /**
   * A relay stream of this migration (0 control, 1 skeleton, 2.. pages), also of a later meeting, and a control
   * stream also long after `done`.
   */
  accept(index: number, attempt: number, stream: Stream): void
  /** Refuses while that is still allowed. MIGRATION_LATE from the moment in which the VM is being made this site's. */
  cancel(reason?: GodwitError): void
  /** For the watchdog (watchdog.ts). */
  stage(): { state: TargetStage; mark: string }
  stuck(error: GodwitError): StuckAction
}

/** What an earlier life of this agent left: a VM that is loaded and paused. */
export type LoadedVm = { state: 'LOADED' | 'GRANTED'; vm: RunningVm; manifestHash: string }
