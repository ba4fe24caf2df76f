// How a migration ended, in words for the operator: outcome, error, report. Pure.
// Always holds: the error that says most is the one shown; a report takes what only one side can know from that side.

import type { Outcome, Report } from '../../wire/control.ts'
import { ERRORS, type ErrorBody, GodwitError } from '../../wire/errors.ts'
import type { StoredMigration } from '../store/records.ts'
import type { HandoffEventName } from './transitions.ts'

/** Codes that a side gives when the cause lies at the other side. */
const SECONDHAND = new Set(['MIGRATION_CANCELLED', 'MIGRATION_FAILED', 'MIGRATION_REFUSED', 'STREAM_RESET', 'CONNECTION_LOST'])

type Conclusion = { outcome: Outcome; error?: ErrorBody; report?: Report }

/** `told`: the error that came with the event itself (a refusal). */
export function concludeMigration(
  record: Pick<StoredMigration, 'results' | 'cancelled'>,
  event: HandoffEventName,
  told: ErrorBody | undefined,
): Conclusion {
  const { source, target } = record.results
  const report = mergeReports(source?.report, target?.report)
  const withReport = report ? { report } : {}
  if (event === 'bothCompleted') return { outcome: 'completed', ...withReport }
  if (event === 'givenUp') return { outcome: 'failed', error: mostTelling([told]), ...withReport }
  if (event === 'contradiction') {
    const words = `source: ${source?.outcome ?? 'no result'}, target: ${target?.outcome ?? 'no result'}`
    return {
      outcome: 'failed',
      error: new GodwitError('MIGRATION_DOUBT', `the results of the two sites contradict each other (${words})`).toJSON(),
      ...withReport,
    }
  }
  if (record.cancelled || event === 'cancel' || (source?.outcome === 'cancelled' && target?.outcome !== 'failed'))
    return { outcome: 'cancelled', error: { code: 'MIGRATION_CANCELLED', message: ERRORS.MIGRATION_CANCELLED.meaning }, ...withReport }
  return { outcome: 'failed', error: mostTelling([told, source?.error, target?.error]), ...withReport }
}

function mostTelling(errors: (ErrorBody | undefined)[]): ErrorBody {
  const given = errors.filter(error => error !== undefined)
  return given.find(error => !SECONDHAND.has(error.code)) ?? given[0] ?? new GodwitError('MIGRATION_FAILED').toJSON()
}

/** The source's report; where it says null, the target's word. */
function mergeReports(source: Report | undefined, target: Report | undefined): Report | undefined {
  if (!source || !target) return source ?? target
  return { ...filled(source, target), downtimeParts: filled(source.downtimeParts, target.downtimeParts) } as Report
}

const filled = (first: Record<string, unknown>, second: Record<string, unknown>): Record<string, unknown> => ({
  ...second,
  ...Object.fromEntries(Object.entries(first).filter(([key, value]) => value !== null || second[key] === undefined)),
})
