// Canonical JSON: sorted keys and no spaces (RFC 8785), so that both ends sign the same bytes. Pure. Always holds: each
// result of JSON.parse has exactly one canonical form; TypeError for values that JSON cannot express.

/** The canonical JSON of a value that came from JSON.parse, or could have. */
export function canonicalJson(value: unknown): string {
  if (value === null || typeof value === 'boolean' || typeof value === 'string') return JSON.stringify(value)
  if (typeof value === 'number') {
    if (!Number.isFinite(value)) throw new TypeError('not a JSON number')
    return JSON.stringify(value)
  }
  if (Array.isArray(value)) return `[${value.map(canonicalJson).join(',')}]`
  if (typeof value !== 'object') throw new TypeError(`${typeof value} is not JSON`)
  const entries = Object.entries(value).filter(([, field]) => field !== undefined)
  // RFC 8785 sorts by UTF-16 code units, as JavaScript's < does.
  entries.sort(([a], [b]) => (a < b ? -1 : 1))
  return `{${entries.map(([key, field]) => `${JSON.stringify(key)}:${canonicalJson(field)}`).join(',')}}`
}

/** The signed bytes: the topic (with tenant and action) and the payload without its signature. */
export function signedText(topic: string, payload: Record<string, unknown>): string {
  const { sig: _, ...rest } = payload
  return `${topic}\n${canonicalJson(rest)}`
}
