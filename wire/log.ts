// The log interface: pure types, so that every module can receive a Log without knowing where lines go (ops/log.ts
// writes them).

export type LogFields = Record<string, unknown>

export type Log = {
  debug(message: string, fields?: LogFields): void
  info(message: string, fields?: LogFields): void
  warn(message: string, fields?: LogFields): void
  error(message: string, fields?: LogFields): void
  /** A log whose lines all carry these fields. */
  child(fields: LogFields): Log
}

const nothing = () => {}

/** A log that writes nothing (tests, libraries). */
export const silentLog: Log = { debug: nothing, info: nothing, warn: nothing, error: nothing, child: () => silentLog }
