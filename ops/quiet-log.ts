// A log that a flood cannot fill: repeated warnings and errors are written a limited number of times a minute, then
// counted. Enters: a log. Leaves: the same log with that limit. Always holds: the number of dropped lines is logged
// before the next line of the same kind; the kind is the message, which comes from code, so there are few kinds.

import type { Log, LogFields } from '../wire/log.ts'
import { MINUTE_MS } from '../wire/units.ts'

const LINES_MAX = 30

type Kind = { since: number; lines: number; left: number }

/** `infoMax`: lines at level info of one kind a minute; default unlimited. */
export function quietly(
  log: Log,
  nowMs: () => number = () => performance.now(),
  { infoMax = Number.POSITIVE_INFINITY, kinds = new Map<string, Kind>() }: { infoMax?: number; kinds?: Map<string, Kind> } = {},
): Log {
  const bounded =
    (write: (message: string, fields?: LogFields) => void, linesMax = LINES_MAX) =>
    (message: string, fields?: LogFields) => {
      const now = nowMs()
      const kind = kinds.get(message) ?? { since: now, lines: 0, left: 0 }
      kinds.set(message, kind)
      if (now - kind.since >= MINUTE_MS) {
        if (kind.left > 0) log.warn('repeated log lines dropped', { of: message, lines: kind.left })
        Object.assign(kind, { since: now, lines: 0, left: 0 })
      }
      if (kind.lines >= linesMax) kind.left += 1
      else {
        kind.lines += 1
        write(message, fields)
      }
    }
  return {
    debug: (message, fields) => log.debug(message, fields),
    info: bounded((message, fields) => log.info(message, fields), infoMax),
    warn: bounded((message, fields) => log.warn(message, fields)),
    error: bounded((message, fields) => log.error(message, fields)),
    child: fields => quietly(log.child(fields), nowMs, { infoMax, kinds }),
  }
}
