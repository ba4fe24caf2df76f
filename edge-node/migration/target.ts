// A migration as its target lives it, from top to bottom:
//
//   OFFER -> preflight -> QEMU waits paused (-incoming defer -S) -> ACCEPT -> pages and skeleton -> loaded, manifest right -> LOADED -> GRANT -> cont -> RUNNING
//
// Enters: a plan, relay streams as they come, a way to make and drop a waiting QEMU. Leaves: the VM running here, or nothing of it.
// Always holds: the guest runs only after GRANT for this VM, epoch, migration and manifest; until RESUMING is recorded the target may refuse,
// after that it only goes forward; it never runs because of a timeout.
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { toHex } from '../../crypto/bytes.ts'
import type { SiteKeys } from '../../crypto/identity.ts'
import { compareManifests, type Manifest, manifestHash } from '../../crypto/manifest.ts'
import { within } from '../../ops/deadline.ts'
import type { Stream } from '../../transport/types.ts'
import type { MigrationProgress, Plan } from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { FRAME } from '../../wire/types.ts'
import { openSession, type Session } from '../channel/session.ts'
import type { RunningVm } from '../vm/machine.ts'
import { answerGrant, refusal } from './hand-over.ts'
import { createIncoming, type Incoming } from './incoming.ts'
import type { Message, MessageOf } from './messages.ts'
import { createPeer, encodeAck, type Peer } from './peer.ts'
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
  dir: string
  workers?: number
  log: Log
  /** How long to wait for GRANT, ms. Default 10 min. */
  grantPatienceMs?: number | undefined
  /** For tests: called with the loaded, still paused VM before LOADED is sent. */
  onLoaded?: (vm: RunningVm) => Promise<void>
}

export type TargetMigration = {
  /** Resolves when the VM runs here; otherwise a GodwitError, with nothing of it left here. */
  readonly done: Promise<void>
  /** A relay stream of this migration (0 control, 1 skeleton, 2.. pages). */
  accept(index: number, stream: Stream): void
  /** The source meets us anew, because it has not heard our answer: also long after `done`. */
  rejoin(attempt: number, stream: Stream): void
  /** Refuses while that is still allowed. MIGRATION_LATE once the target runs it. */
  cancel(reason?: GodwitError): void
}

const SOURCE_APPEARS_TIMEOUT_MS = 60_000
const STREAM_TIMEOUT_MS = 24 * 3_600_000
/** How long a loaded VM waits for a source that is lost before it is refused (leases only on what is not running). */
const GRANT_PATIENCE_MS = 10 * 60_000
const LOAD_TIMEOUT_MS = 120_000
const INCOMING_TIMEOUT_MS = 10_000
const QEMU_END_MS = 500

/** Starts waiting for the source's streams; never throws. */
export function startTarget(options: TargetOptions): TargetMigration {
  const failure = new AbortController()
  const control = arrival<Stream>()
  const life: Life = { state: 'IDLE', waiting: [], grants: arrival() }
  const done = run(options, life, control.promise, failure.signal, error => failure.abort(error))
  const settled = done.catch(() => {})
  return {
    done,
    rejoin: (attempt, stream) => void meetAgain(options, life, settled, attempt, stream),
    accept(index, stream) {
      if (failure.signal.aborted) return stream.reset('migration has ended')
      if (index === 0) control.arrive(stream)
      else if (life.incoming) life.incoming.accept(index, stream)
      else life.waiting.push({ index, stream })
    },
    cancel(reason = new GodwitError('MIGRATION_CANCELLED')) {
      if (life.state === 'RESUMING' || life.state === 'RUNNING') throw new GodwitError('MIGRATION_LATE')
      failure.abort(reason)
    },
  }
}

type Life = {
  state: TargetState
  incoming?: Incoming
  waiting: { index: number; stream: Stream }[]
  /** The grant, over whichever meeting it comes. */
  grants: ReturnType<typeof arrival<MessageOf<'GRANT'>>>
  manifest?: Manifest
  attempt?: number
}
type Fail = (error: GodwitError) => void

const OUTLIVES_MEETING: ReadonlySet<TargetState> = new Set<TargetState>(['LOADED', 'GRANTED', 'RESUMING', 'RUNNING'])

