// A small network for policy tests: sites in a row, RTT by distance, one second a step.
import { HandoffEngine } from '../../../gateway/policy/engine.ts'
import type { PolicySettingsInput, VmPolicy } from '../../../gateway/policy/settings.ts'
import type { Observation, VmDecision } from '../../../gateway/policy/types.ts'

export const GIB = 1024 ** 3

/** Engine with sites a, b, c, ... `stepMs` of RTT apart, and 125 MB/s between them. */
export function rowOfSites(count: number, settings: PolicySettingsInput = {}, { stepMs = 12, reportStays = false } = {}): HandoffEngine {
  const engine = new HandoffEngine({ settings: { prestage: { isEnabled: false }, ...settings }, reportStays })
  const names = Array.from({ length: count }, (_, at) => String.fromCharCode(97 + at))
  for (const [at, from] of names.entries()) {
    for (const [other, to] of names.entries()) {
      if (at !== other)
        engine.observe(0, { kind: 'link', from, to, rttMs: Math.abs(at - other) * stepMs, bandwidthBytesPerSecond: 125_000_000 })
    }
  }
  return engine
}

export function addVm(engine: HandoffEngine, nowMs: number, vm = 'vm', site = 'a', policy: VmPolicy = { sloMs: 20 }): void {
  engine.observe(nowMs, { kind: 'vm', vm, site, memoryBytes: GIB, dirtyBytesPerSecond: 10e6, policy })
}

/** Seconds of one user: at each, where it is and what it measures. Decisions as they fall; moves end after `moveS`. */
export function drive(
  engine: HandoffEngine,
  options: {
    fromS?: number
    seconds: number
    siteAt: (second: number) => string
    rttAt?: (second: number) => number
    moveS?: number
    vm?: string
    more?: (second: number) => Observation[]
  },
): VmDecision[] {
  const { fromS = 1, seconds, siteAt, rttAt = () => 10, moveS = 8, vm = 'vm', more = () => [] } = options
  const decisions: VmDecision[] = []
  let endS: number | undefined
  for (let second = fromS; second < fromS + seconds; second++) {
    const observations: Observation[] = [{ kind: 'user', vm, site: siteAt(second), rttMs: rttAt(second) }, ...more(second)]
    if (endS !== undefined && second >= endS) {
      observations.unshift({ kind: 'ended', vm, outcome: 'completed' })
      endS = undefined
    }
    for (const decision of engine.step(second * 1000, observations)) {
      decisions.push(decision)
      if (decision.action === 'move') endS = second + moveS
    }
  }
  return decisions
}

export const moves = (decisions: readonly VmDecision[]) => decisions.filter(decision => decision.action === 'move')
