// A log that a flood cannot fill: a warning or an error that comes again and again is written so many times a minute, then counted. Enters: a log.
// Leaves: the same log with that bound. Always holds: what is left out is said, with its number, before the next line of its kind; kinds are told apart by
// message, which comes from our code, so there are few.
import type { Log, LogFields } from '../wire/log.ts'

const LINES_MAX = 30
const MINUTE_MS = 60_000

type Kind = { since: number; lines: number; left: number }

export function quietly(log: Log, nowMs: () => number = () => performance.now(), kinds = new Map<string, Kind>()): Log {
  const bounded = (write: (message: string, fields?: LogFields) => void) => (message: string, fields?: LogFields) => {
    const now = nowMs()
    const kind = kinds.get(message) ?? { since: now, lines: 0, left: 0 }
    kinds.set(message, kind)
    if (now - kind.since >= MINUTE_MS) {
      if (kind.left > 0) log.warn('lines were left out', { of: message, lines: kind.left })
      Object.assign(kind, { since: now, lines: 0, left: 0 })
    }
    if (kind.lines >= LINES_MAX) kind.left += 1
    else {
      kind.lines += 1
      write(message, fields)
    }
  }
  return {
    debug: (message, fields) => log.debug(message, fields),
    info: (message, fields) => log.info(message, fields),
    warn: bounded((message, fields) => log.warn(message, fields)),
    error: bounded((message, fields) => log.error(message, fields)),
    child: fields => quietly(log.child(fields), nowMs, kinds),
  }
}
