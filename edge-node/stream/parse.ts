// Incremental parser of QEMU's migration stream (layouts: QEMU's migration documentation; the format
// has no specification).
// Enters: the source QEMU's bytes, cut anywhere. Leaves: pages of captured RAM blocks one by one, and the skeleton,
// which is every other byte in order.
// Always holds: the skeleton is byte-exact but that page records of other blocks always name their block (what CONTINUE
// refers to changes when pages between are taken out); memory is bounded by one record; what is unknown is passed
// through untouched (`opaque`), never guessed.
//
// Unknown and wrong are two things. Unknown (a flag, section, command or subsection that this file does not know) falls
// to opaque: the target's QEMU judges it. Wrong (bad magic, a page outside its block, a footer of another section, an
// end within a record) is QEMU_STREAM: the bytes contradict the layout, so what was captured before cannot be trusted
// either.
import { PAGE_BYTES } from '../../wire/types.ts'
import { readSubsection } from './configuration.ts'
import {
  BLOCKS_MAX,
  be32,
  concat,
  EOS_RECORD,
  MACHINE_NAME_BYTES_MAX,
  pageHead,
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

/** A RAM block as the MEM_SIZE list announces it. */
export type RamBlock = {
  /** QEMU's id of the block, such as `ram0` or `/rom@etc/acpi/tables`; one character per byte. */
  readonly name: string
  /** Place in the list, from 0. */
  readonly index: number
  /** Offsets of its pages are below this. */
  readonly usedBytes: number
  /** Whether `captures` took it: its pages leave by `page` and `zero` and are absent from the skeleton. */
  readonly captured: boolean
  /** Only with postcopy-ram, and only when it differs from the host's page size. */
  readonly pageBytes?: number
}

/** Byte views are valid during the callback only. All callbacks run synchronously inside push(), in stream order. */
export type StreamEvents = {
  /** Everything that is not a captured page, in order, in pieces of any size. */
  skeleton(bytes: Uint8Array): void
  /** A page of a captured block: `offset` within the block, 4096 bytes. */
  page(block: RamBlock, offset: number, bytes: Uint8Array): void
  /** A page of a captured block that is all zeros. */
  zero(block: RamBlock, offset: number): void
  /** The MEM_SIZE list, once, before any page. */
  blocks(blocks: readonly RamBlock[]): void
  /** After the footer of RAM's END section, before the first byte of device state: all after it is skeleton. */
  ramEnd(): void
  /**
   * The parser fell to raw pass-through, before the first raw byte: from here everything is skeleton, pages of captured
   * blocks too, and neither page(), zero(), ramEnd() nor boundary() comes again. Pages captured before must be in the
   * target's memory before the target's QEMU sees the skeleton bytes that follow.
   */
  opaque(reason: string): void
  /** Between two sections (or commands) that were understood; the skeleton up to here has been given out. */
  boundary?(): void
}

type ParserPhase = 'header' | 'setup' | 'iterate' | 'end' | 'devices' | 'opaque'

export type Parser = {
  /** Takes the next bytes. Throws QEMU_STREAM; the first error is final. */
  push(chunk: Uint8Array): void
  /**
   * The stream is over. QEMU_STREAM unless it ended in device state or in an opaque part, where an early end cannot be
   * known.
   */
  end(): void
  /**
   * `header` until RAM's START section, `setup` until its first PART, `iterate` until its END, `end` within it, then
   * `devices`.
   */
  readonly phase: ParserPhase
  /** Whether what was pushed ends exactly between two sections. False in `devices` and `opaque`. */
  readonly betweenSections: boolean
  /** PART sections of RAM begun. */
  readonly iterations: number
  /** Whether RAM is the only section that iterates; undefined until set-up is over. */
  readonly ramOnly: boolean | undefined
  /** Why the parser is opaque. */
  readonly opaqueReason: string | undefined
}

/**
 * @param options.captures decides per block name, once, when the MEM_SIZE list arrives.
 */
export function createParser(events: StreamEvents, options: { captures: (name: string) => boolean }): Parser {
  return new StreamParser(events, options.captures)
}

/** A unit is not complete yet. */
const SHORT = -1
/** Longest unit that must lie in one piece: a page record with a name of 255 bytes. Other units are held below it. */
const UNIT_BYTES_MAX = 8 + 1 + 255 + PAGE_BYTES

type State = 'magic' | 'subsection' | 'section' | 'record' | 'blockList' | 'footer' | 'raw'

class StreamParser implements Parser {
  readonly #events: StreamEvents
  readonly #captures: (name: string) => boolean
  #state: State = 'magic'
  #error: unknown
  phase: ParserPhase = 'header'
  iterations = 0
  ramOnly: boolean | undefined
  opaqueReason: string | undefined

  readonly #carry = new Uint8Array(UNIT_BYTES_MAX)
  #carried = 0
  /** Start, within the buffer being parsed, of skeleton bytes that were not given out yet. */
  #run = 0

  #configured = false
  #pageSizes = false
  #addresses = false
  #ramId = -1
  #footers = false
  readonly #blocks: RamBlock[] = []
  readonly #byName = new Map<string, RamBlock>()
  #listed = false
  #listBytesLeft = 0
  /** A block whose page size may follow. */
  #pending: PendingBlock | undefined

  /** The block of the last page record, as the source's QEMU sees it. */
  #block: RamBlock | undefined
  /** The last page record, when it was a captured one: the skeleton's reader does not know #block then. */
  #hidden = false
  #hiddenOffset = 0
  /** Its bytes (undefined: zeros); a view of the buffer being parsed, or #hiddenCopy. */
  #hiddenPage: Uint8Array | undefined
  readonly #hiddenCopy = new Uint8Array(PAGE_BYTES)

  constructor(events: StreamEvents, captures: (name: string) => boolean) {
    this.#events = events
    this.#captures = captures
  }

  get betweenSections(): boolean {
    return this.#state === 'section' && this.#carried === 0
  }

  push(chunk: Uint8Array): void {
    if (this.#error !== undefined) throw this.#error
    try {
      this.#push(chunk)
    } catch (error) {
      this.#error = error
      throw error
    }
  }

  #push(chunk: Uint8Array): void {
    // A plain view: subarray() of a Buffer is several times slower.
    const bytes = new Uint8Array(chunk.buffer, chunk.byteOffset, chunk.byteLength)
    let from = 0
    while (this.#carried > 0) {
      const before = this.#carried
      const added = Math.min(this.#carry.length - before, bytes.length)
      this.#carry.set(added === bytes.length ? bytes : bytes.subarray(0, added), before)
      const used = this.#parse(this.#carry, 0, before + added)
      if (used === 0) {
        // The unit is still short. It fits into #carry, so all of the chunk went in.
        this.#carried = before + added
        return
      }
      // Units that end within what was carried (only after a look-ahead): the rest of it stays for another turn.
      this.#carried = Math.max(0, before - used)
      this.#carry.copyWithin(0, used, before)
      from = used - before
    }
    const used = this.#parse(bytes, from, bytes.length)
    this.#carried = bytes.length - used
    this.#carry.set(bytes.subarray(used), 0)
  }

  end(): void {
    if (this.#error !== undefined) throw this.#error
    if (this.#state === 'raw') return
    const place = this.#state === 'section' && this.#carried === 0 ? 'between sections, before the end of RAM' : `within a ${this.#state}`
    this.#error = wrong(`it ended ${place}`)
    throw this.#error
  }

  /** Parses what is complete in bytes[from, end); gives where the first incomplete unit begins. */
  #parse(bytes: Uint8Array, from: number, end: number): number {
    this.#run = from
    let at = from
    while (at < end) {
      if (this.#state === 'raw') {
        at = end
        break
      }
      const next = this.#state === 'record' ? this.#record(bytes, at, end) : this.#unit(bytes, at, end)
      if (next === SHORT) break
      at = next
    }
    this.#flush(bytes, at)
    if (this.#hiddenPage !== undefined && this.#hiddenPage !== this.#hiddenCopy) {
      this.#hiddenCopy.set(this.#hiddenPage)
      this.#hiddenPage = this.#hiddenCopy
    }
    return at
  }

  #unit(bytes: Uint8Array, at: number, end: number): number {
    switch (this.#state) {
      case 'magic':
        return this.#magic(bytes, at, end)
      case 'subsection':
        return this.#subsection(bytes, at, end)
      case 'section':
        return this.#section(bytes, at, end)
      case 'blockList':
        return this.#blockList(bytes, at, end)
      case 'footer':
        return this.#footer(bytes, at, end)
      default:
        throw new Error(`no unit in state ${this.#state}`)
    }
  }

  #magic(bytes: Uint8Array, at: number, end: number): number {
    if (end - at < 8) return SHORT
    if (readU32(bytes, at) !== STREAM_MAGIC) throw wrong('it does not begin with QEVM')
    if (readU32(bytes, at + 4) !== STREAM_VERSION) throw wrong(`its version is ${readU32(bytes, at + 4)}, not ${STREAM_VERSION}`)
    this.#state = 'section'
    return at + 8
  }

  #section(bytes: Uint8Array, at: number, end: number): number {
    const type = bytes[at]!
    switch (type) {
      case SECTION.configuration:
        return this.#configuration(bytes, at, end)
      case SECTION.start:
        return this.#start(bytes, at, end)
      case SECTION.part:
      case SECTION.end:
        return this.#continue(bytes, at, end, type)
      case SECTION.command:
        return this.#command(bytes, at, end)
      case SECTION.full:
        return this.#fall(bytes, at, 'device state before the end of RAM')
      case SECTION.eof:
        return this.#fall(bytes, at, 'end of the sections before the end of RAM')
      default:
        return this.#fall(bytes, at, `section type 0x${type.toString(16)}`)
    }
  }

  #configuration(bytes: Uint8Array, at: number, end: number): number {
    if (this.#configured || this.#ramId !== -1) return this.#fall(bytes, at, 'a configuration after the first section')
    if (end - at < 5) return SHORT
    const length = readU32(bytes, at + 1)
    if (length > MACHINE_NAME_BYTES_MAX) throw wrong(`its machine name has ${length} bytes`)
    if (end - at < 5 + length) return SHORT
    this.#configured = true
    this.#state = 'subsection'
    return at + 5 + length
  }

  #subsection(bytes: Uint8Array, at: number, end: number): number {
    if (bytes[at] !== SECTION.subsection) {
      this.#state = 'section'
      return this.#section(bytes, at, end)
    }
    const read = readSubsection(bytes, at, end)
    if (read === undefined) return SHORT
    if (typeof read === 'string') return this.#fall(bytes, at, read)
    this.#addresses ||= read.capabilities.includes('x-ignore-shared')
    this.#pageSizes ||= read.capabilities.includes('postcopy-ram')
    return read.next
  }

  #start(bytes: Uint8Array, at: number, end: number): number {
    if (end - at < 6) return SHORT
    const tail = at + 6 + bytes[at + 5]!
    if (end < tail + 8) return SHORT
    const name = readName(bytes, at + 6, bytes[at + 5]!)
    // Another section that iterates has bodies of its own without a length.
    if (name !== RAM_SECTION.name || this.#ramId !== -1) {
      this.ramOnly = false
      return this.#fall(bytes, at, `iterable section ${name}`)
    }
    const instance = readU32(bytes, tail)
    const version = readU32(bytes, tail + 4)
    if (instance !== RAM_SECTION.instance || version !== RAM_SECTION.version) {
      return this.#fall(bytes, at, `section ram of instance ${instance}, version ${version}`)
    }
    this.#ramId = readU32(bytes, at + 1)
    this.phase = 'setup'
    this.#state = 'record'
    return tail + 8
  }

  #continue(bytes: Uint8Array, at: number, end: number, type: number): number {
    if (end - at < 5) return SHORT
    const id = readU32(bytes, at + 1)
    if (this.#ramId === -1 || id !== this.#ramId) throw wrong(`section ${id} continues without a start`)
    this.ramOnly = true
    if (type === SECTION.part) this.iterations++
    this.phase = type === SECTION.part ? 'iterate' : 'end'
    this.#state = 'record'
    return at + 5
  }

  #command(bytes: Uint8Array, at: number, end: number): number {
    if (end - at < 5) return SHORT
    const command = readU16(bytes, at + 1)
    const length = readU16(bytes, at + 3)
    if (!isPrecopyCommand(command, length)) return this.#fall(bytes, at, `command ${command} of ${length} bytes`)
    if (end - at < 5 + length) return SHORT
    if (command === QEMU_COMMAND.postcopyAdvise && length === 16) this.#pageSizes = true
    return this.#bound(bytes, at + 5 + length)
  }

  #footer(bytes: Uint8Array, at: number, end: number): number {
    if (bytes[at] !== SECTION.footer) {
      // QEMU can be told to send no footers.
      if (this.phase === 'end') return this.#endRam(bytes, at)
      this.#state = 'section'
      return this.#bound(bytes, at)
    }
    if (end - at < 5) return SHORT
    const id = readU32(bytes, at + 1)
    if (id !== this.#ramId) throw wrong(`section ${this.#ramId} has the footer of section ${id}`)
    this.#footers = true
    if (this.phase === 'end') return this.#endRam(bytes, at + 5)
    this.#state = 'section'
    return this.#bound(bytes, at + 5)
  }

  #record(bytes: Uint8Array, at: number, end: number): number {
    if (end - at < 8) return SHORT
    const flags = readFlags(bytes, at)
    switch (flags & ~RAM_FLAG.continue) {
      case RAM_FLAG.page:
      case RAM_FLAG.zero:
        return this.#page(bytes, at, end, flags)
      case RAM_FLAG.eos:
        if (readU64(bytes, at) !== RAM_FLAG.eos) break
        this.#state = 'footer'
        return at + 8
      case RAM_FLAG.memSize:
        if (this.#pageSizes && this.#addresses) return this.#fall(bytes, at, 'a block list with page sizes and addresses')
        if (flags !== RAM_FLAG.memSize || this.phase !== 'setup' || this.#listed) break
        this.#listed = true
        this.#listBytesLeft = safe(readOffset(bytes, at))
        this.#state = 'blockList'
        return at + 8
    }
    return this.#fall(bytes, at, `RAM record with flags 0x${flags.toString(16)}`)
  }

  #page(bytes: Uint8Array, at: number, end: number, flags: number): number {
    let body = at + 8
    let block = this.#block
    const named = (flags & RAM_FLAG.continue) === 0
    if (named) {
      if (end - body < 1) return SHORT
      const length = bytes[body]!
      if (end - body < 1 + length) return SHORT
      block = this.#byName.get(readName(bytes, body + 1, length))
      if (block === undefined) return this.#fall(bytes, at, 'a page of a block that was not announced')
      body += 1 + length
    }
    if (block === undefined) throw wrong('a page continues a block before any block was named')
    const offset = safe(readOffset(bytes, at))
    const filled = (flags & RAM_FLAG.zero) !== 0
    const next = body + (filled ? 1 : PAGE_BYTES)
    if (end < next) return SHORT
    if (filled && bytes[body] !== 0) throw wrong(`a zero page is filled with ${bytes[body]}`)
    this.#block = block
    if (block.captured) {
      this.#flush(bytes, at)
      this.#run = next
      this.#capture(block, offset, filled ? undefined : bytes.subarray(body, next))
    } else {
      this.#hidden = false
      this.#hiddenPage = undefined
      if (!named) this.#rename(bytes, at, body, pageHead(offset, flags & ~RAM_FLAG.continue, block.name))
    }
    return next
  }

  #capture(block: RamBlock, offset: number, page: Uint8Array | undefined): void {
    if (offset + PAGE_BYTES > block.usedBytes) throw wrong(`a page at ${offset} is outside block ${block.name} of ${block.usedBytes} bytes`)
    this.#hidden = true
    this.#hiddenOffset = offset
    this.#hiddenPage = page
    if (page === undefined) this.#events.zero(block, offset)
    else this.#events.page(block, offset, page)
  }

  /** Names the block of a page that stays in the skeleton. */
  #rename(bytes: Uint8Array, at: number, body: number, head: Uint8Array): void {
    this.#flush(bytes, at)
    this.#run = body
    this.#events.skeleton(head)
  }

  #blockList(bytes: Uint8Array, at: number, end: number): number {
    if (this.#pending !== undefined) return this.#blockExtras(bytes, at, end, this.#pending)
    if (this.#listBytesLeft === 0) return this.#endBlockList(at)
    const length = bytes[at]!
    if (end - at < 1 + length + 8) return SHORT
    const name = readName(bytes, at + 1, length)
    const usedBytes = safe(readU64(bytes, at + 1 + length))
    if (length === 0 || this.#byName.has(name)) throw wrong(`its block list has '${name}' twice or without a name`)
    if (usedBytes > this.#listBytesLeft || this.#blocks.length === BLOCKS_MAX) throw wrong('its block list is longer than its total')
    this.#listBytesLeft -= usedBytes
    const next = at + 1 + length + 8
    if (this.#pageSizes || this.#addresses) this.#pending = { name, usedBytes }
    else this.#addBlock({ name, usedBytes })
    return next
  }

  /**
   * A page size follows only for a block whose pages are not of the host's size, and nothing says which. It cannot be
   * confused with what else can
   * follow: a name never has length 0, and a RAM record has flags in its low 12 bits, where a page size has none.
   */
  #blockExtras(bytes: Uint8Array, at: number, end: number, pending: PendingBlock): number {
    if (!this.#addresses && bytes[at] !== 0) {
      this.#addBlock(pending)
      return at
    }
    if (end - at < 8) return SHORT
    const value = readU64(bytes, at)
    const sized = !this.#addresses && isPageSize(value)
    this.#addBlock(sized ? { ...pending, pageBytes: value } : pending)
    return this.#addresses || sized ? at + 8 : at
  }

  #addBlock(pending: PendingBlock): void {
    const block: RamBlock = { ...pending, index: this.#blocks.length, captured: this.#captures(pending.name) }
    this.#blocks.push(block)
    this.#byName.set(block.name, block)
    this.#pending = undefined
  }

  #endBlockList(at: number): number {
    this.#state = 'record'
    this.#events.blocks(this.#blocks)
    return at
  }

  #endRam(bytes: Uint8Array, at: number): number {
    this.#flush(bytes, at)
    this.#state = 'raw'
    this.phase = 'devices'
    this.#events.ramEnd()
    return at
  }

  #bound(bytes: Uint8Array, at: number): number {
    this.#flush(bytes, at)
    this.#events.boundary?.()
    return at
  }

  #flush(bytes: Uint8Array, at: number): void {
    if (at > this.#run) this.#events.skeleton(bytes.subarray(this.#run, at))
    this.#run = at
  }

  /** From `at` on everything is skeleton. */
  #fall(bytes: Uint8Array, at: number, reason: string): number {
    this.#flush(bytes, at)
    const inBody = this.#state === 'record'
    this.#state = 'raw'
    this.phase = 'opaque'
    this.opaqueReason = reason
    this.#events.opaque(reason)
    if (this.#hidden && this.#block !== undefined) this.#events.skeleton(this.#reminder(this.#block, inBody))
    return at
  }

  /**
   * The raw bytes to come may continue (CONTINUE) the block of the last page, which the skeleton's reader was never
   * told when that page was captured. So that page goes in once more, named: it tells the block and writes what is
   * there already. Between sections it needs a PART section.
   */
  #reminder(block: RamBlock, inBody: boolean): Uint8Array {
    const page = this.#hiddenPage
    const head = pageHead(this.#hiddenOffset, page === undefined ? RAM_FLAG.zero : RAM_FLAG.page, block.name)
    const record = concat([head, page ?? Uint8Array.of(0)])
    if (inBody) return record
    const id = be32(this.#ramId)
    const footer = this.#footers ? [Uint8Array.of(SECTION.footer), id] : []
    return concat([Uint8Array.of(SECTION.part), id, record, EOS_RECORD, ...footer])
  }
}

type PendingBlock = { name: string; usedBytes: number; pageBytes?: number }

/**
 * Commands that a pre-copy sends; they carry nothing outside their length. The others begin a post-copy, its recovery,
 * or COLO.
 */
function isPrecopyCommand(command: number, length: number): boolean {
  if (command === QEMU_COMMAND.openReturnPath || command === QEMU_COMMAND.switchoverStart) return length === 0
  if (command === QEMU_COMMAND.ping) return length === 4
  return command === QEMU_COMMAND.postcopyAdvise && (length === 0 || length === 16)
}

const isPageSize = (value: number): boolean => value > PAGE_BYTES && value <= 2 ** 40 && Number.isInteger(Math.log2(value))

function safe(value: number): number {
  if (!Number.isSafeInteger(value)) throw wrong(`it states ${value} as a number of bytes`)
  return value
}
