// How long to wait before the next attempt to connect. Pure: the random number comes in.
// Always holds: the wait grows to a ceiling and is spread over half its length, so that a thousand nodes do not return to a restarted
// gateway in the same instant.

export const BACKOFF_FIRST_MS = 250
export const BACKOFF_MAX_MS = 15_000

/** Wait before attempt `failures + 1`, given that many failures in a row (>= 1); `random` is in 0..1. */
export function backoffMs(failures: number, random: number, { firstMs = BACKOFF_FIRST_MS, maxMs = BACKOFF_MAX_MS } = {}): number {
  const ceilingMs = Math.min(maxMs, firstMs * 2 ** Math.min(failures - 1, 30))
  return Math.round(ceilingMs * (0.5 + random / 2))
}
