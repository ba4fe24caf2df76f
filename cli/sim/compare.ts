// Compares several policies in the same world, and formats their reports for a terminal. Pure.
import type { PolicySettingsInput } from '../../gateway/policy/settings.ts'
import { table } from '../output.ts'
import type { SimulationReport } from './metrics.ts'
import { type SimulationOptions, simulateAll } from './simulate.ts'

const COMPARED: readonly { label: string; settings: PolicySettingsInput }[] = [
  { label: 'never', settings: { policy: 'never' } },
  { label: 'follow-cell', settings: { policy: 'follow-cell' } },
  { label: 'latency', settings: { policy: 'latency' } },
  { label: 'regret, no staging', settings: { policy: 'regret', prestage: { isEnabled: false } } },
  { label: 'regret', settings: { policy: 'regret' } },
]

/** The reports of the scenario under each policy. */
export function compare(options: Omit<SimulationOptions, 'label'>): SimulationReport[] {
  return simulateAll(COMPARED.map(({ label, settings }) => ({ ...options, settings: merged(options, settings), label })))
}

/** The policy decides whether pre-staging is on; the scenario's other settings of pre-staging stay. */
function merged({ scenario, settings = {} }: Omit<SimulationOptions, 'label'>, own: PolicySettingsInput): PolicySettingsInput {
  const prestage = { ...(scenario.policy['prestage'] as object | undefined), ...settings.prestage, ...own.prestage }
  return { ...settings, ...own, prestage }
}

const figure = (value: number | null, digits = 1): string => (value === null ? '-' : value.toFixed(digits))

export function renderReports(reports: readonly SimulationReport[]): string {
  const head = ['POLICY', 'SLO VIOLATION %', 'MIGRATIONS/H', 'PING-PONG %', 'GB/H', 'PAUSE P50/P95 MS', 'STAGED UNUSED %', 'REGRET/OPTIMUM']
  const rows = reports.map(report => [
    report.policy,
    figure(report.sloViolationPercent, 2),
    figure(report.migrationsPerHour),
    figure(report.pingPongPercent),
    figure(report.gigabytesPerHour),
    `${figure(report.interruptionP50Ms, 0)}/${figure(report.interruptionP95Ms, 0)}`,
    figure(report.wastedStagePercent),
    figure(report.regretRatio, 2),
  ])
  const first = reports[0]
  if (!first) return 'no reports\n'
  const predicted = reports.find(({ prediction }) => prediction)?.prediction
  const notes = [
    `${figure(first.userHours)} user hours; a user changed cells ${figure(first.cellChangesPerHour)} and sites ${figure(first.siteChangesPerHour)} times an hour; per hour of a user:`,
    table(head, rows).trimEnd(),
    `lowest possible SLO violation: ${figure(first.unavoidablePercent, 2)} %; the offline optimum migrates ${figure(first.optimumMigrationsPerHour)} times an hour`,
    ...(predicted
      ? [
          `prediction: ${predicted.predictions} of users on the move, hit rate ${figure(predicted.hitRate, 3)}, Brier ${figure(predicted.brier, 3)} (knowing only the rate: ${figure(predicted.brierOfRate, 3)}); of a change of site: ${predicted.changes.predictions}, hit rate ${figure(predicted.changes.hitRate, 3)}`,
        ]
      : []),
  ]
  return `${notes.join('\n')}\n`
}
