import { createTlsEngine } from '../../transport/tls.ts'
import { transportCompliance } from '../compliance/transport.ts'

// One stream's window and one frame of 64 KiB.
const test = await transportCompliance('tls', { make: createTlsEngine, backpressureBytes: 8 * 1024 * 1024 + 64 * 1024, protocol: 'tcp' })

test.run()
