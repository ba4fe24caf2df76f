// Checks whether a signed command may be executed: shape, key, signature, rights and time. Pure. Gateway and nodes use
// the same rules. Always holds: no field of a command is used before its signature is checked over the received bytes,
// not over the parsed value.
import type { KeyObject } from 'node:crypto'
import { type Action, COMMANDS, type Command } from '../wire/command.ts'
import { GodwitError } from '../wire/errors.ts'
import { check } from '../wire/schema.ts'
import { type CommandTopics, verifySignature } from './command-keys.ts'

/** Maximum error of the sender's clock. */
export const SKEW_MS = 5_000
/** Limit of notAfter in the future: it bounds the number of commands to remember. */
export const AHEAD_MAX_MS = 60_000

export type AllowedKey = { name: string; key: KeyObject; actions: readonly Action[] }
type CheckCommandOptions = { topics: CommandTopics; keys: ReadonlyMap<string, AllowedKey>; nowMs: number }

/** The command. COMMAND_MALFORMED, COMMAND_FORGED, COMMAND_FORBIDDEN, COMMAND_LATE. */
export function checkCommand(action: Action, value: unknown, { topics, keys, nowMs }: CheckCommandOptions): Command {
  const command = { action, ...check(COMMANDS[action], value, { what: `command ${action}`, code: 'COMMAND_MALFORMED' }) } as Command
  const allowed = keys.get(command.sig.key)
  if (!allowed) throw new GodwitError('COMMAND_FORGED', `unknown command key '${command.sig.key}'`)
  if (!verifySignature(allowed.key, topics.build(action), value as Record<string, unknown>, command.sig.value))
    throw new GodwitError('COMMAND_FORGED', `the signature of key '${command.sig.key}' is wrong`)
  if (!allowed.actions.includes(action))
    throw new GodwitError('COMMAND_FORBIDDEN', `key '${allowed.name}' may not sign the action ${action}`)
  const notAfterMs = Date.parse(command.notAfter)
  if (notAfterMs + SKEW_MS < nowMs) throw new GodwitError('COMMAND_LATE', `the command expired at ${command.notAfter}`)
  if (notAfterMs > nowMs + AHEAD_MAX_MS + SKEW_MS)
    throw new GodwitError('COMMAND_MALFORMED', `notAfter: more than ${AHEAD_MAX_MS / 1000} s in the future`)
  return command
}
