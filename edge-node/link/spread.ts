// How many connections carry page streams where there is no BBR: one CUBIC connection collapses under random loss, and eight of them get five to eight times as
// much (FACTS: 200 Mbit/s, 150 ms, 1 %: 0.8 -> 5 Mbit/s). Enters: what the link says of its bulk connections. Leaves: more of them, once, while loss is seen: from then on
// page streams go over all of them, QUIC and TLS at once, and a migration that runs changes over to them (rate/carriers.ts).
// Always holds: connections are only added: one that is taken away could carry a migration. With BBR (transport/bulk.ts) there is nothing to do.
import type { EngineName } from '../../transport/types.ts'
import type { Log } from '../../wire/log.ts'
import { createLossWatch } from '../rate/loss.ts'
import type { Link } from './link.ts'

const LOOK_EVERY_MS = 1_000
const CONNECTIONS_LOSSY = 8
/** A link that was cut loses packets too, for a moment: only loss that goes on counts. */
const LOOKS_LOSSY = 12

/** Looks from time to time until `stop()`. */
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
    log.info('the way to the gateway loses packets and there is no BBR: more connections', {
      connections: CONNECTIONS_LOSSY,
      ratio: loss.ratio,
    })
    link.dataConnections([...engines, ...new Array<undefined>(Math.max(0, CONNECTIONS_LOSSY - engines.length)).fill(undefined)], true)
  }
  const timer = setInterval(() => look(performance.now()), LOOK_EVERY_MS)
  timer.unref()
  return { look, stop: () => clearInterval(timer) }
}
