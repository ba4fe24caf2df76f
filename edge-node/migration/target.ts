// A migration as its target lives it, from top to bottom:
//
//   OFFER -> preflight -> QEMU waits paused (-incoming defer -S) -> ACCEPT -> pages and skeleton -> loaded, manifest right -> LOADED -> GRANT -> cont -> RUNNING
//
// Enters: a plan, relay streams as they come, a way to make and drop a waiting QEMU. Leaves: the VM running here, or nothing of it.
// Always holds: the guest runs only after GRANT for this VM, epoch, migration and manifest; until RESUMING is recorded the target may refuse,
// after that it only goes forward; it never runs because of a timeout.
import { join } from 'node:path'
import { toHex } from '../../crypto/bytes.ts'
import type { SiteKeys } from '../../crypto/identity.ts'
import { compareManifests, type Manifest, manifestHash } from '../../crypto/manifest.ts'
import { within } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import type { MigrationProgress, Plan } from '../../wire/control.ts'
import { GodwitError, hasCode, toGodwitError } from '../../wire/errors.ts'
import type { Frame } from '../../wire/frame.ts'
import type { Log } from '../../wire/log.ts'
import { FRAME } from '../../wire/types.ts'
import { openSession, type Session } from '../channel/session.ts'
import { encodeMessage as encodeReturnPath, RETURN_PATH } from '../stream/return-path.ts'
import { RUNTIME_FILES } from '../vm/argv.ts'
import type { RunningVm } from '../vm/machine.ts'
import { connectUnix } from '../vm/socket.ts'
import { durably } from './durable.ts'
import { refusal } from './hand-over.ts'
import { createIncoming, type Incoming } from './incoming.ts'
import { answerSource, greetSource, type Meeting } from './meeting.ts'
import { encodeMessage, type Message, type MessageOf } from './messages.ts'
import { createPeer, encodeAck, isLoss, type Peer } from './peer.ts'
import { next, TARGET, type TargetState } from './states.ts'

export type TargetOptions = {
  plan: Plan
  keys: SiteKeys
  sourceCertificate: Uint8Array
  targetCertificate: Uint8Array
  peerBoxPublic: Uint8Array
  /** Checks the offer against this host (PREFLIGHT_*, VM_EXISTS) and starts the waiting QEMU. */
  reserve: (offer: MessageOf<'OFFER'>, plan: Plan) => Promise<RunningVm>
  /** Ends the waiting QEMU and forgets the VM. */
  drop: () => Promise<void>
  /** The VM is this site's from now on: durable when it resolves. An agent that dies after it sends `cont` when it is back. */
  commit: (epoch: number) => Promise<void>
  /** Makes a state durable before what follows from it (fsync). */
  record: (state: TargetState, epoch: number, facts?: { manifestHash?: string | undefined }) => Promise<void>
  /** Told at once when sealed bytes or a handshake are not what they must be. */
  onBreach?: ((error: GodwitError) => void) | undefined
  onProgress: (progress: MigrationProgress) => void
  workers?: number
  log: Log
  /** How long to wait for a source whose link is lost before the VM is loaded, ms. Default 45 s. */
  sourceAwayMs?: number | undefined
  /** How long to wait for GRANT, ms. Default 10 min. */
  grantPatienceMs?: number | undefined
  /** For tests: called with the loaded, still paused VM before LOADED is sent. */
  onLoaded?: (vm: RunningVm) => Promise<void>
}

export type TargetMigration = {
  /** Resolves when the VM is this site's; otherwise a GodwitError, with nothing of it left here (or, where the disk refused, only its paused QEMU). */
  readonly done: Promise<void>
  /** A relay stream of this migration (0 control, 1 skeleton, 2.. pages), also of a later meeting, and a control stream also long after `done`. */
  accept(index: number, attempt: number, stream: Stream): void
  /** Refuses while that is still allowed. MIGRATION_LATE once the target runs it. */
  cancel(reason?: GodwitError): void
}

/** What an earlier life of this agent left: a VM that is loaded and paused. */
export type LoadedVm = { state: 'LOADED' | 'GRANTED'; vm: RunningVm; manifestHash: string }

