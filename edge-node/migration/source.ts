// A migration as its source lives it, from top to bottom:
//
//   offer -> accept -> stream rounds while the guest runs -> guest stops -> final pages, device state -> LOADED -> commit -> GRANT -> RUNNING
//
// The pages of a live migration leave behind the offer without waiting for the answer; nothing counts before it has come.
// A link that is lost between accept and LOADED is waited for, and the migration goes on from what the target has (conversation.ts).
// Enters: a plan, a running QEMU, a way to open relay streams. Leaves: a report, or a coded error with the VM running here.
// Always holds: until the record RELINQUISHED is durable every failure ends with the VM running at the source; after it the source never
// lets the guest run again unless the target refuses; the guest runs at the target only after GRANT. QEMU `completed` and `postmigrate` come first.
import { rm } from 'node:fs/promises'
import type { Socket } from 'node:net'
import { join } from 'node:path'
import { toHex } from '../../crypto/bytes.ts'
import type { SiteKeys } from '../../crypto/identity.ts'
import { manifestHash } from '../../crypto/manifest.ts'
import { eventually, sleep, within } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import { type MigrationProgress, PHASE_COMMITTED, type Plan, type Report } from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { Bulk } from '../link/link.ts'
import type { QmpClient } from '../qmp/client.ts'
import { qmpCommands } from '../qmp/commands.ts'
import { RUNTIME_FILES } from '../vm/argv.ts'
import { type Conversation, openConversation, type Patience, type Renewal } from './conversation.ts'
import { durably } from './durable.ts'
import { handOver } from './hand-over.ts'
import type { MessageOf } from './messages.ts'
import { createOutgoing, listenForQemu, manifestToMessage, type Outgoing } from './outgoing.ts'
import { isLoss, type Peer } from './peer.ts'
import { createMeter, type Meter } from './progress.ts'
import { createReport, type Timeline } from './report.ts'
import { resumeSource } from './resume.ts'
import { next, SOURCE, type SourceState, sourceMayResume } from './states.ts'

export type SourceOptions = {
  plan: Plan
  offer: MessageOf<'OFFER'>
  qmp: QmpClient
  /** Settles when the VM's QEMU has ended. */
  qemuExited: Promise<{ logTail: string }>
  keys: SiteKeys
  sourceCertificate: Uint8Array
  targetCertificate: Uint8Array
  peerBoxPublic: Uint8Array
  openStream: (index: number, attempt: number) => Promise<Stream>
  /** Makes a state durable before what follows from it (fsync). */
  record: (state: SourceState, epoch: number, facts?: { manifestHash?: string | undefined }) => Promise<void>
  /** Told at once when sealed bytes or a handshake are not what they must be. */
  onBreach?: ((error: GodwitError) => void) | undefined
  onProgress: (progress: MigrationProgress) => void
  /** The working folder of the VM's QEMU: for the socket that it writes to. */
  dir: string
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
  /** How long the target may take to load what it has, ms. Default 10 min. */
  loadTimeoutMs?: number | undefined
  /** Whether the target may still be given the VM, asked right before the commit: throws why not (its certificate has been revoked, or has expired). */
  checkPeer?: (() => Promise<void>) | undefined
  /** How long a lost link may stay away before the commit. */
  patience?: Patience | undefined
  /** When a meeting's keys have done their time. Default RENEWAL. */
  renewal?: Renewal | undefined
  /** zstd level; 'auto' (default) follows whether the path or the workers are the slow side. */
  compressionLevel?: number | 'auto'
  workers?: number
  log: Log
}

export type SourceMigration = {
  /** The report when the VM runs at the target; otherwise a GodwitError. Settles only when the VM's fate here is decided. */
  readonly done: Promise<Report>
  /** Ends the migration with the VM running here. MIGRATION_LATE after the commit. */
  cancel(reason?: GodwitError): void
  /** Where the VM is, once `done` has settled: what to do with it here follows from this alone, never from the error. */
  fate(): 'here' | 'moved' | 'doubt'
  /** The epoch at which that holds. */
  epoch(): number
}

const ACCEPT_TIMEOUT_MS = 60_000
const LOAD_TIMEOUT_MS = 600_000
const QEMU_CONNECT_TIMEOUT_MS = 10_000
const POSTMIGRATE_TIMEOUT_MS = 15_000
const QEMU_END_MS = 2_000
/** A reset is the echo of something else: the target's word for it, on another connection, may come a little later. */
const SAY_WHY_MS = 250

