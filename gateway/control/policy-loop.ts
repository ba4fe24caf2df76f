// Runs the policy (policy/live.ts) in a gateway: a step a second, by a clock that never goes back; what the gateway measures and sees goes in.
// Always holds: a step that fails is logged and the next one comes nevertheless; closing starts nothing more.
import type { Metrics } from '../../ops/metrics.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { PolicyConfig } from '../policy/config.ts'
import { type LiveOptions, LivePolicy, type VmExplanation } from '../policy/live.ts'
import type { ControlHost } from './host.ts'
import type { Measurement } from './mqtt/measurements.ts'
import { estimatePaths } from './paths.ts'

const STEP_EVERY_MS = 1_000
const PATHS_EVERY_STEPS = 20

export type RunningPolicy = {
  measured(measurement: Measurement): void
  /** VM_UNKNOWN for a VM that the policy has not seen yet. */
  explain(vm: string): VmExplanation
  close(): void
}

export type PolicyLoopOptions = {
  config: PolicyConfig
  places: LiveOptions['places']
  host: ControlHost
  metrics: Metrics
  log: Log
}

export function startPolicy({ config, places, host, metrics, log }: PolicyLoopOptions): RunningPolicy {
  const decisions = metrics.counter('policy_decisions_total', 'What the handoff policy has decided.', ['action'])
  const now = () => performance.now()
  const live = new LivePolicy({
    config,
    places,
    host: { vms: host.vms, sites: host.sites, start: host.start, prestage: host.prestage, isPinned: host.pins.has },
    onDecision: ({ action }) => decisions.inc({ action }),
    log,
  })
  let steps = 0
  const off = host.events.subscribe(event => live.event(event))
  const timer = setInterval(() => {
    try {
      if (steps++ % PATHS_EVERY_STEPS === 0) live.paths(estimatePaths(host.sites(), host.migrations(), host.clock.now()))
      live.step(now())
    } catch (error) {
      log.error('a step of the policy failed', { error })
    }
  }, STEP_EVERY_MS)
  log.info('VMs follow their users', { policy: config.name })
  return {
    measured: measurement => live.measured(measurement, now()),
    explain(vm) {
      const explanation = live.explain(vm, now())
      if (!explanation) throw new GodwitError('VM_UNKNOWN', `the policy knows no VM '${vm}'`)
      return explanation
    },
    close() {
      off()
      clearInterval(timer)
    },
  }
}