const SOURCE_APPEARS_TIMEOUT_MS = 60_000
const STREAM_TIMEOUT_MS = 24 * 3_600_000
/** How long a VM that is not loaded yet waits for a source whose link is lost: longer than a source waits (conversation.ts), which decides. */
const SOURCE_AWAY_MS = 45_000
/** How long a loaded VM waits for a source that is lost before it is refused (leases only on what is not running). */
const GRANT_PATIENCE_MS = 10 * 60_000
const LOAD_TIMEOUT_MS = 120_000
const INCOMING_TIMEOUT_MS = 10_000
const QEMU_END_MS = 500
/** A stream may break that only we saw: after this long the source is made to see it. */
const NOTICE_MS = 500

/** Starts waiting for the source's streams, or for its grant when the VM is loaded already; never throws. */
export function startTarget(options: TargetOptions, loaded?: LoadedVm): TargetMigration {
  const failure = new AbortController()
  const { signal } = failure
  const control = arrival<Stream>()
  const life: Life = { state: loaded?.state ?? 'IDLE', waiting: [], grants: arrival(), attempt: options.plan.attempt, isWhole: false }
  const fail: Fail = error => {
    life.error ??= error
    failure.abort(error)
  }
  const done = loaded ? runLoaded(options, life, loaded, signal, fail) : run(options, life, control.promise, signal, fail)
  const settled = done.catch(() => {})
  return {
    done,
    accept(index, attempt, stream) {
      if (index === 0 && (loaded || attempt > options.plan.attempt))
        return void meetAgain(options, life, { settled, signal, fail }, attempt, stream)
      if (signal.aborted) return stream.reset('migration has ended')
      if (index === 0) control.arrive(stream)
      else if (life.incoming) life.incoming.accept(index, attempt, stream)
      else if (!loaded && life.waiting.length <= options.plan.streams) life.waiting.push({ index, attempt, stream })
      else stream.reset('nothing is due')
    },
    cancel(reason = new GodwitError('MIGRATION_CANCELLED')) {
      if (life.state === 'RESUMING' || life.state === 'RUNNING') throw new GodwitError('MIGRATION_LATE')
      fail(reason)
    },
  }
}

type Life = {
  state: TargetState
  incoming?: Incoming
  waiting: { index: number; attempt: number; stream: Stream }[]
  /** The last meeting's. */
  session?: Session
  peer?: Peer
  /** Of the last meeting that both sides took part in. */
  attempt: number
  hasAccepted?: boolean
  isReserved?: boolean
  /** The disk has refused the record that makes the VM ours: only its next reading tells what is so. */
  inDoubt?: boolean
  /** Everything has arrived, and the manifest was right. */
  isWhole: boolean
  manifestHash?: string
  /** The grant, over whichever meeting it comes. */
  grants: ReturnType<typeof arrival<MessageOf<'GRANT'>>>
  /** Runs while the source is lost. */
  away?: NodeJS.Timeout | undefined
  /** Why it failed. */
  error?: GodwitError
}
type Fail = (error: GodwitError) => void

/** Once LOADED, a lost meeting decides nothing: the source may have handed the VM over already. It comes back, or the grant's deadline passes. */
const OUTLIVES_MEETING: ReadonlySet<TargetState> = new Set<TargetState>(['LOADED', 'GRANTED', 'RESUMING', 'RUNNING'])

