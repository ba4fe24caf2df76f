// The one door to zod: every shape that comes from outside is checked here before it is believed.
// Enters: any value. Leaves: the typed value, or a coded error that names the field and what was expected.
import { z } from 'zod'
import { type ErrorCode, GodwitError } from './errors.ts'

export { z }

export type CheckOptions = { what: string; code?: ErrorCode }

/** The value as the schema's type, or a GodwitError (FRAME_MALFORMED unless told) that names the first wrong field. */
export function check<S extends z.ZodType>(schema: S, value: unknown, { what, code = 'FRAME_MALFORMED' }: CheckOptions): z.output<S> {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const issue = result.error.issues[0]
  const field = issue && issue.path.length > 0 ? `${issue.path.map(String).join('.')}: ` : ''
  throw new GodwitError(code, `${what}: ${field}${issue?.message ?? 'invalid'}`)
}

/** JSON text (UTF-8 bytes or a string) checked against a schema. */
export function checkJson<S extends z.ZodType>(schema: S, text: Uint8Array | string, options: CheckOptions): z.output<S> {
  return check(schema, parseJson(text, options), options)
}

/** The value of a JSON text; FRAME_MALFORMED (unless told) when it is none, or not UTF-8. */
export function parseJson(text: Uint8Array | string, { what, code = 'FRAME_MALFORMED' }: CheckOptions): unknown {
  try {
    return JSON.parse(typeof text === 'string' ? text : new TextDecoder('utf-8', { fatal: true }).decode(text))
  } catch (cause) {
    throw new GodwitError(code, `${what}: not valid JSON`, { cause })
  }
}

/** A value as the JSON payload of a frame. */
export const toJson = (value: unknown): Uint8Array => new TextEncoder().encode(JSON.stringify(value))
