// Detects items that stay in one state beyond its deadline. Pure: time is passed in. Enters: running items, each with
// its state and a mark that changes with progress; a table with a deadline for each state. Leaves: overdue items.
// Always holds: a new state or a new mark restarts the time; time in which this process itself did not run (SIGSTOP, a
// suspended host) does not count, because no progress was possible; an item that stays overdue is reported again after
// each further deadline.

/** `mark`: a text that changes with progress within the state. */
export type WatchedState<State extends string = string> = { state: State; mark?: string }
export type Overdue<T> = {
  item: T
  state: string /** Time without progress, ms. */
  forMs: number /** 1 at the first report. */
  times: number
}

/** Interval of calls to step(), ms. */
export const WATCH_EVERY_MS = 5_000

type Seen = { state: string; mark: string; sinceMs: number; times: number }

export class Watchdog<T> {
  readonly #deadlineMs: (item: T, state: string) => number
  readonly #seen = new Map<string, Seen>()
  #lastMs: number | undefined

  /** `deadlineMs`: of this item in this state. */
  constructor(deadlineMs: (item: T, state: string) => number) {
    this.#deadlineMs = deadlineMs
  }

  /** `nowMs`: of a monotonic clock (performance.now()). Items that are not in `running` are forgotten. */
  step(nowMs: number, running: Iterable<{ id: string; item: T; stage: WatchedState }>): Overdue<T>[] {
    const lostMs = Math.max(0, nowMs - (this.#lastMs ?? nowMs) - 2 * WATCH_EVERY_MS)
    this.#lastMs = nowMs
    const overdue: Overdue<T>[] = []
    const here = new Set<string>()
    for (const { id, item, stage } of running) {
      here.add(id)
      const seen = this.#look(id, stage, nowMs, lostMs)
      const forMs = nowMs - seen.sinceMs
      if (forMs < this.#deadlineMs(item, stage.state) * (seen.times + 1)) continue
      seen.times += 1
      overdue.push({ item, state: stage.state, forMs, times: seen.times })
    }
    for (const id of this.#seen.keys()) if (!here.has(id)) this.#seen.delete(id)
    return overdue
  }

  #look(id: string, { state, mark = '' }: WatchedState, nowMs: number, lostMs: number): Seen {
    const before = this.#seen.get(id)
    if (before?.state === state && before.mark === mark) {
      before.sinceMs += lostMs
      return before
    }
    const seen = { state, mark, sinceMs: nowMs, times: 0 }
    this.#seen.set(id, seen)
    return seen
  }
}
