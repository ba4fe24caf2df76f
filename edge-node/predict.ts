// What a migration of a VM of this site would take (`godwit plan`), from what can be measured now. Enters: a VM, a target, what earlier migrations saw of the way
// there. Leaves: a prediction for each method, what it is made of, and one recommended. The formula is ops/cost.ts, which the gateway's policy uses too.
// Always holds: nothing is sent and the guest is not stopped; what was assumed and not measured is named.
import { type MigrationPlan, type PlanFacts, planMigration } from '../ops/cost.ts'
import type { PathStats } from '../transport/types.ts'
import type { PredictParams, Report } from '../wire/control.ts'
import { loadZstd } from './pages/compress.ts'
import type { RunningVm } from './vm/machine.ts'
import { measureDirtyRate, sampleMemory } from './vm/sample.ts'

export type NodePrediction = MigrationPlan & {
  vm: string
  target: string
  facts: PlanFacts
  /** Where the path's figures come from. */
  pathFrom: 'the last migration there' | 'an assumption'
  /** When that was, Unix ms. */
  pathAt?: number
}

export type PredictorOptions = {
  /** A VM that runs here. VM_UNKNOWN, VM_STATE. */
  running: (name: string) => RunningVm
  /** The link to the gateway now. */
  linkStats: () => PathStats | null
  now: () => number
}

export type Predictor = {
  predict(params: PredictParams): Promise<NodePrediction>
  /** The path as a migration that has ended saw it. */
  learn(report: Report): void
}

/** Where nothing was measured: a common uplink of an edge site. */
const ASSUMED_BYTES_PER_SECOND = 12_500_000
const TARGETS_MAX = 256

type Known = { bytesPerSecond: number; rttMs: number; at: number }

export function createPredictor({ running, linkStats, now }: PredictorOptions): Predictor {
  const paths = new Map<string, Known>()
  return {
    async predict({ vm: name, target, downtimeMs }) {
      const vm = running(name)
      const zstd = await loadZstd()
      const [dirtyBytesPerSecond, sample] = await Promise.all([
        measureDirtyRate(vm.qmp),
        vm.memoryFd().then(fd => sampleMemory(zstd, fd, vm.memoryBytes)),
      ])
      const known = paths.get(target)
      const path = known ?? { bytesPerSecond: ASSUMED_BYTES_PER_SECOND, rttMs: linkStats()?.rttMs ?? 0 }
      const { bytesPerSecond, rttMs } = path
      const facts = { memoryBytes: vm.memoryBytes, ...sample, dirtyBytesPerSecond, path: { bytesPerSecond, rttMs }, downtimeMs }
      const from = known ? ({ pathFrom: 'the last migration there', pathAt: known.at } as const) : ({ pathFrom: 'an assumption' } as const)
      return { vm: name, target, ...planMigration(facts), facts, ...from }
    },
    learn({ target, rttMs, rateBytesPerSecond }) {
      if (typeof rttMs !== 'number' || typeof rateBytesPerSecond !== 'number' || rateBytesPerSecond <= 0) return
      paths.delete(target)
      paths.set(target, { bytesPerSecond: rateBytesPerSecond, rttMs, at: now() })
      for (const oldest of paths.keys()) if (paths.size > TARGETS_MAX) paths.delete(oldest)
    },
  }
}
