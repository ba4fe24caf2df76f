// The only user of the yaml package. Enters: YAML text written by a person. Leaves: its value and the position of each
// field, or a coded error with line and column. Always holds: bounded work (text size, aliases), only the core schema
// (no custom tags, no merge keys), one document.
import { isNode, LineCounter, parseDocument, stringify } from 'yaml'
import { type ErrorCode, GodwitError } from '../wire/errors.ts'

const MAX_TEXT_BYTES = 256 * 1024
const MAX_ALIASES = 32

type YamlPath = readonly (string | number)[]
export type YamlValue = {
  value: unknown
  /**
   * The line (from 1) of the value at this path, or of the nearest parent that the text has; undefined if there is
   * none.
   */
  lineOf(path: YamlPath): number | undefined
}

/**
 * The value of a YAML text. `code` (default CONFIG_INVALID) with line and column if it is malformed; `what` names the
 * text in the message.
 */
export function parseYaml(text: string, { what, code = 'CONFIG_INVALID' }: { what: string; code?: ErrorCode }): YamlValue {
  if (Buffer.byteLength(text) > MAX_TEXT_BYTES) throw new GodwitError(code, `${what}: larger than ${MAX_TEXT_BYTES} bytes`)
  const lines = new LineCounter()
  const document = parseDocument(text, {
    lineCounter: lines,
    prettyErrors: false,
    uniqueKeys: true,
    schema: 'core',
    merge: false,
    version: '1.2',
  })
  const wrong = document.errors[0] ?? document.warnings[0]
  if (wrong) {
    const { line, col } = lines.linePos(wrong.pos[0])
    throw new GodwitError(code, `${what}: malformed YAML at line ${line}, column ${col}: ${wrong.message}`, { cause: wrong })
  }
  try {
    return { value: document.toJS({ maxAliasCount: MAX_ALIASES }), lineOf }
  } catch (cause) {
    throw new GodwitError(code, `${what}: malformed YAML: ${cause instanceof Error ? cause.message : String(cause)}`, { cause })
  }

  function lineOf(path: YamlPath): number | undefined {
    for (let length = path.length; length >= 0; length--) {
      const node = length === 0 ? document.contents : document.getIn(path.slice(0, length), true)
      if (isNode(node) && node.range) return lines.linePos(node.range[0]).line
    }
    return undefined
  }
}

/** A value as YAML text. */
export const toYaml = (value: unknown): string => stringify(value, { lineWidth: 0 })
