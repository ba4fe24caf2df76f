import { createQuicEngine } from '../../transport/quic.ts'
import { transportCompliance } from '../compliance/transport.ts'

const MiB = 1024 * 1024
// One stream's window, and what quinn may hold unacknowledged (its send window is 10 MB and cannot be set through the
// binding).
const test = await transportCompliance('quic', {
  // A handshake that died keeps the binding, and so this process, alive for the idle timeout.
  make: options => createQuicEngine({ idleTimeoutMs: 4_000, ...options }),
  backpressureBytes: 8 * MiB + 10_000_000,
  protocol: 'udp',
})
test.run()
