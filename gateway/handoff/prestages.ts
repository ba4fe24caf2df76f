// The part of a handoff before its migration, as far as today's data plane goes: its target says whether it could take
// the VM, and keeps room for it.
// Enters: a wish (a command's, or the policy's), what becomes of the VM. Leaves: events for the table (transitions.ts),
// its effects on room, an outcome that is counted.
// Always holds: one pre-staging for a VM; it ends used, wasted (lapsed, or the VM went elsewhere), refused or
// cancelled, once. Nothing is on disk: after a restart the nodes' leases lapse by themselves.
import type { Clock } from '../../ops/clock.ts'
import { raceAbort } from '../../ops/deadline.ts'
import { Watchdog } from '../../ops/watchdog.ts'
import type { PrestageRecord, PrestageRequest } from '../../wire/admin.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { Sites } from '../sites/sites.ts'
import { checkRequest } from './checks.ts'
import { HANDOFF_DEADLINES } from './deadlines.ts'
import type { GatewayEvent } from './events.ts'
import type { Handoff, HandoffSet, Prestaged, Room } from './handoff.ts'
import type { Homes } from './homes.ts'
import { holdRoom, releaseRoom } from './room.ts'
import { type Effect, type HandoffEventName, type HandoffState, isPrestaged } from './transitions.ts'

const PRESTAGES_MAX = 256
/** How long room is held when nobody says otherwise. */
const HOLD_DEFAULT_MS = 120_000

type PrestageOutcome = NonNullable<PrestageRecord['outcome']>

type PrestagesOptions = {
  handoffs: HandoffSet
  sites: Sites
  clock: Clock
  newId: () => string
  pinned(vm: string): boolean
  homes: Pick<Homes, 'of' | 'find' | 'vms'>
  onEvent(event: GatewayEvent): void
  onEnded(outcome: PrestageOutcome): void
  /** The watchdog has found one that stands still. */
  onStuck?: (state: string, action: string) => void
  log: Log
}

