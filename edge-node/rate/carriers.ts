// When a migration leaves the connections that carry its pages for others. Pure; time is passed in.
// Enters: what carries now, and what would carry page streams that were opened now. Leaves: why it is worth a new
// meeting (conversation.ts), or nothing.
// Always holds: it takes more than a moment, is not done near the end, where it would be downtime, and not again and
// again.

/** `ids`: numbers of connections, each new one has its own. */
export type Carriers = { ids: readonly number[]; congestion?: string | undefined }

export type CarriersSample = {
  atMs: number
  used: Carriers | undefined
  best: Carriers | undefined
  /** Packets are lost for no reason of ours. */
  isLossy: boolean
  /** The guest may stop soon, or stands still. */
  isEnd: boolean
}

const STEADY_MS = 1_000
const REST_MS = 10_000
const CHANGES_MAX = 8

export function createCarriersWatch(): (now: CarriersSample) => string | undefined {
  let sinceMs: number | undefined
  let changedAtMs = Number.NEGATIVE_INFINITY
  let changes = 0
  return ({ atMs, used, best, isLossy, isEnd }) => {
    const why = used && best && !isEnd && changes < CHANGES_MAX && atMs - changedAtMs >= REST_MS ? worth(used, best, isLossy) : undefined
    sinceMs = why === undefined ? undefined : (sinceMs ?? atMs)
    if (sinceMs === undefined || atMs - sinceMs < STEADY_MS) return undefined
    sinceMs = undefined
    changedAtMs = atMs
    changes += 1
    return why
  }
}

/**
 * BBR beats what is not (transport/bulk.ts has figures); without it, more connections lose less of their rate to the
 * same loss.
 */
function worth(used: Carriers, best: Carriers, isLossy: boolean): string | undefined {
  const isNew = best.ids.some(id => !used.ids.includes(id))
  if (!isNew) return undefined
  if (best.congestion === 'bbr' && used.congestion !== 'bbr')
    return `BBR is available again, the streams used ${used.congestion ?? 'another congestion control'}`
  if (isLossy && best.congestion !== 'bbr' && best.ids.length > used.ids.length)
    return `packet loss: ${best.ids.length} connections instead of ${used.ids.length}`
  return undefined
}
