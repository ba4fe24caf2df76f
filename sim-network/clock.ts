// Time as an argument. Enters: callbacks with a due time. Leaves: calls in order of due time, ties in order of arrival.
// Always holds: a virtual clock never goes back, and never runs a callback before its time or after a later one.

type Timer = { cancel(): void }

type Clock = {
  /** Milliseconds since the clock's own origin, with fractions. */
  nowMs(): number
  /** Calls `run` once at `atMs`, or as soon as possible if that has passed. */
  at(atMs: number, run: () => void): Timer
}

export type VirtualClock = Clock & {
  /** Runs everything due up to and including `ms`, then stays at `ms`. */
  advanceTo(ms: number): void
  advanceBy(ms: number): void
  /** Advances to the next callback and runs only that one; false if there is none. */
  runNext(): boolean
  /** Due time of the next callback, or undefined if there is none. */
  nextMs(): number | undefined
}

type Entry = { atMs: number; order: number; run: (() => void) | undefined }

/** A clock that only its caller advances. */
export function createVirtualClock(startMs = 0): VirtualClock {
  const heap: Entry[] = []
  let now = startMs
  let order = 0
  const dropCancelled = () => {
    while (heap[0] && heap[0].run === undefined) pop(heap)
  }
  const runFirst = () => {
    const entry = pop(heap)
    now = entry.atMs
    const run = entry.run
    entry.run = undefined
    run?.()
  }
  const clock: VirtualClock = {
    nowMs: () => now,
    at: (atMs, run) => {
      const entry: Entry = { atMs: Math.max(atMs, now), order: order++, run }
      push(heap, entry)
      return {
        cancel: () => {
          entry.run = undefined
        },
      }
    },
    advanceTo: ms => {
      if (!(ms >= now)) throw new TypeError(`a clock at ${now} ms cannot go to ${ms} ms`)
      for (dropCancelled(); heap[0] && heap[0].atMs <= ms; dropCancelled()) runFirst()
      now = ms
    },
    advanceBy: ms => clock.advanceTo(now + ms),
    runNext: () => {
      dropCancelled()
      if (!heap[0]) return false
      runFirst()
      return true
    },
    nextMs: () => {
      dropCancelled()
      return heap[0]?.atMs
    },
  }
  return clock
}

const before = (a: Entry, b: Entry): boolean => a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order)

function push(heap: Entry[], entry: Entry): void {
  let at = heap.push(entry) - 1
  while (at > 0) {
    const parent = (at - 1) >> 1
    if (!before(entry, heap[parent]!)) break
    heap[at] = heap[parent]!
    at = parent
  }
  heap[at] = entry
}

function pop(heap: Entry[]): Entry {
  const top = heap[0]!
  const last = heap.pop()!
  if (heap.length === 0) return top
  let at = 0
  for (;;) {
    let child = 2 * at + 1
    if (child >= heap.length) break
    if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++
    if (!before(heap[child]!, last)) break
    heap[at] = heap[child]!
    at = child
  }
  heap[at] = last
  return top
}
