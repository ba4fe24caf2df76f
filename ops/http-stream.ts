// An HTTP response that is written in parts: NDJSON lines, server-sent events. Enters: text. Leaves: the text, as fast
// as the client reads it. Always holds: a slow client needs memory for one write and the response's own buffer; a
// response ends when its handler ends it, when the client disconnects, when the client reads nothing for `stallMs`, and
// when the server shuts down; after that each write rejects with CONNECTION_LOST.
import type { ServerResponse } from 'node:http'
import { GodwitError } from '../wire/errors.ts'

/** How long a shutdown waits until the last bytes are sent. */
const LAST_BYTES_MS = 250

export type StreamOptions = {
  contentType: string
  headers?: Record<string, string>
  /** A client that reads nothing of the waiting bytes for this time is disconnected. Absent: no limit. */
  stallMs?: number
}
export type StreamingAnswer = {
  /** Resolves when the client accepts more. */
  write(text: string): Promise<void>
  end(): void
}

/** The streaming responses of one server. */
export class OpenStreams {
  readonly #ends = new Set<() => Promise<void>>()

  /**
   * Sends the head of the response. This module aborts `gone` when the server shuts down; the caller aborts it when the
   * client disconnects.
   */
  begin(response: ServerResponse, gone: AbortController, { contentType, headers = {}, stallMs }: StreamOptions): StreamingAnswer {
    response.writeHead(200, { 'content-type': contentType, 'cache-control': 'no-store', ...headers })
    response.flushHeaders()
    const closed = new Promise<void>(resolve => response.once('close', resolve))
    const end = () => {
      gone.abort(new GodwitError('CONNECTION_LOST', 'the server shuts down'))
      response.end()
      return closed
    }
    this.#ends.add(end)
    response.once('close', () => this.#ends.delete(end))
    return {
      async write(text) {
        gone.signal.throwIfAborted()
        if (!response.write(text)) await drained(response, gone.signal, stallMs)
      },
      end: () => response.end(),
    }
  }

  /** Ends all of them; written bytes are still sent, unless the client does not read. */
  async end(): Promise<void> {
    if (this.#ends.size === 0) return
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<void>(resolve => {
      timer = setTimeout(resolve, LAST_BYTES_MS)
    })
    await Promise.race([Promise.all([...this.#ends].map(end => end())), late])
    clearTimeout(timer)
  }
}

function drained(response: ServerResponse, gone: AbortSignal, stallMs: number | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const settle = (error?: unknown) => {
      clearTimeout(timer)
      response.off('drain', onDrain)
      gone.removeEventListener('abort', onGone)
      if (error === undefined) resolve()
      else reject(error)
    }
    const onDrain = () => settle()
    const onGone = () => settle(gone.reason)
    const onStall = () => {
      response.destroy()
      settle(new GodwitError('CONNECTION_LOST', `the client has read nothing for ${stallMs} ms`))
    }
    const timer = stallMs === undefined ? undefined : setTimeout(onStall, stallMs)
    response.once('drain', onDrain)
    gone.addEventListener('abort', onGone, { once: true })
    if (gone.aborted) onGone()
  })
}
