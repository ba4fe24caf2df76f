// The report of each handoff from the user's side, and its checks. Pure. Enters: migrations as the gateway records
// them, the user's requests, the guest's beats. Leaves: figures, lines, problems.
import type { MigrationRecord } from '../../wire/admin.ts'
import { table } from '../output.ts'
import { type DemoUser, summarize, type UserRequest, type UserSummary } from './user.ts'

/** Latency is compared over this time before and after a handoff, without the time to settle. */
const SPAN_MS = 3_000
const SETTLE_MS = 500
export const HANDOFFS_MIN = 2
/** Extra time beyond the guest's own silence before an unanswered request counts as a fault. */
const SLACK_MS = 1_000

export type DriveHandoff = {
  from: string
  to: string
  outcome: string
  error?: string | undefined
  /** Unix ms. */
  beganMs: number
  endedMs: number
  downtimeMs: number | null
  totalMs: number
  wireBytes: number
  /** The longest gap of the guest's beats, measured outside the guest. */
  silenceMs: number
  /** The longest time without an answer to the user. */
  interruptionMs: number
  /** Median of requests before, while and after; NaN where there were none. */
  latencyBeforeMs: number
  latencyDuringMs: number
  latencyAfterMs: number
  lost: number
  retried: number
}

export function handoffOf(record: MigrationRecord, user: DemoUser, silence: (fromMs: number, toMs: number) => number): DriveHandoff {
  const { source: from, target: to, outcome, createdAt, updatedAt, report, error } = record
  const during = user.summary(createdAt, updatedAt + SETTLE_MS)
  return {
    from,
    to,
    outcome: outcome ?? 'unfinished',
    error: error ? `${error.code}: ${error.message}` : undefined,
    beganMs: createdAt,
    endedMs: updatedAt,
    downtimeMs: report?.downtimeMs ?? null,
    totalMs: report?.totalMs ?? updatedAt - createdAt,
    wireBytes: report?.wireBytes ?? 0,
    silenceMs: silence(createdAt, updatedAt),
    interruptionMs: during.longestGapMs,
    latencyBeforeMs: user.summary(createdAt - SPAN_MS, createdAt).p50Ms,
    latencyDuringMs: during.p50Ms,
    latencyAfterMs: user.summary(updatedAt + SETTLE_MS, updatedAt + SETTLE_MS + SPAN_MS).p50Ms,
    lost: during.lost,
    retried: during.retried,
  }
}

type DriveFacts = { handoffs: DriveHandoff[]; user: UserSummary; wrong: string[]; requests: readonly UserRequest[] }

/** Checks the requirements; returns the problems. */
export function judgeDrive({ handoffs, user, wrong, requests }: DriveFacts, deadlineMs: number): string[] {
  const problems: string[] = []
  const completed = handoffs.filter(({ outcome }) => outcome === 'completed')
  for (const { from, to, outcome, error } of handoffs)
    if (outcome !== 'completed') problems.push(`the handoff ${from} -> ${to} ended as ${outcome}${error ? ` (${error})` : ''}`)
  if (completed.length < HANDOFFS_MIN) problems.push(`the VM followed its user ${completed.length} times, expected ${HANDOFFS_MIN}`)
  const unexplained = requests.filter(request => isLost(request) && !handoffs.some(handoff => explains(handoff, request, deadlineMs)))
  if (unexplained.length > 0) problems.push(`${unexplained.length} requests were lost outside a downtime: ${unexplained[0]?.failure}`)
  if (user.answered === 0) problems.push('no request of the user was answered')
  for (const text of wrong) problems.push(`a wrong answer: ${text}`)
  return problems
}

const isLost = ({ answeredMs }: UserRequest): boolean => answeredMs === undefined

/** Whether the downtime of this handoff explains a request that exceeded its deadline. */
function explains({ beganMs, endedMs, silenceMs }: DriveHandoff, { madeMs }: UserRequest, deadlineMs: number): boolean {
  return silenceMs + SLACK_MS >= deadlineMs && madeMs + deadlineMs >= beganMs && madeMs <= endedMs
}

export function reportLines({ handoffs, user, requests }: DriveFacts): string[] {
  const ms = (value: number | null) => (value === null || Number.isNaN(value) ? '-' : `${Math.round(value)} ms`)
  const rows = handoffs.map(handoff => [
    `${handoff.from} -> ${handoff.to}${handoff.outcome === 'completed' ? '' : ` (${handoff.outcome})`}`,
    `${(handoff.totalMs / 1000).toFixed(1)} s`,
    ms(handoff.downtimeMs),
    ms(handoff.silenceMs),
    ms(handoff.interruptionMs),
    ms(handoff.latencyBeforeMs),
    ms(handoff.latencyDuringMs),
    ms(handoff.latencyAfterMs),
    String(handoff.retried),
    String(handoff.lost),
  ])
  const head = ['handoff', 'total', 'downtime', 'beat gap', 'answer gap', 'latency before', 'during', 'after', 'retried', 'lost']
  const { p50Ms, p95Ms } = summarize(requests, Number.POSITIVE_INFINITY)
  return [
    table(head, rows, 'no handoffs').trimEnd(),
    `the user sent ${user.made} requests: ${user.answered} answered (${user.retried} after a retry on a new connection), ${user.lost} lost`,
    `longest time without an answer: ${ms(user.longestGapMs)}; response time: median ${ms(p50Ms)}, 95th percentile ${ms(p95Ms)}`,
  ]
}
