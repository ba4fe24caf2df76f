// The report of a simulated policy. Enters: seconds of users, migrations, staged bytes. Leaves: the report. Pure. SLO
// violation counts seconds with an RTT above the SLO, and the downtimes of VMs.
import type { Score } from '../../gateway/policy/calibration.ts'
import type { SimulatedMove } from './executor.ts'

/** A -> B -> A within this is a ping-pong: both migrations were useless. */
const PING_PONG_MS = 120_000

export type SimulationReport = {
  policy: string
  userHours: number
  sloViolationPercent: number
  /** The unavoidable part: even the best site was above the SLO. */
  unavoidablePercent: number
  migrations: number
  migrationsPerHour: number
  pingPongPercent: number
  gigabytesPerHour: number
  /** Sum of the pauses, for each hour of a user. */
  interruptionSecondsPerHour: number
  interruptionP50Ms: number | null
  interruptionP95Ms: number | null
  migrationP50S: number | null
  stagedGigabytesPerHour: number
  wastedStagePercent: number | null
  prediction: (Score & { fanShare: number }) | null
  /** Regret and migrations in one unit, for each hour of a user, and as a multiple of the offline optimum. */
  costMsSecondsPerHour: number
  optimumMsSecondsPerHour: number
  optimumMigrationsPerHour: number
  regretRatio: number | null
  siteChangesPerHour: number
  cellChangesPerHour: number
  sitesBusyMax: number
}

export class SimulationMetrics {
  seconds = 0
  violatedSeconds = 0
  unavoidableSeconds = 0
  regretMsSeconds = 0
  priceMsSeconds = 0
  bytes = 0
  stagedBytes = 0
  wastedBytes = 0
  migrations = 0
  pingPongs = 0
  readonly #pauseMs: number[] = []
  readonly #durationMs: number[] = []
  readonly #left = new Map<string, { site: number; atMs: number }>()

  moved({ vm, from, to, startMs, endMs, bytes, downtimeMs }: SimulatedMove, priceMsSeconds: number): void {
    this.migrations++
    this.bytes += bytes
    this.priceMsSeconds += priceMsSeconds
    this.violatedSeconds += downtimeMs / 1000
    this.#pauseMs.push(downtimeMs)
    this.#durationMs.push(endMs - startMs)
    const before = this.#left.get(vm.name)
    if (before && before.site === to && endMs - before.atMs <= PING_PONG_MS) this.pingPongs++
    this.#left.set(vm.name, { site: from, atMs: endMs })
  }

  forget(vm: string): void {
    this.#left.delete(vm)
  }

  report(facts: {
    policy: string
    prediction: (Score & { fanShare: number }) | null
    optimum: { costMsSeconds: number; moves: number }
    siteChanges: number
    cellChanges: number
    sitesBusyMax: number
  }): SimulationReport {
    const hours = Math.max(1e-9, this.seconds / 3600)
    const percent = (part: number, whole: number) => (whole > 0 ? (100 * part) / whole : 0)
    const cost = this.regretMsSeconds + this.priceMsSeconds
    return {
      policy: facts.policy,
      userHours: hours,
      sloViolationPercent: percent(this.violatedSeconds, this.seconds),
      unavoidablePercent: percent(this.unavoidableSeconds, this.seconds),
      migrations: this.migrations,
      migrationsPerHour: this.migrations / hours,
      pingPongPercent: percent(this.pingPongs, this.migrations),
      gigabytesPerHour: (this.bytes + this.stagedBytes) / 1e9 / hours,
      interruptionSecondsPerHour: this.#pauseMs.reduce((sum, ms) => sum + ms, 0) / 1000 / hours,
      interruptionP50Ms: quantile(this.#pauseMs, 0.5),
      interruptionP95Ms: quantile(this.#pauseMs, 0.95),
      migrationP50S: secondsOf(quantile(this.#durationMs, 0.5)),
      stagedGigabytesPerHour: this.stagedBytes / 1e9 / hours,
      wastedStagePercent: this.stagedBytes > 0 ? percent(this.wastedBytes, this.stagedBytes) : null,
      prediction: facts.prediction,
      costMsSecondsPerHour: cost / hours,
      optimumMsSecondsPerHour: facts.optimum.costMsSeconds / hours,
      optimumMigrationsPerHour: facts.optimum.moves / hours,
      regretRatio: facts.optimum.costMsSeconds > 0 ? cost / facts.optimum.costMsSeconds : null,
      siteChangesPerHour: facts.siteChanges / hours,
      cellChangesPerHour: facts.cellChanges / hours,
      sitesBusyMax: facts.sitesBusyMax,
    }
  }
}

/** The value below which this share of the values lies (nearest rank); null without values. */
export function quantile(values: readonly number[], share: number): number | null {
  if (values.length === 0) return null
  const sorted = Float64Array.from(values).sort()
  return sorted[Math.min(sorted.length - 1, Math.max(0, Math.ceil(share * sorted.length) - 1))]!
}

const secondsOf = (ms: number | null): number | null => (ms === null ? null : ms / 1000)
