// Runs the policy (policy/live.ts) in a gateway: a step a second, by a clock that never goes back; what the gateway
// measures and sees goes in.
// Always holds: what cannot be handled is counted and logged, bounded, and the next step comes nevertheless; closing
// starts nothing more.
import type { Metrics } from '../../ops/metrics.ts'
import { quietly } from '../../ops/quiet-log.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Log } from '../../wire/log.ts'
import type { FrontHost } from '../handoff/host.ts'
import type { Measurement } from '../handoff/measurements.ts'
import { estimatePaths } from '../handoff/paths.ts'
import type { PolicyConfig } from './config.ts'
import { type LiveExplanation, type LiveOptions, LivePolicy } from './live.ts'

const STEP_EVERY_MS = 1_000
const PATHS_EVERY_STEPS = 20

export type RunningPolicy = {
  measured(measurement: Measurement): void
  /** VM_UNKNOWN for a VM that the policy has not seen yet. */
  explain(vm: string): LiveExplanation
  close(): void
}

type PolicyLoopOptions = {
  config: PolicyConfig
  places: LiveOptions['places']
  host: FrontHost
  metrics: Metrics
  log: Log
}

export function startPolicy({ config, places, host, metrics, log }: PolicyLoopOptions): RunningPolicy {
  const decisions = metrics.counter('policy_decisions_total', 'Decisions of the handoff policy, by action.', ['action'])
  const faults = metrics.counter('policy_faults_total', 'Inputs and decisions that the handoff policy skipped because of an error.', ['at'])
  const now = () => performance.now()
  const quiet = quietly(log)
  const live = new LivePolicy({
    config,
    places,
    host: { vms: host.vms, sites: host.sites, start: host.start, prestage: host.prestage, isPinned: host.pins.has },
    onDecision({ action, vm, from, to, explanation: { because } }) {
      decisions.inc({ action })
      if (action !== 'stay') host.events.emit({ event: 'decision', decision: { vm, action, from, to, because } })
    },
    onFault({ at, name, error }) {
      faults.inc({ at })
      quiet.error('policy skipped an input or a decision', { at, name, error })
    },
    log,
  })
  let steps = 0
  const off = host.events.subscribe(event => live.event(event))
  const timer = setInterval(() => {
    try {
      if (steps++ % PATHS_EVERY_STEPS === 0) live.paths(estimatePaths(host.sites(), host.migrations(), host.clock.now()), now())
      live.step(now())
    } catch (error) {
      faults.inc({ at: 'step' })
      quiet.error('policy step failed', { error })
    }
  }, STEP_EVERY_MS)
  log.info('policy ready', { policy: config.name })
  return {
    measured: measurement => live.measured(measurement, now()),
    explain(vm) {
      const explanation = live.explain(vm, now())
      if (!explanation) throw new GodwitError('VM_UNKNOWN', `the policy does not know VM '${vm}'`)
      return explanation
    },
    close() {
      off()
      clearInterval(timer)
    },
  }
}
