// A migration at its target: the engine of migration/target.ts with this node's registry, journal and link. Enters: a
// plan, the verified source; or a VM that an earlier life of this agent had loaded. Leaves: an entry for its slot
// (slots.ts), whose result is the migration's end.
// Always holds: the VM that is offered is the VM of the plan; its files are compared before its QEMU starts and once
// more as QEMU has them open.
import { decodeCertificate } from '../crypto/certificate.ts'
import type { VerifiedSite } from '../identity/peer.ts'
import { sleep } from '../ops/deadline.ts'
import type { Plan } from '../wire/control.ts'
import { type ErrorBody, GodwitError, toGodwitError } from '../wire/errors.ts'
import { awaitImages } from './await-images.ts'
import type { OwnershipRecord } from './migration/journal.ts'
import { type LoadedWaiting, ownCertificate } from './migration/recover.ts'
import { startTarget, type TargetOptions } from './migration/target.ts'
import { onBreach, type RunOptions, resultOf } from './runs.ts'
import type { SlotEntry } from './slots.ts'
import { parseNeeds, type VmNeeds } from './vm/preflight.ts'

const LOOK_MS = 2_000

export async function runTarget(options: RunOptions, plan: Plan, source: VerifiedSite, earlier?: LoadedWaiting): Promise<SlotEntry> {
  const target = startTarget(targetOptions(options, plan, source, earlier?.last), earlier?.loaded)
  const { registry, log } = options
  // The guest may have powered off as soon as it ran: the VM is ours all the same, and is listed as it is.
  const look = () => registry.look(plan.vm).catch(error => log.warn('state of the guest is unknown', { vm: plan.vm, error }))
  // A QEMU that does not answer must not delay the result.
  const looked = () => Promise.race([look(), sleep(LOOK_MS)])
  const done = target.done.then(looked).then(() => undefined)
  const { cancel, stage, stuck } = target
  return { side: 'target', peer: source, target, cancel, stage, stuck, result: resultOf(options, plan, 'target', done) }
}

/** A VM that an earlier life of this agent had loaded: it waits for its grant. */
export const waitOn = (options: RunOptions, earlier: LoadedWaiting): Promise<SlotEntry> => {
  const { plan, sourceCertificate: bytes } = earlier
  return runTarget(options, plan, { bytes, certificate: decodeCertificate(bytes) }, earlier)
}

function targetOptions(options: RunOptions, plan: Plan, source: VerifiedSite, last?: OwnershipRecord): TargetOptions {
  const { identity, registry, link, log } = options
  /** Of a VM that does not run. */
  let stopped: VmNeeds['stopped']
  const peer = { site: plan.source, serial: source.certificate.serial }
  return {
    plan,
    keys: identity.keys,
    sourceCertificate: source.bytes,
    targetCertificate: ownCertificate(last, identity.certificate),
    peerBoxPublic: source.certificate.boxPublic,
    async reserve({ needs: json, copies }, _, how) {
      const needs = parseNeeds(json)
      if (needs.spec.name !== plan.vm)
        throw new GodwitError('MIGRATION_STATE', `the source offers ${needs.spec.name}, the plan is for ${plan.vm}`)
      if (needs.method !== plan.method)
        throw new GodwitError('MIGRATION_STATE', `the source offers method ${needs.method}, the plan has ${plan.method}`)
      stopped = needs.stopped
      await registry.checkIncoming(needs, how)
      await awaitImages(registry, needs, how)
      const room = { signal: how.signal, usesCopy: copies }
      const epoch = plan.epoch + 1
      const vm = stopped
        ? await registry.reserveStopped(needs.spec, epoch, room)
        : await registry.reserveIncoming(needs.spec, epoch, needs.accelerator, room)
      // Its names may have led to other files since they were read.
      await registry.checkHeld(plan.vm, needs, how)
      return vm ?? undefined
    },
    openDisks: how => registry.comingDisks(plan.vm, { epoch: plan.epoch, peer }, how),
    checkFiles: () => registry.assertFilesUnchanged(plan.vm),
    drop: () => registry.dropIncoming(plan.vm),
    commit: epoch => registry.commitIncoming(plan.vm, epoch),
    start: () => (stopped === 'starts' ? startHere(options, plan) : Promise.resolve(undefined)),
    record: options.journal.recorder(plan, 'target', source.bytes, last),
    onBreach: onBreach(options, plan, 'target'),
    onProgress: progress => link().progress(progress),
    memoryPath: options.memoryPath,
    log: log.child({ migrationId: plan.migrationId }),
    // The source decides, so the target waits longer than a source with the same configuration.
    sourceAwayMs: 1500 * options.config.limits.reconnectSeconds,
    grantPatienceMs: options.waits?.grantMs,
    silenceMs: options.waits?.silenceMs,
    ...(options.onLoaded ? { onLoaded: options.onLoaded } : {}),
  }
}

/** The VM is this site's already: why it does not start is for people to read, and changes nothing of that. */
async function startHere({ registry, log }: RunOptions, { vm, migrationId }: Plan): Promise<ErrorBody | undefined> {
  try {
    await registry.start(vm)
    return undefined
  } catch (thrown) {
    const error = toGodwitError(thrown)
    log.error('VM has moved, but does not start', { migrationId, vm, error })
    return error.toJSON()
  }
}