async function run(options: TargetOptions, life: Life, control: Promise<Stream>, signal: AbortSignal, fail: Fail): Promise<void> {
  const held: { session?: Session; peer?: Peer; reserved?: boolean } = {}
  try {
    const stream = await within(control, {
      ms: SOURCE_APPEARS_TIMEOUT_MS,
      what: "the source's control stream",
      code: 'MIGRATION_TIMEOUT',
      signal,
    })
    signal.addEventListener('abort', () => setTimeout(() => stream.reset('aborted'), 500), { once: true })
    held.session = await openSession({ side: 'target', stream, ...options })
    held.peer = createPeer({
      session: held.session,
      signal,
      fail: (error, how) => {
        // Once LOADED, a lost meeting decides nothing: the source may have handed the VM over already. It comes back, or the grant's deadline passes.
        if (how === 'lost' && OUTLIVES_MEETING.has(life.state)) return options.log.warn('the source is lost: waiting for it', { error })
        fail(error)
      },
    })
    const offer = await held.peer.expect(['OFFER'], { ms: SOURCE_APPEARS_TIMEOUT_MS, what: 'the offer' })
    await advance(options, life, 'offer')
    held.reserved = true
    const vm = await options.reserve(offer, options.plan)
    void vm.exited.then(({ logTail }) => fail(new GodwitError('QEMU_EXITED', `the target's QEMU ended: ${logTail}`)))
    life.incoming = await openIncoming(options, held.session, held.peer, vm, fail)
    for (const { index, stream: data } of life.waiting.splice(0)) life.incoming.accept(index, data)
    await held.peer.send({ type: 'ACCEPT' })

    const manifest = await receive(options, life, life.incoming, held.peer, vm, signal)
    await takeOver(options, life, held.peer, vm, manifest, signal)
  } catch (error) {
    throw await giveUp(options, life, held, signal.aborted ? toGodwitError(signal.reason) : toGodwitError(error, 'MIGRATION_FAILED'))
  }
}

const advance = async ({ plan, record }: TargetOptions, life: Life, event: string): Promise<void> => {
  const state = next(TARGET, life.state, event)
  await record(state, plan.epoch + 1, { manifestHash: life.manifest && toHex(manifestHash(life.manifest)) })
  life.state = state
}