export class Prestages {
  readonly #options: PrestagesOptions
  readonly #watchdog = new Watchdog<Prestaged>(
    ({ room }, state) => HANDOFF_DEADLINES[state as HandoffState].ms + (state === 'PREPARED' ? room.wish.holdMs : 0),
  )

  constructor(options: PrestagesOptions) {
    this.#options = options
  }

  /** Those that have not ended. */
  list(): PrestageRecord[] {
    return this.#options.handoffs.prestaged().map(({ room }) => room.record)
  }

  /** Resolves when room is held. Refuses with the codes of checks.ts and of room.ts, LIMIT_EXCEEDED. */
  async start({ vm, to, method = 'live', holdMs = HOLD_DEFAULT_MS, maxBytes, command }: PrestageRequest): Promise<PrestageRecord> {
    const { handoffs, sites, homes, clock, newId, pinned } = this.#options
    const {
      epoch,
      site: source,
      memoryBytes,
    } = checkRequest(
      { vm, to },
      {
        find: homes.find,
        vms: sites.vms(),
        knownSite: sites.known,
        onlineSite: site => sites.online(site) !== undefined,
        migrationOf: name => handoffs.underWay(name, homes.of(name)),
        pinned,
      },
    )
    const before = handoffs.prestagedOf(vm)
    const isSame = before?.target === to && before.epoch === epoch
    if (before && !isSame) this.#dispatch(before, 'elsewhere')
    if (!isSame && handoffs.prestaged().length >= PRESTAGES_MAX)
      throw new GodwitError('LIMIT_EXCEEDED', `${PRESTAGES_MAX} VMs are already being pre-staged`)
    // Wanted again: the same handoff, for longer.
    const handoff = isSame ? before : handoffs.add({ id: newId(), vm, epoch, source, target: to })
    const at = clock.now()
    const { createdAt, wireBytes } = handoff.room?.record ?? { createdAt: at, wireBytes: 0 }
    const record: PrestageRecord = {
      ...{ handoffId: handoff.id, vm, epoch, source, target: to, method },
      ...{ createdAt, updatedAt: at, untilMs: at + holdMs, wireBytes, memoryBytes, outcome: null },
    }
    clearTimeout(handoff.room?.lease)
    const wish = { holdMs, maxBytes, command }
    const room: Room = { record, wish, lease: undefined, asking: Promise.resolve(), stuck: new AbortController() }
    handoff.room = room
    this.#dispatch(handoff, 'ask')
    if (!isSame) this.#say(handoff, record)
    try {
      await room.asking
    } catch (thrown) {
      const error = toGodwitError(thrown)
      if (isCurrent(handoff, room)) this.#dispatch(handoff, 'refused', error)
      throw error
    }
    // Meanwhile it may have ended: cancelled, or the VM is on its way.
    if (isCurrent(handoff, room)) this.#dispatch(handoff, 'held')
    return record
  }

  /** MIGRATION_UNKNOWN. */
  cancel(handoffId: string): void {
    const found = this.#options.handoffs.prestaged().find(({ id }) => id === handoffId)
    if (!found) throw new GodwitError('MIGRATION_UNKNOWN', `no pre-staging ${handoffId}`)
    this.#dispatch(found, 'cancel')
  }

  /** A migration of this VM has begun: what was prepared for another one is wasted. */
  moves(vm: string): void {
    const other = this.#options.handoffs.prestagedOf(vm)
    if (other) this.#dispatch(other, 'elsewhere')
  }

  /** A VM that is not where it was is not prepared any more; nor one that was pinned. */
  look(): void {
    const { handoffs, homes, pinned } = this.#options
    const all = handoffs.prestaged()
    if (all.length === 0) return
    const living = new Map(homes.vms().map(vm => [vm.name, vm]))
    for (const handoff of all) {
      const { vm, source, epoch } = handoff
      const home = living.get(vm)
      const isThere = home?.site === source && home.epoch === epoch && home.state !== 'stopped'
      if (!isThere) this.#dispatch(handoff, 'elsewhere')
      else if (pinned(vm)) this.#dispatch(handoff, 'cancel')
    }
  }

  /**
   * Ends what has stood still for too long (deadlines.ts). To be called every WATCH_EVERY_MS with a clock that
   * never jumps, ms.
   */
  watch(nowMs: number): void {
    const running = this.#options.handoffs.prestaged().map(item => ({
      id: item.id,
      item,
      stage: { state: item.state, mark: String(item.room.record.updatedAt) },
    }))
    for (const { item, state, forMs } of this.#watchdog.step(nowMs, running)) {
      const { id: handoffId, vm, room } = item
      const seconds = Math.round(forMs / 1000)
      const error = new GodwitError('MIGRATION_STUCK', `the pre-staging of ${vm} made no progress in state ${state} for ${seconds} s`)
      this.#options.onStuck?.(state, 'abort')
      this.#options.log.error('pre-staging stuck', { handoffId, vm, state, seconds, action: 'abort', code: error.code })
      if (state === 'PRESTAGING') room.stuck.abort(error)
      else this.#dispatch(item, 'lapsed', error)
    }
  }

  close(): void {
    for (const { room } of this.#options.handoffs.prestaged()) clearTimeout(room.lease)
  }

  #dispatch(handoff: Handoff, event: HandoffEventName, error?: GodwitError): void {
    for (const effect of this.#options.handoffs.step(handoff, event)) this.perform(handoff, effect, error)
  }

  /** The effects on room; for the interpreter of migrations as well. */
  perform(handoff: Handoff, effect: Effect, error?: GodwitError): void {
    const { handoffs, sites, log } = this.#options
    const { room } = handoff
    if (!room) {
      if (effect === 'drop') handoffs.remove(handoff)
      return
    }
    switch (effect) {
      case 'askForRoom':
        room.asking = raceAbort(this.#hold(handoff, room), room.stuck.signal)
        return
      case 'startLease':
        room.lease = setTimeout(() => isCurrent(handoff, room) && this.#dispatch(handoff, 'lapsed'), room.wish.holdMs).unref()
        return
      case 'release':
        releaseRoom(sites, room.record, log)
        return
      case 'useRoom':
        this.#end(handoff, room, 'used')
        return
      case 'drop':
        this.#end(handoff, room, OUTCOMES[handoff.state] ?? 'wasted', error)
        handoffs.remove(handoff)
    }
  }

  async #hold(handoff: Handoff, { record, wish }: Room): Promise<void> {
    const { sites, log } = this.#options
    await holdRoom(sites, record, wish)
    // It may have ended, or become a migration, while the target was asked.
    if (!isPrestaged(handoff.state)) releaseRoom(sites, record, log)
  }

  #end(handoff: Handoff, { record, lease }: Room, outcome: PrestageOutcome, error?: GodwitError): void {
    clearTimeout(lease)
    record.outcome = outcome
    record.updatedAt = this.#options.clock.now()
    if (error) record.error = error.toJSON()
    this.#options.onEnded(outcome)
    this.#say(handoff, record)
  }

  #say(handoff: Handoff, record: PrestageRecord): void {
    this.#options.log.info('pre-staging', { ...record })
    this.#options.onEvent({ event: 'prestage', prestage: { ...record } })
    this.#options.handoffs.report(handoff)
  }
}

const OUTCOMES: Partial<Record<HandoffState, PrestageOutcome>> = { WASTED: 'wasted', REFUSED: 'refused', WITHDRAWN: 'cancelled' }

/** Whether this is still the question that counts: it was not asked anew, and the handoff has not gone on. */
const isCurrent = (handoff: Handoff, room: Room): boolean => handoff.room === room && isPrestaged(handoff.state)
