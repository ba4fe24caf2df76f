// What a pool and one of its threads share: four bytes that say "end" to the thread, and four that say whether it is at
// work. Both sides see them at once, also while one of them is in a synchronous call. Always holds: once `end` has been
// called and `idle` has been true, the thread begins no job any more. (Each side writes its own word before it reads
// the other's, and Atomics are sequentially consistent: one of the two must see the other.)

export type Turn = Int32Array<SharedArrayBuffer>

const END = 0
const BUSY = 1

export const createTurn = (): Turn => new Int32Array(new SharedArrayBuffer(8))

/** The pool: the thread is to begin no further job. */
export const end = (turn: Turn): void => void Atomics.store(turn, END, 1)

/** The thread, before a job: false when it must not begin it. */
export function begin(turn: Turn): boolean {
  Atomics.store(turn, BUSY, 1)
  if (Atomics.load(turn, END) === 0) return true
  done(turn)
  return false
}

/** The thread, after a job. */
export function done(turn: Turn): void {
  Atomics.store(turn, BUSY, 0)
  Atomics.notify(turn, BUSY)
}

/** Blocks the caller until the thread is between two jobs. False when it is not within `ms`. */
export const idle = (turn: Turn, ms: number): boolean => Atomics.wait(turn, BUSY, 1, ms) !== 'timed-out'
