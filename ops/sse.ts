// Server-sent events as text (WHATWG HTML, section "Server-sent events"). Enters: events, or pieces of a stream.
// Leaves: text, or events. Pure. Always holds: a piece may end anywhere, also within a character pair CR LF; a line has
// at most LINE_LENGTH_MAX characters, an event as many in all; lines that the standard ignores are ignored.
import { GodwitError } from '../wire/errors.ts'

export const EVENT_STREAM = 'text/event-stream'
const LINE_LENGTH_MAX = 8 * 1024 * 1024

/** `id`: the last one of the stream so far, '' without one. `event`: 'message' when the stream names none. */
export type SseEvent = { id: string; event: string; data: string }

/** `data` may have several lines. An id has no line break and no NUL, because the server creates it. */
export function formatEvent({ id, event, data }: SseEvent): string {
  const lines = data.split(/\r\n|\r|\n/).map(line => `data: ${line}\n`)
  return `id: ${id}\nevent: ${event}\n${lines.join('')}\n`
}

/** A comment, which clients ignore: it shows that the connection is alive. */
export const formatComment = (text: string): string => `: ${text}\n\n`
/** How long a client waits before it reconnects. */
export const formatRetry = (ms: number): string => `retry: ${ms}\n\n`

export class SseReader {
  #rest = ''
  #isFirst = true
  #afterCr = false
  #id = ''
  #event = ''
  #data: string[] = []
  #length = 0
  #retryMs: number | undefined

  /** The id of the last complete event, to resume from. */
  lastId = ''

  /** The delay that the server requested; undefined without a request. */
  get retryMs(): number | undefined {
    return this.#retryMs
  }

  /** The events that this piece completes. LIMIT_EXCEEDED. */
  push(piece: string): SseEvent[] {
    let text = piece
    if (text !== '' && this.#isFirst) {
      this.#isFirst = false
      if (text.startsWith('\ufeff')) text = text.slice(1)
    }
    // CR LF is one line end, also if it is split between two pieces.
    if (this.#afterCr && text !== '') {
      this.#afterCr = false
      if (text.startsWith('\n')) text = text.slice(1)
    }
    this.#afterCr ||= text.endsWith('\r')
    const lines = (this.#rest + text).split(/\r\n|\r|\n/)
    this.#rest = lines.pop() ?? ''
    if (this.#rest.length > LINE_LENGTH_MAX) throw new GodwitError('LIMIT_EXCEEDED', 'a line of an event stream is too long')
    return lines.flatMap(line => this.#line(line) ?? [])
  }

  #line(line: string): SseEvent | undefined {
    if (line === '') return this.#dispatch()
    const colon = line.indexOf(':')
    if (colon === 0) return undefined
    const field = colon < 0 ? line : line.slice(0, colon)
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '')
    if (field === 'event') this.#event = value
    else if (field === 'id' && !value.includes('\0')) this.#id = value
    else if (field === 'retry' && /^[0-9]+$/.test(value)) this.#retryMs = Number(value)
    else if (field === 'data') {
      this.#length += value.length + 1
      if (this.#length > LINE_LENGTH_MAX) throw new GodwitError('LIMIT_EXCEEDED', 'an event of an event stream is too long')
      this.#data.push(value)
    }
    return undefined
  }

  #dispatch(): SseEvent | undefined {
    this.lastId = this.#id
    const { length } = this.#data
    const event = { id: this.#id, event: this.#event || 'message', data: this.#data.join('\n') }
    this.#event = ''
    this.#data = []
    this.#length = 0
    return length === 0 ? undefined : event
  }
}
