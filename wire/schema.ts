// The only user of zod: every value from outside is checked here before it is used. Enters: any value. Leaves: the
// typed value, or a coded error that names the field and what was expected.
import { z } from 'zod'
import { type ErrorCode, GodwitError } from './errors.ts'

export { z }

/**
 * Deeper than any message of Godwit. Deeper values could overflow the stack: JSON.stringify and structural checks
 * recurse, JSON.parse does not.
 */
export const JSON_DEPTH_MAX = 64
const MESSAGE_LENGTH_MAX = 1000

type CheckOptions = { what: string; code?: ErrorCode }

/** The value as the schema's type, or a GodwitError (default FRAME_MALFORMED) that names the first wrong field. */
export function check<S extends z.ZodType>(schema: S, value: unknown, { what, code = 'FRAME_MALFORMED' }: CheckOptions): z.output<S> {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const issue = result.error.issues[0]
  const field = issue && issue.path.length > 0 ? `${issue.path.map(String).join('.')}: ` : ''
  // The message may contain text of the peer, such as unknown keys.
  throw new GodwitError(code, `${what}: ${field}${issue?.message ?? 'invalid'}`.slice(0, MESSAGE_LENGTH_MAX))
}

/** JSON text (UTF-8 bytes or a string) checked against a schema. */
export function checkJson<S extends z.ZodType>(schema: S, text: Uint8Array | string, options: CheckOptions): z.output<S> {
  return check(schema, parseJson(text, options), options)
}

/**
 * The value of a JSON text; FRAME_MALFORMED (by default) if it is not valid JSON, not UTF-8, or nested deeper than
 * JSON_DEPTH_MAX.
 */
export function parseJson(text: Uint8Array | string, { what, code = 'FRAME_MALFORMED' }: CheckOptions): unknown {
  let value: unknown
  let json: string
  try {
    json = typeof text === 'string' ? text : new TextDecoder('utf-8', { fatal: true }).decode(text)
    value = JSON.parse(json)
  } catch (cause) {
    throw new GodwitError(code, `${what}: not valid JSON`, { cause })
  }
  if (depthOf(json) > JSON_DEPTH_MAX) throw new GodwitError(code, `${what}: nested deeper than ${JSON_DEPTH_MAX}`)
  return value
}

const QUOTE = 0x22
const BACKSLASH = 0x5c

/** Nesting of a valid JSON text. */
function depthOf(json: string): number {
  let depth = 0
  let deepest = 0
  let quoted = false
  for (let at = 0; at < json.length; at++) {
    const code = json.charCodeAt(at)
    if (code === QUOTE) quoted = !quoted
    else if (quoted) at += code === BACKSLASH ? 1 : 0
    else if (code === 0x5b || code === 0x7b) deepest = Math.max(deepest, ++depth)
    else if (code === 0x5d || code === 0x7d) depth--
  }
  return deepest
}

/** A value as the JSON payload of a frame. */
export const toJson = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value))
