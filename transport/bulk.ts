// Which of several connections to the same peer carry bulk (page streams). Enters: connections that are up. Leaves: those to spread streams over.
// Each end asks for what it sends itself: the node for the way to the gateway, the gateway for the way to a node.
// Measured between two network namespaces, goodput in Mbit/s of QUIC (CUBIC) / TLS over 4 TCP connections with BBR, at rate / round trip / loss:
// 10/50/0: 9.2 / 9.1; 100/20/0: 92 / 95; 100/80/0: 81 / 80; 200/150/0: 113 / 134; 200/150/0.1 %: 4.6 / 115; 200/150/1 %: 0.9 / 92; 1000/10/0: 746 / 919.
// With BBR at hand there is no cell to choose QUIC for; without it, TLS over CUBIC has nothing that QUIC has not.
import type { Connection } from './types.ts'

/** `isSpread`: there are more connections than one, because packets are lost: without BBR all of them carry, by whichever engine. */
export function bulkOf<T extends { connection: Connection }>(all: readonly T[], isSpread = false): T[] {
  const stats = all.map(({ connection }) => connection.stats().congestion)
  const withBbr = all.filter((_, i) => stats[i] === 'bbr')
  if (withBbr.length > 0) return withBbr
  if (isSpread) return [...all]
  const quic = all.filter(({ connection }) => connection.engine === 'quic')
  return quic.length > 0 ? quic : [...all]
}

/** The one that takes relay stream `index` of a migration. Index 0, with acknowledgements and the hand-over, goes beside the heartbeats, where bulk does not delay
 * it; but over BBR where that is: under loss CUBIC carries not even the acknowledgements (seen at 200 Mbit/s, 150 ms, 1 %: a migration that did not end). */
export function carrierOf<T extends { connection: Connection }>(index: number, control: T, data: readonly T[], isSpread = false): T {
  const bulk = bulkOf(data, isSpread)
  const first = bulk[0]
  if (first === undefined || (index === 0 && first.connection.stats().congestion !== 'bbr')) return control
  return bulk[index % bulk.length]!
}
