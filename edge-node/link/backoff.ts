// The wait before the next connection attempt. Pure: the random number is passed in. Always holds: the wait grows to a
// maximum and is spread over half its length, so that a thousand nodes do not return to a restarted gateway at the same
// instant.

const BACKOFF_FIRST_MS = 250
const BACKOFF_MAX_MS = 15_000

/** Wait before attempt `failures + 1`, after `failures` in a row (>= 1); `random` is in 0..1. */
export function backoffMs(failures: number, random: number, { firstMs = BACKOFF_FIRST_MS, maxMs = BACKOFF_MAX_MS } = {}): number {
  const ceilingMs = Math.min(maxMs, firstMs * 2 ** Math.min(failures - 1, 30))
  return Math.round(ceilingMs * (0.5 + random / 2))
}
