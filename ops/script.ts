// Reads command line and environment for all scripts, test runners and benchmarks: bad input ends them with a usage
// error and exit code 2 before they have done anything. (The `godwit` command has its own, cli/options.ts.) Otherwise a
// script that runs with NaN, or with nothing because a name did not match, would succeed.
import { type ParseArgsConfig, parseArgs } from 'node:util'

/** Exit code 2; the message names the option, its value, and the expected value. */
export class UsageError extends Error {}

type Range = { min?: number; max?: number }

/**
 * Runs a script's body; its result is the exit code (without a result: process.exitCode, or 0). A UsageError ends it
 * with `usage` and exit code 2.
 */
export async function runScript(usage: string, body: () => unknown): Promise<void> {
  try {
    const code = await body()
    if (typeof code === 'number') process.exitCode = code
  } catch (error) {
    if (!(error instanceof UsageError)) throw error
    process.stderr.write(`error USAGE: ${error.message}\n${usage.trimEnd()}\n`)
    process.exitCode = 2
  }
}

/** node:util's parseArgs; an unknown option, a missing value or an extra argument is a UsageError. */
export function readArguments<T extends ParseArgsConfig>(config: T): ReturnType<typeof parseArgs<T>> {
  try {
    return parseArgs(config)
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error))
  }
}

/**
 * Decimal digits only: 'abc', '', '1e3' and '2x' are UsageErrors, and so are values outside the range. `name` as the
 * user writes it: '--jobs', 'GODWIT_SEEDS'.
 */
export function wholeNumber(name: string, text: string, { min = 0, max = Number.MAX_SAFE_INTEGER }: Range = {}): number {
  const value = /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN
  if (value >= min && value <= max) return value
  throw new UsageError(`${name} '${text}': expected a whole number from ${min} to ${max}`)
}

/** Like wholeNumber, but allows a fraction: '2.5'. */
export function decimalNumber(name: string, text: string, { min = 0, max = Number.MAX_SAFE_INTEGER }: Range = {}): number {
  const value = /^\d{1,16}(\.\d{1,9})?$/.test(text) ? Number(text) : Number.NaN
  if (value >= min && value <= max) return value
  throw new UsageError(`${name} '${text}': expected a number from ${min} to ${max}`)
}

/** Returns `names` if each is one of `known`. */
export function knownNames<T extends string>(what: string, names: readonly string[], known: readonly T[]): T[] {
  const unknown = names.find(name => !known.includes(name as T))
  if (unknown === undefined) return [...names] as T[]
  throw new UsageError(`unknown ${what} '${unknown}'; known are ${known.join(', ')}`)
}

/** A whole number of the environment, for tests with an adjustable size. */
export function numberFromEnvironment(env: Record<string, string | undefined>, name: string, otherwise: number, range: Range = {}): number {
  const text = env[name]
  return text === undefined ? otherwise : wholeNumber(name, text, range)
}
