// Pre-staging as far as today's data plane goes: before a VM is moved, its target says whether it could take it, and keeps room for it. Enters: a wish
// (a command's, or the policy's), what becomes of the VM. Leaves: `prestage.*` to the nodes, events, an outcome that is counted.
// Always holds: one pre-staging for a VM; it ends used, wasted (lapsed, or the VM went elsewhere), refused or cancelled, once; the gateway carries
// the VM's needs from site to site and cannot read them; nothing is on disk: after a restart the nodes' leases lapse by themselves.
import { randomBytes } from 'node:crypto'
import type { Clock } from '../../ops/clock.ts'
import type { MigrationRecord, PrestageRecord, PrestageRequest } from '../../wire/admin.ts'
import { HoldResult, NeedsResult } from '../../wire/control.ts'
import { GodwitError, hasCode, toGodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import { check } from '../../wire/schema.ts'
import { checkRequest } from './checks.ts'
import type { GatewayEvent } from './events.ts'
import type { SiteLink, Sites } from './sites.ts'

export const PRESTAGES_MAX = 256
/** How long room is held when nobody says otherwise. */
export const HOLD_DEFAULT_MS = 120_000
const ASK_MS = 30_000
const RELEASE_MS = 10_000

export type PrestagesOptions = {
  sites: Sites
  clock: Clock
  migrations(): MigrationRecord[]
  pinned(vm: string): boolean
  onEvent(event: GatewayEvent): void
  onEnded(outcome: NonNullable<PrestageRecord['outcome']>): void
  log: Log
}

type Prestage = { record: PrestageRecord; timer: NodeJS.Timeout | undefined }

export class Prestages {
  readonly #options: PrestagesOptions
  readonly #all = new Map<string, Prestage>()
  /** What a migration goes on with, by its id: room that is to be given back if it fails. */
  readonly #used = new Map<string, PrestageRecord>()

  constructor(options: PrestagesOptions) {
    this.#options = options
  }

  /** Those that have not ended. */
  list(): PrestageRecord[] {
    return [...this.#all.values()].map(({ record }) => record)
  }

  /** Resolves when room is held. Refuses with the codes of checks.ts and of the target's preflight, LIMIT_EXCEEDED, NOT_AVAILABLE for nodes that cannot. */
  async start({ vm, to, method = 'live', holdMs = HOLD_DEFAULT_MS, maxBytes }: PrestageRequest): Promise<PrestageRecord> {
    const { sites, clock, pinned } = this.#options
    const found = checkRequest(
      { vm, to, method },
      {
        vms: sites.vms(),
        knownSite: sites.known,
        onlineSite: site => sites.online(site) !== undefined,
        migrationOf: name => this.#options.migrations().find(({ vm, outcome }) => vm === name && outcome === null)?.migrationId,
        pinned,
      },
    )
    const before = this.#all.get(vm)
    // Said again: the same handoff, for longer.
    const isSame = before?.record.target === to && before.record.epoch === found.epoch
    if (before && !isSame) this.#end(before, 'wasted')
    if (!isSame && this.#all.size >= PRESTAGES_MAX) throw new GodwitError('LIMIT_EXCEEDED', `${PRESTAGES_MAX} VMs are being pre-staged`)
    const at = clock.now()
    const handoffId = isSame ? before.record.handoffId : randomBytes(16).toString('hex')
    const record: PrestageRecord = {
      handoffId,
      vm,
      epoch: found.epoch,
      source: found.site,
      target: to,
      method,
      createdAt: isSame ? before.record.createdAt : at,
      updatedAt: at,
      untilMs: at + holdMs,
      wireBytes: isSame ? before.record.wireBytes : 0,
      memoryBytes: found.memoryBytes,
      outcome: null,
    }
    clearTimeout(before?.timer)
    const prestage: Prestage = { record, timer: undefined }
    this.#all.set(vm, prestage)
    if (!isSame) this.#say(prestage)
    try {
      await this.#hold(prestage, holdMs, maxBytes)
    } catch (thrown) {
      const error = toGodwitError(thrown)
      if (this.#all.get(vm) === prestage) this.#end(prestage, 'refused', error)
      throw error
    }
    // Meanwhile it may have ended: cancelled, or the VM is on its way.
    if (this.#all.get(vm) === prestage) prestage.timer = setTimeout(() => this.#end(prestage, 'wasted'), holdMs).unref()
    return record
  }

  /** The id of the handoff that was prepared for this move, if it was: the migration goes on under it. */
  idFor(vm: string, to: string, epoch: number): string | undefined {
    const record = this.#all.get(vm)?.record
    return record?.target === to && record.epoch === epoch ? record.handoffId : undefined
  }

  /** MIGRATION_UNKNOWN. */
  cancel(handoffId: string): void {
    const found = [...this.#all.values()].find(({ record }) => record.handoffId === handoffId)
    if (!found) throw new GodwitError('MIGRATION_UNKNOWN', `no VM is pre-staged as ${handoffId}`)
    this.#end(found, 'cancelled')
  }

  /** A migration has a new state: what was prepared for it is used, for another one wasted. */
  migration({ vm, migrationId, outcome }: MigrationRecord): void {
    const used = this.#used.get(migrationId)
    if (used && outcome !== null) {
      this.#used.delete(migrationId)
      if (outcome !== 'completed') this.#release(used)
    }
    const prestage = this.#all.get(vm)
    if (!prestage || outcome !== null) return
    const isIts = prestage.record.handoffId === migrationId
    if (isIts) this.#used.set(migrationId, prestage.record)
    this.#end(prestage, isIts ? 'used' : 'wasted')
  }

  /** A VM that is not where it was is not prepared any more; nor one that was pinned. */
  look(): void {
    const { sites, pinned } = this.#options
    const vms = sites.vms()
    for (const prestage of this.#all.values()) {
      const { vm, source, epoch } = prestage.record
      const isThere = vms.some(one => one.name === vm && one.site === source && one.epoch === epoch && one.state !== 'stopped')
      if (!isThere) this.#end(prestage, 'wasted')
      else if (pinned(vm)) this.#end(prestage, 'cancelled')
    }
  }

  close(): void {
    for (const { timer } of this.#all.values()) clearTimeout(timer)
    this.#all.clear()
    this.#used.clear()
  }

  async #hold({ record }: Prestage, holdMs: number, maxBytes: number | undefined): Promise<void> {
    const { handoffId: holdId, vm, epoch, source, target, method } = record
    const [from, to] = [this.#link(source), this.#link(target)]
    const facts = { holdId, vm, epoch, method }
    const certificate = (link: SiteLink) => Buffer.from(link.peer.certificateBytes).toString('base64')
    const answer = await ask(from, 'prestage.needs', { ...facts, target, targetCertificate: certificate(to) })
    const { needs } = check(NeedsResult, answer, { what: 'prestage.needs' })
    record.wireBytes += 2 * needs.length
    if (maxBytes !== undefined && record.wireBytes > maxBytes)
      throw new GodwitError('LIMIT_EXCEEDED', `${record.wireBytes} bytes to ask a target, ${maxBytes} are allowed`)
    const held = await ask(to, 'prestage.hold', { ...facts, source, sourceCertificate: certificate(from), needs, holdMs })
    check(HoldResult, held, { what: 'prestage.hold' })
    // It may have ended while the target was asked.
    if (this.#all.get(vm)?.record !== record) this.#release(record)
  }

  #link(site: string): SiteLink {
    const link = this.#options.sites.online(site)
    if (!link) throw new GodwitError('SITE_OFFLINE', `site ${site} is not connected`)
    return link
  }

  #end(prestage: Prestage, outcome: NonNullable<PrestageRecord['outcome']>, error?: GodwitError): void {
    const { record } = prestage
    clearTimeout(prestage.timer)
    this.#all.delete(record.vm)
    record.outcome = outcome
    record.updatedAt = this.#options.clock.now()
    if (error) record.error = error.toJSON()
    // What is used, the target's own reservation takes over; what was refused is not there.
    if (outcome !== 'used' && outcome !== 'refused') this.#release(record)
    this.#options.onEnded(outcome)
    this.#say(prestage)
  }

  #release({ handoffId, target, vm }: PrestageRecord): void {
    const { sites, log } = this.#options
    ask(sites.online(target), 'prestage.release', { holdId: handoffId }, RELEASE_MS).catch(error =>
      log.debug('a hold was not released; it lapses', { vm, target, error }),
    )
  }

  #say({ record }: Prestage): void {
    this.#options.log.info('pre-staging', { ...record })
    this.#options.onEvent({ event: 'prestage', prestage: { ...record } })
  }
}

/** A node of an earlier version does not know the question. */
async function ask(link: SiteLink | undefined, method: string, params: object, timeoutMs = ASK_MS): Promise<unknown> {
  if (!link) throw new GodwitError('SITE_OFFLINE', 'the site is not connected')
  try {
    return await link.rpc.request(method, params, { timeoutMs })
  } catch (error) {
    if (!hasCode(error, 'VERSION_UNSUPPORTED')) throw error
    throw new GodwitError('NOT_AVAILABLE', `the node of ${link.site} cannot pre-stage`, { cause: error })
  }
}
