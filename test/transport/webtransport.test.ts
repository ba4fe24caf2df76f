import { createWebTransportEngine } from '../../transport/webtransport.ts'
import { transportCompliance } from '../compliance/transport.ts'

// One stream's window and one frame of 64 KiB.
const test = await transportCompliance('webtransport', {
  make: createWebTransportEngine,
  backpressureBytes: 8 * 1024 * 1024 + 64 * 1024,
  protocol: 'tcp',
})
test.run()
