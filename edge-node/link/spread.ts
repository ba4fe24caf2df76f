// The number of connections for page streams without BBR: one CUBIC connection collapses under random loss, and eight
// of them have five to eight times the rate (measured at 200 Mbit/s, 150 ms, 1 %: 0.8 -> 5 Mbit/s). Enters: statistics
// of the link's bulk connections. Leaves: more connections, once, during packet loss: from then on page streams use all
// of them, QUIC and TLS together, and a running migration changes over to them (rate/carriers.ts). Always holds:
// connections are only added, because a removed one could carry a migration. With BBR (transport/bulk.ts) nothing
// changes.
import type { EngineName } from '../../transport/types.ts'
import type { Log } from '../../wire/log.ts'
import { createLossWatch } from '../rate/loss.ts'
import type { Link } from './link.ts'

const LOOK_EVERY_MS = 1_000
const CONNECTIONS_LOSSY = 8
/** A cut link also loses packets for a moment: only continuing loss counts. */
const LOOKS_LOSSY = 12

/** Checks periodically until `stop()`. */
export function watchSpread(
  link: Pick<Link, 'bulk' | 'dataConnections'>,
  engines: readonly (EngineName | undefined)[],
  log: Log,
): { look(atMs: number): void; stop(): void } {
  const watch = createLossWatch()
  let isSpread = false
  let lossyLooks = 0
  const look = (atMs: number) => {
    const bulk = link.bulk()
    if (isSpread || !bulk || bulk.engine !== 'quic' || bulk.congestion === 'bbr') return
    const loss = watch({ atMs, ...bulk })
    lossyLooks = loss?.isLossy ? lossyLooks + 1 : 0
    if (!loss || lossyLooks < LOOKS_LOSSY) return
    isSpread = true
    log.info('opening more connections: packet loss to the gateway, and no BBR', {
      connections: CONNECTIONS_LOSSY,
      ratio: loss.ratio,
    })
    link.dataConnections([...engines, ...new Array<undefined>(Math.max(0, CONNECTIONS_LOSSY - engines.length)).fill(undefined)], true)
  }
  const timer = setInterval(() => look(performance.now()), LOOK_EVERY_MS)
  timer.unref()
  return { look, stop: () => clearInterval(timer) }
}
