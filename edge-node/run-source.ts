// A migration at its source: the engine of migration/source.ts with this node's registry, journal, link and predictor.
// Enters: a plan, the verified target, the machine. Leaves: an entry for its slot (slots.ts), whose result is the
// migration's end.
// Always holds: the registry gets the VM's fate from the engine alone, never from the error; the result follows when
// the registry has it.
import { toBase64 } from '../crypto/bytes.ts'
import { type VerifiedSite, verifySite } from '../identity/peer.ts'
import type { PlanFacts } from '../planning/cost.ts'
import { type MigrationProgress, PHASE_COMMITTED, type Plan, type Report } from '../wire/control.ts'
import { GodwitError } from '../wire/errors.ts'
import { DISK_PAGES_VERSION } from '../wire/versions.ts'
import { createAsked } from './asking.ts'
import type { HashOptions } from './disks/digests.ts'
import { durably } from './migration/durable.ts'
import { type Offered, type SourceMigration, type SourceOptions, startSource } from './migration/source.ts'
import type { SendImagesOptions } from './migration/source-options.ts'
import { onBreach, type RunOptions, resultOf } from './runs.ts'
import type { SlotEntry } from './slots.ts'
import type { RunningVm } from './vm/machine.ts'
import { needsToJson, type VmNeeds } from './vm/preflight.ts'
import { specFiles } from './vm/spec.ts'

/** Begins at once. */
export const runSource = (options: RunOptions, plan: Plan, target: VerifiedSite, vm: RunningVm | undefined): SlotEntry =>
  new SourceSlot(options, plan, target, vm).begin()

class SourceSlot {
  readonly #options: RunOptions
  readonly #plan: Plan
  readonly #target: VerifiedSite
  /** Absent: it does not run. */
  readonly #vm: RunningVm | undefined
  readonly #asked = createAsked()
  #source: SourceMigration | undefined
  #isEnding = false
  /** The VM's files, as they were offered. */
  #files: VmNeeds['files'] = {}
  /** What the prediction found in the guest's memory. */
  #contentBytes: number | undefined

  constructor(options: RunOptions, plan: Plan, target: VerifiedSite, vm: RunningVm | undefined) {
    this.#options = options
    this.#plan = plan
    this.#target = target
    this.#vm = vm
  }

