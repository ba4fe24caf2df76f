// Server-sent events as text: what is written is read again, at every place where a stream may be cut.
import { formatComment, formatEvent, formatRetry, type SseEvent, SseReader } from '../../ops/sse.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('ops: server-sent events')

const read = (...pieces: string[]) => {
  const reader = new SseReader()
  return { events: pieces.flatMap(piece => reader.push(piece)), reader }
}

test('what is written is read again, cut at every place', () => {
  const events: SseEvent[] = [
    { id: 'a-1', event: 'site-state', data: '{"a":1}' },
    { id: 'a-2', event: 'note', data: 'two\nlines, æøå 🐦' },
    { id: 'a-3', event: 'note', data: '' },
  ]
  const text = formatRetry(2000) + events.map(formatEvent).join(formatComment('keep-alive'))
  for (let at = 0; at <= text.length; at++) {
    const { events: found, reader } = read(text.slice(0, at), text.slice(at))
    assert.equal(found, events, `cut at ${at}`)
    assert.equal([reader.lastId, reader.retryMs], ['a-3', 2000])
  }
  assert.equal(read(...text).events, events, 'character by character')
})

test('all three ends of a line count once, also cut in two', () => {
  const expected = [{ id: '', event: 'message', data: 'a\nb' }]
  for (const text of ['data: a\ndata: b\n\n', 'data: a\rdata: b\r\r', 'data: a\r\ndata:b\r\n\r\n', '\ufeffdata: a\ndata: b\r\n\r'])
    for (let at = 0; at <= text.length; at++) assert.equal(read(text.slice(0, at), text.slice(at)).events, expected, JSON.stringify(text))
})

test('what the standard ignores is ignored; an id stays until the next, and counts without data too', () => {
  const { events, reader } = read(
    'id: 1\nid: 2\0\nretry: soon\nother: x\ndata\n\nid: 3\n\n: note\nevent: lost\n\nid: 4\ndata: not complete\n',
  )
  assert.equal(events, [{ id: '1', event: 'message', data: '' }])
  assert.equal([reader.lastId, reader.retryMs], ['3', undefined])
  assert.equal(reader.push('\n'), [{ id: '4', event: 'message', data: 'not complete' }])
})

test('a line and an event without end are refused', async () => {
  const mebi = 'x'.repeat(1024 * 1024)
  assert.is(await codeOf(() => read(...Array<string>(9).fill(mebi))), 'LIMIT_EXCEEDED')
  assert.is(await codeOf(() => read(...Array<string>(9).fill(`data: ${mebi}\n`))), 'LIMIT_EXCEEDED')
  assert.is(await codeOf(() => read(...Array<string>(9).fill('data\n'.repeat(1024 * 1024)))), 'LIMIT_EXCEEDED', 'lines without content')
})

test.run()
