// The subsections of the CONFIGURATION section: what both ends must agree on about the layout of the rest.
// Enters: bytes from a subsection's first byte on. Leaves: where it ends and the capabilities it states, or why it is
// not known.
import { CAPABILITIES_MAX, CAPABILITY_NAME_BYTES_MAX, PAGE_BITS, readName, readU32, wrong } from './layout.ts'

type Subsection = { next: number; capabilities: string[] }

/** Those that change the layout in a way that the parser knows. */
const CAPABILITIES_KNOWN = ['x-ignore-shared', 'postcopy-ram']

/**
 * Reads bytes[at, end). undefined: it is not complete; a text: why what follows cannot be understood. Errors:
 * QEMU_STREAM.
 */
export function readSubsection(bytes: Uint8Array, at: number, end: number): Subsection | string | undefined {
  if (end - at < 2) return undefined
  const fields = at + 2 + bytes[at + 1]! + 4
  if (end < fields) return undefined
  const name = readName(bytes, at + 2, bytes[at + 1]!)
  const version = readU32(bytes, fields - 4)
  if (version !== 1) return `version ${version} of ${name}`
  if (name === 'configuration/uuid') return end < fields + 16 ? undefined : { next: fields + 16, capabilities: [] }
  if (name === 'configuration/target-page-bits') {
    if (end < fields + 4) return undefined
    const bits = readU32(bytes, fields)
    return bits === PAGE_BITS ? { next: fields + 4, capabilities: [] } : `pages of 2^${bits} bytes`
  }
  return name === 'configuration/capabilities' ? readCapabilities(bytes, fields, end) : `subsection ${name}`
}

/**
 * QEMU lists here only capabilities that change the layout (so both ends must agree); an unknown one therefore is a
 * layout we do not know.
 */
function readCapabilities(bytes: Uint8Array, at: number, end: number): Subsection | string | undefined {
  if (end < at + 4) return undefined
  const count = readU32(bytes, at)
  if (count > CAPABILITIES_MAX) throw wrong(`it lists ${count} capabilities`)
  const capabilities: string[] = []
  let next = at + 4
  while (capabilities.length < count) {
    if (end < next + 1) return undefined
    const length = bytes[next]!
    if (length > CAPABILITY_NAME_BYTES_MAX) throw wrong(`a capability's name has ${length} bytes`)
    if (end < next + 1 + length) return undefined
    const name = readName(bytes, next + 1, length)
    if (!CAPABILITIES_KNOWN.includes(name)) return `capability ${name}`
    capabilities.push(name)
    next += 1 + length
  }
  return { next, capabilities }
}
