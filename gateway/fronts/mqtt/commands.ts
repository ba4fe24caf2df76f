// Which commands may be carried out. Pure but for Ed25519: a message and the time in, a verdict out.
// Enters: bytes from a broker that nobody trusts. Leaves: a command that a known key signed for this topic and that is
// new, a duplicate with what became of the first, or a coded refusal, with the place where the answer may go.
// Always holds: nothing of a message is believed before its signature is; a command is taken at most once: its id is
// remembered until its notAfter has passed, after which it is late; when there is no room to remember, new commands are
// refused rather than old ones forgotten. A restart forgets ids: what is redelivered then is held off by expectedEpoch,
// by the running migration, and by notAfter.
import { createHash } from 'node:crypto'
import { type AllowedKey, checkCommand, SKEW_MS } from '../../../crypto/command-check.ts'
import { PAYLOAD_BYTES_MAX } from '../../../mqtt/channels.ts'
import { type Command, CommandId, type Reply } from '../../../mqtt/schemas.ts'
import type { Action, Topics } from '../../../mqtt/topics.ts'
import { type ErrorCode, GodwitError, toGodwitError } from '../../../wire/errors.ts'
import { parseJson } from '../../../wire/schema.ts'

const REMEMBERED_MAX = 10_000

export type { AllowedKey } from '../../../crypto/command-check.ts'
export type CommandMessage = { action: Action; payload: Uint8Array; retained: boolean; responseTopic?: string | undefined }

export type CommandVerdict =
  | { verdict: 'accepted'; command: Command; replyTo: string | undefined; settle(reply: Promise<Reply>): void }
  | { verdict: 'duplicate'; commandId: string; replyTo: string | undefined; original: Promise<Reply> }
  | { verdict: 'rejected'; commandId: string | null; replyTo: string | undefined; error: GodwitError }

type Remembered = { digest: string; reply: Promise<Reply>; untilMs: number }

export type Commands = {
  take(message: CommandMessage, nowMs: number): CommandVerdict
  /** Ids that are remembered now. */
  remembered(): number
}

type CommandsOptions = { topics: Topics; keys: AllowedKey[]; rememberedMax?: number }

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

  function remember(command: Command, nowMs: number, replyTo: string | undefined): CommandVerdict {
    const { commandId, sig } = command
    const id = `${sig.key} ${commandId}`
    const digest = createHash('sha256').update(`${command.action} ${sig.value}`).digest('base64')
    const known = taken.get(id)
    if (known?.digest === digest) return { verdict: 'duplicate', commandId, replyTo, original: known.reply }
    if (known) throw new GodwitError('COMMAND_REUSED', `commandId ${commandId} was already used for another command`)
    forget(nowMs)
    if (taken.size >= rememberedMax) throw new GodwitError('LIMIT_EXCEEDED', `${rememberedMax} commands have not expired yet`)
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
          throw new GodwitError('COMMAND_TOO_LARGE', `the command has ${payload.length} bytes, the limit is ${PAYLOAD_BYTES_MAX}`)
        value = parseJson(payload, { what: `command ${action}`, code: 'COMMAND_MALFORMED' })
        if (retained) throw new GodwitError('COMMAND_RETAINED')
        const command = checkCommand(action, value, { topics, keys: byName, nowMs })
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
