// After a restart of the agent: what its records say of migrations that were under way, and what follows. QEMU has
// outlived the agent.
// Enters: the last record of each migration, the registry as it adopted what runs. Leaves: VMs taken back, hand-overs
// that go on, answers for sources.
// Always holds: a source whose last word is before RELINQUISHED still owns the VM and lets it run; from RELINQUISHED on
// it only asks, and one migration of a VM that stands there outweighs whatever others of it say; a target answers
// RUNNING exactly when it had made the VM its own, and otherwise writes REFUSED before it says so. Recovering twice is
// recovering once.
import { fromBase64 } from '../../crypto/bytes.ts'
import { type Certificate, decodeCertificate } from '../../crypto/certificate.ts'
import type { SiteKeys } from '../../crypto/identity.ts'
import type { Stream } from '../../transport/types.ts'
import type { Plan } from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { Registry } from '../registry/registry.ts'
import { handOver, refusal } from './hand-over.ts'
import type { Journal, OwnershipRecord } from './journal.ts'
import { answerSource, greetSource, type TargetMeeting } from './meeting.ts'
import type { Message } from './messages.ts'
import { resumeSource } from './resume.ts'
import type { TargetState } from './states.ts'
import type { LoadedVm } from './target.ts'

type RecoverOptions = {
  journal: Journal
  registry: Registry
  keys: SiteKeys
  certificate: Uint8Array
  log: Log
}

/** The source handed the VM over and has not heard the answer. */
export type Unanswered = {
  plan: Plan
  ask(
    openStream: (index: number, attempt: number) => Promise<Stream>,
    stop: AbortSignal,
    onUnanswered?: (error: GodwitError) => void,
  ): Promise<'moved' | 'kept'>
}
/** A target of an earlier life: answers later meetings. */
export type Answering = { plan: Plan; rejoin(attempt: number, stream: Stream): void }

/** A VM that an earlier life of this agent had loaded, paused in its QEMU: its source may still hand it over. */
export type LoadedWaiting = { plan: Plan; sourceCertificate: Uint8Array; loaded: LoadedVm; last: OwnershipRecord }
export type Left = { unanswered: Unanswered[]; answering: Answering[]; waiting: LoadedWaiting[] }

const MAY_BE_GRANTED: ReadonlySet<string> = new Set<TargetState>(['LOADED', 'GRANTED'])
/** Only after GRANTED is on paper does the registry make the VM ours. */
const MAY_BE_OURS: ReadonlySet<string> = new Set<TargetState>(['GRANTED', 'RESUMING', 'RUNNING'])

/** The VMs whose waiting QEMUs are still of use: asked before the registry takes up what runs. */
export async function loadedVms(journal: Journal): Promise<Set<string>> {
  const records = await journal.last()
  return new Set(records.flatMap(({ side, state, vm }) => (side === 'target' && MAY_BE_GRANTED.has(state) ? [vm] : [])))
}

export async function recoverMigrations(options: RecoverOptions): Promise<Left> {
  const unanswered: Unanswered[] = []
  const answering: Answering[] = []
  const waiting: LoadedWaiting[] = []
  const records = await options.journal.last()
  const asTarget = records.filter(({ side }) => side === 'target')
  for (const record of asTarget) {
    const loaded = await loadedVm(options, record)
    if (loaded) waiting.push({ plan: record.plan, sourceCertificate: fromBase64(record.peerCertificate), loaded, last: record })
  }
  for (const record of asTarget) {
    if (waiting.some(({ last }) => last === record)) continue
    await recoverTarget(options, record, waiting).then(
      earlier => answering.push(earlier),
      error => notRecovered(options, record, error),
    )
  }
  const vms = new Set([...records.map(record => record.vm), ...options.registry.list().map(({ name }) => name)])
  for (const vm of vms) unanswered.push(...(await recoverVm(options, vm, records)))
  await forgetOld(options)
  return { unanswered, answering, waiting }
}