/** QEMU listens, we connect, guest memory is opened: ready for the first byte. */
async function openIncoming(options: TargetOptions, session: Session, peer: Peer, vm: RunningVm, fail: Fail): Promise<Incoming> {
  const path = join(options.dir, 'incoming.sock')
  await vm.commands.setCapabilities({ events: true, 'return-path': true })
  await vm.commands.setParameters({ announceRounds: 0 })
  await vm.commands.migrateIncoming(`unix:${path}`)
  const qemu = await connectTo(path)
  qemu.on('error', () => {})
  const quietly = (sent: Promise<void>) => void sent.catch(() => {})
  return createIncoming({
    session,
    pageStreams: options.plan.streams,
    qemu,
    memory: { fd: await vm.memoryFd(), bytes: vm.memoryBytes },
    workers: options.workers ?? 1,
    onAck: total => quietly(peer.sendRaw(FRAME.ACK, encodeAck(total))),
    onReturnPath: bytes => quietly(peer.sendRaw(FRAME.RETURN_PATH, bytes)),
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
): Promise<Manifest> {
  const { blocks } = await peer.expect(['PAGES'], { ms: STREAM_TIMEOUT_MS, what: "the source's memory layout" })
  await advance(options, life, 'pages')
  incoming.begin(blocks)
  options.onProgress({ migrationId: options.plan.migrationId, side: 'target', phase: 'receiving' })

  const verdict = await within(incoming.shut, { ms: STREAM_TIMEOUT_MS, what: "QEMU's load", code: 'QEMU_LOAD', signal })
  if (verdict.code !== 0) throw new GodwitError('QEMU_LOAD', `the target's QEMU did not accept the state: ${await vm.logTail()}`)
  await peer.send({ type: 'SHUT', code: verdict.code })
  const eos = await peer.expect(['EOS'], { ms: LOAD_TIMEOUT_MS, what: 'the manifest' })
  const manifest = await within(incoming.ended, { ms: LOAD_TIMEOUT_MS, what: 'the end of all streams', code: 'MANIFEST_MISMATCH', signal })
  compareManifests(
    { streams: eos.streams.map(({ index, records, digest }) => ({ index, records, digest: Buffer.from(digest, 'hex') })) },
    manifest,
  )
  await notInMigrate(vm)
  await options.onLoaded?.(vm)
  await advance(options, life, 'loaded')
  await peer.sendRaw(FRAME.RETURN_PATH, verdict.bytes)
  await peer.send({ type: 'LOADED', manifestHash: toHex(manifestHash(manifest)), stateMs: incoming.stateMs(), loadMs: incoming.loadMs() })
  return manifest
}

/** `cont` during `inmigrate` would only set a flag; the load must be over (OWNERSHIP: never while inmigrate). */
async function notInMigrate(vm: RunningVm): Promise<void> {
  const { status } = await vm.commands.queryStatus()
  if (status === 'inmigrate') throw new GodwitError('QEMU_LOAD', 'the target QEMU still says inmigrate after its SHUT')
}

/** GRANT -> RESUMING -> cont -> RUNNING. */
async function takeOver(
  options: TargetOptions,
  life: Life,
  peer: Peer,
  vm: RunningVm,
  manifest: Manifest,
  signal: AbortSignal,
): Promise<void> {
  const { plan, log } = options
  life.manifest = manifest
  const patienceMs = options.grantPatienceMs ?? GRANT_PATIENCE_MS
  peer.expect(['GRANT'], { ms: patienceMs, what: 'GRANT' }).then(life.grants.arrive, () => {})
  const grant = await within(life.grants.promise, { ms: patienceMs, what: 'GRANT from the source', code: 'MIGRATION_TIMEOUT', signal })
  checkGrant(plan, manifest, grant)
  await advance(options, life, 'grant')
  const startMs = performance.now()
  await options.commit(plan.epoch + 1)
  await advance(options, life, 'resume')
  await vm.commands.cont()
  const resumeMs = performance.now() - startMs
  // If this does not arrive the source asks again (rejoin).
  await peer.send({ type: 'RUNNING', resumeMs }).catch(error => log.warn('RUNNING was not heard', { error }))
  await vm.commands.announceSelf().catch(error => log.warn('no announcement to switches', { error }))
  await advance(options, life, 'running')
  await peer.finish().catch(() => {})
}

function checkGrant(plan: Plan, manifest: Manifest, grant: MessageOf<'GRANT'>): void {
  const isOurs = grant.vm === plan.vm && grant.migrationId === plan.migrationId && grant.manifestHash === toHex(manifestHash(manifest))
  if (!isOurs) throw new GodwitError('MIGRATION_STATE', 'GRANT is for another VM, migration or content')
  if (grant.epoch !== plan.epoch + 1) throw new GodwitError('EPOCH_STALE', `GRANT for epoch ${grant.epoch}, expected ${plan.epoch + 1}`)
}

/** A later meeting: the grant may come (again), the answer is what became of the VM here. */
async function meetAgain(options: TargetOptions, life: Life, settled: Promise<void>, attempt: number, stream: Stream): Promise<void> {
  const { plan, log } = options
  if (attempt <= (life.attempt ?? plan.attempt)) return stream.reset('attempts only rise')
  life.attempt = attempt
  try {
    await answerGrant({ ...options, plan: { ...plan, attempt }, stream }, async grant => {
      if (life.manifest) {
        checkGrant(plan, life.manifest, grant)
        life.grants.arrive(grant)
        await settled
      }
      return life.state === 'RUNNING' || life.state === 'RESUMING' ? { type: 'RUNNING', resumeMs: 0 } : refusal()
    })
  } catch (error) {
    log.warn('a later meeting failed', { migrationId: plan.migrationId, attempt, error })
    stream.reset('failed')
  }
}

/** Before RESUMING nothing of the VM stays here; from RESUMING on it is ours whatever happened to the messages. */
async function giveUp(
  options: TargetOptions,
  life: Life,
  held: { session?: Session; peer?: Peer; reserved?: boolean },
  error: GodwitError,
): Promise<GodwitError> {
  const { log, plan } = options
  if (life.state === 'RESUMING' || life.state === 'RUNNING') {
    log.error('the VM is ours, but not everything went well after that', { migrationId: plan.migrationId, error })
    return error
  }
  // Why, before the streams end: the source would see resets only. Once LOADED it hears nothing but REFUSE, when nothing is left here.
  if (life.state === 'RESERVED' || life.state === 'RECEIVING') await tell(held.peer, { type: 'ABORT', error: error.toJSON() })
  life.incoming?.abort(error)
  for (const { stream } of life.waiting.splice(0)) stream.reset(error.code)
  if (life.state !== 'IDLE')
    await advance(options, life, 'abort').catch(cause => log.error('could not record the refusal', { error: cause as Error }))
  if (held.reserved) await options.drop().catch(cause => log.error('could not drop the waiting VM', { error: cause as Error }))
  await tell(held.peer, { type: 'REFUSE', error: error.toJSON() })
  setTimeout(() => held.session?.reset(error.code), 1000).unref()
  return error
}

/** Best effort: the other site may be gone. */
async function tell(peer: Peer | undefined, message: Message): Promise<void> {
  await Promise.race([peer?.send(message).catch(() => {}), new Promise(resolve => setTimeout(resolve, 500))])
}

async function connectTo(path: string): Promise<Socket> {
  const socket = connect(path)
  await within(
    new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', reject)
    }),
    { ms: INCOMING_TIMEOUT_MS, what: "QEMU's incoming socket", code: 'QEMU_TIMEOUT' },
  )
  return socket
}

function arrival<T>(): { promise: Promise<T>; arrive: (value: T) => void } {
  let arrive: (value: T) => void = () => {}
  const promise = new Promise<T>(resolve => {
    arrive = resolve
  })
  return { promise, arrive }
}