async function run(options: TargetOptions, life: Life, control: Promise<Stream>, signal: AbortSignal, fail: Fail): Promise<void> {
  try {
    const stream = await within(control, {
      ms: SOURCE_APPEARS_TIMEOUT_MS,
      what: "the source's control stream",
      code: 'MIGRATION_TIMEOUT',
      signal,
    })
    signal.addEventListener('abort', () => setTimeout(() => life.session?.reset('aborted') ?? stream.reset('aborted'), 500), { once: true })
    const session = await openSession({ side: 'target', stream, ...options })
    const peer = usePeer(options, life, session, session.frames(), signal, fail)
    const offer = await peer.expect(['OFFER'], { ms: SOURCE_APPEARS_TIMEOUT_MS, what: 'the offer' })
    await advance(options, life, 'offer')
    life.isReserved = true
    const vm = await options.reserve(offer, options.plan)
    void vm.exited.then(({ logTail }) => fail(new GodwitError('QEMU_EXITED', `the target's QEMU ended: ${logTail}`)))
    life.incoming = await openIncoming(options, life, peer, vm, fail)
    life.incoming.meet(session, life.attempt)
    for (const { index, attempt, stream: data } of life.waiting.splice(0)) life.incoming.accept(index, attempt, data)
    life.hasAccepted = true
    await peer.send({ type: 'ACCEPT' })

    await receive(options, life, life.incoming, peer, vm, signal)
    await takeOver(options, life, vm, signal)
  } catch (error) {
    const failed = await giveUp(options, life, signal.aborted ? toGodwitError(signal.reason) : toGodwitError(error, 'MIGRATION_FAILED'))
    if (failed) throw failed
  }
}

/** The rest of the story, for a VM that an earlier life of this agent had loaded. */
async function runLoaded(
  options: TargetOptions,
  life: Life,
  { vm, manifestHash: hash }: LoadedVm,
  signal: AbortSignal,
  fail: Fail,
): Promise<void> {
  Object.assign(life, { isReserved: true, hasAccepted: true, isWhole: true, manifestHash: hash })
  void vm.exited.then(({ logTail }) => fail(new GodwitError('QEMU_EXITED', `the target's QEMU ended: ${logTail}`)))
  try {
    await takeOver(options, life, vm, signal)
  } catch (error) {
    const failed = await giveUp(options, life, signal.aborted ? toGodwitError(signal.reason) : toGodwitError(error, 'MIGRATION_FAILED'))
    if (failed) throw failed
  }
}

function usePeer(
  options: TargetOptions,
  life: Life,
  session: Session,
  frames: AsyncGenerator<Frame, void>,
  signal: AbortSignal,
  fail: Fail,
): Peer {
  life.session = session
  life.peer = createPeer({
    session,
    frames,
    signal,
    fail: (error, how) => (how === 'lost' ? onLost(options, life, error, fail) : fail(error)),
    heals: () => life.hasAccepted === true,
  })
  return life.peer
}

/** A meeting, or a stream of it, is gone: while the source may come back for it, it is waited for. */
function onLost({ log, sourceAwayMs = SOURCE_AWAY_MS }: TargetOptions, life: Life, error: GodwitError, fail: Fail): void {
  if (OUTLIVES_MEETING.has(life.state)) {
    log.warn('the source is lost: waiting for it', { error })
    return
  }
  if (!life.hasAccepted || !isLoss(error)) {
    fail(error)
    return
  }
  if (life.away || life.error) return
  log.warn('the link to the source is lost: waiting for it', { attempt: life.attempt, error })
  const { session } = life
  setTimeout(() => life.away && life.session === session && session?.reset('a stream was lost'), NOTICE_MS).unref()
  life.away = setTimeout(() => {
    if (OUTLIVES_MEETING.has(life.state)) return
    fail(new GodwitError('CONNECTION_LOST', `the source was lost and has not come back within ${sourceAwayMs} ms`, { cause: error }))
  }, sourceAwayMs).unref()
}

const advance = async ({ plan, record }: TargetOptions, life: Life, event: string): Promise<void> => {
  const state = next(TARGET, life.state, event)
  await record(state, plan.epoch + 1, { manifestHash: life.manifestHash })
  life.state = state
}

/** QEMU listens, we connect, guest memory is opened: ready for the first byte. */
async function openIncoming(options: TargetOptions, life: Life, peer: Peer, vm: RunningVm, fail: Fail): Promise<Incoming> {
  const path = join(vm.runDir, RUNTIME_FILES.incoming)
  await vm.commands.setCapabilities({ events: true, 'return-path': true, 'validate-uuid': true })
  await vm.commands.setParameters({ announceRounds: 0 })
  await vm.commands.migrateIncoming(`unix:${RUNTIME_FILES.incoming}`)
  const qemu = await connectUnix(path, INCOMING_TIMEOUT_MS, { code: 'QEMU_TIMEOUT' })
  const quietly = (sent: Promise<void>) => void sent.catch(() => {})
  return createIncoming({
    pageStreams: options.plan.streams,
    qemu,
    memory: { fd: await vm.memoryFd(), bytes: vm.memoryBytes },
    workers: options.workers ?? 1,
    onAck: (total, taken) => quietly(peer.sendRaw(FRAME.ACK, encodeAck(total, taken))),
    onReturnPath: bytes => quietly(peer.sendRaw(FRAME.RETURN_PATH, bytes)),
    onLost: error => onLost(options, life, error, fail),
    // A QEMU that dies closes its socket first: the news of its own end says more.
    fail: error => void (error.code === 'QEMU_LOAD' ? setTimeout(() => fail(error), QEMU_END_MS) : fail(error)),
  })
}

