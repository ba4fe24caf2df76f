// What a migration of a VM of this site would take (`godwit plan`), from what can be measured now. Enters: a VM, a
// target, what earlier migrations saw of the way there. Leaves: a prediction for each method, what it is made of, and
// one recommended. The formula is planning/cost.ts, which the gateway's policy uses too.
// Always holds: nothing is sent and the guest is not stopped; what was assumed and not measured is named; figures of an
// earlier migration count for an hour, and only while the link is as it was then.
import { type MigrationPlan, type PlanFacts, planMigration, planStopped } from '../planning/cost.ts'
import type { PathStats } from '../transport/types.ts'
import type { PredictParams, Report } from '../wire/control.ts'
import type { RunningVm } from './vm/machine.ts'
import type { MemorySample } from './vm/sample.ts'

type NodePrediction = MigrationPlan & {
  vm: string
  target: string
  facts: PlanFacts
  /** Where the path's figures come from. */
  pathFrom: 'the last migration there' | 'an assumption'
  /** How long ago that was. */
  pathAgeMs?: number
}

type PredictorOptions = {
  /** The QEMU of a VM of this site; undefined: it is stopped. VM_UNKNOWN, VM_STATE. */
  running: (name: string) => RunningVm | undefined
  /** What the memory of a running VM is like (vm/sample.ts). */
  measure: (vm: RunningVm) => Promise<MemorySample>
  /** What a target may lack of its local disks. Default: nothing. */
  diskBytes?: (name: string) => Promise<number>
  /** The link to the gateway now. */
  linkStats: () => PathStats | null
  now: () => number
}

export type CostPredictor = {
  predict(params: PredictParams): Promise<NodePrediction>
  /** The path as a migration that has ended saw it. */
  learn(report: Report): void
}

/** Where nothing was measured: a common uplink of an edge site. */
const ASSUMED_BYTES_PER_SECOND = 12_500_000
/** Of a VM that does not run. */
const NO_MEMORY = { memoryBytes: 0, zeroShare: 0, duplicateShare: 0, compressedShare: 1, dirtyBytesPerSecond: 0 }
const TARGETS_MAX = 256

/** Other traffic changes a path: figures that are older than this are not used. */
const PATH_LIFE_MS = 3_600_000
/** The path is another one when the round trip to the gateway is so many times as long or as short as then. */
const RTT_FACTOR = 2
/** A smaller difference in a round trip is noise. */
const RTT_NOISE_MS = 5

type Conditions = { rttMs: number | undefined; congestion: string | undefined }
type Known = { bytesPerSecond: number; rttMs: number; at: number; conditions: Conditions }

export function createCostPredictor(options: PredictorOptions): CostPredictor {
  const { running, diskBytes = async () => 0, linkStats, now } = options
  const paths = new Map<string, Known>()
  const measure = sharedMeasure(options.measure)
  const conditions = (): Conditions => ({ rttMs: linkStats()?.rttMs, congestion: linkStats()?.congestion })
  const usable = (known: Known) => now() - known.at <= PATH_LIFE_MS && areAlike(known.conditions, conditions())
  return {
    async predict({ vm: name, target, downtimeMs }) {
      const vm = running(name)
      const last = paths.get(target)
      const known = last && usable(last) ? last : undefined
      const path = known ?? { bytesPerSecond: ASSUMED_BYTES_PER_SECOND, rttMs: linkStats()?.rttMs ?? 0 }
      const { bytesPerSecond, rttMs } = path
      const from = known
        ? ({ pathFrom: 'the last migration there', pathAgeMs: Math.max(0, now() - known.at) } as const)
        : ({ pathFrom: 'an assumption' } as const)
      const way = { diskBytes: await diskBytes(name), path: { bytesPerSecond, rttMs }, downtimeMs }
      if (!vm) return { vm: name, target, ...planStopped(way), facts: { ...NO_MEMORY, ...way }, ...from }
      const facts = { memoryBytes: vm.memoryBytes, ...(await measure(vm)), ...way }
      return { vm: name, target, ...planMigration(facts), facts, ...from }
    },
    learn({ target, rttMs, rateBytesPerSecond }) {
      if (typeof rttMs !== 'number' || typeof rateBytesPerSecond !== 'number' || rateBytesPerSecond <= 0) return
      paths.delete(target)
      paths.set(target, { bytesPerSecond: rateBytesPerSecond, rttMs, at: now(), conditions: conditions() })
      for (const oldest of paths.keys()) if (paths.size > TARGETS_MAX) paths.delete(oldest)
    },
  }
}

/** What was measured under `then` still tells something under `current`. What is not known is taken for the same. */
function areAlike(then: Conditions, current: Conditions): boolean {
  if (then.congestion !== undefined && current.congestion !== undefined && then.congestion !== current.congestion) return false
  if (then.rttMs === undefined || current.rttMs === undefined) return true
  const [low, high] = [Math.min(then.rttMs, current.rttMs), Math.max(then.rttMs, current.rttMs)]
  return high - low <= RTT_NOISE_MS || high <= low * RTT_FACTOR
}

/** QEMU measures for one at a time: who asks meanwhile gets the same figures. */
function sharedMeasure(measure: PredictorOptions['measure']): PredictorOptions['measure'] {
  const running = new Map<RunningVm, Promise<MemorySample>>()
  return vm => {
    const known = running.get(vm)
    if (known) return known
    const measured = measure(vm).finally(() => running.delete(vm))
    running.set(vm, measured)
    return measured
  }
}
