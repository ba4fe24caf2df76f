// Output formats: tables, JSON, errors. Pure, except for the Io that is passed in.
import { type EXIT, GodwitError, toGodwitError } from '../wire/errors.ts'
import type { Io } from './io.ts'

/** Columns are as wide as their content; the last one is not padded. Without rows: the text `empty`. */
export function table(head: readonly string[], rows: readonly (readonly (string | number)[])[], empty = 'none'): string {
  if (rows.length === 0) return `${empty}\n`
  const cells = [head, ...rows].map(row => row.map(cell => clean(String(cell))))
  const widths = head.map((_, at) => Math.max(...cells.map(row => (row[at] ?? '').length)))
  return cells.map(row => `${row.map((cell, at) => (at === row.length - 1 ? cell : cell.padEnd(widths[at]!))).join('  ')}\n`).join('')
}

/** `key: value` lines, values in one column. */
export function listing(pairs: readonly (readonly [string, string])[]): string {
  const width = Math.max(...pairs.map(([key]) => key.length)) + 1
  return pairs.map(([key, value]) => `${`${key}:`.padEnd(width)} ${clean(value)}\n`).join('')
}

export const json = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`

/** Text from other systems must not control the terminal: control characters become '?'. */
export const clean = (text: string): string =>
  // biome-ignore lint/suspicious/noControlCharactersInRegex: finding them is the purpose
  text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, '?')

/**
 * Shows an error and returns the exit code: `error CODE: message`, the hint below it, on stderr; with --json {"error":
 * ...} on stdout as well.
 */
export function showError(io: Io, thrown: unknown, wantsJson: boolean): number {
  const error = toGodwitError(thrown)
  if (wantsJson) io.out(json({ error: error.toJSON() }))
  io.err(errorText(error))
  if (error.code === 'INTERNAL' && io.env['GODWIT_TRACE']) io.err(`${(thrown as Error)?.stack ?? thrown}\n`)
  return error.exitCode
}

export function errorText(error: GodwitError): string {
  const causes: string[] = []
  for (let cause = error.cause; cause instanceof Error && causes.length < 3; cause = cause.cause) {
    if (!error.message.includes(cause.message))
      causes.push(`  cause: ${cause instanceof GodwitError ? `${cause.code}: ` : ''}${clean(cause.message)}\n`)
  }
  return `error ${error.code}: ${clean(error.message)}\n${causes.join('')}${error.hint ? `  hint: ${clean(error.hint)}\n` : ''}`
}

/** What each exit code means; docs/reference/cli.md shows the same table. */
export const EXIT_MEANINGS: Record<keyof typeof EXIT, string> = {
  ok: 'done',
  internal: 'a bug in Godwit, or its database failed',
  usage: 'the command line, a configuration file or the set-up is wrong',
  refused: 'rejected, and nothing changed (unknown name, wrong state, preflight); doctor: a check failed',
  failed: 'it began and failed; after a failed migration the VM runs at the source',
  unreachable: 'the gateway, the node or the network cannot be reached',
  denied: 'a key, certificate, signature or token was not accepted',
  cancelled: 'cancelled; the VM runs at the source',
  timeout: 'an operation took too long',
}
