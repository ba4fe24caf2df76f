import { encodeCommand, QmpDecoder } from '../../../edge-node/qmp/codec.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'

const test = suite('edge-node/qmp/codec')

const objects = [{ QMP: { version: {} } }, { return: { naïve: '\u{1f426} "\n"' }, id: 1 }, { event: 'STOP', data: null }]
const bytes = Buffer.from(`${objects.map(object => JSON.stringify(object)).join('\r\n')}\r\n`)

test('objects come out the same at every split of their bytes', () => {
  for (let at = 0; at <= bytes.length; at++) {
    const decoder = new QmpDecoder()
    assert.equal([...decoder.push(bytes.subarray(0, at)), ...decoder.push(bytes.subarray(at))], objects)
    decoder.end()
  }
})

test('objects come out of single bytes, whose buffer is used again', () => {
  const decoder = new QmpDecoder()
  const one = Buffer.alloc(1)
  const seen = [...bytes].flatMap(byte => {
    one[0] = byte
    return decoder.push(one)
  })
  assert.equal(seen, objects)
})

test('an end within a line is an error, at every truncation', async () => {
  for (let at = 0; at < bytes.length; at++) {
    const decoder = new QmpDecoder()
    decoder.push(bytes.subarray(0, at))
    const atLineEnd = at === 0 || bytes[at - 1] === 10
    if (atLineEnd) decoder.end()
    else assert.is(await codeOf(() => decoder.end()), 'FRAME_TRUNCATED')
  }
})

test('a line over the limit is refused before it is whole', async () => {
  const decoder = new QmpDecoder(100)
  assert.equal(decoder.push(Buffer.from(`"${'x'.repeat(99)}`).subarray(0, 60)), [])
  assert.is(await codeOf(() => decoder.push(Buffer.alloc(41, 120))), 'FRAME_TOO_LARGE')
})

test('what is not a JSON object is refused', async () => {
  for (const line of ['{', '[1]', '1', 'null', 'hello', '{"a":}'])
    assert.is(await codeOf(() => new QmpDecoder().push(Buffer.from(`${line}\n`))), 'FRAME_MALFORMED')
})

test('empty lines are nothing', () => {
  assert.equal(new QmpDecoder().push(Buffer.from('\r\n\n  \n{"a":1}\n')), [{ a: 1 }])
})

test('a command is one line with its id', () => {
  assert.is(encodeCommand(7, 'migrate', { uri: 'unix:/x' }), '{"execute":"migrate","arguments":{"uri":"unix:/x"},"id":7}\n')
  assert.is(encodeCommand(8, 'stop'), '{"execute":"stop","id":8}\n')
})

test.run()
