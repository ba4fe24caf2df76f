// One side's ownership of a VM during a migration: its state (states.ts), the durable record of it, and what the
// watchdog may end.
// Enters: events. Leaves: records on the disk, in order; the stage for the watchdog.
// Always holds: a state counts once its record is durable; while a record is being written nothing ends the migration
// from outside, because what follows from that record is not known before.
import type { GodwitError } from '../../wire/errors.ts'
import type { StuckAction } from './deadlines.ts'
import { next } from './states.ts'

/** How long a stuck migration has to end by itself, ms. */
const LEAVE_MS = 10_000

type OwnershipOptions<State extends string> = {
  table: Record<State, Partial<Record<string, State>>>
  state: State
  /** Makes a state durable before what follows from it (fsync). */
  record: (state: State) => Promise<void>
  deadlines: Record<State | 'FAILING' | 'ENDING', { action: StuckAction }>
  /** Aborted when the migration has failed. */
  signal: AbortSignal
  fail: (error: GodwitError) => void
}

export class Ownership<State extends string> {
  readonly #options: OwnershipOptions<State>
  state: State
  /** The VM changes its owner now, or has done so: a cancel is too late. */
  isCommitting = false
  /** The migration has failed, and is being ended. */
  isEnding = false
  #isWriting = false
  /** Aborted by the watchdog: nothing that the migration still does counts. */
  readonly left = new AbortController()

  constructor(options: OwnershipOptions<State>) {
    this.#options = options
    this.state = options.state
  }

  /** Enters the state that `event` leads to, unless the watchdog has ended the migration. MIGRATION_STATE. */
  async advance(event: string): Promise<void> {
    this.left.signal.throwIfAborted()
    await this.enter(event)
  }

  /** The same, also after the watchdog. */
  async enter(event: string): Promise<void> {
    const { table, record } = this.#options
    const state = next<State>(table as Record<State, Record<string, State>>, this.state, event)
    this.#isWriting = true
    try {
      await record(state)
    } finally {
      this.#isWriting = false
    }
    this.state = state
  }

  get stage(): State | 'FAILING' | 'ENDING' {
    if (this.isEnding) return 'ENDING'
    return this.#options.signal.aborted && !this.isCommitting ? 'FAILING' : this.state
  }

  /** The migration exceeds the deadline of its stage. Gives what was done. */
  stuck(error: GodwitError): StuckAction {
    const { deadlines, fail } = this.#options
    const { action } = deadlines[this.stage]
    if (action === 'report' || this.#isWriting || (action === 'abort' && this.isCommitting)) return 'report'
    if (action === 'forward') this.left.abort(error)
    else {
      fail(error)
      // What does not end by that does not listen to the signal.
      setTimeout(() => this.isEnding || this.#isWriting || this.isCommitting || this.left.abort(error), LEAVE_MS)
    }
    return action
  }
}