/** Everything until LOADED is sent: pages in memory, device state in QEMU, every stream whole. */
async function receive(
  options: TargetOptions,
  life: Life,
  incoming: Incoming,
  peer: Peer,
  vm: RunningVm,
  signal: AbortSignal,
): Promise<void> {
  const { blocks } = await peer.expect(['PAGES'], { ms: STREAM_TIMEOUT_MS, what: "the source's memory layout" })
  await advance(options, life, 'pages')
  incoming.begin(blocks)
  options.onProgress({ migrationId: options.plan.migrationId, side: 'target', phase: 'receiving' })

  const verdict = await within(incoming.shut, { ms: STREAM_TIMEOUT_MS, what: "QEMU's load", code: 'QEMU_LOAD', signal })
  if (verdict.code !== 0) throw new GodwitError('QEMU_LOAD', `the target's QEMU did not accept the state: ${await vm.logTail()}`)
  await peer.send({ type: 'SHUT', code: verdict.code })
  const hash = toHex(manifestHash(await wholeManifest(incoming, peer, signal)))
  Object.assign(life, { isWhole: true, manifestHash: hash })
  await notInMigrate(vm)
  await options.onLoaded?.(vm)
  await advance(options, life, 'loaded')
  clearTimeout(life.away)
  await peer.sendRaw(FRAME.RETURN_PATH, verdict.bytes)
  await peer.send({ type: 'LOADED', manifestHash: hash, stateMs: incoming.stateMs(), loadMs: incoming.loadMs() })
}

/** All streams have ended whole over one meeting, and are what the source says it sent over that meeting. */
async function wholeManifest(incoming: Incoming, peer: Peer, signal: AbortSignal): Promise<Manifest> {
  for (;;) {
    const { attempt, streams } = await peer.expect(['EOS'], { ms: LOAD_TIMEOUT_MS, what: 'the manifest' })
    const deadline = { ms: LOAD_TIMEOUT_MS, what: 'the end of all streams', code: 'MANIFEST_MISMATCH' as const, signal }
    const manifest = await within(incoming.ended(attempt), deadline)
    // Of a meeting that was lost: the next one says it again.
    if (!manifest) continue
    const sent = streams.map(({ index, records, digest }) => ({ index, records, digest: Buffer.from(digest, 'hex') }))
    compareManifests({ streams: sent }, manifest)
    return manifest
  }
}

/** `cont` during `inmigrate` would only set a flag; the load must be over (OWNERSHIP: never while inmigrate). */
async function notInMigrate(vm: RunningVm): Promise<void> {
  const { status } = await vm.commands.queryStatus()
  if (status === 'inmigrate') throw new GodwitError('QEMU_LOAD', 'the target QEMU still says inmigrate after its SHUT')
}

