// After a restart of the agent: what its records say of migrations that were under way, and what follows. QEMU has outlived the agent.
// Enters: the last record of each migration, the registry as it adopted what runs. Leaves: VMs taken back, hand-overs that go on, answers for sources.
// Always holds: a source whose last word is before RELINQUISHED still owns the VM and lets it run; from RELINQUISHED on it only asks, and one migration
// of a VM that stands there outweighs whatever others of it say; a target answers RUNNING exactly when it had made the VM its own, and otherwise
// writes REFUSED before it says so.
import { fromBase64 } from '../../crypto/bytes.ts'
import { type Certificate, decodeCertificate } from '../../crypto/certificate.ts'
import type { SiteKeys } from '../../crypto/identity.ts'
import type { Stream } from '../../transport/types.ts'
import type { Plan } from '../../wire/control.ts'
import { GodwitError, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { Registry } from '../vm/registry.ts'
import { handOver, refusal } from './hand-over.ts'
import type { Journal, OwnershipRecord } from './journal.ts'
import { answerSource, greetSource, type Meeting } from './meeting.ts'
import type { Message } from './messages.ts'
import { resumeSource } from './resume.ts'

export type RecoverOptions = {
  journal: Journal
  registry: Registry
  keys: SiteKeys
  certificate: Uint8Array
  log: Log
}

/** The source handed the VM over and has not heard the answer. */
export type Unanswered = {
  plan: Plan
  ask(openStream: (index: number, attempt: number) => Promise<Stream>, stop: AbortSignal): Promise<'moved' | 'kept'>
}
/** A target of an earlier life: answers later meetings. */
export type Answering = { plan: Plan; rejoin(attempt: number, stream: Stream): void }

export async function recover(options: RecoverOptions): Promise<{ unanswered: Unanswered[]; answering: Answering[] }> {
  const unanswered: Unanswered[] = []
  const answering: Answering[] = []
  const records = await options.journal.last()
  const isHandedOver = (vm: string) =>
    records.some(record => record.vm === vm && record.side === 'source' && record.state === 'RELINQUISHED')
  for (const record of records) {
    try {
      if (record.side === 'target') answering.push(await recoverTarget(options, record))
      else if (record.state === 'RELINQUISHED') unanswered.push(askAgain(options, record))
      else await recoverSource(options, record, isHandedOver(record.vm))
    } catch (error) {
      options.log.error('a migration could not be recovered', {
        migrationId: record.migrationId,
        vm: record.vm,
        state: record.state,
        error,
      })
    }
  }
  return { unanswered, answering }
}

const vmHere = ({ registry }: RecoverOptions, { vm }: OwnershipRecord) => registry.list().find(({ name }) => name === vm)
const recorderAfter = ({ journal }: RecoverOptions, record: OwnershipRecord) =>
  journal.recorder(record.plan, record.side, fromBase64(record.peerCertificate), record)

/** Everything at the source but RELINQUISHED: the paper is clear, only QEMU may not have been told. */
async function recoverSource(options: RecoverOptions, record: OwnershipRecord, isHandedOver: boolean): Promise<void> {
  const { registry, log } = options
  const vm = vmHere(options, record)
  if (!vm || vm.epoch > record.epoch) return
  if (record.state === 'RETIRED') {
    // It ended between the last record and its own clearing up.
    if (vm.state === 'paused' && vm.epoch < record.epoch) await registry.settle(record.vm, 'moved', record.epoch)
    return
  }
  const isOpen = record.state === 'OFFERED' || record.state === 'STREAMING' || record.state === 'QUIESCED'
  // Also where the VM runs already: a record left open would speak for a later migration's VM.
  if (isOpen) await recorderAfter(options, record)('ABORTED', record.plan.epoch)
  if (isHandedOver || vm.state !== 'paused' || !(isOpen || record.state === 'RECLAIMED')) return
  log.warn('taking a VM back that was never handed over', { vm: record.vm, state: record.state })
  await resumeSource(registry.machine(record.vm).qmp)
  await registry.settle(record.vm, 'kept', record.epoch)
}

/** Goes on asking where the last life stopped. Attempts only rise: they count seconds since the plan, which no earlier life has reached. */
function askAgain(options: RecoverOptions, record: OwnershipRecord): Unanswered {
  const { registry, keys, certificate, log } = options
  const { plan } = record
  const peer = decodeCertificate(fromBase64(record.peerCertificate))
  return {
    plan,
    async ask(openStream, stop) {
      const note = recorderAfter(options, record)
      const attempt = Math.max(plan.attempt + 1, Math.ceil((Date.now() - plan.createdAt) / 1000))
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
        sourceCertificate: certificate,
        targetCertificate: fromBase64(record.peerCertificate),
      }
      const { answer } = await handOver({ ...meeting, peerBoxPublic: peer.boxPublic, openStream, stop, log }, undefined, grant)
      if (answer.type === 'RUNNING') {
        await note('RETIRED', plan.epoch + 1)
        if (vmHere(options, record)) await registry.settle(plan.vm, 'moved', plan.epoch + 1)
        return 'moved'
      }
      await note('RECLAIMED', plan.epoch + 2)
      await resumeSource(registry.machine(plan.vm).qmp)
      await registry.settle(plan.vm, 'kept', plan.epoch + 2)
      return 'kept'
    },
  }
}

/** Whether the VM became ours decides; if it did not, it never will: REFUSED goes on paper before anyone hears it. */
async function recoverTarget(options: RecoverOptions, record: OwnershipRecord): Promise<Answering> {
  const { registry, keys, certificate, log } = options
  const { plan } = record
  const isOurs = (await registry.highestEpoch(plan.vm)) > plan.epoch
  if (!isOurs && record.state !== 'REFUSED') await recorderAfter(options, record)('REFUSED', plan.epoch + 1)
  const source: Certificate = decodeCertificate(fromBase64(record.peerCertificate))
  const meeting = {
    keys,
    sourceCertificate: fromBase64(record.peerCertificate),
    targetCertificate: certificate,
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
        log.warn('a later meeting failed', { migrationId: plan.migrationId, error: toGodwitError(error) })
        stream.reset('failed')
      })
    },
  }
}

/** RUNNING exactly when the VM had become ours; a source that would go on with its transfer has nothing here to go on with. */
function wordFor(first: Meeting['first'], plan: Plan, isOurs: boolean): Message {
  if (first.type === 'CONTINUE') {
    if (isOurs) throw new GodwitError('MIGRATION_STATE', 'the VM is ours: nothing of it goes on')
    return refusal()
  }
  const isGrant = first.migrationId === plan.migrationId && first.epoch === plan.epoch + 1
  if (!isGrant) throw new GodwitError('EPOCH_STALE', 'GRANT is for another migration or epoch')
  return isOurs ? { type: 'RUNNING', resumeMs: 0 } : refusal()
}