/** What still decides stays: a hand-over that is not answered, and all of a VM that is not settled. */
async function forgetOld({ journal, registry, log }: RecoverOptions): Promise<void> {
  const unsettled = new Set(registry.list().flatMap(({ name, doubt }) => (doubt ? [name] : [])))
  const mayGo = ({ state, vm }: OwnershipRecord) => state !== 'RELINQUISHED' && !unsettled.has(vm)
  await journal.prune(mayGo).catch(error => log.warn('old records could not be removed', { error }))
}

/** What the records say of a VM that this site has or had: it is taken back, forgotten, or asked about (the result). */
export async function recoverVm(options: RecoverOptions, vm: string, records?: OwnershipRecord[]): Promise<Unanswered[]> {
  const given = (records ?? (await options.journal.last())).filter(record => record.vm === vm && record.side === 'source')
  const hanging: OwnershipRecord[] = []
  for (const record of given) if (record.state === 'RELINQUISHED' && !(await isSettled(options, record))) hanging.push(record)
  // An older migration's record may have been left open: it must not take back what a later one has given away and not
  // cleared up yet.
  const here = options.registry.list().find(({ name }) => name === vm)
  const isGone = here !== undefined && given.some(({ state, epoch }) => state === 'RETIRED' && epoch > here.epoch)
  for (const record of given) {
    if (record.state === 'RELINQUISHED') continue
    await recoverSource(options, record, hanging.length > 0 || isGone).catch(error => notRecovered(options, record, error))
  }
  if (hanging.length === 0) await neverOffered(options, vm, given).catch(error => options.log.error('VM stays in doubt', { vm, error }))
  return hanging.map(record => askAgain(options, record))
}

/**
 * The registry has let the VM go at this epoch, or has had it back since: RUNNING was heard, and only RETIRED could not
 * be written.
 */
async function isSettled(options: RecoverOptions, record: OwnershipRecord): Promise<boolean> {
  if ((await options.registry.highestEpoch(record.vm)) < record.epoch) return false
  await recorderAfter(options, record)('RETIRED', record.epoch)
  return true
}

/**
 * The agent died before the first record of a migration: in doubt by the registry's word, and the journal, whole, knows
 * of nothing that was given away.
 */
async function neverOffered({ registry, journal, log }: RecoverOptions, name: string, given: OwnershipRecord[]): Promise<void> {
  const vm = registry.list().find(one => one.name === name)
  // Epoch 0: the registry's own record was lost, which is another doubt.
  if (!vm?.doubt || vm.epoch === 0 || journal.isAltered || given.some(({ epoch }) => epoch > vm.epoch)) return
  log.info('VM kept: it was never offered to the target', { vm: name })
  if (vm.pid !== undefined) await resumeSource(registry.machine(name).qmp)
  await registry.settle(name, 'kept', vm.epoch)
}

function notRecovered({ log }: RecoverOptions, { migrationId, vm, state }: OwnershipRecord, error: unknown): void {
  log.error('migration could not be recovered', { migrationId, vm, state, error })
}

const vmHere = ({ registry }: Pick<RecoverOptions, 'registry'>, { vm }: Pick<OwnershipRecord, 'vm'>) =>
  registry.list().find(({ name }) => name === vm)
const recorderAfter = ({ journal }: Pick<RecoverOptions, 'journal'>, record: OwnershipRecord) =>
  journal.recorder(record.plan, record.side, fromBase64(record.peerCertificate), record)

