import { encodeFrame, FRAME_HEADER_BYTES, type Frame, FrameDecoder } from '../../wire/frame.ts'
import { allow, FRAME, FRAME_LIMITS, type FrameName, frameName } from '../../wire/types.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('wire/frame')

const bytes = (...values: number[]) => Uint8Array.from(values)
const join = (...parts: Uint8Array[]) => new Uint8Array(Buffer.concat(parts))
const plain = (frames: Frame[]) => frames.map(frame => ({ type: frame.type, payload: Buffer.from(frame.payload).toString('hex') }))
const any = () => new FrameDecoder(allow('RPC', 'JOIN', 'PING', 'BATCH'))

const sample = join(
  encodeFrame(FRAME.RPC, new TextEncoder().encode('{"id":1}')),
  encodeFrame(FRAME.PING, new Uint8Array(0)),
  encodeFrame(FRAME.JOIN, bytes(1, 2, 3)),
  encodeFrame(FRAME.PING, new Uint8Array(0)),
)

test('a frame is length, type, payload', () => {
  assert.equal(encodeFrame(6, bytes(9, 8)), bytes(0, 0, 0, 2, 6, 9, 8))
  assert.is(FRAME_HEADER_BYTES, 5)
})

test('a stream cut at any two places gives the same frames', () => {
  const whole = plain(any().push(sample))
  assert.is(whole.length, 4)
  for (let i = 0; i <= sample.length; i++) {
    for (let j = i; j <= sample.length; j++) {
      const decoder = any()
      const frames = [sample.subarray(0, i), sample.subarray(i, j), sample.subarray(j)].flatMap(part => decoder.push(part))
      decoder.end()
      assert.equal(plain(frames), whole)
    }
  }
})

test('a stream that comes byte by byte gives the same frames', () => {
  const decoder = any()
  const frames = [...sample].flatMap(byte => decoder.push(bytes(byte)))
  assert.equal(plain(frames), plain(any().push(sample)))
  assert.is(decoder.pendingBytes, 0)
})

test('an empty frame is delivered without waiting for the next byte', () => {
  assert.is(any().push(encodeFrame(FRAME.PING, new Uint8Array(0))).length, 1)
})

test('a stream that ends within a frame is FRAME_TRUNCATED, at a frame border it is not', async () => {
  const borders = new Set([0, 13, 18, 26, 31])
  assert.is(sample.length, 31)
  for (let cut = 0; cut <= sample.length; cut++) {
    const decoder = any()
    decoder.push(sample.subarray(0, cut))
    if (borders.has(cut)) decoder.end()
    else assert.is(await codeOf(() => decoder.end()), 'FRAME_TRUNCATED')
  }
})

test('a frame larger than its limit is refused from its header alone', async () => {
  const decoder = new FrameDecoder(() => 100)
  assert.is(decoder.push(encodeFrame(1, new Uint8Array(100))).length, 1)
  assert.is(await codeOf(() => decoder.push(bytes(0, 0, 0, 101, 1))), 'FRAME_TOO_LARGE')
  assert.is(await codeOf(() => new FrameDecoder(() => 100).push(bytes(255, 255, 255, 255, 1))), 'FRAME_TOO_LARGE')
})

test('an unknown type and type zero are refused from the header alone', async () => {
  for (const type of [0, 12, 99, 255]) assert.is(await codeOf(() => any().push(bytes(0, 0, 0, 0, type))), 'FRAME_TYPE')
  assert.throws(() => encodeFrame(0, new Uint8Array(0)), TypeError)
  assert.throws(() => encodeFrame(256, new Uint8Array(0)), TypeError)
})

test('the first error is final', async () => {
  const decoder = any()
  assert.is(await codeOf(() => decoder.push(bytes(0, 0, 0, 0, 99))), 'FRAME_TYPE')
  assert.is(await codeOf(() => decoder.push(sample)), 'FRAME_TYPE')
  assert.is(await codeOf(() => decoder.end()), 'FRAME_TYPE')
})

test('a large frame in small pieces arrives whole', () => {
  const payload = Uint8Array.from({ length: 300_000 }, (_, i) => (i * 7) & 0xff)
  const whole = encodeFrame(FRAME.BATCH, payload)
  const decoder = any()
  const frames: Frame[] = []
  for (let at = 0; at < whole.length; at += 1333) frames.push(...decoder.push(whole.subarray(at, at + 1333)))
  assert.is(frames.length, 1)
  assert.is(Buffer.compare(frames[0]!.payload, payload), 0)
})

test('every type has a number of its own, a limit and a name', () => {
  const names = Object.keys(FRAME) as FrameName[]
  assert.is(new Set(Object.values(FRAME)).size, names.length)
  for (const name of names) {
    assert.ok(FRAME[name] > 0 && FRAME[name] < 256)
    assert.ok(FRAME_LIMITS[name] > 0)
    assert.is(frameName(FRAME[name]), name)
  }
  assert.is(frameName(99), 'type 99')
})

test.run()
