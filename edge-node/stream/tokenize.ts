// A whole QEMU migration stream as tokens, for tests and tools. Enters: all bytes of a stream. Leaves: its tokens;
// write.ts turns them back. Written apart from parse.ts on purpose (a cursor over all bytes against a state machine
// over pieces): the two are tested against each other. The rules are the same: what is unknown makes the rest one
// `opaque` token, what is wrong or missing is QEMU_STREAM.
import { PAGE_BYTES } from '../../wire/types.ts'
import {
  BLOCKS_MAX,
  CAPABILITIES_MAX,
  CAPABILITY_NAME_BYTES_MAX,
  MACHINE_NAME_BYTES_MAX,
  PAGE_BITS,
  QEMU_COMMAND,
  RAM_FLAG,
  RAM_SECTION,
  readFlags,
  readName,
  readOffset,
  readU16,
  readU32,
  readU64,
  SECTION,
  STREAM_MAGIC,
  STREAM_VERSION,
  wrong,
} from './layout.ts'
import type { BlockEntry, Token } from './write.ts'

type Reader = {
  bytes: Uint8Array
  at: number
  tokens: Token[]
  ramId?: number
  /** Names of the MEM_SIZE list, once it was read. */
  names?: Set<string>
  /** Whether a page has named its block. */
  named: boolean
  pageSizes: boolean
  addresses: boolean
}

/** Thrown inside where the rest is opaque. */
const OPAQUE = Symbol('opaque')

/** The tokens of `bytes`; byte fields are views of it. Errors: QEMU_STREAM. */
export function tokenize(bytes: Uint8Array): Token[] {
  const reader: Reader = { bytes, at: 0, tokens: [], named: false, pageSizes: false, addresses: false }
  let start = 0
  try {
    readMagic(reader)
    for (;;) {
      start = reader.at
      if (readSection(reader, () => (start = reader.at))) break
    }
    start = reader.at
  } catch (error) {
    if (error !== OPAQUE) throw error
  }
  if (start < bytes.length) reader.tokens.push({ kind: 'opaque', bytes: bytes.subarray(start) })
  return reader.tokens
}

/** Moves over `length` bytes and gives where they began. */
function take(reader: Reader, length: number): number {
  const at = reader.at
  if (at + length > reader.bytes.length) throw wrong('it ended too early')
  reader.at = at + length
  return at
}

const takeU8 = (reader: Reader): number => reader.bytes[take(reader, 1)]!
const takeU32 = (reader: Reader): number => readU32(reader.bytes, take(reader, 4))
const takeU64 = (reader: Reader): number => readU64(reader.bytes, take(reader, 8))
const takeName = (reader: Reader, length: number): string => readName(reader.bytes, take(reader, length), length)
const takeBytes = (reader: Reader, length: number): Uint8Array => {
  const at = take(reader, length)
  return reader.bytes.subarray(at, at + length)
}

function readMagic(reader: Reader): void {
  if (takeU32(reader) !== STREAM_MAGIC) throw wrong('it does not begin with QEVM')
  const version = takeU32(reader)
  if (version !== STREAM_VERSION) throw wrong(`its version is ${version}`)
  reader.tokens.push({ kind: 'magic', version })
}

/**
 * One section or command; true when it was the end of RAM. `understood` is called where a later opaque part would
 * begin.
 */
function readSection(reader: Reader, understood: () => void): boolean {
  const kind = takeU8(reader)
  if (kind === SECTION.configuration) readConfiguration(reader, understood)
  else if (kind === SECTION.command) readCommand(reader)
  else if (kind === SECTION.start) {
    readStart(reader)
    readBody(reader, 'start', understood)
  } else if (kind === SECTION.part || kind === SECTION.end) {
    const id = takeU32(reader)
    if (id !== reader.ramId) throw wrong(`section ${id} continues without a start`)
    reader.tokens.push({ kind: kind === SECTION.part ? 'part' : 'end', id })
    readBody(reader, 'later', understood)
    return kind === SECTION.end
  } else throw OPAQUE
  return false
}

function readConfiguration(reader: Reader, understood: () => void): void {
  if (reader.ramId !== undefined || reader.tokens.some(token => token.kind === 'configuration')) throw OPAQUE
  const length = takeU32(reader)
  if (length > MACHINE_NAME_BYTES_MAX) throw wrong(`its machine name has ${length} bytes`)
  reader.tokens.push({ kind: 'configuration', machine: takeName(reader, length) })
  for (;;) {
    understood()
    if (reader.bytes[reader.at] !== SECTION.subsection) return
    reader.at++
    const name = takeName(reader, takeU8(reader))
    const version = takeU32(reader)
    if (version !== 1) throw OPAQUE
    const from = reader.at
    readFields(reader, name)
    reader.tokens.push({ kind: 'subsection', name, version, fields: reader.bytes.subarray(from, reader.at) })
  }
}

