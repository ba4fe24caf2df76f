// Who of those that may move starts now. Enters: VMs whose own gates are all open. Leaves: those that get a token at
// both their sites. Against storms: a site takes part in no more migrations than its tokens; when more want it, their
// starts are spread by seeded jitter, and the rest wait in the order they became ready (those above their hard limit
// first). Nothing is queued: a VM that no longer wants to go is gone from here in the next step, so nothing stale is
// ever started.
import { seededHash } from './hash.ts'
import type { Tables } from './view.ts'

export type Wish = { index: number; from: number; to: number; isHard: boolean }
export type StartVerdict = 'go' | 'jitter' | 'tokens'

/** Calls `decide` for each wish, in the order of admission; takes tokens for those that go. */
export function admit(tables: Tables, wishes: Wish[], nowMs: number, decide: (wish: Wish, verdict: StartVerdict) => void): void {
  const { settings, sites, vms } = tables
  const { readySinceMs, dueMs, sequence } = vms.columns
  const wanted = new Int32Array(sites.count)
  for (const { from, to } of wishes) {
    wanted[from]!++
    wanted[to]!++
  }
  for (const { index, from, to, isHard } of wishes) {
    if (!Number.isNaN(readySinceMs[index]!)) continue
    readySinceMs[index] = nowMs
    const isCrowded = wanted[from]! > sites.tokensFree(from) || wanted[to]! > sites.tokensFree(to)
    const share = seededHash(settings.seed, index, sequence[index]!)
    dueMs[index] = isCrowded && !isHard ? nowMs + share * settings.storm.jitterMs : nowMs
  }
  wishes.sort((a, b) => Number(b.isHard) - Number(a.isHard) || dueMs[a.index]! - dueMs[b.index]! || a.index - b.index)
  for (const wish of wishes) {
    const { index, from, to } = wish
    if (dueMs[index]! > nowMs) decide(wish, 'jitter')
    else if (sites.tokensFree(from) <= 0 || sites.tokensFree(to) <= 0) decide(wish, 'tokens')
    else {
      sites.take(from, to)
      decide(wish, 'go')
    }
  }
}
