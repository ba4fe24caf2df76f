// A migration at its source, from top to bottom:
//
//   offer -> accept -> stream rounds while the guest runs -> guest stops -> final pages, device state -> LOADED ->
//   commit -> GRANT -> RUNNING
//
// The pages of a live migration follow the offer without waiting for the answer; nothing counts before the answer has
// come. A link that is lost between accept and LOADED is waited for, and the migration continues from what the target
// has (conversation.ts).
// A VM that does not run has no QEMU: its disks travel in the place of pages and state, and the rest is the same.
// Enters: a plan, a running QEMU or none, a way to open relay streams. Leaves: a report, or a coded error with the VM
// here as it was.
// Always holds: until the record RELINQUISHED is durable every failure ends with the VM running at the source; after
// it the source never lets the guest run again unless the target refuses; the guest runs at the target only after
// GRANT. QEMU `completed` and `postmigrate` come first.
import { raceAbort, sleep, within } from '../../ops/deadline.ts'
import { type MigrationProgress, PHASE_COMMITTED, type Report } from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { HeldPart } from '../disks/held.ts'
import type { Leaves } from '../disks/leaves.ts'
import type { DiskFigures } from '../disks/sender.ts'
import { type Conversation, openConversation } from './conversation.ts'
import { type Corridor, createCorridor } from './corridor.ts'
import { SOURCE_DEADLINES, type SourceStage } from './deadlines.ts'
import { createDiskMeter, diskBytes } from './disk-meter.ts'
import { durably } from './durable.ts'
import { type GuestWatch, watchGuest } from './guest-watch.ts'
import { handOver } from './hand-over.ts'
import { expectAfterHashing, whileHashed, whileHashing } from './hashing.ts'
import { type MemoryPath, qemuMemoryPath } from './memory-path.ts'
import type { MessageOf } from './messages.ts'
import type { Outgoing } from './outgoing.ts'
import { Ownership } from './ownership.ts'
import type { Peer } from './peer.ts'
import { createMeter, type Meter } from './progress.ts'
import { createReport, type Timeline } from './report.ts'
import { diskReport, type LeavingDisks, openSourceDisks, type SourceDisks } from './source-disks.ts'
import type { Offered, RunningQemu, SourceMigration, SourceOptions } from './source-options.ts'
import { SourceQemu } from './source-qemu.ts'
import { SOURCE, type SourceState, sourceMayResume } from './states.ts'

export type { Offered, SourceMigration, SourceOptions } from './source-options.ts'

const LOAD_TIMEOUT_MS = 600_000
/** A reset is usually a symptom: the target's own error, on another connection, may arrive a little later. */
const CAUSE_MS = 250
const FINISH_MS = 5_000
const ABORT_MS = 500

/** By how much a state raises the epoch of the plan. */
const EPOCH_STEP: Partial<Record<SourceState, number>> = { RELINQUISHED: 1, RETIRED: 1, RECLAIMED: 2 }

/** Starts at once; never throws. */
export function startSource(options: SourceOptions): SourceMigration {
  const run = new SourceRun(options)
  return {
    done: run.done,
    cancel: reason => run.cancel(reason),
    fate: () => run.fate(),
    epoch: () => run.epochOf(),
    diskLeaves: () => run.diskLeaves(),
    stage: () => run.stage(),
    stuck: error => run.own.stuck(error),
  }
}

/** One migration. Its methods stand in the order in which they happen. */
class SourceRun {
  readonly done: Promise<Report>
  readonly own: Ownership<SourceState>
  readonly #options: SourceOptions
  readonly #failure = new AbortController()
  readonly #signal = this.#failure.signal
  readonly #memoryPath: MemoryPath
  /** Absent: the VM does not run. */
  readonly #qemu: SourceQemu | undefined
  readonly #startedAt = Date.now()
  readonly #timeline: Timeline = { startMs: performance.now() }
  /** How far the reading of files here is. */
  readonly #read: { hashedBytes?: number } = {}
  /** Ends the reading of files when the migration does. */
  readonly #over = new AbortController()
  #talk: Conversation | undefined
  #outgoing: Outgoing | undefined
  #meter: Meter | undefined
  #guest: GuestWatch | undefined
  #disks: SourceDisks | undefined
  /** The guest has ended by itself. */
  #isGuestOver = false
  #manifestHash: string | undefined
  #isDone = false
  #failSoon: NodeJS.Timeout | undefined

