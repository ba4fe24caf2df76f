// The receive buffer of a UDP socket, as the kernel then says it is.
import { createSocket } from 'node:dgram'
import { enlargeReceiveBuffer } from '../../transport/udp-buffer.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('UDP receive buffer')

test('grows for the socket at a port of ours', async () => {
  const socket = createSocket('udp4')
  await new Promise<void>(resolve => socket.bind(0, '127.0.0.1', resolve))
  try {
    const before = socket.getRecvBufferSize()
    const result = await enlargeReceiveBuffer(socket.address().port, 2 * before)
    assert.ok(result.ok, result.detail)
    assert.ok(socket.getRecvBufferSize() > before, `${socket.getRecvBufferSize()} after ${before}`)
  } finally {
    socket.close()
  }
})

test('a port that is not ours is said, not thrown', async () => {
  const result = await enlargeReceiveBuffer(1)
  assert.not(result.ok)
  assert.match(result.detail, /no socket/)
})

test.run()
