// Which ended migrations are forgotten. Pure. Enters: those that are known. Leaves: those beyond the limits.
// Always holds: a hand-over that only its source reported displaces no other site's history; of each source the last
// LEARNED_PER_SITE_MAX are kept.
import type { Migrating } from './handoff.ts'

/** Ended migrations that are kept for `godwit status`. */
const ENDED_MAX = 1000
/** Hand-overs that a source names and that are not on our disk: of one source. */
export const LEARNED_PER_SITE_MAX = 16

export function beyondLimits(ended: Migrating[]): Migrating[] {
  const oldestFirst = ended.toSorted((a, b) => a.run.record.updatedAt - b.run.record.updatedAt)
  const beyond = new Set(learnedBeyond(oldestFirst))
  const kept = oldestFirst.filter(handoff => !beyond.has(handoff))
  return [...beyond, ...kept.slice(0, Math.max(0, kept.length - ENDED_MAX))]
}

function learnedBeyond(oldestFirst: Migrating[]): Migrating[] {
  const counts = new Map<string, number>()
  return oldestFirst.toReversed().filter(({ source, run }) => {
    if (!run.record.isLearned) return false
    const count = (counts.get(source) ?? 0) + 1
    counts.set(source, count)
    return count > LEARNED_PER_SITE_MAX
  })
}