/** Everything at the source but RELINQUISHED: the paper is clear, only QEMU or the registry may not have been told. */
async function recoverSource(options: RecoverOptions, record: OwnershipRecord, isHandedOver: boolean): Promise<void> {
  const { registry } = options
  const isOpen = record.state === 'OFFERED' || record.state === 'STREAMING' || record.state === 'QUIESCED'
  // Also where the VM runs already, or is another's by now: a record left open would speak for a later migration's VM.
  if (isOpen) await recorderAfter(options, record)('ABORTED', record.plan.epoch)
  const vm = vmHere(options, record)
  if (!vm || vm.epoch > record.epoch) return
  const isBehind = vm.epoch < record.epoch
  // It ended between the last record and its own clearing up.
  if (record.state === 'RETIRED') return isBehind ? await registry.settle(record.vm, 'moved', record.epoch, leftFor(record)) : undefined
  if (isHandedOver || !(vm.doubt || isBehind)) return
  await takeBack(options, record, Math.max(record.plan.epoch, record.state === 'RECLAIMED' ? record.epoch : 0))
}

const leftFor = ({ plan, peerCertificate }: OwnershipRecord) => ({
  peer: { site: plan.target, serial: decodeCertificate(fromBase64(peerCertificate)).serial },
})

/** The VM is ours at this epoch: its guest runs, where it still has a QEMU, and the registry knows. */
async function takeBack(
  options: Pick<RecoverOptions, 'registry' | 'log'>,
  record: Pick<OwnershipRecord, 'vm' | 'migrationId' | 'state'>,
  epoch: number,
): Promise<void> {
  const { registry, log } = options
  const vm = vmHere(options, record)
  if (!vm) return
  log.info('VM kept: the migration ended before the hand-over', {
    vm: record.vm,
    migrationId: record.migrationId,
    state: record.state,
    epoch,
  })
  if (vm.pid !== undefined) await resumeSource(registry.machine(record.vm).qmp)
  await registry.settle(record.vm, 'kept', epoch)
}

/**
 * Without the other site's word, because the root has signed that it cannot run the VM: on paper first, with that
 * signature, if there is a paper.
 */
export async function reclaim(
  options: Pick<RecoverOptions, 'registry' | 'journal' | 'log'>,
  { vm, epoch, record, fencing }: { vm: string; epoch: number; record: OwnershipRecord | undefined; fencing: string },
): Promise<void> {
  if (record) await recorderAfter(options, record)('RECLAIMED', epoch, { fencing })
  await takeBack(options, { vm, migrationId: record?.migrationId ?? '', state: 'RECLAIMED' }, epoch)
}

/**
 * The certificate with which this site began the migration: it may have been renewed since, and the other site knows
 * that one.
 */
export const ownCertificate = (record: OwnershipRecord | undefined, now: Uint8Array): Uint8Array =>
  record?.ownCertificate === undefined ? now : fromBase64(record.ownCertificate)

/**
 * More than one life makes: it asks every 5 s (hand-over.ts), so this is a year, and a wire/control.ts number holds 300
 * lives like that.
 */
const ATTEMPTS_OF_A_LIFE = 7_000_000

/**
 * Goes on asking where the last life stopped. Attempts only rise: each life writes down from where, before its first
 * meeting.
 */
function askAgain(options: RecoverOptions, record: OwnershipRecord): Unanswered {
  const { registry, keys, certificate, log } = options
  const { plan } = record
  const peer = decodeCertificate(fromBase64(record.peerCertificate))
  return {
    plan,
    async ask(openStream, stop, onUnanswered) {
      const note = recorderAfter(options, record)
      const attempt = (record.attempt ?? plan.attempt) + ATTEMPTS_OF_A_LIFE
      await note('RELINQUISHED', plan.epoch + 1, { attempt })
      const grant = {
        type: 'GRANT',
        vm: plan.vm,
        epoch: plan.epoch + 1,
        migrationId: plan.migrationId,
        manifestHash: record.manifestHash ?? '',
      } as const
      const meeting = {
        plan: { ...plan, attempt },
        keys,
        sourceCertificate: ownCertificate(record, certificate),
        targetCertificate: fromBase64(record.peerCertificate),
      }
      const patienceMs = Number.POSITIVE_INFINITY
      const { answer } = await handOver(
        { ...meeting, peerBoxPublic: peer.boxPublic, openStream, stop, onUnanswered, patienceMs, log },
        undefined,
        grant,
      )
      if (answer.type === 'RUNNING') {
        await note('RETIRED', plan.epoch + 1)
        if (vmHere(options, record)) await registry.settle(plan.vm, 'moved', plan.epoch + 1, leftFor(record))
        return 'moved'
      }
      await note('RECLAIMED', plan.epoch + 2)
      await takeBack(options, record, plan.epoch + 2)
      return 'kept'
    },
  }
}

