// What the user saw of each handoff, and whether it may be so. Pure. Enters: migrations as the gateway records them, the user's requests, the guest's
// beats. Leaves: figures, lines, problems.
import type { MigrationRecord } from '../../wire/admin.ts'
import { table } from '../output.ts'
import { summarize, type User, type UserRequest, type UserSummary } from './user.ts'

/** Latency is compared over so long before a handoff and after it, leaving out what is still settling. */
const SPAN_MS = 3_000
const SETTLE_MS = 500
export const HANDOFFS_MIN = 2
/** What a handoff may cost beyond the guest's own silence before an unanswered request counts as a fault. */
const SLACK_MS = 1_000

export type Handoff = {
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
  /** Of the guest's beats, seen from outside. */
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

export function handoffOf(record: MigrationRecord, user: User, silence: (fromMs: number, toMs: number) => number): Handoff {
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

export type DriveFacts = { handoffs: Handoff[]; user: UserSummary; wrong: string[]; requests: readonly UserRequest[] }

/** Everything that must be so. */
export function judgeDrive({ handoffs, user, wrong, requests }: DriveFacts, deadlineMs: number): string[] {
  const problems: string[] = []
  const completed = handoffs.filter(({ outcome }) => outcome === 'completed')
  for (const { from, to, outcome, error } of handoffs)
    if (outcome !== 'completed') problems.push(`the handoff ${from} -> ${to} has ${outcome}${error ? ` (${error})` : ''}`)
  if (completed.length < HANDOFFS_MIN) problems.push(`the VM followed its user ${completed.length} times, not ${HANDOFFS_MIN}`)
  const unexplained = requests.filter(request => isLost(request) && !handoffs.some(handoff => explains(handoff, request, deadlineMs)))
  if (unexplained.length > 0)
    problems.push(`${unexplained.length} requests were lost that no downtime explains: ${unexplained[0]?.failure}`)
  if (user.answered === 0) problems.push('the user had no answer at all')
  for (const text of wrong) problems.push(`a wrong answer: ${text}`)
  return problems
}

const isLost = ({ answeredMs }: UserRequest): boolean => answeredMs === undefined

/** A pause that is longer than the user's patience, at that time. */
function explains({ beganMs, endedMs, silenceMs }: Handoff, { madeMs }: UserRequest, deadlineMs: number): boolean {
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
  const head = ['handoff', 'total', 'downtime', 'guest silent', 'user waited', 'latency before', 'during', 'after', 'asked twice', 'lost']
  const { p50Ms, p95Ms } = summarize(requests, Number.POSITIVE_INFINITY)
  return [
    table(head, rows, 'no handoffs').trimEnd(),
    `the user made ${user.made} requests: ${user.answered} answered, ${user.lost} lost, ${user.retried} asked twice because a connection was cut`,
    `longest time without an answer ${ms(user.longestGapMs)}; half of all answers within ${ms(p50Ms)}, 95 % within ${ms(p95Ms)}`,
  ]
}