/** GRANT -> RESUMING -> cont -> RUNNING. */
async function takeOver(options: TargetOptions, life: Life, vm: RunningVm, signal: AbortSignal): Promise<void> {
  const { plan, log } = options
  const patienceMs = options.grantPatienceMs ?? GRANT_PATIENCE_MS
  life.peer?.expect(['GRANT'], { ms: patienceMs, what: 'GRANT' }).then(life.grants.arrive, () => {})
  const grant = await within(life.grants.promise, { ms: patienceMs, what: 'GRANT from the source', code: 'MIGRATION_TIMEOUT', signal })
  checkGrant(plan, life, grant)
  if (life.state !== 'GRANTED') await advance(options, life, 'grant')
  const startMs = performance.now()
  // A disk that somebody holds locked shows here, while the VM can still be given back.
  await vm.commands.activateDisks()
  await becomeOwner(options, life)
  await vm.commands.cont()
  const resumeMs = performance.now() - startMs
  // If this does not arrive the source asks again.
  await life.peer?.send({ type: 'RUNNING', resumeMs }).catch(error => log.warn('RUNNING was not heard', { error }))
  await vm.commands.announceSelf().catch(error => log.warn('no announcement to switches', { error }))
  await advance(options, life, 'running').catch(error => log.error('RUNNING could not be recorded', { error: error as Error }))
  await life.peer?.finish().catch(() => {})
}

/**
 * From the grant to where only this site may run the VM. The registry's record is what decides: where the disk refuses it, it may be there or not, so the
 * VM is neither run nor refused until the next start of the agent has read it.
 */
async function becomeOwner(options: TargetOptions, life: Life): Promise<void> {
  const { plan, log, commit } = options
  const write = () =>
    commit(plan.epoch + 1).catch(error => {
      life.inDoubt ||= hasCode(error, 'STORE_FAILED')
      throw error
    })
  await durably(write, log)
  await advance(options, life, 'resume').catch(error => {
    life.state = 'RESUMING'
    log.error('RESUMING could not be recorded: the registry has it', { error: error as Error })
  })
}

function checkGrant(plan: Plan, life: Life, grant: MessageOf<'GRANT'>): void {
  const isOurs = grant.vm === plan.vm && grant.migrationId === plan.migrationId && grant.manifestHash === life.manifestHash
  if (!isOurs) throw new GodwitError('MIGRATION_STATE', 'GRANT is for another VM, migration or content')
  if (grant.epoch !== plan.epoch + 1) throw new GodwitError('EPOCH_STALE', `GRANT for epoch ${grant.epoch}, expected ${plan.epoch + 1}`)
}

type Running = { settled: Promise<void>; signal: AbortSignal; fail: Fail }

/** A later meeting: the source goes on with the transfer, or gives the grant (again) and hears what became of the VM here. */
async function meetAgain(options: TargetOptions, life: Life, running: Running, attempt: number, stream: Stream): Promise<void> {
  const { plan, log } = options
  if (attempt <= life.attempt) return stream.reset('attempts only rise')
  try {
    const meeting = await greetSource({ ...options, plan: { ...plan, attempt }, stream })
    // Only now: whoever opened this stream is the source, and this is no replay.
    if (attempt <= life.attempt) return stream.reset('attempts only rise')
    life.attempt = attempt
    const { first } = meeting
    if (first.type === 'CONTINUE') return await goOn(options, life, running, meeting, first)
    const answer = await decide(options, life, running, first)
    await answerSource(meeting, answer)
    log.info('a later meeting was answered', { attempt, answer: answer.type })
  } catch (error) {
    log.warn('a later meeting failed', { migrationId: plan.migrationId, attempt, error })
    stream.reset('failed')
  }
}

/** What became of the VM here, when the source has asked with its grant. */
async function decide(
  { plan }: TargetOptions,
  life: Life,
  { settled }: Running,
  grant: MessageOf<'GRANT'>,
): Promise<MessageOf<'RUNNING' | 'REFUSE'>> {
  if (life.isWhole) {
    checkGrant(plan, life, grant)
    life.grants.arrive(grant)
  }
  await settled
  if (life.state === 'RUNNING' || life.state === 'RESUMING') return { type: 'RUNNING', resumeMs: 0 }
  if (life.state === 'REFUSED') return refusal()
  throw new GodwitError('MIGRATION_DOUBT', `the disk does not say what became of the VM here (${life.state})`)
}

