import {
  createReturnPathParser,
  decodeValue,
  encodePong,
  encodeReturnPath,
  encodeShut,
  RETURN_PATH,
} from '../../../edge-node/stream/return-path.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const test = suite('return path')

type Message = { type: number; payload: number[] }

function parse(pieces: Uint8Array[]): Message[] {
  const messages: Message[] = []
  const parser = createReturnPathParser({ message: (type, payload) => messages.push({ type, payload: [...payload] }) })
  for (const piece of pieces) parser.push(piece)
  parser.end()
  return messages
}

const join = (...parts: Uint8Array[]) => Uint8Array.from(Buffer.concat(parts))

/** One of each type but RECV_BITMAP. */
const sample: [number, Uint8Array][] = [
  [RETURN_PATH.pong, Uint8Array.of(0, 0, 0, 1)],
  [RETURN_PATH.reqPagesId, join(new Uint8Array(8), Uint8Array.of(0, 0, 16, 0, 4), Buffer.from('ram0'))],
  [RETURN_PATH.reqPages, new Uint8Array(12).fill(7)],
  [RETURN_PATH.resumeAck, Uint8Array.of(0, 0, 0, 1)],
  [RETURN_PATH.switchoverAck, new Uint8Array(0)],
  [RETURN_PATH.shut, Uint8Array.of(0, 0, 0, 0)],
]
const sampleBytes = join(...sample.map(([type, payload]) => encodeReturnPath(type, payload)))
const sampleMessages = sample.map(([type, payload]) => ({ type, payload: [...payload] }))

test('every message comes out whole at every split and byte by byte', () => {
  for (let cut = 0; cut <= sampleBytes.length; cut++) {
    assert.equal(parse([sampleBytes.subarray(0, cut), sampleBytes.subarray(cut)]), sampleMessages)
  }
  assert.equal(parse(Array.from(sampleBytes, byte => Uint8Array.of(byte))), sampleMessages)
})

test('an end within a message is QEMU_STREAM, an end between two is fine', async () => {
  const ends = new Set([0])
  let at = 0
  for (const [, payload] of sample) {
    at += 4 + payload.length
    ends.add(at)
  }
  for (let cut = 0; cut <= sampleBytes.length; cut++) {
    const body = () => parse([sampleBytes.subarray(0, cut)])
    if (ends.has(cut)) body()
    else assert.is(await codeOf(body), 'QEMU_STREAM')
  }
})

test('a good pre-copy is PONG 1 and SHUT 0, byte for byte', () => {
  assert.equal([...encodePong(1)], [0, 2, 0, 4, 0, 0, 0, 1])
  assert.equal([...encodeShut(0)], [0, 1, 0, 4, 0, 0, 0, 0])
  const [pong, shut] = parse([encodePong(0xfffffffe), encodeShut(1)])
  assert.is(decodeValue(Uint8Array.from(pong!.payload)), 0xfffffffe)
  assert.is(decodeValue(Uint8Array.from(shut!.payload)), 1)
})

test('unknown types and lengths that a type cannot have are refused from the header alone', async () => {
  const headers = [
    [0, 0, 0, 0],
    [0, 8, 0, 0],
    [1, 1, 0, 4],
    [0, 1, 0, 5],
    [0, 2, 0, 0],
    [0, 3, 0, 12],
    [0, 3, 1, 13],
    [0, 7, 0, 1],
    [0, 5, 1, 1],
  ]
  for (const header of headers) assert.is(await codeOf(() => parse([Uint8Array.from(header)])), 'QEMU_STREAM')
  assert.is(await codeOf(() => encodeReturnPath(1, new Uint8Array(5))), 'QEMU_STREAM')
})

test('the first error is final', async () => {
  const parser = createReturnPathParser({ message: () => {} })
  assert.is(await codeOf(() => parser.push(Uint8Array.of(0, 9, 0, 0))), 'QEMU_STREAM')
  assert.is(await codeOf(() => parser.push(encodeShut(0))), 'QEMU_STREAM')
  assert.is(await codeOf(() => parser.end()), 'QEMU_STREAM')
})

test('what follows a received-pages bitmap is not read as messages', async () => {
  const bitmap = join(encodeReturnPath(RETURN_PATH.recvBitmap, Uint8Array.of(4, 114, 97, 109, 48)), Uint8Array.of(0, 9, 0, 0, 1, 2, 3))
  assert.is(await codeOf(() => parse([bitmap])), 'QEMU_STREAM')
  for (let cut = 0; cut <= bitmap.length; cut++) {
    const rest: number[] = []
    const types: number[] = []
    const parser = createReturnPathParser({ message: type => types.push(type), rest: bytes => rest.push(...bytes) })
    parser.push(bitmap.subarray(0, cut))
    parser.push(bitmap.subarray(cut))
    parser.end()
    assert.equal([types, rest], [[RETURN_PATH.recvBitmap], [0, 9, 0, 0, 1, 2, 3]])
  }
})

test.run()