  constructor(given: SourceOptions) {
    const { record } = given
    const [signal, fail] = [this.#signal, this.#fail]
    this.#memoryPath = given.memoryPath ?? qemuMemoryPath
    this.#options = { ...given, onProgress: whileHashed(this.#read, given.onProgress) }
    this.own = new Ownership<SourceState>({
      table: SOURCE,
      state: 'RUNNING',
      record: state => record(state, this.epochOf(state), { manifestHash: this.#manifestHash }),
      deadlines: SOURCE_DEADLINES,
      signal,
      fail,
    })
    this.#qemu = given.qemu && new SourceQemu({ ...given, ...given.qemu, memoryPath: this.#memoryPath, signal, fail })
    this.done = this.#run().finally(() => {
      this.#isDone = true
      clearTimeout(this.#failSoon)
    })
  }

  readonly #fail = (error: GodwitError): void => {
    // A stream that breaks after the end must not touch what a later migration of this VM uses.
    if (this.#isDone) return
    if (error.code === 'STREAM_RESET') this.#failSoon ??= setTimeout(() => this.#failure.abort(error), CAUSE_MS)
    else this.#failure.abort(error)
  }

  cancel(reason = new GodwitError('MIGRATION_CANCELLED')): void {
    if (this.own.isCommitting) throw new GodwitError('MIGRATION_LATE')
    this.#fail(reason)
  }

  fate(): 'here' | 'moved' | 'doubt' {
    const { state } = this.own
    return state === 'RETIRED' ? 'moved' : sourceMayResume(state) ? 'here' : 'doubt'
  }

  epochOf(state = this.own.state): number {
    return this.#options.plan.epoch + (EPOCH_STEP[state] ?? 0)
  }

  diskLeaves(): readonly Leaves[] | undefined {
    return this.#disks?.content
  }

  stage(): { state: SourceStage; mark: string } {
    const peer = this.#talk?.peer
    const looked = this.#disks?.figures.pendingChunks
    const mark = [this.#talk?.arrived, peer?.taken, peer?.heard.hashedBytes, this.#read.hashedBytes, looked].join('/')
    return { state: this.own.stage, mark }
  }

  async #run(): Promise<Report> {
    try {
      return await raceAbort(this.#migrate(), this.own.left.signal)
    } catch (error) {
      this.#over.abort(error)
      this.#meter?.stop()
      // Before the commit the first failure is the cause of all others; after it the first meeting's end is no cause
      // of anything.
      const cause = this.#signal.aborted && !this.own.isCommitting ? this.#signal.reason : error
      const failure = toGodwitError(cause, 'MIGRATION_FAILED')
      // Nothing of it goes on: a conversation whose streams end now would be resumed for half a minute.
      if (!this.own.isCommitting) this.#failure.abort(failure)
      const ended = this.#outgoing?.abort(failure)
      // Before QEMU may go on: it records the guest's writes for nobody otherwise.
      await this.#disks?.close()
      const failed = await this.#giveUp(failure)
      await ended
      throw failed
    } finally {
      this.#guest?.stop()
      this.#qemu?.close()
    }
  }

  async #migrate(): Promise<Report> {
    const { own } = this
    const options = this.#options
    const signal = this.#signal
    if (options.qemu) await this.#watchGuest(options.qemu)
    await own.advance('offer')
    options.onProgress({ migrationId: options.plan.migrationId, side: 'source', phase: 'preflight' })
    const offered = this.#makeOffer()
    const talk = await this.#openTalk()
    const { peer } = talk
    const { offer, isKnownThere } = await raceAbort(offered, signal)
    await peer.send(offer)
    const accepted = this.#acceptOf(peer)
    // A guest that is to stand still runs until the target has room for it. Pages of one that runs on are on their
    // way meanwhile, unless the target may have to read files first: then they would only stand in its queues.
    if (options.plan.method === 'cold' || !isKnownThere) await accepted
    signal.throwIfAborted()

    const { outgoing, sent, allSent } = this.#createCorridor(talk)
    await talk.carry(outgoing)
    signal.throwIfAborted()
    const meter = this.#startMeter(talk, outgoing)
    const onAccepted = async () => {
      const { copies } = await accepted
      talk.accepted()
      await own.advance('accepted')
      return copies
    }
    const local = await options.disks?.()
    const disks = local && local.disks.length > 0 ? await this.#openDisks(outgoing, local, await onAccepted()) : undefined
    if (disks) {
      // A VM that does not run has a meter that reports this. What waits for room on the path ends only with the
      // corridor, which a failure of the migration closes.
      await raceAbort(
        disks.converge(figures => this.#qemu && this.#disksProgressed(figures)),
        signal,
      )
      // A guest that is about to stop writes little more; and QEMU stops at once where nobody reads its disks.
      if (options.plan.method === 'live') disks.follow(this.#fail)
    }
    const sendLast = disks && (async () => void (await peer.send({ type: 'DISKS', roots: await disks.last() })))
    if (this.#qemu) await this.#streamGuest(this.#qemu, talk, outgoing, sendLast)
    else if (sendLast) await raceAbort(sendLast(), signal)
    if (!disks) await onAccepted()
    if (!this.#qemu) outgoing.finish()

    await allSent
    await own.advance('quiesced')
    const loaded = await peer.expect(['LOADED'], { ms: options.loadTimeoutMs ?? LOAD_TIMEOUT_MS, what: 'LOADED from the target' })
    this.#reached('loadedMs')
    talk.settle()
    if (!sent.has(loaded.manifestHash)) throw new GodwitError('MANIFEST_MISMATCH', 'the target loaded something else than was sent')
    this.#manifestHash = loaded.manifestHash
    await this.#qemu?.postmigrate()

    await options.checkPeer?.()
    // In one step with the beginning of the commit: a cancel counts here, or is too late.
    signal.throwIfAborted()
    const running = await this.#commit(talk, loaded.manifestHash)
    meter.stop()
    const life = { startedAt: this.#startedAt, timeline: this.#timeline }
    const hasGuest = this.#qemu !== undefined
    return createReport({ ...options, hasGuest, disks: disks && diskReport(disks.figures), life, loaded, running, outgoing, meter, talk })
  }

  /** From QEMU's first byte on; `onPaused`: see migrateInto. */
  async #streamGuest(qemu: SourceQemu, { peer }: Conversation, outgoing: Outgoing, onPaused?: () => Promise<void>): Promise<void> {
    // The target's QEMU has read to the end: so has ours, even where the end could not be seen in the bytes.
    void peer.expect(['SHUT'], { ms: LOAD_TIMEOUT_MS, what: 'SHUT' }).then(
      () => outgoing.finish(),
      () => {},
    )
    await qemu.migrateInto(outgoing, () => this.#reached('qemuMs'), onPaused)
  }

  #reached(step: keyof Timeline): void {
    this.#timeline[step] = performance.now()
  }

  async #openDisks(outgoing: Outgoing, sources: LeavingDisks, copies: HeldPart[]): Promise<SourceDisks> {
    const { qemu, plan, log } = this.#options
    this.#disks = await openSourceDisks({
      ...{ qemu, sources, copies, pageStreams: plan.streams, compression: plan.compression, log, signal: this.#signal },
      send: (stream, payload) => outgoing.disk(stream, payload),
      passed: async interval => await outgoing.pipeline?.passed(interval),
    })
    return this.#disks
  }

  #disksProgressed(figures: DiskFigures): void {
    const { plan, onProgress } = this.#options
    const { done, total } = diskBytes(figures)
    onProgress({ migrationId: plan.migrationId, side: 'source', phase: 'disks', bytesSent: done, bytesTotal: total })
  }

  /** From the commit on the guest is the target's: events of its old QEMU count no more. */
  async #watchGuest({ qmp }: RunningQemu): Promise<void> {
    const { plan } = this.#options
    const onEnd = (error: GodwitError) => {
      if (this.own.isCommitting) return
      this.#isGuestOver ||= error.code !== 'GUEST_SUSPENDED'
      this.#fail(error)
    }
    this.#guest = watchGuest({ vm: plan.vm, qmp, onEnd })
    await this.#guest.check()
  }

  /**
   * What the VM needs, which begins with reading its files. The target gets reports of that as soon as there is a
   * channel to it.
   */
  #makeOffer(): Promise<Offered> {
    const { offer, plan, onProgress } = this.#options
    if (typeof offer !== 'function') return Promise.resolve({ offer, isKnownThere: true })
    const signal = AbortSignal.any([this.#signal, this.#over.signal])
    const offered = whileHashing({ plan, side: 'source', peer: () => this.#talk?.peer, onProgress, signal }, offer)
    // Its error counts where it is awaited; until then it must not be an unhandled one.
    offered.catch(() => {})
    return offered
  }

  async #openTalk(): Promise<Conversation> {
    const { plan } = this.#options
    this.#talk = await openConversation({
      ...this.#options,
      stoppedAtMs: () => (plan.method === 'live' ? this.#timeline.stopMs : undefined),
      onReturnPath: bytes => this.#qemu?.onReturnPath(bytes),
      signal: this.#signal,
      fail: this.#fail,
    })
    return this.#talk
  }

  #acceptOf(peer: Peer): Promise<{ copies: HeldPart[] }> {
    const { silenceMs } = this.#options
    const onImages = (names: string[]) => void this.#sendImages(names)
    const accepted = expectAfterHashing(peer, 'ACCEPT', 'the answer to the offer', { silenceMs, onImages })
    accepted.catch(() => {})
    return accepted
  }

  /** The target lacks images of the VM: they travel first, by a transfer of their own. */
  async #sendImages(names: string[]): Promise<void> {
    const { plan, sendImages, onProgress } = this.#options
    const show = (progress: Partial<MigrationProgress>) =>
      onProgress({ migrationId: plan.migrationId, side: 'source', phase: 'images', ...progress })
    try {
      await sendImages?.(names, { signal: AbortSignal.any([this.#signal, this.#over.signal]), onProgress: show })
    } catch (error) {
      this.#fail(toGodwitError(error))
    }
  }

  /** What runs beside the story. */
  #createCorridor(talk: Conversation): Corridor {
    const [signal, fail] = [this.#signal, this.#fail]
    const corridor = createCorridor({
      ...{ ...this.#options, memoryPath: this.#memoryPath, talk, signal, fail, held: () => this.#disks?.held },
      reached: step => this.#reached(step),
    })
    this.#outgoing = corridor.outgoing
    return corridor
  }

  #startMeter(talk: Conversation, outgoing: Outgoing): Meter {
    const { qemu } = this.#options
    const [timeline, signal, fail] = [this.#timeline, this.#signal, this.#fail]
    const options = { ...this.#options, talk, outgoing, signal, fail }
    this.#meter = qemu
      ? createMeter({ ...options, qmp: qemu.qmp, timeline })
      : createDiskMeter({ ...options, figures: () => this.#disks?.figures })
    return this.#meter
  }

  /**
   * The point of no return: durable first, then GRANT. From here the target decides whether it runs, and nothing else
   * does.
   */
  async #commit(talk: Conversation, hash: string): Promise<MessageOf<'RUNNING'>> {
    const { own } = this
    const { onProgress, log } = this.#options
    // Later meetings go on counting from the last.
    const plan = { ...this.#options.plan, attempt: talk.attempt }
    own.isCommitting = true
    await own.advance('loaded')
    this.#reached('committedMs')
    onProgress({ migrationId: plan.migrationId, side: 'source', phase: PHASE_COMMITTED })
    const grant = { type: 'GRANT', vm: plan.vm, epoch: plan.epoch + 1, migrationId: plan.migrationId, manifestHash: hash } as const
    const stop = AbortSignal.any([own.left.signal, ...(this.#options.stop ? [this.#options.stop] : [])])
    const { answer, peer: last } = await handOver({ ...this.#options, plan, stop }, talk.peer, grant)
    own.left.signal.throwIfAborted()
    this.#reached('runningMs')
    if (answer.type === 'REFUSE') {
      await own.advance('refused')
      throw new GodwitError('MIGRATION_REFUSED', `the target gave the VM back: ${answer.error.code} ${answer.error.message}`)
    }
    // The VM runs there: nothing can fail any more.
    await own.advance('running').catch(error => {
      own.state = 'RETIRED'
      log.error('RETIRED could not be recorded', { error })
    })
    await within(last.finish(), { ms: FINISH_MS, what: 'the end of the control stream' }).catch(() => {})
    return answer
  }

  /**
   * Ends a failed migration. Before the commit (or after the target's refusal) the VM runs here again; after it
   * nothing here may run.
   */
  async #giveUp(error: GodwitError): Promise<GodwitError> {
    const { own } = this
    const { plan, log } = this.#options
    own.isEnding = true
    if (!sourceMayResume(own.state)) {
      log.error('VM stays paused at the source: the target has not confirmed the hand-over', { migrationId: plan.migrationId, error })
      return new GodwitError('MIGRATION_DOUBT', `handed over to ${plan.target}, which has not confirmed it: ${error.message}`, {
        cause: error,
      })
    }
    await Promise.race([this.#talk?.peer.send({ type: 'ABORT', error: error.toJSON() }).catch(() => {}), sleep(ABORT_MS)])
    this.#talk?.reset(error.code)
    if (own.state !== 'RECLAIMED' && !(await this.#recordAborted())) {
      own.state = 'RELINQUISHED'
      log.error('VM stays paused at the source: the record of its hand-over is uncertain', { migrationId: plan.migrationId, error })
      return new GodwitError('MIGRATION_DOUBT', `the record of the hand-over could not be written: ${error.message}`, { cause: error })
    }
    // Its registry ends a QEMU whose guest is over: there is nothing to let run.
    return this.#isGuestOver || !this.#qemu ? error : await this.#qemu.resume(error)
  }

  /**
   * False when RELINQUISHED was refused by the disk, and ABORTED is too: then RELINQUISHED may be there or not. Until
   * somebody reads it nothing runs and no GRANT is sent. Before that an ABORTED that is refused changes nothing: the
   * VM is ours by whatever is on the disk.
   */
  async #recordAborted(): Promise<boolean> {
    const { own } = this
    const { log, stop } = this.#options
    const record = () => own.enter('abort')
    try {
      await (own.isCommitting ? durably(record, log, stop) : record())
      return true
    } catch (error) {
      log.error('ABORTED could not be recorded', { error: error as Error })
      return !own.isCommitting
    }
  }
}