/** The source, whose link was lost before it had committed, is back: it hears where we stand, and this meeting takes the place of the one before. */
async function goOn(
  options: TargetOptions,
  life: Life,
  { settled, signal, fail }: Running,
  meeting: Meeting,
  { taken }: MessageOf<'CONTINUE'>,
): Promise<void> {
  const { session, frames } = meeting
  if (signal.aborted) {
    await settled
    return await answerSource(meeting, refusal(life.error))
  }
  const isOpen = life.state === 'RESERVED' || life.state === 'RECEIVING' || life.state === 'LOADED'
  if (!life.hasAccepted || !isOpen) throw new GodwitError('MIGRATION_STATE', `nothing goes on from ${life.state}`)
  clearTimeout(life.away)
  life.away = undefined
  life.session?.reset('a later meeting goes on')
  options.log.info('the source is back', { attempt: life.attempt, isWhole: life.isWhole })
  // From here to the answer nothing is awaited: what counts as taken must not change meanwhile.
  const held = life.isWhole ? {} : { frames: life.incoming!.meet(session, life.attempt) }
  const answered = session.send(FRAME.MESSAGE, encodeMessage({ type: 'HELD', taken: life.peer?.taken ?? 0, ...held }))
  life.session = session
  if (life.incoming) life.peer!.resume(session, frames, taken)
  else await sayLoadedAgain(life, usePeer(options, life, session, frames, signal, fail))
  await answered
}

/** Code 0, u32. */
const SHUT_OK = new Uint8Array(4)

/** An earlier life of this agent had loaded the VM; it is not known whether the source has heard that. */
async function sayLoadedAgain(life: Life, peer: Peer): Promise<void> {
  peer.expect(['GRANT'], { ms: GRANT_PATIENCE_MS, what: 'GRANT' }).then(life.grants.arrive, () => {})
  await peer.sendRaw(FRAME.RETURN_PATH, encodeReturnPath(RETURN_PATH.shut, SHUT_OK))
  await peer.send({ type: 'LOADED', manifestHash: life.manifestHash!, stateMs: 0, loadMs: 0 })
}

/** Before RESUMING nothing of the VM stays here (the error); from RESUMING on it is ours, whatever happened to messages, paper or QEMU: it has moved. */
async function giveUp(options: TargetOptions, life: Life, error: GodwitError): Promise<GodwitError | undefined> {
  const { log, plan } = options
  clearTimeout(life.away)
  life.error ??= error
  if (life.state === 'RESUMING' || life.state === 'RUNNING') {
    log.error('the VM is ours, but not everything went well after that', { migrationId: plan.migrationId, error })
    return undefined
  }
  // Why, before the streams end: the source would see resets only. Once LOADED it hears nothing but REFUSE, when nothing is left here.
  if (life.state === 'RESERVED' || life.state === 'RECEIVING') await tell(life.peer, { type: 'ABORT', error: error.toJSON() })
  life.incoming?.abort(error)
  for (const { stream } of life.waiting.splice(0)) stream.reset(error.code)
  if (life.inDoubt || !(await recordRefused(options, life)))
    return new GodwitError('MIGRATION_DOUBT', `the disk does not say whose the VM is: ${error.message}`, { cause: error })
  if (life.isReserved) await options.drop().catch(cause => log.error('could not drop the waiting VM', { error: cause as Error }))
  await tell(life.peer, { type: 'REFUSE', error: error.toJSON() })
  const { session } = life
  setTimeout(() => session?.reset(error.code), 1000).unref()
  return error
}

/** False when the disk refuses it and the source may have handed the VM over: then it must not hear of it, and nothing is dropped. */
async function recordRefused(options: TargetOptions, life: Life): Promise<boolean> {
  if (life.state === 'IDLE') return true
  const wasLoaded = OUTLIVES_MEETING.has(life.state)
  const record = () => advance(options, life, 'abort')
  try {
    await (wasLoaded ? durably(record, options.log) : record())
    return true
  } catch (error) {
    options.log.error('REFUSED could not be recorded', { error: error as Error })
    return !wasLoaded
  }
}

/** Best effort: the other site may be gone. */
async function tell(peer: Peer | undefined, message: Message): Promise<void> {
  await Promise.race([peer?.send(message).catch(() => {}), new Promise(resolve => setTimeout(resolve, 500))])
}

function arrival<T>(): { promise: Promise<T>; arrive: (value: T) => void } {
  let arrive: (value: T) => void = () => {}
  const promise = new Promise<T>(resolve => {
    arrive = resolve
  })
  return { promise, arrive }
}
