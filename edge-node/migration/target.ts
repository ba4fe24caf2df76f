// A migration at its target, from top to bottom:
//
//   OFFER -> preflight -> QEMU waits paused (-incoming defer -S) -> ACCEPT -> pages and skeleton -> loaded, manifest
//   right -> LOADED
//         -> GRANT -> cont -> RUNNING
//
// Enters: a plan, relay streams as they come, a way to make and drop a waiting QEMU. Leaves: the VM running here, or
// nothing of it.
// Always holds: the guest runs only after GRANT for this VM, epoch, migration and manifest; until RESUMING is
// recorded the target may refuse, after that it only goes forward; it never runs because of a timeout.
import { toHex } from '../../crypto/bytes.ts'
import { manifestHash } from '../../crypto/channel/manifest.ts'
import { raceAbort, within } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import { GodwitError, hasCode, toGodwitError } from '../../wire/errors.ts'
import { countedRoles, isControl } from '../../wire/roles.ts'
import { FRAME } from '../../wire/types.ts'
import { DISK_PAGES_VERSION } from '../../wire/versions.ts'
import { encodeReturnPath, RETURN_PATH } from '../stream/return-path.ts'
import { exitError } from '../vm/exit.ts'
import type { RunningVm } from '../vm/machine.ts'
import { guestEnd, guestState } from '../vm/run-state.ts'
import { TARGET_DEADLINES, type TargetStage } from './deadlines.ts'
import { durably } from './durable.ts'
import { checkGrant, refusal } from './hand-over.ts'
import { expectAfterHashing, whileHashed, whileHashing } from './hashing.ts'
import { createIncoming, type Incoming, WHOLE_TIMEOUT_MS, wholeManifest } from './incoming.ts'
import { createIncomingDisks, type TakenCorridor } from './incoming-disks.ts'
import { answerSource, type TargetMeeting } from './meeting.ts'
import { qemuMemoryPath } from './memory-path.ts'
import type { MessageOf } from './messages.ts'
import { Ownership } from './ownership.ts'
import { encodeAck, type Peer } from './peer.ts'
import { TARGET, type TargetState } from './states.ts'
import type { LoadedVm, TargetDisks, TargetMigration, TargetOptions } from './target-options.ts'
import { connectIncoming, letRun, loadError, notInMigrate } from './target-qemu.ts'
import { TargetTalk } from './target-talk.ts'

export type { LoadedVm, TargetMigration, TargetOptions } from './target-options.ts'

const SOURCE_APPEARS_TIMEOUT_MS = 60_000
const STREAM_TIMEOUT_MS = 24 * 3_600_000
/** How long a loaded VM waits for a source that is lost before it is refused (leases only on what is not running). */
const GRANT_PATIENCE_MS = 10 * 60_000
const QEMU_END_MS = 500
/** They were sent before the device state. */
const DISKS_TIMEOUT_MS = 60_000

/**
 * Once LOADED, a lost meeting decides nothing: the source may have handed the VM over already. It comes back, or the
 * grant's deadline passes.
 */
const OUTLIVES_MEETING: ReadonlySet<TargetState> = new Set<TargetState>(['LOADED', 'GRANTED', 'RESUMING', 'RUNNING'])

/** Starts waiting for the source's streams, or for its grant when the VM is loaded already; never throws. */
export function startTarget(options: TargetOptions, loaded?: LoadedVm): TargetMigration {
  const run = new TargetRun(options, loaded)
  return {
    done: run.done,
    accept: (index, attempt, stream) => run.accept(index, attempt, stream),
    cancel: reason => run.cancel(reason),
    stage: () => run.stage(),
    stuck: error => run.own.stuck(error),
  }
}

/** One migration. Its methods stand in the order in which they happen. */
class TargetRun {
  readonly done: Promise<void>
  readonly own: Ownership<TargetState>
  readonly #options: TargetOptions
  readonly #failure = new AbortController()
  readonly #signal = this.#failure.signal
  readonly #talk: TargetTalk
  /** What came over an earlier life of this agent, not over this one. */
  readonly #isFoundLoaded: boolean
  readonly #control = Promise.withResolvers<Stream>()
  /** Data streams that came before the waiting QEMU. */
  readonly #waiting: { index: number; attempt: number; stream: Stream }[] = []
  /** The grant, over whichever meeting it comes. */
  readonly #grant = Promise.withResolvers<MessageOf<'GRANT'>>()
  /** When `done` has settled. */
  readonly #settled: Promise<void>
  /** How far the reading of files here is. */
  readonly #read: { hashedBytes?: number } = {}
  #incoming: TakenCorridor | undefined
  #disks: TargetDisks | undefined
  /** Frames of the data streams: grows as long as anything arrives. */
  #arrived = 0
  #isReserved = false
  /** Everything has arrived, and the manifest was right. */
  #isWhole = false
  #manifestHash: string | undefined
  /** Since the VM is ours. */
  #vm: RunningVm | undefined
  /** The disk has refused the record that makes the VM ours: only the next reading of it shows what it holds. */
  #isInDoubt = false
  /** Why it failed. */
  #error: GodwitError | undefined

