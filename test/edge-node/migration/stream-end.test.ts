// The hint that QEMU's stream is over: at every split, with look-alikes in the device state, and never too early.
import { createEndWatch } from '../../../edge-node/migration/stream-end.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('end of the stream')

function stream(devices: Uint8Array, json = '{"page_size": 4096, "devices": [{"name": "timer"}]}'): Buffer {
  const head = Buffer.alloc(6)
  head[1] = 0x06
  head.writeUInt32BE(json.length, 2)
  return Buffer.concat([devices, head, Buffer.from(json)])
}

test('is seen at the last byte and not before, wherever the stream is cut', () => {
  const bytes = stream(Buffer.from([4, 0, 0, 0, 9, 1, 2, 3]))
  for (let cut = 1; cut < bytes.length; cut++) {
    const watch = createEndWatch()
    assert.not(watch.push(bytes.subarray(0, cut)), `cut at ${cut}`)
    assert.ok(watch.push(bytes.subarray(cut)), `cut at ${cut}`)
  }
})

test('look-alikes in the device state do not end it', () => {
  const fake = Buffer.from([0, 6, 0, 0, 0, 2, 0x7b, 0x7d, 0, 6, 0xff, 0xff, 0xff, 0xff, 0x7b])
  const watch = createEndWatch()
  assert.not(watch.push(fake.subarray(0, 8)), 'an empty object is no description')
  assert.ok(watch.push(stream(fake.subarray(8))))
})

test('a stream without a description never ends by this', () => {
  const watch = createEndWatch()
  for (let i = 0; i < 200; i++) assert.not(watch.push(Buffer.alloc(1000, i)))
})

test('a device state beyond its bound is given up, not kept', () => {
  const watch = createEndWatch()
  for (let i = 0; i < 9; i++) assert.not(watch.push(Buffer.alloc(1024 * 1024)))
  assert.not(watch.push(stream(new Uint8Array(0))))
})

test.run()
