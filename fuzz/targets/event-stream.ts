// ops/sse.ts: server-sent events as a client reads them, cut anywhere.
import { formatComment, formatEvent, formatRetry, type SseEvent, SseReader } from '../../ops/sse.ts'
import { demand, pieces, type Target } from '../target.ts'

function read(texts: readonly string[]): { events: SseEvent[]; state: string } {
  const reader = new SseReader()
  const events = texts.flatMap(text => reader.push(text))
  return { events, state: `${reader.lastId} ${reader.retryMs}` }
}

const event = (id: string, data: string) => formatEvent({ id, event: 'vm-pin', data })

export const eventStream: Target = {
  name: 'event-stream',
  what: 'ops/sse.ts: server-sent events of a gateway',
  codes: ['LIMIT_EXCEEDED'],
  testRuns: 10_000,
  words: ['\n', '\r', '\r\n', '\n\n', ': ', 'id: ', 'event: ', 'data: ', 'retry: ', '\ufeff', '\0'],
  seeds: () =>
    [
      formatRetry(2000) + event('0123abcd-1', '{"event":"vm-pin","at":1}') + formatComment('keep-alive'),
      event('0123abcd-1', 'two\nlines') + event('0123abcd-2', '').replaceAll('\n', '\r\n'),
      '\ufeffdata: a\rdata:b\r\rid\n\nretry: x\nevent: no data\n\ndata',
    ].map(text => new Uint8Array(Buffer.from(text))),
  hostile: () => ({
    'no end of a line': new Uint8Array(Buffer.from(`data: ${'x'.repeat(9 * 1024 * 1024)}`)),
    'no end of an event': new Uint8Array(Buffer.from('data\n'.repeat(200_000))),
  }),
  run(input) {
    const text = Buffer.from(input).toString('utf8')
    const whole = read([text])
    const cut: string[] = []
    let rest = text
    for (const { length } of pieces(input)) {
      cut.push(rest.slice(0, length))
      rest = rest.slice(length)
    }
    demand(JSON.stringify(read([...cut, rest])) === JSON.stringify(whole), 'the events depend on how the text is cut')
    const again = read(whole.events.map(formatEvent)).events
    demand(JSON.stringify(again) === JSON.stringify(whole.events), 'an event reads otherwise the second time')
  },
}