/**
 * The loaded VM of this record, if its QEMU has outlived the agent and is what the record says: whole, paused, not ours
 * yet.
 */
async function loadedVm({ registry, log }: RecoverOptions, record: OwnershipRecord): Promise<LoadedVm | undefined> {
  const { vm: name, state, manifestHash, plan } = record
  if (!(state === 'LOADED' || state === 'GRANTED') || !manifestHash) return undefined
  if (registry.list().find(one => one.name === name)?.state !== 'incoming' || (await registry.highestEpoch(name)) > plan.epoch)
    return undefined
  try {
    const vm = registry.machine(name)
    const { status, running } = await vm.commands.queryStatus()
    log.info('loaded VM waits for its source', { migrationId: plan.migrationId, vm: name, state, status })
    return running || status === 'inmigrate' ? undefined : { state, vm, manifestHash }
  } catch (error) {
    log.warn('loaded VM is lost', { vm: name, error })
    return undefined
  }
}

/**
 * Whether the VM became ours by this migration decides; if it did not, it never will: REFUSED goes on paper before
 * anyone hears it. A migration that was left open may be followed by one that moved the VM at the same epoch, or that
 * has it loaded here.
 */
async function recoverTarget(options: RecoverOptions, record: OwnershipRecord, waiting: LoadedWaiting[]): Promise<Answering> {
  const { registry, keys, certificate, log } = options
  const { plan } = record
  const isOurs = MAY_BE_OURS.has(record.state) && (await registry.highestEpoch(plan.vm)) > plan.epoch
  if (!isOurs && record.state !== 'REFUSED') {
    await recorderAfter(options, record)('REFUSED', plan.epoch + 1)
    if (!waiting.some(({ plan: { vm } }) => vm === plan.vm)) await registry.dropIncoming(plan.vm)
  }
  const source: Certificate = decodeCertificate(fromBase64(record.peerCertificate))
  const meeting = {
    keys,
    sourceCertificate: fromBase64(record.peerCertificate),
    targetCertificate: ownCertificate(record, certificate),
    peerBoxPublic: source.boxPublic,
    log,
  }
  return {
    plan,
    rejoin(attempt, stream) {
      const answer = async () => {
        const met = await greetSource({ ...meeting, plan: { ...plan, attempt }, stream })
        await answerSource(met, wordFor(met.first, plan, isOurs))
      }
      answer().catch(error => {
        log.warn('later meeting failed', { migrationId: plan.migrationId, error: toGodwitError(error) })
        stream.reset('failed')
      })
    },
  }
}

/**
 * RUNNING exactly when the VM had become ours; a source that would go on with its transfer has nothing here to go on
 * with.
 */
function wordFor(first: TargetMeeting['first'], plan: Plan, isOurs: boolean): Message {
  if (first.type === 'CONTINUE') {
    if (isOurs) throw new GodwitError('MIGRATION_STATE', 'this site owns the VM: the migration does not continue')
    return refusal()
  }
  const isGrant = first.migrationId === plan.migrationId && first.epoch === plan.epoch + 1
  if (!isGrant) throw new GodwitError('EPOCH_STALE', 'GRANT is for another migration or epoch')
  return isOurs ? { type: 'RUNNING', resumeMs: 0 } : refusal()
}