  begin(): SlotEntry {
    return {
      side: 'source',
      peer: this.#target,
      cancel: (reason = new GodwitError('MIGRATION_CANCELLED')) => this.#source?.cancel(reason),
      isAsking: () => this.#source?.fate() === 'doubt',
      asked: this.#asked.facts,
      stage: () => (this.#isEnding || !this.#source ? { state: 'ENDING' } : this.#source.stage()),
      stuck: error => (this.#isEnding || !this.#source ? 'report' : this.#source.stuck(error)),
      result: resultOf(this.#options, this.#plan, 'source', this.#run()),
    }
  }

  async #run(): Promise<Report> {
    try {
      return await this.#migrate()
    } finally {
      this.#isEnding = true
      await this.#settle()
    }
  }

  async #migrate(): Promise<Report> {
    const { known, predictor } = this.#options
    const expected = this.#predict()
    this.#source = startSource(this.#sourceOptions())
    const report = await this.#source.done
    known.add(this.#plan.target, this.#files)
    predictor?.learn(report)
    return { ...report, prediction: await expected }
  }

  #sourceOptions(): SourceOptions {
    const { config, memoryPath, identity, link, waits, stop, log } = this.#options
    const [plan, vm] = [this.#plan, this.#vm]
    return {
      plan,
      offer: how => this.#offer(how),
      qemu: vm && { qmp: vm.qmp, exited: vm.exited, dir: vm.runDir },
      keys: identity.keys,
      sourceCertificate: identity.certificate,
      targetCertificate: this.#target.bytes,
      peerBoxPublic: this.#target.certificate.boxPublic,
      openStream: (index, attempt) => link().openRelayStream({ sessionId: plan.migrationId, index, attempt }),
      record: this.#options.journal.recorder(plan, 'source', this.#target.bytes),
      onBreach: onBreach(this.#options, plan, 'source'),
      onProgress: progress => this.#progressed(progress),
      disks: () => this.#options.registry.leavingDisks(plan.vm, { withBlocks: vm !== undefined && mayName(plan), signal: stop }),
      sendImages: (names, how) => this.#sendImages(names, how),
      stop,
      patience: { reconnectMs: 1000 * config.limits.reconnectSeconds, switchoverMs: 1000 * config.limits.switchoverSeconds },
      patienceMs: waits?.answerMs,
      onUnanswered: this.#asked.unanswered,
      loadTimeoutMs: waits?.loadMs,
      silenceMs: waits?.silenceMs,
      checkPeer: () => this.#checkPeer(),
      transport: link().bulk()?.engine ?? 'unknown',
      bulk: () => link().bulk(),
      contentBytes: () => this.#contentBytes,
      memoryPath,
      log: log.child({ migrationId: plan.migrationId }),
    }
  }

  async #offer(how: HashOptions): Promise<Offered> {
    const { registry, known } = this.#options
    const plan = this.#plan
    const needs = await registry.needs(plan.vm, plan.method, { ...how, start: plan.start })
    this.#files = needs.files
    return { offer: { type: 'OFFER', needs: needsToJson(needs), copies: true }, isKnownThere: known.has(plan.target, this.#files) }
  }

  /** Only images of this VM: a target cannot ask for others. PREFLIGHT_FILE_MISSING. */
  async #sendImages(names: string[], { signal, onProgress }: SendImagesOptions): Promise<void> {
    const { registry, sendImage } = this.#options
    const { vm, target } = this.#plan
    const own = specFiles(registry.spec(vm)).flatMap(({ file, use }) => (use === 'image' ? [file] : []))
    for (const name of names) {
      if (!own.includes(name)) throw new GodwitError('PREFLIGHT_FILE_MISSING', `${target} asks for ${name}, which is no image of ${vm}`)
      await sendImage(name, target, {
        signal,
        onProgress: ({ bytesDone: bytesSent, bytesTotal, rateBytesPerSecond, etaMs }) =>
          onProgress({ bytesSent, bytesTotal, rateBytesPerSecond, etaMs }),
      })
    }
  }

  #progressed(progress: MigrationProgress): void {
    const link = this.#options.link()
    link.progress(progress)
    // From here the two sites must be able to meet, also over a gateway that has forgotten this node.
    if (progress.phase === PHASE_COMMITTED) link.announce()
  }

  /** Right before the commit: the target is still trusted, and the VM's files are those that were compared. */
  async #checkPeer(): Promise<void> {
    const { trust, registry } = this.#options
    await trust.refresh()
    await verifySite(trust, this.#plan.target, toBase64(this.#target.bytes))
    await registry.assertFilesUnchanged(this.#plan.vm)
  }

  /**
   * Writes the end to the registry. The journal has decided already: a disk that refuses this record changes nothing of
   * it, and the next start of the agent repairs it (recover.ts).
   */
  async #settle(): Promise<void> {
    const { registry, stop, log } = this.#options
    const { vm, migrationId } = this.#plan
    const fate = this.#source?.fate() ?? 'here'
    const outcome = fate === 'here' ? 'kept' : fate
    const epoch = this.#source?.epoch()
    const { id: site, serial } = this.#target.certificate
    const left = { peer: { site, serial }, leaves: this.#source?.diskLeaves() }
    await durably(() => registry.endMigration(vm, outcome, epoch, left), log, stop).catch(error =>
      log.error('end of a migration could not be recorded', { vm, migrationId, outcome, error }),
    )
  }

  /**
   * What this migration will take, for the report. Measured while it begins; null where it cannot be, or nothing is
   * known of the path.
   */
  async #predict(): Promise<Report['prediction']> {
    const { vm, target, downtimeMs, method } = this.#plan
    if (!this.#vm) return null
    try {
      const prediction = await this.#options.predictor?.predict({ vm, target, downtimeMs })
      if (prediction) this.#contentBytes = contentOf(prediction.facts)
      if (!prediction || prediction.pathFrom === 'an assumption') return null
      const name = method === 'cold' ? 'cold' : prediction.recommended === 'cold' ? 'live' : prediction.recommended
      const found = prediction.methods.find(each => each.method === name)
      return found ? { totalMs: found.totalMs, downtimeMs: found.downtimeMs, wireBytes: found.wireBytes } : null
    } catch (error) {
      this.#options.log.debug('prediction failed', { vm, error })
      return null
    }
  }
}

/** Without compression the sizes say nothing of the content: then pages are compared with nothing. */
const mayName = ({ version, compression }: Plan): boolean => version >= DISK_PAGES_VERSION && compression !== 'off'

const contentOf = ({ memoryBytes, zeroShare }: PlanFacts): number => memoryBytes * (1 - zeroShare)