/** Starts at once; never throws. */
export function startSource(options: SourceOptions): SourceMigration {
  const failure = new AbortController()
  const fail = (error: GodwitError) => {
    if (error.code === 'STREAM_RESET') setTimeout(() => failure.abort(error), SAY_WHY_MS)
    else failure.abort(error)
  }
  const life: Life = { state: 'RUNNING', committing: false, startedAt: Date.now(), timeline: { startMs: performance.now() } }
  void options.qemuExited.then(({ logTail }) => fail(new GodwitError('QEMU_EXITED', `QEMU ended during the migration: ${logTail}`)))
  return {
    done: run(options, life, failure.signal, fail),
    cancel(reason = new GodwitError('MIGRATION_CANCELLED')) {
      if (life.committing) throw new GodwitError('MIGRATION_LATE')
      fail(reason)
    },
    epoch: () => options.plan.epoch + (EPOCH_STEP[life.state] ?? 0),
    fate: () => (life.state === 'RETIRED' ? 'moved' : sourceMayResume(life.state) ? 'here' : 'doubt'),
  }
}

/** By how much a state raises the epoch of the plan. */
const EPOCH_STEP: Partial<Record<SourceState, number>> = { RELINQUISHED: 1, RETIRED: 1, RECLAIMED: 2 }

type Life = { state: SourceState; committing: boolean; startedAt: number; timeline: Timeline; manifestHash?: string }

async function run(options: SourceOptions, life: Life, signal: AbortSignal, fail: (error: GodwitError) => void): Promise<Report> {
  const held: Held = {}
  try {
    await advance(options, life, 'offer')
    options.onProgress({ migrationId: options.plan.migrationId, side: 'source', phase: 'preflight' })
    const toQemu = createReturnPath()
    const { peer } = await openTalk(options, life, held, toQemu.write, signal, fail)
    const { accepted } = await negotiate(options, peer)
    // A guest that is to stand still runs until the target has room for it; pages of one that runs on are on their way meanwhile.
    if (options.plan.method === 'cold') await accepted
    signal.throwIfAborted()

    const flow = createFlow(options, held.talk!, life, signal, fail)
    held.outgoing = flow.outgoing
    await held.talk!.carry(flow.outgoing)
    held.meter = createMeter({ ...options, talk: held.talk!, outgoing: flow.outgoing, timeline: life.timeline, signal, fail })
    await startQemu(options, toQemu, flow.outgoing, signal, fail)
    await accepted
    held.talk!.accepted()
    await advance(options, life, 'accepted')

    await flow.ended
    await advance(options, life, 'quiesced')
    const loaded = await peer.expect(['LOADED'], { ms: options.loadTimeoutMs ?? LOAD_TIMEOUT_MS, what: 'LOADED from the target' })
    life.timeline.loadedMs = performance.now()
    held.talk!.settle()
    if (!flow.sent.has(loaded.manifestHash)) throw new GodwitError('MANIFEST_MISMATCH', 'the target loaded something else than was sent')
    life.manifestHash = loaded.manifestHash
    await postmigrate(options, signal)

    await options.checkPeer?.()
    // In one step with what comes first there: a cancel is heard here, or is too late.
    signal.throwIfAborted()
    const running = await commit(options, life, held.talk!, loaded.manifestHash)
    held.meter.stop()
    return createReport({ ...options, life, loaded, running, outgoing: flow.outgoing, meter: held.meter, talk: held.talk! })
  } catch (error) {
    held.meter?.stop()
    // Before the commit the first failure is the cause of all others; after it the first meeting's end is no cause of anything.
    const cause = signal.aborted && !life.committing ? signal.reason : error
    throw await giveUp(options, life, held, toGodwitError(cause, 'MIGRATION_FAILED'))
  }
}

type Held = { talk?: Conversation; outgoing?: Outgoing; meter?: Meter }

/** The state counts once it is durable: a RELINQUISHED that the disk refused was never said to anyone, and the VM is still ours. */
const advance = async ({ plan, record }: SourceOptions, life: Life, event: string): Promise<void> => {
  const state = next(SOURCE, life.state, event)
  await record(state, plan.epoch + (EPOCH_STEP[state] ?? 0), { manifestHash: life.manifestHash })
  life.state = state
}

/** QEMU's socket for the way back, once it is there. */
function createReturnPath() {
  let qemu: Socket | undefined
  return {
    write: (bytes: Uint8Array) => void qemu?.write(bytes),
    set: (socket: Socket) => {
      qemu = socket
    },
  }
}

