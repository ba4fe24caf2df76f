// Chooses which of several connections to the same peer carry bulk data (page streams). Enters: established
// connections. Leaves: those to distribute streams over. Each end chooses for the data that it sends: the node towards
// the gateway, the gateway towards a node. Measured between two network namespaces, goodput in Mbit/s of QUIC (CUBIC) /
// TLS over 4 TCP connections with BBR, at rate / round trip / loss: 10/50/0: 9.2 / 9.1; 100/20/0: 92 / 95; 100/80/0: 81
// / 80; 200/150/0: 113 / 134; 200/150/0.1 %: 4.6 / 115; 200/150/1 %: 0.9 / 92; 1000/10/0: 746 / 919. With BBR, QUIC is
// better in none of these; without BBR, TLS over CUBIC has no advantage over QUIC.
import type { Placing } from '../wire/roles.ts'
import type { Connection } from './types.ts'

/**
 * `isSpread`: there are several connections because of packet loss; without BBR all of them carry bulk data, whatever
 * their engine.
 */
export function bulkOf<T extends { connection: Connection }>(all: readonly T[], isSpread = false): T[] {
  const stats = all.map(({ connection }) => connection.stats().congestion)
  const withBbr = all.filter((_, i) => stats[i] === 'bbr')
  if (withBbr.length > 0) return withBbr
  if (isSpread) return [...all]
  const quic = all.filter(({ connection }) => connection.engine === 'quic')
  return quic.length > 0 ? quic : [...all]
}

/**
 * The connection for a stream. An urgent one (acknowledgements and the hand-over, a user's connection) uses the
 * connection of the heartbeats, where bulk data does not delay it. If a connection has BBR it uses that one: under loss
 * CUBIC cannot even carry the acknowledgements (seen at 200 Mbit/s, 150 ms, 1 %: a migration that did not end).
 */
export function carrierOf<T extends { connection: Connection }>(stream: Placing, control: T, data: readonly T[], isSpread = false): T {
  const bulk = bulkOf(data, isSpread)
  const first = bulk[0]
  if (first === undefined || (stream.isUrgent && first.connection.stats().congestion !== 'bbr')) return control
  return bulk[stream.index % bulk.length]!
}
