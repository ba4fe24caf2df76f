// Writes log lines: one JSON object a line (for machines) or plain text (for a terminal). Secrets never reach a log:
// callers pass ids, and user and password of a URL are replaced here.
import type { Log, LogFields } from '../wire/log.ts'
import { withoutCredentials } from './redact.ts'

type LogLevel = 'debug' | 'info' | 'warn' | 'error'
const RANK: Record<LogLevel, number> = { debug: 0, info: 1, warn: 2, error: 3 }

type LogOptions = {
  level?: LogLevel
  format?: 'json' | 'text'
  write?: (line: string) => void
  now?: () => Date
  fields?: LogFields
}

/** A log to stderr (stdout is for the command's output). */
export function createLog({
  level = 'info',
  format = 'json',
  write = line => process.stderr.write(line),
  now = () => new Date(),
  fields = {},
}: LogOptions = {}): Log {
  const emit = (at: LogLevel, message: string, extra?: LogFields) => {
    if (RANK[at] < RANK[level]) return
    const all: LogFields = { ...fields, ...extra }
    for (const [key, value] of Object.entries(all)) if (value instanceof Error) all[key] = describe(value)
    const line =
      format === 'json'
        ? JSON.stringify({ time: now().toISOString(), level: at, message, ...all })
        : `${now().toISOString().slice(11, 23)} ${at.padEnd(5)} ${message}${textOf(all)}`
    write(`${withoutCredentials(line)}\n`)
  }
  return {
    debug: (message, extra) => emit('debug', message, extra),
    info: (message, extra) => emit('info', message, extra),
    warn: (message, extra) => emit('warn', message, extra),
    error: (message, extra) => emit('error', message, extra),
    child: more => createLog({ level, format, write, now, fields: { ...fields, ...more } }),
  }
}

const MESSAGE_LENGTH_MAX = 4096

const describe = (error: Error): string => {
  const code = 'code' in error ? `${String(error.code)}: ` : ''
  // A message, and even more its cause, may contain bytes of a peer.
  return `${code}${error.message.slice(0, MESSAGE_LENGTH_MAX)}${error.cause instanceof Error ? ` (${describe(error.cause)})` : ''}`
}

const textOf = (fields: LogFields): string =>
  Object.entries(fields)
    .map(([key, value]) => ` ${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`)
    .join('')