async function openTalk(
  options: SourceOptions,
  life: Life,
  held: Held,
  onReturnPath: (bytes: Uint8Array) => void,
  signal: AbortSignal,
  fail: (error: GodwitError) => void,
): Promise<Conversation> {
  const stoppedAtMs = () => (options.plan.method === 'live' ? life.timeline.stopMs : undefined)
  held.talk = await openConversation({ ...options, stoppedAtMs, onReturnPath, signal, fail })
  return held.talk
}

/** What runs beside the story: the corridor, and the word that all is sent: over every meeting that comes to that, until one of them gets through. */
function createFlow(options: SourceOptions, talk: Conversation, life: Life, signal: AbortSignal, fail: (error: GodwitError) => void) {
  const { plan, log } = options
  const { peer } = talk
  /** Hashes of the manifests that were sent: one for each meeting in which all streams ended. */
  const sent = new Set<string>()
  const end = Promise.withResolvers<void>()
  const failUnlessLost = (error: unknown) => {
    const coded = toGodwitError(error)
    if (!isLoss(coded)) fail(coded)
  }
  const outgoing = createOutgoing({
    rootKey: talk.rootKey,
    pageStreams: plan.streams,
    compression: plan.compression,
    level: options.compressionLevel ?? 'auto',
    workers: options.workers ?? 1,
    onBlocks: blocks => void peer.send({ type: 'PAGES', blocks }).catch(failUnlessLost),
    onRamEnd: () => {
      life.timeline.ramEndMs = performance.now()
    },
    onEnd: manifest => {
      life.timeline.endMs = performance.now()
      sent.add(toHex(manifestHash(manifest)))
      peer.send({ type: 'EOS', attempt: talk.attempt, streams: manifestToMessage(manifest) }).then(end.resolve, failUnlessLost)
    },
    onOpaque: reason => log.warn('stream passes through as it is from here', { reason }),
    onLost: error => talk.onLost(error),
    fail,
  })
  // The target's QEMU has read to the end: so has ours, even where the end could not be seen in the bytes.
  void peer.expect(['SHUT'], { ms: LOAD_TIMEOUT_MS, what: 'SHUT' }).then(
    () => outgoing.finish(),
    () => {},
  )
  return { outgoing, sent, ended: raceAbort(end.promise, signal) }
}

/** Sends the offer; gives the answer that is to come. */
async function negotiate({ offer }: SourceOptions, peer: Peer): Promise<{ accepted: Promise<unknown> }> {
  await peer.send(offer)
  const accepted = peer.expect(['ACCEPT'], { ms: ACCEPT_TIMEOUT_MS, what: 'the answer to the offer' })
  // Whoever waits for it hears it; until then it must not be an unhandled one.
  accepted.catch(() => {})
  return { accepted }
}

/** Tells QEMU to migrate into our socket. Cold: the guest stops first, and its memory travels once. */
async function startQemu(
  options: SourceOptions,
  toQemu: ReturnType<typeof createReturnPath>,
  outgoing: Outgoing,
  signal: AbortSignal,
  fail: (error: GodwitError) => void,
): Promise<void> {
  const { plan, qmp, dir } = options
  const commands = qmpCommands(qmp)
  const path = join(dir, RUNTIME_FILES.outgoing)
  await rm(path, { force: true })
  const { server, connection } = await listenForQemu(path)
  try {
    await commands.setCapabilities({ events: true, 'return-path': true, 'validate-uuid': true, 'auto-converge': plan.method === 'live' })
    await commands.setParameters({ maxBandwidthBytesPerSecond: 0, downtimeLimitMs: 1, announceRounds: 0 })
    if (plan.method === 'cold') await commands.stop()
    // By its name in QEMU's own folder: QEMU may not be able to come here by the whole path.
    await commands.migrate(`unix:${RUNTIME_FILES.outgoing}`)
    const socket = await within(connection, { ms: QEMU_CONNECT_TIMEOUT_MS, what: "QEMU's migration socket", code: 'QEMU_TIMEOUT', signal })
    socket.on('error', () => {})
    toQemu.set(socket)
    signal.addEventListener('abort', () => socket.destroy(), { once: true })
    outgoing.feed(socket).catch(error => fail(toGodwitError(error, 'QEMU_STREAM')))
  } finally {
    server.close()
    await rm(path, { force: true })
  }
}

/** `completed` alone proves nothing; with `postmigrate` QEMU can no longer resume by itself (QEMU.md, fact 2). */
async function postmigrate({ qmp }: SourceOptions, signal: AbortSignal): Promise<void> {
  const commands = qmpCommands(qmp)
  await eventually(
    async () => {
      const { status, errorText } = await commands.queryMigrate()
      if (status === 'failed' || status === 'cancelled')
        throw new GodwitError('MIGRATION_FAILED', `QEMU says ${status}: ${errorText ?? ''}`)
      return status === 'completed' && (await commands.queryStatus()).status === 'postmigrate' ? true : undefined
    },
    { ms: POSTMIGRATE_TIMEOUT_MS, what: 'QEMU to end its side', everyMs: 4, code: 'QEMU_TIMEOUT', signal },
  )
}

