// Which commands may be carried out. Pure but for Ed25519: a message and the time in, a verdict out.
// Enters: bytes from a broker that nobody trusts. Leaves: a command that a known key signed for this topic and that is new, a duplicate with
// what became of the first, or a coded refusal, with the place where the answer may go.
// Always holds: nothing of a message is believed before its signature is; a command is taken at most once: its id is remembered until its
// notAfter has passed, after which it is late; when there is no room to remember, new commands are refused rather than old ones forgotten.
// A restart forgets ids: what is redelivered then is held off by expectedEpoch, by the running migration, and by notAfter.
import { createHash, type KeyObject } from 'node:crypto'
import { type ErrorCode, GodwitError, toGodwitError } from '../../../wire/errors.ts'
import { check, parseJson } from '../../../wire/schema.ts'
import { PAYLOAD_BYTES_MAX } from './channels.ts'
import { verifyCommand } from './command-keys.ts'
import { COMMANDS, type Command, CommandId, type Reply } from './schemas.ts'
import type { Action, Topics } from './topics.ts'

/** A commander's clock may be this far off. */
export const SKEW_MS = 5_000
/** notAfter may lie this far ahead, and no farther: it bounds what must be remembered. */
export const AHEAD_MAX_MS = 60_000
export const REMEMBERED_MAX = 10_000

export type AllowedKey = { name: string; key: KeyObject; actions: readonly Action[] }
export type CommandMessage = { action: Action; payload: Uint8Array; retained: boolean; responseTopic?: string | undefined }

export type Verdict =
  | { verdict: 'accepted'; command: Command; replyTo: string | undefined; settle(reply: Promise<Reply>): void }
  | { verdict: 'duplicate'; commandId: string; replyTo: string | undefined; original: Promise<Reply> }
  | { verdict: 'rejected'; commandId: string | null; replyTo: string | undefined; error: GodwitError }

type Remembered = { digest: string; reply: Promise<Reply>; untilMs: number }

export type Commands = {
  take(message: CommandMessage, nowMs: number): Verdict
  /** Ids that are remembered now. */
  remembered(): number
}

export type CommandsOptions = { topics: Topics; keys: AllowedKey[]; rememberedMax?: number }

export function createCommands({ topics, keys, rememberedMax = REMEMBERED_MAX }: CommandsOptions): Commands {
  const byName = new Map(keys.map(key => [key.name, key]))
  /** In order of coming; every entry lives about as long as the others, so that the oldest are the first to go. */
  const taken = new Map<string, Remembered>()

  function forget(nowMs: number): void {
    for (const [id, { untilMs }] of taken) {
      if (untilMs > nowMs) {
        if (taken.size < rememberedMax) return
        continue
      }
      taken.delete(id)
    }
  }

  /** A signed command of a key that may give it, in time. Throws what is wrong. */
  function believe(action: Action, value: unknown, nowMs: number): Command {
    const command = { action, ...check(COMMANDS[action], value, { what: `command ${action}`, code: 'COMMAND_MALFORMED' }) } as Command
    const allowed = byName.get(command.sig.key)
    if (!allowed) throw new GodwitError('COMMAND_FORGED', `no key '${command.sig.key}' may command here`)
    // Over what came, not over what we made of it.
    if (!verifyCommand(allowed.key, topics.build(action), value as Record<string, unknown>, command.sig.value))
      throw new GodwitError('COMMAND_FORGED', `the signature is not that of key '${command.sig.key}' over this command`)
    if (!allowed.actions.includes(action)) throw new GodwitError('COMMAND_FORBIDDEN', `key '${allowed.name}' may not ${action}`)
    const notAfterMs = Date.parse(command.notAfter)
    if (notAfterMs + SKEW_MS < nowMs) throw new GodwitError('COMMAND_LATE', `it was good until ${command.notAfter}`)
    if (notAfterMs > nowMs + AHEAD_MAX_MS + SKEW_MS)
      throw new GodwitError('COMMAND_MALFORMED', `notAfter: more than ${AHEAD_MAX_MS / 1000} s ahead`)
    return command
  }

  function remember(command: Command, nowMs: number, replyTo: string | undefined): Verdict {
    const { commandId, sig } = command
    const id = `${sig.key} ${commandId}`
    const digest = createHash('sha256').update(`${command.action} ${sig.value}`).digest('base64')
    const known = taken.get(id)
    if (known?.digest === digest) return { verdict: 'duplicate', commandId, replyTo, original: known.reply }
    if (known) throw new GodwitError('COMMAND_REUSED', `commandId ${commandId} was used before, for another command`)
    forget(nowMs)
    if (taken.size >= rememberedMax) throw new GodwitError('LIMIT_EXCEEDED', `${rememberedMax} commands within their time already`)
    const untilMs = Date.parse(command.notAfter) + SKEW_MS + 1
    const settle = (reply: Promise<Reply>) => {
      taken.set(id, { digest, reply, untilMs })
    }
    return { verdict: 'accepted', command, replyTo, settle }
  }

  return {
    remembered: () => taken.size,
    take({ action, payload, retained, responseTopic }, nowMs) {
      let value: unknown
      const answer = () => answerOf(topics, value, responseTopic)
      try {
        if (payload.length > PAYLOAD_BYTES_MAX)
          throw new GodwitError('COMMAND_TOO_LARGE', `${payload.length} bytes; a command may have ${PAYLOAD_BYTES_MAX}`)
        value = parseJson(payload, { what: `command ${action}`, code: 'COMMAND_MALFORMED' })
        if (retained) throw new GodwitError('COMMAND_RETAINED')
        const command = believe(action, value, nowMs)
        return remember(command, nowMs, answer().replyTo)
      } catch (thrown) {
        return { verdict: 'rejected', ...answer(), error: toGodwitError(thrown, 'COMMAND_MALFORMED') }
      }
    },
  }
}

/** Where an answer may go, however broken the command is: only to a reply topic of this tenant. */
function answerOf(
  topics: Topics,
  value: unknown,
  responseTopic: string | undefined,
): { commandId: string | null; replyTo: string | undefined } {
  const field = (name: string): unknown =>
    typeof value === 'object' && value !== null && !Array.isArray(value) ? (value as Record<string, unknown>)[name] : undefined
  const id = CommandId.safeParse(field('commandId'))
  const isReply = (topic: unknown): topic is string => typeof topic === 'string' && topics.parse(topic)?.kind === 'reply'
  const replyTo = [field('replyTo'), responseTopic].find(isReply)
  return { commandId: id.success ? id.data : null, replyTo }
}

/** Codes that a refused command can have before anything is tried: the values of a counter's label. */
export const REFUSALS = [
  'COMMAND_TOO_LARGE',
  'COMMAND_MALFORMED',
  'COMMAND_RETAINED',
  'COMMAND_FORGED',
  'COMMAND_FORBIDDEN',
  'COMMAND_LATE',
  'COMMAND_REUSED',
  'LIMIT_EXCEEDED',
] as const satisfies readonly ErrorCode[]