  constructor(given: TargetOptions, loaded: LoadedVm | undefined) {
    const { plan, record } = given
    const signal = this.#signal
    const fail = this.#fail
    this.#options = { ...given, onProgress: whileHashed(this.#read, given.onProgress) }
    this.#isFoundLoaded = loaded !== undefined
    this.own = new Ownership<TargetState>({
      table: TARGET,
      state: loaded?.state ?? 'IDLE',
      record: state => record(state, plan.epoch + 1, { manifestHash: this.#manifestHash }),
      deadlines: TARGET_DEADLINES,
      signal,
      fail,
    })
    const isLoaded = () => OUTLIVES_MEETING.has(this.own.state)
    this.#talk = new TargetTalk({ ...given, isLoaded, hasFailed: () => this.#error !== undefined, signal, fail })
    this.done = this.#run(loaded ? this.#continueLoaded(loaded) : this.#migrate())
    this.#settled = this.done.catch(() => {})
  }

  readonly #fail = (error: GodwitError): void => {
    this.#error ??= error
    this.#failure.abort(error)
  }

  cancel(reason = new GodwitError('MIGRATION_CANCELLED')): void {
    if (this.own.isCommitting) throw new GodwitError('MIGRATION_LATE')
    this.#fail(reason)
  }

  stage(): { state: TargetStage; mark: string } {
    const { peer } = this.#talk
    const mark = [this.#arrived, peer?.taken, peer?.heard.hashedBytes, this.#read.hashedBytes].join('/')
    return { state: this.own.stage, mark }
  }

  accept(index: number, attempt: number, stream: Stream): void {
    const { plan } = this.#options
    const isOfControl = isControl(index)
    if (isOfControl && (this.#isFoundLoaded || attempt > plan.attempt)) return void this.#meetAgain(attempt, stream)
    if (this.#signal.aborted) stream.reset('migration has ended')
    else if (isOfControl) this.#control.resolve(stream)
    else if (this.#incoming) this.#incoming.accept(index, attempt, stream)
    else if (!this.#isFoundLoaded && this.#waiting.length < countedRoles(plan.streams).length)
      this.#waiting.push({ index, attempt, stream })
    else stream.reset('nothing is expected')
  }

  /** The migration, until it ends, fails or is left. */
  async #run(story: Promise<void>): Promise<void> {
    try {
      await raceAbort(story, this.own.left.signal)
    } catch (error) {
      const cause = this.#signal.aborted ? toGodwitError(this.#signal.reason) : toGodwitError(error, 'MIGRATION_FAILED')
      const failed = await this.#giveUp(cause)
      if (failed) throw failed
    }
  }

  async #migrate(): Promise<void> {
    const { own } = this
    const options = this.#options
    const { plan, onProgress } = options
    const stream = await within(this.#control.promise, {
      ms: SOURCE_APPEARS_TIMEOUT_MS,
      what: "the source's control stream",
      code: 'MIGRATION_TIMEOUT',
      signal: this.#signal,
    })
    const { channel, peer } = await this.#talk.open(stream)
    const { message: offer } = await expectAfterHashing(peer, 'OFFER', 'the offer', { silenceMs: options.silenceMs })
    await own.advance('offer')
    this.#isReserved = true
    const hashing = { plan, side: 'target', peer: () => peer, onProgress, signal: this.#signal } as const
    const askImages = (names: string[]) => peer.send({ type: 'IMAGES', names })
    const vm = await whileHashing(hashing, async how => {
      const reserved = await options.reserve(offer, plan, { ...how, askImages })
      if (reserved) this.#watchQemu(reserved)
      this.#disks = await options.openDisks?.(how)
      return reserved
    })
    const incoming = vm && (await this.#openIncoming(peer, vm, channel.rootKey))
    const corridor = incoming ?? createIncomingDisks(this.#corridorOptions(peer))
    this.#incoming = corridor
    corridor.meet(channel, this.#talk.attempt)
    for (const { index, attempt, stream: data } of this.#waiting.splice(0)) corridor.accept(index, attempt, data)
    this.#talk.isAccepted = true
    for (const part of this.#disks?.held() ?? []) await peer.send({ type: 'COPY', ...part })
    await peer.send({ type: 'ACCEPT' })

    const shut = incoming ? await this.#load(incoming, peer, vm!) : await own.advance('pages')
    await this.#receive(corridor, peer, vm, shut || undefined)
    await this.#takeOver(vm)
  }

  /** The rest of it, for a VM that an earlier life of this agent had loaded. */
  async #continueLoaded({ vm, manifestHash: hash }: LoadedVm): Promise<void> {
    this.#isReserved = true
    this.#talk.isAccepted = true
    this.#isWhole = true
    this.#manifestHash = hash
    this.#watchQemu(vm)
    await this.#takeOver(vm)
  }

  #watchQemu(vm: RunningVm): void {
    void vm.exited.then(exit => this.#fail(exitError("the target's QEMU", exit)))
  }

  /** What every corridor is given. */
  #corridorOptions(peer: Peer) {
    const { plan } = this.#options
    return {
      pageStreams: plan.streams,
      disk: this.#disks && ((payload: Uint8Array) => this.#disks!.apply(payload)),
      onAck: (total: number, taken: number[]) => {
        this.#arrived = taken.reduce((sum, frames) => sum + frames, 0)
        peer.sendRaw(FRAME.ACK, encodeAck(total, taken)).catch(() => {})
      },
      onLost: (error: GodwitError) => this.#talk.onLost(error),
      fail: this.#fail,
    }
  }

  /** QEMU listens, we connect, guest memory is opened: ready for the first byte. */
  async #openIncoming(peer: Peer, vm: RunningVm, rootKey: Uint8Array): Promise<Incoming> {
    const { plan, log, workers = 1, memoryPath = qemuMemoryPath } = this.#options
    const qemu = await connectIncoming(vm, memoryPath)
    return createIncoming({
      memoryPath,
      ...this.#corridorOptions(peer),
      qemu,
      memory: { fd: await vm.memoryFd(), bytes: vm.memoryBytes },
      workers,
      disks: this.#disks && plan.version >= DISK_PAGES_VERSION ? { blocks: this.#disks.blocks, rootKey } : undefined,
      log,
      onReturnPath: bytes => void peer.sendRaw(FRAME.RETURN_PATH, bytes).catch(() => {}),
      // A QEMU that dies closes its socket first: its own exit says more.
      fail: error => void (error.code === 'QEMU_LOAD' ? setTimeout(() => this.#fail(error), QEMU_END_MS) : this.#fail(error)),
    })
  }

  /** Until QEMU has loaded the guest; gives its SHUT, which the source gets when all is whole. */
  async #load(incoming: Incoming, peer: Peer, vm: RunningVm): Promise<Uint8Array> {
    const { plan, onProgress } = this.#options
    const { blocks } = await peer.expect(['PAGES'], { ms: STREAM_TIMEOUT_MS, what: "the source's memory layout" })
    await this.own.advance('pages')
    incoming.begin(blocks)
    onProgress({ migrationId: plan.migrationId, side: 'target', phase: 'receiving' })
    const deadline = { ms: STREAM_TIMEOUT_MS, what: "QEMU's load", code: 'QEMU_LOAD', signal: this.#signal } as const
    const verdict = await within(incoming.shut, deadline)
    if (verdict.code !== 0) throw await loadError(vm)
    await peer.send({ type: 'SHUT', code: verdict.code })
    return verdict.bytes
  }

  /** Everything until LOADED is sent: every stream whole, disks written; of a VM that ran, its guest in QEMU. */
  async #receive(incoming: TakenCorridor, peer: Peer, vm: RunningVm | undefined, shut: Uint8Array | undefined): Promise<void> {
    const { own } = this
    const { checkFiles, onLoaded } = this.#options
    const ms = vm ? WHOLE_TIMEOUT_MS : STREAM_TIMEOUT_MS
    const hash = toHex(manifestHash(await wholeManifest(incoming, peer, this.#signal, ms)))
    if (this.#disks) await this.#finishDisks(this.#disks, peer)
    this.#isWhole = true
    this.#manifestHash = hash
    if (vm) await notInMigrate(vm)
    await checkFiles?.()
    if (vm) await onLoaded?.(vm)
    await own.advance('loaded')
    this.#talk.stopWaiting()
    if (shut) await peer.sendRaw(FRAME.RETURN_PATH, shut)
    await peer.send({ type: 'LOADED', manifestHash: hash, stateMs: incoming.stateMs(), loadMs: incoming.loadMs() })
  }

  async #finishDisks(disks: TargetDisks, peer: Peer): Promise<void> {
    const { roots } = await peer.expect(['DISKS'], { ms: DISKS_TIMEOUT_MS, what: "the roots of the VM's disks" })
    await disks.finish(roots)
  }

  /** GRANT -> RESUMING -> cont -> RUNNING. Without a QEMU the VM is ours and stopped, or starts if that is wanted. */
  async #takeOver(vm: RunningVm | undefined): Promise<void> {
    const { own } = this
    const { plan, log, grantPatienceMs: patienceMs = GRANT_PATIENCE_MS } = this.#options
    const signal = this.#signal
    const end = vm && guestEnd(plan.vm, guestState((await vm.commands.queryStatus()).status))
    this.#expectGrant(this.#talk.peer, patienceMs)
    const grant = await within(this.#grant.promise, { ms: patienceMs, what: 'GRANT from the source', code: 'MIGRATION_TIMEOUT', signal })
    checkGrant(plan, this.#manifestHash, grant)
    if (own.state !== 'GRANTED') await own.advance('grant')
    const startMs = performance.now()
    // A disk that another process holds locked shows here, while the VM can still be given back.
    await vm?.commands.activateDisks()
    // In one step: a cancel, or a QEMU that has died, counts here, or is too late.
    signal.throwIfAborted()
    own.isCommitting = true
    this.#vm = vm
    await this.#becomeOwner()
    // One that had ended at the source is ours all the same: the registry stops it here.
    if (end) log.warn('VM arrived with a guest that has ended', { vm: plan.vm, code: end.code })
    else await vm?.commands.cont()
    const startError = vm ? undefined : await this.#options.start?.()
    const resumeMs = performance.now() - startMs
    // If this does not arrive the source asks again.
    this.#talk.isRunningSent = true
    await this.#talk.peer
      ?.send({ type: 'RUNNING', resumeMs, startError })
      .catch(error => log.warn('RUNNING could not be sent; the source will ask again', { error }))
    await vm?.commands.announceSelf().catch(error => log.warn('announcement to switches failed', { error }))
    await own.advance('running').catch(error => log.error('RUNNING could not be recorded', { error: error as Error }))
    await this.#talk.peer?.finish().catch(() => {})
  }

  #expectGrant(peer: Peer | undefined, ms: number): void {
    peer?.expect(['GRANT'], { ms, what: 'GRANT' }).then(this.#grant.resolve, () => {})
  }

  /**
   * From the grant to where only this site may run the VM. The registry's record is what decides: where the disk
   * refuses it, it may be there or not, so the VM is neither run nor refused until the next start of the agent has
   * read it.
   */
  async #becomeOwner(): Promise<void> {
    const { own } = this
    const { plan, log, commit } = this.#options
    const write = () =>
      commit(plan.epoch + 1).catch(error => {
        this.#isInDoubt ||= hasCode(error, 'STORE_FAILED')
        throw error
      })
    await durably(write, log)
    await own.advance('resume').catch(error => {
      own.state = 'RESUMING'
      log.error('RESUMING could not be recorded; the registry has it', { error: error as Error })
    })
  }

  /**
   * A later meeting: the source goes on with the transfer, or sends the grant (again) and asks what became of the VM
   * here.
   */
  async #meetAgain(attempt: number, stream: Stream): Promise<void> {
    const { plan, log } = this.#options
    try {
      const meeting = await this.#talk.meet(attempt, stream)
      if (!meeting) return
      const { first } = meeting
      if (first.type === 'CONTINUE') return await this.#goOn(meeting, first)
      const answer = await this.#decide(first)
      await answerSource(meeting, answer)
      log.info('later meeting answered', { attempt, answer: answer.type })
    } catch (error) {
      log.warn('later meeting failed', { migrationId: plan.migrationId, attempt, error })
      stream.reset('failed')
    }
  }

  /**
   * The source's link was lost before it had committed. It learns where this side stands, and this meeting takes the
   * place of the one before.
   */
  async #goOn(meeting: TargetMeeting, { taken }: MessageOf<'CONTINUE'>): Promise<void> {
    const talk = this.#talk
    const { channel, frames } = meeting
    if (this.#signal.aborted) {
      await this.#settled
      return await answerSource(meeting, refusal(this.#error))
    }
    const { state } = this.own
    const isOpen = state === 'RESERVED' || state === 'RECEIVING' || state === 'LOADED'
    if (!talk.isAccepted || !isOpen) throw new GodwitError('MIGRATION_STATE', `a migration in state ${state} does not continue`)
    talk.leave()
    this.#options.log.info('source reconnected', { attempt: talk.attempt, isWhole: this.#isWhole })
    // From here to the answer nothing is awaited: what counts as taken must not change meanwhile.
    const held = this.#isWhole ? {} : { frames: this.#incoming!.meet(channel, talk.attempt) }
    const answered = talk.answer(meeting, held)
    if (this.#incoming) talk.peer!.resume(channel, frames, taken)
    else await this.#repeatLoaded(talk.use(channel, frames))
    await answered
  }

  /** An earlier life of this agent had loaded the VM; it is not known whether the source knows. */
  async #repeatLoaded(peer: Peer): Promise<void> {
    this.#expectGrant(peer, GRANT_PATIENCE_MS)
    await peer.sendRaw(FRAME.RETURN_PATH, encodeReturnPath(RETURN_PATH.shut, SHUT_OK))
    await peer.send({ type: 'LOADED', manifestHash: this.#manifestHash!, stateMs: 0, loadMs: 0 })
  }

  /** What became of the VM here, when the source has asked with its grant. */
  async #decide(grant: MessageOf<'GRANT'>): Promise<MessageOf<'RUNNING' | 'REFUSE'>> {
    if (this.#isWhole) {
      checkGrant(this.#options.plan, this.#manifestHash, grant)
      this.#grant.resolve(grant)
    }
    await this.#settled
    const { state } = this.own
    if (state === 'RUNNING' || state === 'RESUMING') return { type: 'RUNNING', resumeMs: 0 }
    if (state === 'REFUSED') return refusal()
    throw new GodwitError('MIGRATION_DOUBT', `the outcome of the VM at this site is not on disk (${state})`)
  }

  /**
   * Before RESUMING nothing of the VM stays here (the error); from RESUMING on it is ours, whatever happened to
   * messages, records or QEMU: it has moved.
   */
  async #giveUp(error: GodwitError): Promise<GodwitError | undefined> {
    const { own } = this
    const { log, plan, drop } = this.#options
    const talk = this.#talk
    own.isEnding = true
    talk.stopWaiting()
    this.#error ??= error
    if (own.state === 'RESUMING' || own.state === 'RUNNING') {
      log.error('this site owns the VM, but a later step failed', { migrationId: plan.migrationId, error })
      if (this.#vm)
        await letRun(this.#vm).catch(cause => log.error('this site owns the VM, but it does not run', { vm: plan.vm, error: cause }))
      return undefined
    }
    // Why, before the streams end: the source would see resets only. Once LOADED it gets nothing but REFUSE, when
    // nothing is left here.
    if (own.state === 'RESERVED' || own.state === 'RECEIVING') await talk.trySend({ type: 'ABORT', error: error.toJSON() })
    const ended = this.#incoming?.abort(error)
    for (const { stream } of this.#waiting.splice(0)) stream.reset(error.code)
    if (this.#isInDoubt || !(await this.#recordRefused()))
      return new GodwitError('MIGRATION_DOUBT', `the owner of the VM is not on disk: ${error.message}`, { cause: error })
    await this.#disks?.close().catch(cause => log.warn('disk server could not be ended', { error: cause as Error }))
    if (this.#isReserved) await drop().catch(cause => log.error('waiting VM could not be removed', { error: cause as Error }))
    await talk.trySend({ type: 'REFUSE', error: error.toJSON() })
    talk.resetSoon(error.code)
    await ended
    return error
  }

  /**
   * False when the disk refuses it and the source may have handed the VM over: then it must not learn of it, and
   * nothing is dropped.
   */
  async #recordRefused(): Promise<boolean> {
    const { own } = this
    const { log } = this.#options
    if (own.state === 'IDLE') return true
    const wasLoaded = OUTLIVES_MEETING.has(own.state)
    const record = () => own.enter('abort')
    try {
      await (wasLoaded ? durably(record, log) : record())
      return true
    } catch (error) {
      log.error('REFUSED could not be recorded', { error: error as Error })
      return !wasLoaded
    }
  }
}

/** Code 0, u32. */
const SHUT_OK = new Uint8Array(4)