function readFields(reader: Reader, name: string): void {
  if (name === 'configuration/uuid') take(reader, 16)
  else if (name === 'configuration/target-page-bits') {
    if (takeU32(reader) !== PAGE_BITS) throw OPAQUE
  } else if (name === 'configuration/capabilities') {
    const count = takeU32(reader)
    if (count > CAPABILITIES_MAX) throw wrong(`it lists ${count} capabilities`)
    for (let index = 0; index < count; index++) {
      const length = takeU8(reader)
      if (length > CAPABILITY_NAME_BYTES_MAX) throw wrong(`a capability's name has ${length} bytes`)
      const capability = takeName(reader, length)
      if (capability === 'x-ignore-shared') reader.addresses = true
      else if (capability === 'postcopy-ram') reader.pageSizes = true
      else throw OPAQUE
    }
  } else throw OPAQUE
}

function readCommand(reader: Reader): void {
  const at = take(reader, 4)
  const command = readU16(reader.bytes, at)
  const length = readU16(reader.bytes, at + 2)
  const lengths: Record<number, number[]> = {
    [QEMU_COMMAND.openReturnPath]: [0],
    [QEMU_COMMAND.ping]: [4],
    [QEMU_COMMAND.postcopyAdvise]: [0, 16],
    [QEMU_COMMAND.switchoverStart]: [0],
  }
  if (!lengths[command]?.includes(length)) throw OPAQUE
  reader.tokens.push({ kind: 'command', command, payload: takeBytes(reader, length) })
  if (command === QEMU_COMMAND.postcopyAdvise && length === 16) reader.pageSizes = true
}

function readStart(reader: Reader): void {
  const id = takeU32(reader)
  const name = takeName(reader, takeU8(reader))
  const instance = takeU32(reader)
  const version = takeU32(reader)
  const known = name === RAM_SECTION.name && instance === RAM_SECTION.instance && version === RAM_SECTION.version
  if (!known || reader.ramId !== undefined) throw OPAQUE
  reader.ramId = id
  reader.tokens.push({ kind: 'start', id, name, instance, version })
}

function readBody(reader: Reader, section: 'start' | 'later', understood: () => void): void {
  for (;;) {
    understood()
    const at = take(reader, 8)
    const flags = readFlags(reader.bytes, at)
    const offset = readOffset(reader.bytes, at)
    const kind = flags & ~RAM_FLAG.continue
    if (flags === RAM_FLAG.eos && offset === 0) break
    if (flags === RAM_FLAG.memSize && section === 'start' && reader.names === undefined && !(reader.pageSizes && reader.addresses)) {
      readBlocks(reader, offset)
    } else if (kind === RAM_FLAG.page || kind === RAM_FLAG.zero) readPage(reader, offset, flags)
    else throw OPAQUE
  }
  reader.tokens.push({ kind: 'eos' })
  understood()
  // Looking for a footer needs a byte: a section that ends the stream without one was cut.
  if (reader.at >= reader.bytes.length) throw wrong('it ended too early')
  if (reader.bytes[reader.at] !== SECTION.footer) return
  reader.at++
  const id = takeU32(reader)
  if (id !== reader.ramId) throw wrong(`a footer of section ${id}`)
  reader.tokens.push({ kind: 'footer', id })
}

function readPage(reader: Reader, offset: number, flags: number): void {
  const name = (flags & RAM_FLAG.continue) === 0 ? { name: takeName(reader, takeU8(reader)) } : {}
  if (name.name !== undefined && !reader.names?.has(name.name)) throw OPAQUE
  if (name.name === undefined && !reader.named) throw wrong('a page continues a block before any block was named')
  safe(offset)
  reader.named = true
  if ((flags & RAM_FLAG.page) !== 0) reader.tokens.push({ kind: 'page', ...name, offset, bytes: takeBytes(reader, PAGE_BYTES) })
  else if (takeU8(reader) !== 0) throw wrong('a zero page is filled with something else')
  else reader.tokens.push({ kind: 'zero', ...name, offset })
}

function readBlocks(reader: Reader, total: number): void {
  const list: BlockEntry[] = []
  const names = new Set<string>()
  for (let left = safe(total); left > 0; ) {
    const length = takeU8(reader)
    const name = takeName(reader, length)
    const usedBytes = safe(takeU64(reader))
    if (length === 0 || names.has(name)) throw wrong('its block list has a block twice or without a name')
    if (usedBytes > left || list.length === BLOCKS_MAX) throw wrong('its block list is longer than its total')
    left -= usedBytes
    names.add(name)
    list.push({ name, usedBytes, ...readExtras(reader) })
  }
  reader.names = names
  reader.tokens.push({ kind: 'blocks', list })
}

function readExtras(reader: Reader): Pick<BlockEntry, 'pageBytes' | 'address'> {
  if (reader.addresses) return { address: BigInt(takeU32(reader)) * 2n ** 32n + BigInt(takeU32(reader)) }
  if (!reader.pageSizes || reader.bytes[reader.at] !== 0) return {}
  const value = takeU64(reader)
  if (value > PAGE_BYTES && value <= 2 ** 40 && Number.isInteger(Math.log2(value))) return { pageBytes: value }
  reader.at -= 8
  return {}
}

function safe(value: number): number {
  if (!Number.isSafeInteger(value)) throw wrong(`it states ${value} as a number of bytes`)
  return value
}