/** The point of no return: durable first, then GRANT; from here the target decides whether it runs, and nothing else does. */
async function commit(options: SourceOptions, life: Life, talk: Conversation, hash: string): Promise<MessageOf<'RUNNING'>> {
  const { onProgress, log } = options
  // Later meetings go on counting from the last.
  const plan = { ...options.plan, attempt: talk.attempt }
  life.committing = true
  await advance(options, life, 'loaded')
  life.timeline.committedMs = performance.now()
  onProgress({ migrationId: plan.migrationId, side: 'source', phase: PHASE_COMMITTED })
  const grant = { type: 'GRANT', vm: plan.vm, epoch: plan.epoch + 1, migrationId: plan.migrationId, manifestHash: hash } as const
  const { answer, peer: last } = await handOver({ ...options, plan }, talk.peer, grant)
  life.timeline.runningMs = performance.now()
  if (answer.type === 'REFUSE') {
    await advance(options, life, 'refused')
    throw new GodwitError('MIGRATION_REFUSED', `the target gave the VM back: ${answer.error.code} ${answer.error.message}`)
  }
  // The VM runs there: nothing can fail any more.
  await advance(options, life, 'running').catch(error => {
    life.state = 'RETIRED'
    log.error('RETIRED could not be recorded', { error })
  })
  await last.finish().catch(() => {})
  return answer
}

/**
 * False when RELINQUISHED was refused by the disk, and ABORTED is too: then RELINQUISHED may be there or not. Until somebody reads it nothing runs and no
 * GRANT is sent. Before that an ABORTED that is refused changes nothing: the VM is ours by whatever the disk says.
 */
async function recordAborted(options: SourceOptions, life: Life): Promise<boolean> {
  const record = () => advance(options, life, 'abort')
  try {
    await (life.committing ? durably(record, options.log, options.stop) : record())
    return true
  } catch (error) {
    options.log.error('ABORTED could not be recorded', { error: error as Error })
    return !life.committing
  }
}

/** Ends a failed migration. Before the commit (or after the target's refusal) the VM runs here again; after it nothing here may run. */
async function giveUp(options: SourceOptions, life: Life, held: Held, error: GodwitError): Promise<GodwitError> {
  const { plan, log } = options
  held.outgoing?.abort(error)
  if (!sourceMayResume(life.state)) {
    log.error('the VM is handed over but the target has not answered: it stays paused here', { migrationId: plan.migrationId, error })
    return new GodwitError('MIGRATION_DOUBT', `handed over to ${plan.target}, which has not answered: ${error.message}`, { cause: error })
  }
  await Promise.race([
    held.talk?.peer.send({ type: 'ABORT', error: error.toJSON() }).catch(() => {}),
    new Promise(resolve => setTimeout(resolve, 500)),
  ])
  held.talk?.reset(error.code)
  if (life.state !== 'RECLAIMED' && !(await recordAborted(options, life))) {
    life.state = 'RELINQUISHED'
    log.error('the disk does not say whether the VM was handed over: it stays paused here', { migrationId: plan.migrationId, error })
    return new GodwitError('MIGRATION_DOUBT', `the disk refuses the record of the hand-over: ${error.message}`, { cause: error })
  }
  try {
    await resumeSource(options.qmp)
  } catch (cause) {
    // A QMP that ends comes before the news of QEMU's own end; then the VM has failed, which its registry must hear first.
    const exit = await Promise.race([options.qemuExited, sleep(QEMU_END_MS)])
    if (exit) return new GodwitError('QEMU_EXITED', `QEMU ended during the migration: ${exit.logTail}`, { cause: error })
    log.error('the VM could not be resumed at the source', { error: cause as Error })
    return new GodwitError('MIGRATION_FAILED', `${error.message}; and the VM could not be resumed`, { cause })
  }
  return error
}

/** The promise, or the signal's reason; never an unhandled rejection. */
function raceAbort<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  const raced = new Promise<T>((resolve, reject) => {
    // A signal that has fired already fires no more.
    if (signal.aborted) reject(signal.reason)
    promise.then(resolve, reject)
    signal.addEventListener('abort', () => reject(signal.reason), { once: true })
  })
  raced.catch(() => {})
  return raced
}
